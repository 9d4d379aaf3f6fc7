# pyright: basic
"""The soft maximum on CUDA, Eq. (5): launches the Triton kernels, forward and backward.

Segments are sorted by length and given 16, 32 or 64 slots. There is one launch for each pair of
slot numbers, since the host does not read the lengths: a program whose segments have other lengths
ends at once. The backward pass computes the products again and writes their gradient for a slab of
captions at a time; two matrix products turn it into that of the tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from norton_losses.kernels.ragged_tiles import longest_first
from norton_losses.kernels.soft_maximum_chunked import Operands, add_product
from norton_losses.kernels.soft_maximum_device_triton import (
    MAXIMUM,
    SEPARATE,
    SHARED,
    best_kernel,
    weights_kernel,
)
from norton_losses.kernels.tile_logsumexp import Maximum, SharedExponential, reduction_of

SLOTS = (16, 32, 64)
"""Frames or words that a program gives each clip or caption."""

SLAB_BYTES = 256 << 20
"""How much of the products' gradients is held at a time."""

_WIDTH_MULTIPLE = 64  # D is padded to it, so that no load of the inner loop needs a bound
_LOG2_E = 1.4426950408889634


class Variant(NamedTuple):
    """The case a binary serves: slots of a row and of a column, forward or backward."""

    row_slots: int
    column_slots: int
    backward: bool


class Configuration(NamedTuple):
    """How many tokens a program holds on each side, and how the GPU runs it."""

    row_tokens: int
    column_tokens: int
    num_warps: int
    num_stages: int


# As many products as the registers of 8 warps hold without spilling; float32 operands, split in
# two for the tensor cores, and the weights of the backward pass take the room of half of them.
_HALF_FORWARD = Configuration(128, 128, num_warps=8, num_stages=3)
_MIDDLE = Configuration(64, 128, num_warps=8, num_stages=3)
_FLOAT_BACKWARD = Configuration(64, 64, num_warps=8, num_stages=3)

VARIANTS = [
    Variant(row_slots, column_slots, backward)
    for backward in (False, True)
    for row_slots in SLOTS
    for column_slots in SLOTS
    if row_slots <= column_slots  # the other way round, clips and captions change places
]
"""Every variant that is ever launched."""


def configuration(variant: Variant, operand_bytes: int) -> Configuration:
    """The fixed configuration of a variant, for operands of 2 or 4 bytes."""
    if operand_bytes == 2:
        return _MIDDLE if variant.backward else _HALF_FORWARD
    return _FLOAT_BACKWARD if variant.backward else _MIDDLE


class _Side(NamedTuple):
    """Clips or captions, longest first, valid tokens first."""

    tokens: Tensor  # (K, T, D'), in the operands' dtype, D padded
    lengths: Tensor  # (K,)
    places: Tensor  # (K,): where each is in the caller's order
    index: Tensor  # (K, T): where each token is in the caller's order

    @property
    def slots(self) -> list[int]:
        """The slot numbers that cover any length these may have."""
        widest = self.tokens.shape[1]
        return [slots for least, slots in zip((0, *SLOTS), SLOTS, strict=False) if widest > least]

    def some(self, first: int, count: int) -> _Side:
        return _Side(*(part[first : first + count] for part in self))

    def in_order(self, tokens: Tensor, width: int) -> Tensor:
        """Tokens (K, T, D') of this side as the caller has them (K, T, D)."""
        out = tokens.new_empty(*self.index.shape, width)
        out.view(-1, width)[self.index.flatten()] = tokens.flatten(0, 1)[:, :width]
        return out


def forward(operands: Operands, mean: bool) -> tuple[Tensor, Tensor]:
    """As :func:`norton_losses.kernels.soft_maximum_chunked.forward`, in float32."""
    clips, captions, sides = operands.rows, operands.columns, _sides(operands)
    by_frame, by_word = (clips.new_zeros(len(clips), len(captions)) for _ in range(2))
    kind, scale, unit = _kind(operands.alpha)
    for swap, variant in _variants(*sides, backward=False):
        _launch(
            best_kernel, variant, kind, swap, *sides, (by_frame, by_word), scale, unit,
            MEAN=mean,
        )  # fmt: skip
    return by_frame, by_word


def backward(
    by_frame: Tensor, by_word: Tensor, operands: Operands, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of clips and captions, given those of both results; empty where not wanted."""
    clips, captions, (x, y) = operands.rows, operands.columns, _sides(operands)
    upstream = by_frame.contiguous(), by_word.contiguous()
    kind, scale, _ = _kind(operands.alpha)
    of_clips, of_captions = (
        torch.zeros_like(side.tokens, dtype=torch.float32) if wants else clips.new_empty(0)
        for side, wants in zip((x, y), wanted, strict=True)
    )
    tokens, words = x.index.numel(), y.index.shape[1]
    most = max(SLAB_BYTES // (tokens * words * x.tokens.element_size()), 1)
    whole = x.tokens.new_empty(tokens * words * min(most, len(captions)))
    for first in range(0, len(captions), most):
        some = y.some(first, most)
        slab = whole[: tokens * some.index.numel()].view(tokens, -1).zero_()
        for swap, variant in _variants(x, some, backward=True):
            _launch(weights_kernel, variant, kind, swap, x, some, upstream, scale, weights=slab)
        if wanted[0]:
            add_product(of_clips.flatten(0, 1), slab, some.tokens.flatten(0, 1))
        if wanted[1]:
            add_product(
                of_captions[first : first + most].flatten(0, 1), slab.T, x.tokens.flatten(0, 1)
            )
    return (
        x.in_order(of_clips, clips.shape[-1]) if wanted[0] else of_clips,
        y.in_order(of_captions, captions.shape[-1]) if wanted[1] else of_captions,
    )


def constants(variant: Variant, operand_bytes: int, kind: int) -> dict[str, int]:
    """The compile-time constants of a binary, but for the mean."""
    fixed = configuration(variant, operand_bytes)
    return {
        "KIND": kind,
        "ROWS": fixed.row_tokens // variant.row_slots,
        "ROW_SLOTS": variant.row_slots,
        "COLUMNS": fixed.column_tokens // variant.column_slots,
        "COLUMN_SLOTS": variant.column_slots,
        "BLOCK_D": 64 if operand_bytes == 2 else 16,
    }


def _sides(operands: Operands) -> tuple[_Side, _Side]:
    clips, captions, frame_mask, word_mask, _, dtype = operands
    return _side(clips, frame_mask, dtype), _side(captions, word_mask, dtype)


def _side(tokens: Tensor, mask: Tensor, dtype: torch.dtype) -> _Side:
    lengths, places, index = longest_first(mask)
    packed = tokens.flatten(0, 1)[index].to(dtype)
    missing = -tokens.shape[-1] % _WIDTH_MULTIPLE
    return _Side(torch.nn.functional.pad(packed, (0, missing)), lengths, places, index)


def _variants(x: _Side, y: _Side, backward: bool) -> list[tuple[bool, Variant]]:
    """The variants that cover every pair of lengths, and whether clips and captions are swapped."""
    pairs = [(f, w) for f in x.slots for w in y.slots]
    return [(f > w, Variant(min(f, w), max(f, w), backward)) for f, w in pairs]


def _kind(alpha: float) -> tuple[int, float, float]:
    """The kind of reduction for alpha, the factor of the products, and the unit of the results."""
    reduction = reduction_of(alpha)
    if isinstance(reduction, Maximum):
        return MAXIMUM, 1.0, 1.0
    kind = SHARED if isinstance(reduction, SharedExponential) else SEPARATE
    return kind, _LOG2_E / alpha, alpha / _LOG2_E


def _launch(
    kernel: Any,
    variant: Variant,
    kind: int,
    swap: bool,
    x: _Side,
    y: _Side,
    directions: tuple[Tensor, Tensor],
    *scalars: float,
    weights: Tensor | None = None,
    **options: bool,
) -> None:
    """Run a kernel on every clip with every caption; only those of the variant's lengths work."""
    strides = list(directions[0].stride())
    weight_strides = [] if weights is None else list(weights.stride())
    if swap:
        x, y, directions = y, x, (directions[1], directions[0])
        strides, weight_strides = strides[::-1], weight_strides[::-1]
    operand_bytes = x.tokens.element_size()
    fixed, sizes = configuration(variant, operand_bytes), constants(variant, operand_bytes, kind)
    # One dimension: the second of a grid ends at 65535.
    grid = (
        triton.cdiv(len(x.lengths), sizes["ROWS"]) * triton.cdiv(len(y.lengths), sizes["COLUMNS"]),
    )
    with torch.cuda.device_of(x.tokens):
        kernel[grid](
            x.tokens,
            y.tokens,
            x.lengths,
            y.lengths,
            x.places,
            y.places,
            *directions,
            *([] if weights is None else [weights]),
            len(x.lengths),
            len(y.lengths),
            x.index.shape[1],
            y.index.shape[1],
            *strides,
            *weight_strides,
            x.tokens.shape[-1],
            *scalars,
            **options,
            **sizes,
            num_warps=fixed.num_warps,
            num_stages=fixed.num_stages,
        )
