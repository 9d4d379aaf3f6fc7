"""Ranking metrics: ranks, recall at k, median rank, multiple-choice accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from norton_losses._arrays import (
    Array,
    as_numpy,
    check_index,
    check_integers,
    check_labels,
    check_scores,
)
from norton_losses._checks import check_count


def retrieval_ranks(scores: Array, truth: Array | None = None) -> NDArray[np.float64]:
    r"""Rank of the right candidate of each query, 0 for the first; ties share their mean rank.

    .. math:: r_i = \#\{j : A_{ij} > A_{it}\} + \tfrac12 \#\{j \ne t : A_{ij} = A_{it}\}

    where t is the right candidate of query i. A constant matrix so has the median rank of chance.

    Args:
        scores: A (queries, candidates), higher is better; -inf ranks last.
        truth: (queries,), integer, the right candidate of each query; None means candidate i for
            query i. Or (queries, candidates), bool, where a query may have several: the best of
            them counts, and the others do not rank against it. Queries without one are left out.

    Returns:
        (queries,), float64, multiples of a half.

    Raises:
        ValueError: a wrong shape, NaN, a truth outside the candidates.

    Source: the rank of image-text retrieval, with the mean rank for ties.

    Example:
        >>> from norton_losses.metrics import retrieval_ranks
        >>> retrieval_ranks([[0.9, 0.1, 0.3], [0.8, 0.5, 0.2], [0.4, 0.4, 0.4]]).tolist()
        [0.0, 1.0, 1.0]
    """
    scores = check_scores("scores", scores, 2)
    right = _right(truth, scores.shape)
    asked = right.any(1)
    if not asked.any():
        raise ValueError("truth must mark a right candidate for one query at least, got none")
    if not asked.all():
        scores, right = scores[asked], right[asked]
    best = scores.max(1, keepdims=True, where=right, initial=-np.inf)
    above = ((scores > best) & ~right).sum(1)
    level = ((scores == best) & ~right).sum(1)
    return above + level / 2


def recall_at(scores: Array, k: int = 1, truth: Array | None = None) -> float:
    r"""Share of queries whose right candidate is among the first k: mean of :math:`[r_i < k]`.

    A tie is judged by its mean rank: if n candidates tie for the first place, a query counts once
    :math:`k > (n - 1) / 2`.

    Args:
        scores: (queries, candidates), higher is better. Transpose it for the other direction.
        k: how many candidates a query may look at, 1 at least.
        truth: as in :func:`retrieval_ranks`.

    Raises:
        ValueError: as :func:`retrieval_ranks`; ``k`` below 1.

    Source: R@k.

    Example:
        >>> from norton_losses.metrics import recall_at
        >>> recall_at([[0.9, 0.1, 0.3], [0.8, 0.5, 0.2], [0.1, 0.4, 0.6]], k=1)
        0.6666666666666666
    """
    check_count("k", k)
    return float((retrieval_ranks(scores, truth) < k).mean())


def median_rank(scores: Array, truth: Array | None = None) -> float:
    """Median rank of the right candidate, counted from 1.

    Args and errors as those of :func:`retrieval_ranks`.

    Source: MedR.

    Example:
        >>> from norton_losses.metrics import median_rank
        >>> median_rank([[0.9, 0.1, 0.3], [0.8, 0.5, 0.2], [0.1, 0.4, 0.6]])
        1.0
    """
    return float(np.median(retrieval_ranks(scores, truth)) + 1)


def invert_truth(truth: Array, candidates: int) -> NDArray[np.bool_]:
    """The truth of the reverse direction: which queries each candidate is right for.

    Args:
        truth: (queries,), integer, the right candidate of each query.
        candidates: how many there are.

    Raises:
        ValueError: a truth outside the candidates.

    Source: both directions of retrieval.

    Example:
        >>> from norton_losses.metrics import recall_at, invert_truth
        >>> scores = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]        # two videos of paragraph 0
        >>> scores_of_paragraphs = [list(column) for column in zip(*scores)]
        >>> recall_at(scores_of_paragraphs, 1, invert_truth([0, 0, 1], 2))
        1.0
    """
    indices = check_integers("truth", truth, (None,))
    return np.swapaxes(_right(indices, (len(indices), candidates)), 0, 1)


def multiple_choice_accuracy(videos: Array, candidates: Array, answers: Array) -> float:
    """Share of questions whose answer has the largest dot product with the video.

    A tie of t candidates at the top counts as 1/t if the answer is among them.

    Args:
        videos: (B, D), an embedding for each question.
        candidates: (B, C, D), its answers.
        answers: (B,), integer, the right one of them; or (B, C), bool.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN, an answer outside the candidates.

    Source: video question answering with multiple choice (MSR-VTT).

    Example:
        >>> from norton_losses.metrics import multiple_choice_accuracy
        >>> multiple_choice_accuracy([[1.0, 0.0]], [[[0.9, 0.1], [0.2, 0.8]]], [0])
        1.0
    """
    videos = check_scores("videos", videos, 2)
    candidates = check_scores("candidates", candidates, 3)
    (b, d), wanted = videos.shape, candidates.shape[1]
    if candidates.shape != (b, wanted, d):
        raise ValueError(
            f"candidates must have shape ({b}, C, {d}) for videos of shape {(b, d)}, got "
            f"{candidates.shape}"
        )
    right = _right(answers, (b, wanted), "answers")
    scores = check_scores("dot products", np.einsum("bd,bcd->bc", videos, candidates), 2)
    top = scores == scores.max(1, keepdims=True)
    return float(((top & right).sum(1) / top.sum(1)).mean())


def _right(truth: Array | None, shape: tuple[int, int], name: str = "truth") -> NDArray[np.bool_]:
    """Which candidates are right for each query, (queries, candidates)."""
    queries, candidates = shape
    if truth is None:
        if queries != candidates:
            raise ValueError(
                f"without {name} there must be a candidate for each query, got scores of shape "
                f"{shape}; pass the index of the right candidate of each query"
            )
        return np.eye(queries, dtype=bool)
    values = as_numpy(truth)
    if values.dtype == np.bool_:
        return check_labels(name, values, shape)
    return check_index(name, values, (queries,), candidates)[:, None] == np.arange(candidates)
