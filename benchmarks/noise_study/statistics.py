"""Means, paired differences and intervals over seeds and held-out videos, from rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t as student

from benchmarks.noise_study.rows import Rows
from benchmarks.noise_study.run import Row, Run


@dataclass(frozen=True)
class Estimate:
    """A mean in per cent, with an interval over seeds and blocks of videos."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass
class Sample:
    """The rows of runs that differ in their seed alone."""

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
            found.setdefault(alike, Sample()).rows[run.seed] = rows[run]
    return found


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """Seeds and blocks are crossed: both vary, and each block is seen by every seed.

    The variance of the mean is (MS_seeds + MS_blocks - MS_rest) / (seeds blocks), of mean squares;
    the interval is that of Student, with as many degrees of freedom as there are seeds but one.
    """
    seeds, blocks = values.shape
    mean = values.mean()
    of_blocks = seeds * values.mean(0).var(ddof=1)
    if seeds == 1:
        variance, freedom = of_blocks / blocks, blocks - 1
    else:
        rest = values - values.mean(0) - values.mean(1, keepdims=True) + mean
        of_rest = (rest**2).sum() / ((seeds - 1) * (blocks - 1))
        of_seeds = blocks * values.mean(1).var(ddof=1)
        variance = max(of_seeds, of_blocks, of_seeds + of_blocks - of_rest) / (seeds * blocks)
        freedom = seeds - 1
    reach = student.ppf(0.5 + level / 2, freedom) * np.sqrt(variance)
    low, high = 100 * (mean - reach), 100 * (mean + reach)
    return Estimate(100 * float(mean), float(low), float(high))
