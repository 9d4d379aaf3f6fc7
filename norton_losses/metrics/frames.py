"""Metrics of action segmentation: window averaging and frame accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from norton_losses._arrays import Array, check_integers, check_scores
from norton_losses._checks import check_count


def average_windows(logits: Array, starts: Array, length: int) -> NDArray[np.float64]:
    """Average the logits of overlapping windows into logits of the frames of a whole video.

    Args:
        logits: (windows, L, C), of L frames or seconds each.
        starts: (windows,), integer, the first frame of each window.
        length: T, frames of the video. What a window has beyond them is left out.

    Returns:
        (T, C), float64; its argmax along C is the prediction.

    Raises:
        ValueError: shapes that do not fit, NaN or +inf, a frame that no window sees.

    Source: action segmentation of COIN, as evaluated in Lin et al., ICLR 2024.

    Example:
        >>> from norton_losses.metrics import average_windows
        >>> windows = [[[1.0], [2.0]], [[4.0], [5.0]]]          # frames 0 and 1, frames 1 and 2
        >>> average_windows(windows, starts=[0, 1], length=3).tolist()
        [[1.0], [3.0], [5.0]]
    """
    check_count("length", length)
    logits = check_scores("logits", logits, 3)
    if (logits == np.inf).any():
        raise ValueError(
            "logits must be below infinity, got +inf, which has no mean with -inf; give what is "
            "impossible -inf"
        )
    first = check_integers("starts", starts, (len(logits),))
    if (first < 0).any():
        raise ValueError(f"starts must be frames of the video, 0 or above, got {first.min()}")
    frames = first[:, None] + np.arange(logits.shape[1], dtype=np.int64)  # (windows, L)
    inside = frames < length
    total, count = np.zeros((length, logits.shape[2])), np.zeros(length)
    np.add.at(total, frames[inside], logits[inside])
    np.add.at(count, frames[inside], 1)
    if (count == 0).any():
        raise ValueError(
            f"every frame must lie in a window, and frame {int((count == 0).argmax())} of {length} "
            "lies in none; let windows overlap, or give the length that they cover"
        )
    return total / count[:, None]


def frame_accuracy(predicted: Array, truth: Array, *, background: int | None = None) -> float:
    """Share of frames, or seconds, whose class is predicted correctly.

    Report it twice, of all frames and without background: where most of a video is background,
    a model that predicts background everywhere scores high in the first.

    Args:
        predicted: (T,), integer, the class of each frame, of one video or of all in a row.
        truth: (T,), integer.
        background: leave out frames whose true class is this one; None counts all.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: shapes that differ, no frame to count.

    Source: action segmentation of COIN, as evaluated in Lin et al., ICLR 2024.

    Example:
        >>> from norton_losses.metrics import frame_accuracy
        >>> predicted, truth = [0, 0, 0, 2], [0, 0, 1, 2]
        >>> frame_accuracy(predicted, truth), frame_accuracy(predicted, truth, background=0)
        (0.75, 0.5)
    """
    right = check_integers("truth", truth, (None,))
    guess = check_integers("predicted", predicted, right.shape)
    counted = np.ones_like(right, dtype=bool) if background is None else right != background
    if not counted.any():
        raise ValueError(
            f"there must be a frame to count, and of {len(right)} none is left; the true class of "
            "all is background"
            if len(right)
            else "there must be a frame to count, got none"
        )
    return float((guess == right)[counted].mean())
