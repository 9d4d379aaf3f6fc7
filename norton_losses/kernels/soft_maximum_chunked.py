"""The soft maximum by tiles in plain torch, on any device: Eq. (5), and the hard maximum.

A tile holds the products of a few clips with a few captions, (A, F, W, B). The backward pass
computes it again, unless it was kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from norton_losses.kernels.ragged_tiles import Tile, tiles_of
from norton_losses.kernels.tile_logsumexp import reduction_of

ROW_TOKENS = COLUMN_TOKENS = 1024
"""A tile's products fill 4 MiB in float32, about what a core's cache holds."""


class Operands(NamedTuple):
    """Clips and captions, and how their tokens are compared.

    Attributes:
        rows: clips (K, F, D), of norm at most 1 unless alpha is below 1/30; finite where masked.
        columns: captions (L, W, D), likewise.
        row_mask: (K, F), bool.
        column_mask: (L, W), bool.
        alpha: temperature of the soft maximum; 0 is the hard maximum.
        dtype: of the tokens in matrix products.
    """

    rows: Tensor
    columns: Tensor
    row_mask: Tensor
    column_mask: Tensor
    alpha: float
    dtype: torch.dtype

    @property
    def swapped(self) -> Operands:
        """Captions as rows, clips as columns."""
        rows, columns, row_mask, column_mask, *how = self
        return Operands(columns, rows, column_mask, row_mask, *how)  # pyright: ignore

    @property
    def tall(self) -> bool:
        """Whether rows have more tokens than columns: swapping saves memory, as rows are packed."""
        return self.rows.shape[:2].numel() > self.columns.shape[:2].numel()


def forward(operands: Operands, mean: bool, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over row tokens (K, L), mean over column tokens (K, L) of the soft maximum.

    ``kept`` is filled with what the backward pass would have to compute again, if that fits.
    """
    if operands.tall:
        by_column, by_row = forward(operands.swapped, mean, kept)
        return by_row.mT.contiguous(), by_column.mT.contiguous()
    rows, columns = operands.rows, operands.columns
    work = _Tiles(operands, kept)
    by_row, by_column = (rows.new_zeros(len(rows), len(columns)) for _ in range(2))
    for column in work.columns:
        column_tokens = work.column_tokens(column)
        for row, row_tokens in zip(work.rows, work.row_tokens, strict=True):
            scores = work.kept_place(row, column)
            work.score(row, column, row_tokens, column_tokens, scores)
            best_column, best_row = work.reduction.best(scores)  # (A, F, B), (A, W, B)
            frames, words = row.lengths[:, None].to(rows.dtype), column.lengths[None].to(rows.dtype)
            best_column, best_row = best_column.sum(1) / frames, best_row.sum(1) / words
            if mean:
                best_column, best_row = best_column - words.log(), best_row - frames.log()
            here = row.segments[:, None], column.segments[None]
            by_row[here] = best_column * work.reduction.unit
            by_column[here] = best_row * work.reduction.unit
    return by_row, by_column


def backward(
    by_row: Tensor, by_column: Tensor, operands: Operands, kept: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of rows and columns, given those of both results; empty where not wanted."""
    if operands.tall:
        turned = by_column.mT, by_row.mT, operands.swapped
        of_columns, of_rows = backward(*turned, kept, (wanted[1], wanted[0]))
        return of_rows, of_columns
    rows, columns = operands.rows, operands.columns
    work = _Tiles(operands, kept)
    of_rows, of_columns = (
        tokens.new_zeros(tokens.shape) if wants else tokens.new_empty(0)
        for tokens, wants in zip((rows, columns), wanted, strict=True)
    )
    of_row_tiles = [torch.zeros_like(t, dtype=rows.dtype) for t in work.row_tokens if wanted[0]]
    weights = torch.empty_like(work.scratch)
    for column in work.columns:
        column_tokens = work.column_tokens(column)
        of_column = torch.zeros_like(column_tokens, dtype=rows.dtype)
        for place, (row, row_tokens) in enumerate(zip(work.rows, work.row_tokens, strict=True)):
            scores = work.kept_place(row, column)
            if not work.keeps:
                work.score(row, column, row_tokens, column_tokens, scores)
            here = row.segments[:, None], column.segments[None]
            weight = weights[: scores.numel()].view(scores.shape)
            work.reduction.weigh(
                scores,
                (by_row[here] / row.lengths[:, None])[:, None],
                (by_column[here] / column.lengths[None])[:, None],
                weight,
            )
            weight = weight.view(row.size, column.size)
            weight = weight.to(operands.dtype)
            if wanted[0]:
                add_product(of_row_tiles[place], weight, column_tokens)
            if wanted[1]:
                add_product(of_column, weight.T, row_tokens)
        if wanted[1]:
            of_columns.view(-1, of_columns.shape[-1])[column.tokens.T.reshape(-1)] = of_column
    for row, of_row in zip(work.rows, of_row_tiles, strict=wanted[0]):
        of_rows.view(-1, of_rows.shape[-1])[row.tokens.reshape(-1)] = of_row
    return of_rows, of_columns


class _Tiles:
    """Both sides in tiles, the rows' tokens packed, and room for the products of two tiles."""

    def __init__(self, operands: Operands, kept: Tensor) -> None:
        rows, columns, row_mask, column_mask, alpha, self._dtype = operands
        self.reduction = reduction_of(alpha)
        self.rows = tiles_of(row_mask, ROW_TOKENS)
        self.columns = tiles_of(column_mask, COLUMN_TOKENS)
        self._all_columns = columns.reshape(-1, columns.shape[-1])
        all_rows = rows.reshape(-1, rows.shape[-1])
        self.row_tokens = [all_rows[row.tokens.reshape(-1)].to(self._dtype) for row in self.rows]
        products = sum(row.size for row in self.rows) * sum(c.size for c in self.columns)
        self.keeps = 0 < products <= kept.numel()
        self._kept, self._filled = kept, 0
        largest = [
            max((tile.size for tile in side), default=0) for side in (self.rows, self.columns)
        ]
        self.scratch = rows.new_empty(largest[0] * largest[1])

    def column_tokens(self, column: Tile) -> Tensor:
        """(W * B, D), words before captions."""
        return self._all_columns[column.tokens.T.reshape(-1)].to(self._dtype)

    def kept_place(self, row: Tile, column: Tile) -> Tensor:
        """The memory (A, F, W, B) of the scores of the next pair of tiles, filled if kept."""
        size = row.size * column.size
        if self.keeps:
            place = self._kept[self._filled : self._filled + size]
            self._filled += size
        else:
            place = self.scratch[:size]
        return place.view(*row.tokens.shape, *column.tokens.T.shape)

    def score(
        self, row: Tile, column: Tile, row_tokens: Tensor, column_tokens: Tensor, out: Tensor
    ) -> None:
        flat = out.view(row.size, column.size)
        if row_tokens.dtype == out.dtype:
            flat.addmm_(row_tokens, column_tokens.T, beta=0, alpha=1 / self.reduction.unit)
        else:
            torch.div(_product(row_tokens, column_tokens.T), self.reduction.unit, out=flat)
        self.reduction.prepare(out)
        for slot, first in row.padding:
            out[first:, slot] = self.reduction.padding
        for slot, first in column.padding:
            out[:, :, slot, first:] = self.reduction.padding


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``; on CUDA sums of half precision are returned in float32, unrounded."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total``, which may be wider than they are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(_product(left, right))
