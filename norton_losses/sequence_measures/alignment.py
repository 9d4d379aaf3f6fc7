"""Measures that align clips with captions in their order, by a recursion on costs.

``similarity (Bv, Bt, N, M) -> tiles of pairs -> costs (N, M, P) -> distances (P,) -> (Bv, Bt)``

The pairs of a tile go through the recursion together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor

from norton_losses._checks import check_not_negative
from norton_losses._numerics import is_traced
from norton_losses.sequence_measures.alignment_operator import MEASURES
from norton_losses.sequence_measures.alignment_operator import alignment as alignment_operator
from norton_losses.sequence_measures.alignment_tiles import Tiles
from norton_losses.sequence_measures.measure import AbstractSequenceMeasure, MeasureOutput
from norton_losses.similarity_block import SimilarityBlock


class AbstractAlignment(AbstractSequenceMeasure):
    r"""Base of alignment measures, which have a distance: costs, tiles, masks, the path.

    .. math:: A = -\frac{D(1 - S)}{n + m}

    with n and m the numbers of valid clips and captions. A subclass implements
    D in :meth:`distance`, by operations that autograd knows. Under ``torch.compile`` those of this
    package are one operator, and have no path.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        check_not_negative("smoothing", smoothing)
        # Costs over it must neither overflow nor vanish.
        if smoothing and not 1e-12 <= smoothing <= 1e12:
            raise ValueError(
                f"smoothing must be 0 or lie between 1e-12 and 1e12, got {smoothing}; 0 is the "
                "minimum itself"
            )
        self.smoothing = smoothing

    @abstractmethod
    def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
        """Distances (P,) of P pairs, from costs (N, M, P), of which a pair has clips x captions.

        Both numbers (P,) are 1 at least, and costs beyond them 0.
        """

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        if is_traced(block.raw) and MEASURES.get(type(self).__name__) is type(self):
            bv, bt, n, m = block.raw.shape
            masks = block.clips.expand(bv, bt, n), block.captions.expand(bv, bt, m)
            how = type(self).__name__, float(self.smoothing)
            return MeasureOutput(alignment_operator(block.raw, *masks, *how))
        tiles = Tiles(block, self.distance)
        if any(parameter.requires_grad for parameter in self.parameters()):
            score = tiles.scores(block.raw)  # autograd keeps all tiles for the parameters
        else:
            inputs = block.raw, block.clips, block.captions, tiles
            score = cast(Tensor, _ByTiles.apply(*inputs))  # pyright: ignore
        return MeasureOutput(score, alignment=partial(self._path, block, self._versions(block)))

    def _versions(self, block: SimilarityBlock) -> list[int]:
        """How often what a path is made of was changed in place."""
        tensors = block.raw, block.clip_mask, block.caption_mask, *self.parameters()
        return [t._version for t in tensors if not t.is_inference()]

    def _path(self, block: SimilarityBlock, versions: list[int]) -> Tensor:
        """The gradient of the distances by their costs: how often a path matches a cell."""
        if versions != self._versions(block):
            raise RuntimeError(
                "alignment is computed when it is read, and the similarity, a mask or a parameter "
                "was changed in place since the scores were; read it before"
            )
        with torch.inference_mode(False), torch.no_grad():  # inference mode records nothing
            clips, captions = block.counts
            matches = (clips + captions).to(block.raw.dtype)
            path = Tiles(block, self.distance).gradient(block.raw, matches)
        return path + 0  # 0, where -0 would be printed

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"


def cost_factor(smoothing: float) -> float:
    """What costs are multiplied by, so that :func:`largest_sum` finds the least distances.

    With smoothing g that is -1 / g: the minimum ``-g log sum exp(-D / g)`` is a log-sum-exp.
    """
    return -1 / smoothing if smoothing > 0 else -1.0


def largest_sum(sums: Sequence[Tensor], smooth: bool) -> Tensor:
    """The maximum, or its smooth form ``log sum exp``; one of -inf takes no part.

    At a tie the gradient follows the sum named first, so that a path stays a path.
    """
    if smooth:
        return cast(Tensor, _LogSumExp.apply(*sums))  # pyright: ignore
    largest = sums[0]
    for other in sums[1:]:
        if torch.is_grad_enabled():
            largest = torch.where(other > largest, other, largest)
        else:
            largest = torch.maximum(largest, other)
    return largest


def weights_in_largest(sums: Sequence[Tensor], smooth: bool) -> tuple[list[Tensor], Tensor]:
    """The gradient of :func:`largest_sum` by each sum, times a total; and the total.

    Apart, since who goes on with the gradient divides it once, and not each of the weights.
    """
    largest = reduce(torch.maximum, sums).detach()
    if smooth:
        # By the rounded result the shares would not sum to 1; over a path such errors multiply.
        largest = largest.clamp(min=torch.finfo(largest.dtype).min)  # then none of -inf has a share
        weights = [(one - largest).exp_() for one in sums]
        return weights, reduce(torch.add, weights).clamp(min=1)  # that of the largest is 1
    free = torch.ones_like(largest, dtype=torch.bool)
    weights: list[Tensor] = []
    for one in sums:
        weights.append((one == largest) & free)
        free = free & ~weights[-1]
    return [weight.to(largest.dtype) for weight in weights], largest.new_ones(())


class _LogSumExp(torch.autograd.Function):
    """The logarithm of a sum of exponentials, whose gradient needs nothing but what went in."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*sums: Tensor) -> Tensor:
        return reduce(torch.logaddexp, sums)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        weights, total = weights_in_largest(ctx.saved_tensors, smooth=True)
        of_one = grad_outputs[0] / total
        return tuple(of_one * weight for weight in weights)


class _ByTiles(torch.autograd.Function):
    """Scores tile by tile; so is their gradient, from costs computed again."""

    @staticmethod
    def forward(similarity: Tensor, clips: Tensor, captions: Tensor, tiles: Tiles) -> Tensor:
        return tiles.scores(similarity)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.tiles = inputs
        # Masks are saved too, though the tiles hold them: autograd then refuses in-place changes.
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        similarity, *_ = ctx.saved_tensors
        return ctx.tiles.gradient(similarity, grad_outputs[0]), None, None, None
