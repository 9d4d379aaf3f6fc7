"""Measures that align clips with captions in their order, by a recursion on costs.

``similarity (Bv, Bt, N, M) -> tiles of pairs -> costs (N, M, P) -> distances (P,) -> (Bv, Bt)``

The pairs of a tile go through the recursion together, and only a tile of it exists at a time: the
backward pass walks each tile again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from norton_losses._checks import check_not_negative
from norton_losses.sequence_measures.measure import AbstractSequenceMeasure, MeasureOutput
from norton_losses.similarity_block import SimilarityBlock

# (costs (N, M, P), clips (P,), captions (P,)) -> distances (P,). What lies beyond a pair's own
# number of clips and captions is 0 and must have no effect.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]

_CELLS_ON_CPU = 1 << 21
_CELLS = 1 << 24


class AbstractAlignment(AbstractSequenceMeasure):
    r"""Base of alignment measures, which have a distance: costs, tiles, masks, the path.

    .. math:: A = -\frac{D(1 - S)}{n + m}

    with n and m the numbers of valid clips and captions. A subclass implements
    D in :meth:`distance`, by operations that autograd knows.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        check_not_negative("smoothing", smoothing)
        self.smoothing = smoothing

    @abstractmethod
    def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
        """Distances (P,) of P pairs, from costs (N, M, P), of which a pair has clips x captions."""

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        tiles = _Tiles(block, self.distance)
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
        # Inference mode records nothing, and its tensors cannot be recorded later: hence clones.
        with torch.inference_mode(False), torch.no_grad():
            masks = block.clip_mask.clone(), block.caption_mask.clone()
            block = SimilarityBlock(block.raw.clone(), *masks)
            clips, captions = block.counts
            matches = (clips + captions).to(block.raw.dtype)
            path = _Tiles(block, self.distance).gradient(block.raw, matches)
        return path + 0  # 0, where -0 would be printed

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"


def smallest(candidates: Sequence[Tensor], smoothing: float) -> Tensor:
    """The minimum, or its smooth form ``-g log sum exp(-x / g)``; an infinite one takes no part.

    At a tie the gradient follows the candidate named first, so that a path stays a path.
    """
    if smoothing > 0:
        return torch.stack(list(candidates)).div(-smoothing).logsumexp(0).mul(-smoothing)
    best = candidates[0]
    for other in candidates[1:]:
        if torch.is_grad_enabled():
            best = torch.where(other < best, other, best)
        else:
            best = torch.minimum(best, other)
    return best


class _ByTiles(torch.autograd.Function):
    """Scores tile by tile; so is their gradient, from costs computed again."""

    @staticmethod
    def forward(similarity: Tensor, clips: Tensor, captions: Tensor, tiles: _Tiles) -> Tensor:
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


@dataclass(frozen=True)
class _Tile:
    """Some videos with some paragraphs, and the most clips and captions any of them has."""

    videos: Tensor  # (bv,), indices
    paragraphs: Tensor  # (bt,), indices
    clips: int
    captions: int

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.videos[:, None], self.paragraphs

    def of(self, similarity: Tensor) -> Tensor:
        """(Bv, Bt, clips, captions), a view: nothing valid lies beyond."""
        return similarity[..., : self.clips, : self.captions]


class _Tiles:
    """All pairs in tiles, and the scoring of a tile.

    Only the CPU can look at masks without waiting: there tiles have sequences of like length, and
    are only as long as those.
    """

    def __init__(self, block: SimilarityBlock, distance: Distance) -> None:
        bv, bt, n, m = block.raw.shape
        self.clips, self.captions = block.clips.expand(bv, bt, n), block.captions.expand(bv, bt, m)
        self.distance = distance
        self.on_cpu = block.raw.device.type == "cpu"
        self.gaps = not (self.on_cpu and _valid_first(block.clips) and _valid_first(block.captions))

    def __iter__(self) -> Iterator[_Tile]:
        (bv, bt, n), m, device = self.clips.shape, self.captions.shape[-1], self.clips.device
        side = max(int(((_CELLS_ON_CPU if self.on_cpu else _CELLS) / (n * m)) ** 0.5), 1)
        clips, captions = self.clips.sum(-1).amax(1), self.captions.sum(-1).amax(0)
        videos = clips.argsort() if self.on_cpu else torch.arange(bv, device=device)
        paragraphs = captions.argsort() if self.on_cpu else torch.arange(bt, device=device)
        for top, left in product(range(0, bv, side), range(0, bt, side)):
            rows, columns = videos[top : top + side], paragraphs[left : left + side]
            if not self.gaps:
                n, m = (max(int(c.max()), 1) for c in (clips[rows], captions[columns]))
            yield _Tile(rows, columns, n, m)

    def scores(self, similarity: Tensor) -> Tensor:
        """Scores (Bv, Bt) of all pairs."""
        scores = similarity.new_zeros(similarity.shape[:2])
        for tile in self:
            scores[tile.pairs] = self.scores_of(tile.of(similarity)[tile.pairs], tile)
        return scores

    def gradient(self, similarity: Tensor, of_scores: Tensor) -> Tensor:
        """Gradient by the similarity, from that by the scores (Bv, Bt), costs computed again."""
        gradient = torch.zeros_like(similarity)
        twice = torch.is_grad_enabled()  # the gradient is to be differentiated in its turn
        for tile in self:
            block = tile.of(similarity)[tile.pairs]
            if not block.requires_grad:
                block.requires_grad_()
            with torch.enable_grad():
                scores = self.scores_of(block, tile)
            upstream = of_scores[tile.pairs]
            (part,) = torch.autograd.grad(scores, block, upstream, create_graph=twice)  # pyright: ignore
            tile.of(gradient)[tile.pairs] = part
        return gradient

    def scores_of(self, block: Tensor, tile: _Tile) -> Tensor:
        """Scores (bv, bt) of the similarities (bv, bt, n, m) of a tile."""
        clips, captions = self.clips[tile.pairs], self.captions[tile.pairs]
        if self.gaps:
            block = block.take_along_dim(_order(clips)[..., :, None], 2)
            block = block.take_along_dim(_order(captions)[..., None, :], 3)
        n, m = clips.sum(-1).flatten(), captions.sum(-1).flatten()  # (P,)
        rows = torch.arange(tile.clips, device=n.device)[:, None, None]
        columns = torch.arange(tile.captions, device=n.device)[:, None]
        costs = (1 - block).flatten(2).flatten(0, 1).T.contiguous()  # (n * m, P)
        costs = costs.view(tile.clips, tile.captions, -1)
        costs = costs.masked_fill((rows >= n) | (columns >= m), 0)
        distances = self.distance(costs, n.clamp(min=1), m.clamp(min=1))
        scores = 0 - distances / (n + m).clamp(min=1)  # 0 - 0 is 0, and -0 is -0
        return scores.masked_fill((n == 0) | (m == 0), 0).view(block.shape[:2])


def _order(mask: Tensor) -> Tensor:
    """Indices that bring the valid entries to the front, in their order."""
    return (~mask).byte().argsort(dim=-1, stable=True)


def _valid_first(mask: Tensor) -> bool:
    return not (mask[..., 1:] & ~mask[..., :-1]).any()
