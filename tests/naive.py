"""The definitions, spelled out with plain loops: slow, obvious, and independent of the library.

Everything takes one pair of sequences, or one problem, as float64 numpy arrays of valid entries
only. What the library masks, these simply do not contain.
"""

from __future__ import annotations

import numpy as np


def log_sum_exp(values: np.ndarray) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))


def soft_maximum(frames: np.ndarray, words: np.ndarray, alpha: float, mean: bool) -> float:
    """Eq. (5) for one clip (f, D) and one caption (w, D)."""
    scores = frames @ words.T
    by_frame = [alpha * log_sum_exp(row / alpha) for row in scores]
    by_word = [alpha * log_sum_exp(column / alpha) for column in scores.T]
    if mean:
        by_frame = [value - alpha * np.log(len(words)) for value in by_frame]
        by_word = [value - alpha * np.log(len(frames)) for value in by_word]
    return float(np.mean(by_frame) + np.mean(by_word)) / 2


def sinkhorn(
    scores: np.ndarray, mu: np.ndarray, nu: np.ndarray, epsilon: float, steps: int
) -> np.ndarray:
    """Eq. (3), rows first, on plain numbers."""
    kernel = np.exp((scores - scores.max()) / epsilon)
    k2 = np.ones(len(nu))
    for _ in range(steps):
        k1 = mu / (kernel @ k2)
        k2 = nu / (kernel.T @ k1)
    return k1[:, None] * kernel * k2[None, :]


def with_bucket(similarity: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eq. (6): scores, mu and nu with the bucket's row and column."""
    n, m = similarity.shape
    scores = np.full((n + 1, m + 1), p)
    scores[:n, :m] = similarity
    mu = np.array([1.0] * n + [m]) / (n + m)
    nu = np.array([1.0] * m + [n]) / (n + m)
    return scores, mu, nu


def transport_measure(
    similarity: np.ndarray, p: float | None, epsilon: float, steps: int, conserve_mass: bool
) -> float:
    """Score of one video (rows) with one paragraph (columns); captions are updated first."""
    n, m = similarity.shape
    if p is None:
        plan = sinkhorn(similarity.T, np.full(m, 1 / m), np.full(n, 1 / n), epsilon, steps).T
    else:
        scores, mu, nu = with_bucket(similarity, p)
        plan = sinkhorn(scores.T, nu, mu, epsilon, steps).T[:n, :m]
    total = float((plan * similarity).sum())
    if conserve_mass:
        return total / plan.sum()
    return total if p is None else 2 * total


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Eq. (8): mean over rows, both directions."""
    loss = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            row = logits[i, j] - log_sum_exp(logits[i])
            column = logits[i, j] - log_sum_exp(logits[:, j])
            loss -= targets[i, j] * (row + column)
    return loss / len(logits)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def smallest(values: list[float], smoothing: float) -> float:
    if smoothing == 0:
        return min(values)
    return -smoothing * log_sum_exp(-np.array(values) / smoothing)


def dynamic_time_warping(costs: np.ndarray, smoothing: float) -> float:
    n, m = costs.shape
    distances = np.empty((n, m))
    for a in range(n):
        for b in range(m):
            before = []
            if a > 0 and b > 0:
                before.append(distances[a - 1, b - 1])
            if a > 0:
                before.append(distances[a - 1, b])
            if b > 0:
                before.append(distances[a, b - 1])
            distances[a, b] = costs[a, b] + (smallest(before, smoothing) if before else 0)
    return float(distances[-1, -1])


def ordered_alignment(costs: np.ndarray, smoothing: float) -> float:
    """One direction, the columns of zeros written out."""
    n, m = costs.shape
    padded = np.zeros((n, m + 2))
    padded[:, 1:-1] = costs
    distances = np.zeros((n, m + 2))
    for b in range(1, m + 2):
        distances[0, b] = padded[0, b] + distances[0, b - 1]
    for a in range(1, n):
        for b in range(1, m + 2):
            before = [distances[a - 1, b - 1], distances[a, b - 1]]
            if b in (1, m + 1):
                before.append(distances[a - 1, b])
            distances[a, b] = padded[a, b] + smallest(before, smoothing)
    return float(distances[-1, -1])


def warping_paths(n: int, m: int) -> list[list[tuple[int, int]]]:
    """Every way from the first cell to the last by steps of one, on or across."""
    if n == 1 and m == 1:
        return [[(0, 0)]]
    before = [(n - 1, m - 1), (n - 1, m), (n, m - 1)]
    return [[*path, (n - 1, m - 1)] for a, b in before if a and b for path in warping_paths(a, b)]


def kept_clips(similarity: np.ndarray, clips_per_caption: float) -> np.ndarray:
    n, m = similarity.shape
    kept = sorted(range(n), key=lambda i: -similarity[i].max())[
        : max(int(clips_per_caption * m), 1)
    ]
    return np.isin(np.arange(n), kept)
