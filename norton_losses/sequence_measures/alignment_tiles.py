"""All pairs of a block in tiles, and the scores and gradients of a recursion on their costs.

Only one tile of costs exists at a time: the backward pass walks each tile again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from norton_losses.similarity_block import SimilarityBlock

# (costs (N, M, P), clips (P,), captions (P,)) -> distances (P,). What lies beyond a pair's own
# number of clips and captions is 0 and must have no effect.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]

_CELLS_ON_CPU = 1 << 21
_CELLS = 1 << 24


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

    def taken(self, blocks: Tensor) -> Tensor:
        """The similarities (bv, bt, clips, captions) of its pairs, of all (Bv, Bt, N, M)."""
        inside = ..., slice(self.clips), slice(self.captions)  # nothing valid lies beyond
        if not blocks.is_contiguous():  # to flatten them would copy all
            return blocks[inside][self.pairs]
        # Whole blocks by one index are copied faster than their parts by two.
        taken = blocks.flatten(0, 1).index_select(0, self._index(blocks))
        return taken.view(len(self.videos), len(self.paragraphs), *blocks.shape[2:])[inside]

    def put(self, part: Tensor, blocks: Tensor) -> None:
        """The reverse of :meth:`taken`, with 0 beyond."""
        *_, n, m = blocks.shape
        whole = pad(part, (0, m - self.captions, 0, n - self.clips))
        blocks.view(-1, n, m).index_copy_(0, self._index(blocks), whole.flatten(0, 1))

    def _index(self, blocks: Tensor) -> Tensor:
        return (self.videos[:, None] * blocks.shape[1] + self.paragraphs).flatten()


class Tiles:
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
            scores[tile.pairs] = self.scores_of(tile.taken(similarity), tile)
        return scores

    def gradient(self, similarity: Tensor, of_scores: Tensor) -> Tensor:
        """Gradient by the similarity, from that by the scores (Bv, Bt), costs computed again."""
        gradient = similarity.new_empty(similarity.shape)
        twice = torch.is_grad_enabled()  # the gradient is to be differentiated in its turn
        for tile in self:
            block = tile.taken(similarity)
            if not block.requires_grad:
                block.requires_grad_()
            with torch.enable_grad():
                scores = self.scores_of(block, tile)
            upstream = of_scores[tile.pairs]
            (part,) = torch.autograd.grad(scores, block, upstream, create_graph=twice)  # pyright: ignore
            tile.put(part, gradient)
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
        costs = torch.where((rows >= n) | (columns >= m), 0, costs)
        absent = (n == 0) | (m == 0)
        n, m = n.clamp(min=1), m.clamp(min=1)
        scores = 0 - self.distance(costs, n, m) / (n + m)  # 0 - 0 is 0, and -0 is -0
        return scores.masked_fill(absent, 0).view(block.shape[:2])


def _order(mask: Tensor) -> Tensor:
    """Indices that bring the valid entries to the front, in their order."""
    return (~mask).byte().argsort(dim=-1, stable=True)


def _valid_first(mask: Tensor) -> bool:
    return not (mask[..., 1:] & ~mask[..., :-1]).any()
