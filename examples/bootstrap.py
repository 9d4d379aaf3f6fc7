"""Intervals of what seeds and videos leave uncertain."""

from __future__ import annotations

import numpy as np


def interval(
    values: np.ndarray, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values (seeds, videos), resampling both."""
    seeds, videos = values.shape
    rows = rng.integers(seeds, size=(draws, seeds, 1))
    columns = rng.integers(videos, size=(draws, 1, videos))
    low, high = np.percentile(values[rows, columns].mean((1, 2)), [2.5, 97.5])
    return float(low), float(high)
