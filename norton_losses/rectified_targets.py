"""Soft targets for faulty negatives, Eq. (8): the identity mixed with a transport plan."""

from __future__ import annotations

import torch
from torch import Tensor


def rectified_targets(
    identity: Tensor, transported: Tensor | None, beta: float, duplicates: Tensor | None
) -> Tensor:
    r"""Rows of :math:`T = (1 - \beta) I + \beta K Q`, without what is not a negative.

    Args:
        identity: rows of I (rows, K), 0 where a pair is not valid.
        transported: the same rows of K Q, or None for ``beta=0``.
        beta: share of the target that follows the plan.
        duplicates: (rows, K), bool, pairs that share a group; None means none.

    Source: Eq. (8) of Lin et al., ICLR 2024.
    """
    targets = identity
    if transported is not None:
        targets = (1 - beta) * identity + beta * transported
    if duplicates is None:
        return targets
    kept = targets.masked_fill(duplicates, 0)
    before, after = targets.sum(-1, keepdim=True), kept.sum(-1, keepdim=True)
    emptied = after == 0  # beta = 1 allows it: the row's mass then goes to its own pair
    return torch.where(emptied, identity, kept / after.masked_fill(emptied, 1)) * before
