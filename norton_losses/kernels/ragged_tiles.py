"""Packs segments of different lengths into tiles with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MOST_PADDING = 1 / 32
"""The share of a tile that may be padding, unless the tile is small."""


@dataclass(frozen=True)
class Tile:
    """Some segments (clips or captions) of about the same length."""

    segments: Tensor  # (S,): which segments of the batch
    lengths: Tensor  # (S,): their valid tokens, at least one, longest first
    tokens: Tensor  # (S, T): where their tokens are among all of the batch, valid ones first
    padding: tuple[tuple[int, int], ...]  # (t, s): slot t is padding from the segment s on

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return self.tokens.numel()


def longest_first(token_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Segments of a mask (K, T) by length: lengths (K,), their order (K,), token positions (K, T).

    A position is that of a token among all of the batch; those of valid tokens come first.
    """
    lengths, order = token_mask.sum(-1).sort(descending=True, stable=True)
    valid_first = token_mask.byte().argsort(dim=-1, descending=True, stable=True)[order]
    return lengths, order, order[:, None] * token_mask.shape[1] + valid_first


def tiles_of(token_mask: Tensor, tokens: int) -> list[Tile]:
    """Segments with a valid token, in tiles of at most ``tokens`` tokens or one segment.

    Lengths are read on the host, so a GPU is waited for.
    """
    lengths, order, positions = longest_first(token_mask)
    present = [int(length) for length in lengths[lengths > 0].cpu()]
    tiles: list[Tile] = []
    start = 0
    while start < len(present):
        end = _end_of_tile(present, start, tokens)
        these, longest = slice(start, end), present[start]
        padding = _padding(present[these])
        tiles.append(Tile(order[these], lengths[these], positions[these, :longest], padding))
        start = end
    return tiles


def _end_of_tile(lengths: Sequence[int], start: int, tokens: int) -> int:
    """The end of the tile that begins at ``start``: before it gets too large, or too padded."""
    valid = lengths[start]
    for end in range(start + 1, len(lengths)):
        size = (end + 1 - start) * lengths[start]
        valid += lengths[end]
        if size > tokens or (size > tokens / 4 and size - valid > MOST_PADDING * size):
            return end
    return len(lengths)


def _padding(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """For each slot, the first segment in which it is padding; lengths are in falling order."""
    return tuple(
        (slot, sum(length > slot for length in lengths)) for slot in range(lengths[-1], lengths[0])
    )
