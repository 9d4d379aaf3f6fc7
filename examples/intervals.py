"""What seeds and videos leave uncertain: a mean and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A mean in per cent, with an interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def estimate(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Mean of shares (seeds, videos), where every seed sees the same videos and both vary.

    The variance of the mean is (MS_seeds + MS_videos - MS_rest) / (seeds videos), of mean squares;
    the interval is that of Student, with the degrees of freedom of Satterthwaite. One seed alone
    tells of videos only.
    """
    seeds, videos = values.shape
    mean = values.mean()
    of_videos = seeds * values.mean(0).var(ddof=1)
    variance, freedom = of_videos, videos - 1.0
    if seeds > 1:
        of_seeds = videos * values.mean(1).var(ddof=1)
        rest = values - values.mean(0) - values.mean(1, keepdims=True) + mean
        of_rest = (rest**2).sum() / ((seeds - 1) * (videos - 1))
        both = of_seeds + of_videos - of_rest
        # A mean square below that of the rest is chance: it would make the other one too small.
        if both > max(of_seeds, of_videos):
            squares = (of_seeds**2, of_videos**2, of_rest**2)
            each = (seeds - 1, videos - 1, (seeds - 1) * (videos - 1))
            variance = both
            freedom = both**2 / sum(s / f for s, f in zip(squares, each, strict=True))
        elif of_seeds > of_videos:
            variance, freedom = of_seeds, seeds - 1.0
    reach = student.ppf(0.5 + level / 2, freedom) * np.sqrt(variance / (seeds * videos))
    low, high = 100 * (mean - reach), 100 * (mean + reach)
    return Estimate(100 * float(mean), float(low), float(high))
