"""Means, paired differences and intervals over seeds and held-out videos, from rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.noise_study.rows import Rows
from benchmarks.noise_study.run import Row, Run
from examples.intervals import Estimate, estimate

_LEAST_SEEDS = 3


@dataclass
class Sample:
    """The rows of runs that differ in their seed alone."""

    rows: dict[int, Row] = field(default_factory=dict)  # by seed

    def values(self, task: str, seeds: Iterable[int]) -> np.ndarray:
        """Shares (seeds, blocks of videos)."""
        return np.array([self.rows[seed]["tasks"][task] for seed in seeds])

    def of(self, task: str) -> Estimate:
        return estimate(self.values(task, sorted(self.rows)))

    def minus(self, other: Sample, task: str, claims: int = 1) -> Estimate:
        """The difference, paired by seed and video, at 95 % over that many claims (Bonferroni)."""
        seeds = sorted(self.rows.keys() & other.rows.keys())
        if len(seeds) < min(_LEAST_SEEDS, len(self.rows), len(other.rows)):
            raise ValueError(f"two samples must share {_LEAST_SEEDS} seeds, and share {seeds}")
        difference = self.values(task, seeds) - other.values(task, seeds)
        return estimate(difference, 1 - 0.05 / claims)

    def mean_of(self, key: str) -> float:
        return float(np.mean([row[key] for row in self.rows.values()]))


def samples(runs: Iterable[Run], rows: Rows) -> dict[Run, Sample]:
    """Runs that are on file, together where they differ in their seed alone, in their order.

    Of those with several seeds to come, two seeds are none: they say too little of the others.
    """
    found: dict[Run, Sample] = {}
    planned: Counter[Run] = Counter()
    for run in runs:
        alike = replace(run, seed=0)
        planned[alike] += 1
        if run in rows:
            found.setdefault(alike, Sample()).rows[run.seed] = rows[run]
    return {
        run: sample
        for run, sample in found.items()
        if len(sample.rows) >= min(_LEAST_SEEDS, planned[run])
    }
