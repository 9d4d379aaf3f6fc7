"""What seeds and videos leave uncertain, as an interval and as the cell of a table."""

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


def cell(values: np.ndarray, rng: np.random.Generator, sign: str = "") -> str:
    """Mean and interval of shares (seeds, videos), in per cent; `sign="+"` for a difference."""
    low, high = (100 * bound for bound in interval(values, rng))
    return f"{100 * values.mean():{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
