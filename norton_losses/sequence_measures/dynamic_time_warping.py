"""Dynamic time warping: every clip and every caption is matched, in order, at the least cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from norton_losses.sequence_measures.alignment import (
    AbstractAlignment,
    cost_factor,
    largest_sum,
    weights_in_largest,
)
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
        smoothing: gamma, 0 or within [1e-12, 1e12], in units of similarity.

    Raises:
        ValueError: ``smoothing`` below 0 or beyond that range.

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
        distances, _ = _Warping.apply(costs, clips, captions, self.smoothing)  # pyright: ignore
        return cast(Tensor, distances)


class _AntiDiagonals:
    """The cells of a matrix by clip + caption: those of one anti-diagonal depend on the two before.

    In a table they lie one beneath the other, each in a frame of two rows more.
    """

    def __init__(self, clips: int, captions: int) -> None:
        self.clips, self.captions, self.count = clips, captions, clips + captions - 1
        self.first = [max(k - captions + 1, 0) for k in range(self.count)]  # its least clip
        self.sizes = [min(k, clips - 1) - self.first[k] + 1 for k in range(self.count)]
        self.rows = [size + 2 for size in self.sizes]

    def parts(self, table: Tensor) -> Sequence[Tensor]:
        """The anti-diagonals of a table, in their frames: views."""
        return cast(Sequence[Tensor], table.split(self.rows))  # pyright: ignore

    def cells(self, matrix: Tensor, k: int) -> Tensor:
        """Anti-diagonal k of a matrix (N * M, P): cell (a, k - a) is its row k + a (M - 1)."""
        step = self.captions - 1
        return matrix[k + self.first[k] * step :: max(step, 1)][: self.sizes[k]]

    def predecessors(self, parts: Sequence[Tensor], k: int) -> Iterator[Tensor]:
        """Of each cell (a, b) with a + b = k: (a-1, b-1), (a-1, b) and (a, b-1), views.

        A view is made when it is asked for: autograd refuses to change one that was made before
        another of the same tensor was changed.
        """
        for back, step in ((2, 0), (1, 0), (1, 1)):
            if back <= k:
                start = self.first[k] - self.first[k - back] + step
                yield parts[k - back].narrow(0, start, self.sizes[k])

    def last(self, clips: Tensor, captions: Tensor) -> Tensor:
        """The row (1, P) of a table where each pair's last cell is."""
        # Computed there, since lists that are copied to a GPU make the host wait.
        k = torch.arange(self.count, device=clips.device)
        first = (k - self.captions + 1).clamp(min=0)
        rows = k.clamp(max=self.clips - 1) - first + 3
        return ((rows.cumsum(0) - rows - first)[clips + captions - 2] + clips)[None]


class _Warping(torch.autograd.Function):
    """Distances (P,); the gradient of a cell's cost is how often the paths go through it.

    The table of best sums is given out as well, to be kept for the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        costs: Tensor, clips: Tensor, captions: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        n, m, pairs = costs.shape
        diagonals = _AntiDiagonals(n, m)
        table = costs.new_full((sum(diagonals.rows), pairs), -torch.inf)
        _warp(costs, diagonals.parts(table), diagonals, smoothing)
        return table.gather(0, diagonals.last(clips, captions))[0] / cost_factor(smoothing), table

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.smoothing = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        costs, clips, captions, table = ctx.saved_tensors
        n, m, pairs = costs.shape
        diagonals = _AntiDiagonals(n, m)
        start = grad_outputs[0].new_zeros(table.shape)
        start.scatter_(0, diagonals.last(clips, captions), grad_outputs[0][None])
        sums, through = diagonals.parts(table), diagonals.parts(start)
        if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
            # In memory of their own, or a change of one would count as a change of all.
            through = [part.clone() for part in through]
            if ctx.smoothing > 0:  # else the weights are constants
                sums = [torch.full_like(part, -torch.inf) for part in sums]
                _warp(costs, sums, diagonals, ctx.smoothing)
        gradient = start.new_empty((n * m, pairs))
        for k in reversed(range(diagonals.count)):
            own = through[k][1:-1]
            diagonals.cells(gradient, k).copy_(own)
            if k:
                before = list(diagonals.predecessors(sums, k))
                weights, total = weights_in_largest(before, ctx.smoothing > 0)
                of_one = own / total
                for earlier, weight in zip(
                    diagonals.predecessors(through, k), weights, strict=True
                ):
                    earlier.addcmul_(of_one, weight)
        return gradient.view(n, m, pairs), None, None, None


def _warp(
    costs: Tensor, parts: Sequence[Tensor], diagonals: _AntiDiagonals, smoothing: float
) -> None:
    """Fill in the best sums of each anti-diagonal; the frames of -inf stay: outside is no way."""
    costs, factor = costs.flatten(0, 1), cost_factor(smoothing)
    parts[0][1:-1] = diagonals.cells(costs, 0) * factor
    for k in range(1, diagonals.count):
        before = largest_sum(list(diagonals.predecessors(parts, k)), smoothing > 0)
        parts[k][1:-1] = before.add(diagonals.cells(costs, k), alpha=factor)


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
