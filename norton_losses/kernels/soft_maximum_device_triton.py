# pyright: basic
r"""Triton kernels of the soft maximum, Eq. (5): both directions, and the gradient of the products.

A program holds the products of a few whole clips with a few whole captions, reshapes them from
(A F, B W) to (A, F, B, W), and reduces over words and over frames; or writes what each product
weighs in the loss.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAXIMUM, SHARED, SEPARATE = range(3)  # the kinds of norton_losses.kernels.tile_logsumexp
_MAXIMUM, _SHARED, _SEPARATE = (tl.constexpr(kind) for kind in (MAXIMUM, SHARED, SEPARATE))

# No count, stride or alignment makes another binary; D does once, always a multiple of 64, and
# tokens and weights are aligned, as their rows are.
_NUMBERS = [
    "rows",
    "columns",
    "row_width",
    "column_width",
    "row_stride",
    "column_stride",
    "row_weight_stride",
    "column_weight_stride",
]
_ANYWHERE = [
    "row_lengths_ptr",
    "column_lengths_ptr",
    "row_places_ptr",
    "column_places_ptr",
    "by_row_ptr",
    "by_column_ptr",
]


@triton.jit
def _segments(lengths_ptr, count, program, SEGMENTS: tl.constexpr, SLOTS: tl.constexpr):
    """Positions of this program's segments, and their lengths, 0 unless SLOTS is made for them."""
    position = program.to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    length = tl.load(lengths_ptr + position, position < count, 0)
    least: tl.constexpr = SLOTS // 2 if SLOTS > 16 else 0  # pyright: ignore[reportAssignmentType]
    return position, tl.where((length > least) & (length <= SLOTS), length, 0)


@triton.jit
def _tokens(position, length, width, SEGMENTS: tl.constexpr, SLOTS: tl.constexpr):
    """Which token is in each slot of each segment, one after another, and whether there is one."""
    shape: tl.constexpr = (SEGMENTS, SLOTS)  # pyright: ignore[reportAssignmentType]
    slot = tl.arange(0, SLOTS)[None, :]
    token = (position[:, None] * width + slot).reshape(SEGMENTS * SLOTS)
    return token, tl.broadcast_to(slot < length[:, None], shape).reshape(SEGMENTS * SLOTS)


@triton.jit
def _products(rows, columns, row_filled, column_filled, D, BLOCK_D: tl.constexpr):
    """Products of the tokens at the pointers rows (A F, 1) and columns (1, B W)."""
    d = tl.arange(0, BLOCK_D)
    rows = rows + d[None, :]
    columns = columns + d[:, None]
    total = tl.zeros((rows.shape[0], columns.shape[1]), tl.float32)
    for _ in range(0, D, BLOCK_D):
        row = tl.load(rows, row_filled, 0.0)
        column = tl.load(columns, column_filled, 0.0)
        # Three passes of tensor cores are as exact as float32, and faster; half needs but one.
        total = tl.dot(row, column, total, input_precision="tf32x3")
        rows += BLOCK_D
        columns += BLOCK_D
    return total


@triton.jit
def _prepare(products, filled, KIND: tl.constexpr):
    """Exponentials if one serves both directions, else the products themselves."""
    if KIND == _SHARED:
        return tl.where(filled, tl.exp2(products), 0.0)
    return tl.where(filled, products, -float("inf"))


@triton.jit
def _maxima(products, axis: tl.constexpr):
    """The largest product along an axis, 0 where no slot is filled."""
    top = tl.max(products, axis, keep_dims=True)
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def _positive(sums):
    """Sums, 1 in place of those over no filled slot."""
    return tl.where(sums > 0, sums, 1.0)


@triton.jit
def _best(products, axis: tl.constexpr, KIND: tl.constexpr):
    """The best along an axis, summed over the other side's slots: (A, B), log2 unless maximum."""
    if KIND == _SHARED:
        best = tl.log2(_positive(tl.sum(products, axis, keep_dims=True)))
    else:
        best = _maxima(products, axis)
        if KIND == _SEPARATE:
            best += tl.log2(_positive(tl.sum(tl.exp2(products - best), axis, keep_dims=True)))
    return tl.sum(tl.sum(best, 3), 1)


@triton.jit
def _weights(products, upstream, axis: tl.constexpr, KIND: tl.constexpr):
    """The gradient of the products, given that of each best along an axis."""
    if KIND == _SHARED:
        shares = products
    else:
        top = _maxima(products, axis)
        if KIND == _MAXIMUM:
            shares = tl.where(products == top, 1.0, 0.0)
        else:
            shares = tl.exp2(products - top)
    return shares * (upstream / _positive(tl.sum(shares, axis, keep_dims=True)))


@triton.jit
def _scores(
    row_ptr,
    column_ptr,
    row,
    column,
    f,
    w,
    row_width,
    column_width,
    D,
    scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMN_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Prepared products (A, F, B, W); which slots are filled (A F, B W), and by which tokens."""
    row_token, row_filled = _tokens(row, f, row_width, ROWS, ROW_SLOTS)  # pyright: ignore[reportGeneralTypeIssues]
    column_token, column_filled = _tokens(column, w, column_width, COLUMNS, COLUMN_SLOTS)
    filled = row_filled[:, None] & column_filled[None, :]
    products = _products(
        row_ptr + row_token[:, None] * D,
        column_ptr + column_token[None, :] * D,
        row_filled[:, None],
        column_filled[None, :],
        D,
        BLOCK_D,
    )
    products = _prepare(products * scale, filled, KIND)
    shaped = products.reshape(ROWS, ROW_SLOTS, COLUMNS, COLUMN_SLOTS)
    return shaped, filled, row_token, column_token


@triton.jit
def _places(
    row_places_ptr,
    column_places_ptr,
    row,
    column,
    f,
    w,
    row_stride,
    column_stride,
):
    """Where pairs (A, B) are in the caller's order, whether they are there, and their lengths."""
    present = (f > 0)[:, None] & (w > 0)[None, :]
    row_place = tl.load(row_places_ptr + row, f > 0, 0)
    column_place = tl.load(column_places_ptr + column, w > 0, 0)
    here = row_place[:, None] * row_stride + column_place[None, :] * column_stride
    frames = tl.maximum(f, 1).to(tl.float32)[:, None]
    words = tl.maximum(w, 1).to(tl.float32)[None, :]
    return here, present, frames, words


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def best_kernel(
    row_ptr,
    column_ptr,
    row_lengths_ptr,
    column_lengths_ptr,
    row_places_ptr,
    column_places_ptr,
    by_row_ptr,
    by_column_ptr,
    rows,
    columns,
    row_width,
    column_width,
    row_stride,
    column_stride,
    D,
    scale,
    unit,
    MEAN: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMN_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Both directions of a few rows with a few columns, in the caller's order."""
    program, row_programs = tl.program_id(0), tl.cdiv(rows, ROWS)
    row, f = _segments(row_lengths_ptr, rows, program % row_programs, ROWS, ROW_SLOTS)
    column, w = _segments(
        column_lengths_ptr, columns, program // row_programs, COLUMNS, COLUMN_SLOTS
    )
    if (tl.max(f, 0) == 0) | (tl.max(w, 0) == 0):
        return
    products, _filled, _row_token, _column_token = _scores(
        row_ptr, column_ptr, row, column, f, w, row_width, column_width, D, scale,
        KIND, ROWS, ROW_SLOTS, COLUMNS, COLUMN_SLOTS, BLOCK_D,
    )  # fmt: skip
    here, present, frames, words = _places(
        row_places_ptr, column_places_ptr, row, column, f, w, row_stride, column_stride
    )
    best_column = _best(products, 3, KIND) / frames
    best_row = _best(products, 1, KIND) / words
    if MEAN:
        best_column -= tl.log2(words)
        best_row -= tl.log2(frames)
    tl.store(by_row_ptr + here, best_column * unit, present)
    tl.store(by_column_ptr + here, best_row * unit, present)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ANYWHERE)
def weights_kernel(
    row_ptr,
    column_ptr,
    row_lengths_ptr,
    column_lengths_ptr,
    row_places_ptr,
    column_places_ptr,
    by_row_ptr,
    by_column_ptr,
    weights_ptr,
    rows,
    columns,
    row_width,
    column_width,
    row_stride,
    column_stride,
    row_weight_stride,
    column_weight_stride,
    D,
    scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMN_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What each product weighs in the loss, where a slot is filled on both sides."""
    program, row_programs = tl.program_id(0), tl.cdiv(rows, ROWS)
    row, f = _segments(row_lengths_ptr, rows, program % row_programs, ROWS, ROW_SLOTS)
    column, w = _segments(
        column_lengths_ptr, columns, program // row_programs, COLUMNS, COLUMN_SLOTS
    )
    if (tl.max(f, 0) == 0) | (tl.max(w, 0) == 0):
        return
    products, filled, row_token, column_token = _scores(
        row_ptr, column_ptr, row, column, f, w, row_width, column_width, D, scale,
        KIND, ROWS, ROW_SLOTS, COLUMNS, COLUMN_SLOTS, BLOCK_D,
    )  # fmt: skip
    here, present, frames, words = _places(
        row_places_ptr, column_places_ptr, row, column, f, w, row_stride, column_stride
    )
    by_row = tl.load(by_row_ptr + here, present, 0.0) / frames
    by_column = tl.load(by_column_ptr + here, present, 0.0) / words
    weights = _weights(products, by_row[:, None, :, None], 3, KIND)
    weights += _weights(products, by_column[:, None, :, None], 1, KIND)
    weights = weights.reshape(ROWS * ROW_SLOTS, COLUMNS * COLUMN_SLOTS)
    places = row_token[:, None] * row_weight_stride + column_token[None, :] * column_weight_stride
    tl.store(weights_ptr + places, weights.to(weights_ptr.dtype.element_ty), filled)
