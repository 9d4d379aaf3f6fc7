"""Dynamic time warping: every clip and every caption is matched, in order, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from norton_losses.sequence_measures.alignment import AbstractAlignment, smallest
from norton_losses.sequence_measures.alignment_operator import MEASURES


@final
class DynamicTimeWarping(AbstractAlignment):
    r"""Minus the least cost of matching a video to a paragraph in order, per clip and caption.

    .. math:: D_{ab} = C_{ab} + \min(D_{a-1,b-1}, D_{a-1,b}, D_{a,b-1}), \quad C = 1 - S,
              \quad A = -\frac{D_{nm}}{n + m}

    Every clip and every caption is matched at least once. With ``smoothing`` :math:`\gamma` above 0
    the minimum is :math:`-\gamma \log \sum \exp(-\cdot / \gamma)`, smooth in S (soft-DTW); at 0 the
    gradient follows one of the best paths.

    Args:
        smoothing: gamma, 0 or above, in units of similarity.

    Raises:
        ValueError: ``smoothing`` below 0.

    Source: Sakoe and Chiba, 1978; the smooth form is that of Cuturi and Blondel, ICML 2017.

    Example:
        >>> import torch
        >>> from norton_losses import DynamicTimeWarping
        >>> similarity = torch.tensor([[[[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]]]])
        >>> out = DynamicTimeWarping().explain(similarity)
        >>> out.alignment[0, 0].nonzero().tolist()       # clips 0 and 1 tell caption 0
        [[0, 0], [1, 0], [2, 1]]
    """

    def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
        # Anti-diagonal by anti-diagonal: all cells of one depend on the two before it.
        n, m, pairs = costs.shape
        sizes = [min(k, n - 1) - max(k - m + 1, 0) + 1 for k in range(n + m - 1)]
        # Sorted and split once: the gradient of a slice for each is as large as all costs.
        cell = torch.arange(n * m, device=costs.device)
        order = (cell // m + cell % m).argsort(stable=True)
        sorted_costs = costs.flatten(0, 1).index_select(0, order)
        diagonals = cast(Sequence[Tensor], sorted_costs.split(sizes))  # pyright: ignore
        ends = clips + captions - 2  # the anti-diagonal of a pair's last cell

        def framed(cells: Tensor) -> Tensor:  # what lies outside the matrix is infinitely far
            return pad(cells, (0, 0, 1, 1), value=torch.inf)

        start = diagonals[0]
        before, last, distances = framed(start[:0]), framed(start), start[0]
        first_before, first_last = 0, 0  # the clips that anti-diagonals k - 2 and k - 1 begin with
        for k in range(1, n + m - 1):
            first, size = max(k - m + 1, 0), sizes[k]
            across = before[first - first_before :][:size]  # D[a-1, b-1]
            down = last[first - first_last :][:size]  # D[a-1, b]
            along = last[first - first_last + 1 :][:size]  # D[a, b-1]
            cells = framed(diagonals[k] + smallest((across, down, along), self.smoothing))
            before, last, first_before, first_last = last, cells, first_last, first
            at_clip = cells.gather(0, (clips - first).clamp(0, size + 1).expand(1, pairs))[0]
            distances = torch.where(ends == k, at_clip, distances)
        return distances


MEASURES["DynamicTimeWarping"] = DynamicTimeWarping


def dynamic_time_warping(
    similarity: Tensor,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Score (Bv, Bt) of similarities (Bv, Bt, N, M) by :class:`DynamicTimeWarping`.

    Example:
        >>> import torch
        >>> from norton_losses.functional import dynamic_time_warping
        >>> backwards = torch.eye(3)[None, None].flip(-1)
        >>> dynamic_time_warping(backwards)               # two costs of 1 over 3 + 3
        tensor([[-0.3333]])
    """
    return DynamicTimeWarping(smoothing)(similarity, clip_mask, caption_mask)
