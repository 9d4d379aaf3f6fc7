"""The real scans: 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships, by split.

Writers filled in forms that follow each other in the file, and the cuts are between two forms: the
hands of validation and test are, as far as the file tells, others than those of training.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

Split = Literal["train", "validation", "test"]

DIGITS = 10
NOTHING = -1  # no digit, no step, no place
PARTS = {"train": slice(0, 1029), "validation": slice(1029, 1287), "test": slice(1287, 1797)}


def draw_scans(split: Split, digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan (..., 8, 8) in [0, 1] of each digit; of NOTHING a distractor.

    A distractor is a stray digit or, half of the time, a scan with its pixels shuffled.
    """
    images, first, count = _by_digit(split)
    stray = digits == NOTHING
    wanted = np.where(stray, rng.integers(DIGITS, size=digits.shape), digits)
    frames = images[first[wanted] + (rng.random(digits.shape) * count[wanted]).astype(int)]
    shuffled = stray & (rng.random(digits.shape) < 0.5)
    frames[shuffled] = rng.permuted(frames[shuffled].reshape(-1, 64), axis=1).reshape(-1, 8, 8)
    return frames


@cache
def _by_digit(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The split's scans sorted by digit, where each digit begins, and how many it has."""
    pixels, labels = load_digits(return_X_y=True)
    part = PARTS[split]
    order = np.argsort(labels[part], kind="stable")
    images = (pixels[part][order] / 16).astype(np.float32).reshape(-1, 8, 8)
    count = np.bincount(labels[part], minlength=DIGITS)
    return images, np.cumsum(count) - count, count
