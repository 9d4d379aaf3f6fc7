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
