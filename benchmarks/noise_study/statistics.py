"""Means, paired differences and intervals over seeds and held-out videos, from rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from benchmarks.noise_study.rows import Rows
from benchmarks.noise_study.run import Row, Run

_DRAWS = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean in per cent, with a bootstrap interval over seeds and blocks of videos."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass
class Sample:
    """The rows of runs that differ in their seed alone."""

    run: Run  # its seed is of no meaning
    rows: dict[int, Row] = field(default_factory=dict)  # by seed

    def values(self, task: str, seeds: Iterable[int]) -> np.ndarray:
        """Shares (seeds, blocks of videos)."""
        return np.array([self.rows[seed]["tasks"][task] for seed in seeds])

    def of(self, task: str) -> Estimate:
        return _estimate(self.values(task, sorted(self.rows)), 0.95)

    def minus(self, other: Sample, task: str, claims: int = 1) -> Estimate:
        """The difference, paired by seed and video, at 95 % over that many claims (Bonferroni)."""
        seeds = sorted(self.rows.keys() & other.rows.keys())
        difference = self.values(task, seeds) - other.values(task, seeds)
        return _estimate(difference, 1 - 0.05 / claims)

    def mean_of(self, key: str) -> float:
        return float(np.mean([row[key] for row in self.rows.values()]))


def samples(runs: Iterable[Run], rows: Rows) -> dict[Run, Sample]:
    """Runs that are on file, together where they differ in their seed alone, in their order."""
    found: dict[Run, Sample] = {}
    for run in runs:
        if run in rows:
            alike = replace(run, seed=0)
            found.setdefault(alike, Sample(alike)).rows[run.seed] = rows[run]
    return found


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """Both seeds and blocks are drawn anew, with replacement.

    Means of few seeds, drawn with replacement, spread too little, by (n - 1) / n in their variance:
    deviations of the seeds are widened by as much.
    """
    seeds, blocks = values.shape
    centre = values.mean(0)
    if seeds > 1:
        values = centre + (values - centre) * np.sqrt(seeds / (seeds - 1))
    of_seeds, of_blocks = _weights(seeds, blocks)
    drawn = 100 * ((of_seeds @ values) * of_blocks).sum(1)
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(100 * float(centre.mean()), float(low), float(high), seeds)


@cache
def _weights(seeds: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and block is drawn, as shares: (draws, seeds) and (draws, blocks)."""
    rng = np.random.default_rng(0)
    one, other = (rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n for n in (seeds, blocks))
    return one, other
