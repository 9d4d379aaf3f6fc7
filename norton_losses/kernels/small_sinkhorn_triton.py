# pyright: basic
# Triton compiles code after a return too, so the other case stands in an else branch.
# ruff: noqa: RET505
r"""Sinkhorn's iteration, Eq. (3), for a batch of small problems in a single launch.

.. math:: a = \frac{\mu}{K b + k^c b_0}, \quad a_0 = \frac{\mu_0}{\langle k^r, b \rangle + q b_0},
          \quad K = e^{S / \varepsilon},

then the same for b with rows and columns exchanged; k^c, k^r and q are the bucket's part of K.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from norton_losses.kernels import MAX_SIDE

_TINY = tl.constexpr(1e-37)
_LOWEST = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


class Variant(NamedTuple):
    """The case a binary serves: side of its tile, with or without bucket, log or scaling domain."""

    side: int
    has_bucket: bool
    log_domain: bool


class Configuration(NamedTuple):
    """How many problems a program holds, and over how many lanes of a warp it spreads each."""

    block: int
    row_lanes: int
    column_lanes: int
    num_warps: int


# A lane holds 4 x 4 or 8 x 4 cells of a problem, so that sums run over registers first and over
# few lanes last. A problem never leaves its warp: shared memory would cost more than the sums.
_BY_SIDE = {
    8: Configuration(block=32, row_lanes=2, column_lanes=2, num_warps=4),
    16: Configuration(block=8, row_lanes=4, column_lanes=4, num_warps=4),
    MAX_SIDE: Configuration(block=4, row_lanes=4, column_lanes=8, num_warps=4),
}

CONFIGURATIONS = {
    Variant(side, has_bucket, log_domain): configuration
    for side, configuration in _BY_SIDE.items()
    for has_bucket in (False, True)
    for log_domain in (False, True)
}
"""Every configuration that is ever launched."""


@triton.jit
def _over_tile(vector, axis: tl.constexpr):
    """A vector over rows (axis 0) or columns (axis 1), broadcast over the tile."""
    if axis == 0:
        return vector[:, None, :, :, None]
    else:
        return vector[None, :, :, None, :]


@triton.jit
def _over_vector(scalar):
    """One number for each problem, broadcast over a vector."""
    return scalar[None, :, None]


@triton.jit
def _sum_tile(tile, axis: tl.constexpr):
    """Sum over the rows (axis 0) or the columns (axis 1) of each problem."""
    return tl.sum(tl.sum(tile, axis), axis + 2)


@triton.jit
def _max_tile(tile, axis: tl.constexpr):
    return tl.max(tl.max(tile, axis), axis + 2)


@triton.jit
def _sum_vector(vector):
    return tl.sum(tl.sum(vector, 0), 1)


@triton.jit
def _max_vector(vector):
    return tl.max(tl.max(vector, 0), 1)


@triton.jit
def _load_tile(pointers, present, SHAPE: tl.constexpr):
    """A number for each cell of the tile, -inf where nothing is present."""
    pointers = tl.broadcast_to(pointers, SHAPE)
    present = tl.broadcast_to(present, SHAPE)
    return tl.load(pointers, present, -float("inf")).to(tl.float32)


@triton.jit
def _load_vector(pointers, present, SHAPE: tl.constexpr, axis: tl.constexpr):
    """A vector over rows (axis 0) or columns (axis 1).

    Loaded once for every cell, so that the registers that hold it are those of the tile's sums:
    otherwise the loop would exchange it through shared memory at every step.
    """
    return _max_tile(_load_tile(pointers, present, SHAPE), 1 - axis)


@triton.jit
def _load_scalar(pointers, present, SHAPE: tl.constexpr):
    """One number for each problem."""
    return _max_vector(_load_vector(pointers, present, SHAPE, 0))


@triton.jit
def _sum_core(
    core, edge, scaling, scaling_0, axis: tl.constexpr, BUCKET: tl.constexpr, LOG: tl.constexpr
):
    """K b + k^c b_0 (axis 1), or its transpose with a (axis 0); log2 of it for logarithms."""
    if LOG:
        terms = core + _over_tile(scaling, axis)
        top = _max_tile(terms, axis)
        if BUCKET:
            edge_terms = edge + _over_vector(scaling_0)
            top = tl.maximum(top, edge_terms)
        # Finite numbers where nothing is present, so that -inf never meets -inf.
        top = tl.maximum(top, _LOWEST)
        sums = _sum_tile(tl.exp2(terms - _over_tile(top, 1 - axis)), axis)
        if BUCKET:
            sums += tl.exp2(edge_terms - top)
        return top + tl.log2(tl.maximum(sums, _TINY))
    else:
        sums = _sum_tile(core * _over_tile(scaling, axis), axis)
        if BUCKET:
            sums += edge * _over_vector(scaling_0)
        return tl.maximum(sums, _TINY)


@triton.jit
def _sum_bucket(edge, corner, scaling, scaling_0, LOG: tl.constexpr):
    """<k^r, b> + q b_0, or its transpose with a; log2 of it for logarithms."""
    if LOG:
        terms = edge + scaling
        corner_term = corner + scaling_0
        top = tl.maximum(tl.maximum(_max_vector(terms), corner_term), _LOWEST)
        total = _sum_vector(tl.exp2(terms - _over_vector(top))) + tl.exp2(corner_term - top)
        return top + tl.log2(tl.maximum(total, _TINY))
    else:
        return tl.maximum(_sum_vector(edge * scaling) + corner * scaling_0, _TINY)


@triton.jit
def _scaling(marginal, sums, LOG: tl.constexpr):
    if LOG:
        return marginal - sums
    else:
        return marginal / sums


@triton.jit
def _first_scaling(log_marginal, LOG: tl.constexpr):
    """1 where present."""
    present = log_marginal > -float("inf")
    if LOG:
        return tl.where(present, 0.0, -float("inf"))
    else:
        return tl.where(present, 1.0, 0.0)


@triton.jit
def _last_scaling(log_marginal, sums, offset, LOG: tl.constexpr):
    """Natural logarithm of the scaling, straight from the sums, where it cannot underflow."""
    if LOG:
        return log_marginal - sums * _LN_2 - offset
    else:
        return log_marginal - tl.log2(sums) * _LN_2 - offset


@triton.jit
def _marginal(log_marginal, log_mass, LOG: tl.constexpr):
    """What the sums divide: log2 of the marginal, or the marginal as a share of the mass."""
    if LOG:
        return log_marginal * _LOG2_E
    else:
        return tl.exp2((log_marginal - log_mass) * _LOG2_E)


@triton.jit
def _kernel(scores, top, scale, LOG: tl.constexpr):
    """exp(S / epsilon) over its largest entry; log2 of it for logarithms."""
    if LOG:
        return (scores - top) * scale
    else:
        return tl.exp2((scores - top) * scale)


_RUN_TIME = [*range(17)]  # the arguments that are not constants


# Never specialised, so that the binaries are those of the table, whatever the numbers.
@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_RUN_TIME)
def small_sinkhorn_kernel(
    scores_ptr,
    log_mu_ptr,
    log_nu_ptr,
    log_u_ptr,
    log_v_ptr,
    batch,
    n,
    m,
    scores_batch,
    scores_row,
    scores_column,
    mu_batch,
    mu_row,
    nu_batch,
    nu_column,
    epsilon,
    iterations,
    SIDE: tl.constexpr,
    BUCKET: tl.constexpr,
    LOG: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_LANES: tl.constexpr,
    COLUMN_LANES: tl.constexpr,
):
    """Sinkhorn's iteration on BLOCK problems, each with a core of at most SIDE x SIDE cells."""
    SHAPE: tl.constexpr = (  # pyright: ignore[reportAssignmentType]
        SIDE // ROW_LANES,
        SIDE // COLUMN_LANES,
        BLOCK,
        ROW_LANES,
        COLUMN_LANES,
    )
    row = (
        tl.arange(0, SIDE // ROW_LANES)[:, None, None] * ROW_LANES
        + tl.arange(0, ROW_LANES)[None, None, :]
    )
    column = (
        tl.arange(0, SIDE // COLUMN_LANES)[:, None, None] * COLUMN_LANES
        + tl.arange(0, COLUMN_LANES)[None, None, :]
    )
    problem = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = problem < batch
    core_n = n.to(tl.int64) - 1 if BUCKET else n
    core_m = m.to(tl.int64) - 1 if BUCKET else m
    has_row = _over_vector(valid) & (row < core_n)
    has_column = _over_vector(valid) & (column < core_m)

    # Broadcast to the tile's axes, in int64 so that offsets fit tensors of any size.
    tile_row = _over_tile(row.to(tl.int64), 0)
    tile_column = _over_tile(column.to(tl.int64), 1)
    tile_valid = valid[None, None, :, None, None]
    tile_problem = problem[None, None, :, None, None]

    tile_mu = log_mu_ptr + tile_problem * mu_batch
    tile_nu = log_nu_ptr + tile_problem * nu_batch
    log_mu = _load_vector(tile_mu + tile_row * mu_row, _over_tile(has_row, 0), SHAPE, 0)
    log_nu = _load_vector(tile_nu + tile_column * nu_column, _over_tile(has_column, 1), SHAPE, 1)
    top_mu = _max_vector(log_mu)
    top_nu = _max_vector(log_nu)
    if BUCKET:
        log_mu_0 = _load_scalar(tile_mu + core_n * mu_row, tile_valid, SHAPE)
        log_nu_0 = _load_scalar(tile_nu + core_m * nu_column, tile_valid, SHAPE)
        top_mu = tl.maximum(top_mu, log_mu_0)
        top_nu = tl.maximum(top_nu, log_nu_0)
    # If one side is absent, the problem is empty, whatever the marginals of the other side are.
    empty = (top_mu == -float("inf")) | (top_nu == -float("inf"))
    log_mu = tl.where(_over_vector(empty), -float("inf"), log_mu)
    log_nu = tl.where(_over_vector(empty), -float("inf"), log_nu)
    top_nu = tl.where(empty, 0.0, top_nu)
    if BUCKET:
        log_mu_0 = tl.where(empty, -float("inf"), log_mu_0)
        log_nu_0 = tl.where(empty, -float("inf"), log_nu_0)

    tile_scores = scores_ptr + tile_problem * scores_batch
    present_row = _over_tile(log_mu > -float("inf"), 0)
    present_column = _over_tile(log_nu > -float("inf"), 1)
    core = _load_tile(
        tile_scores + tile_row * scores_row + tile_column * scores_column,
        present_row & present_column,
        SHAPE,
    )
    top = _max_vector(_max_tile(core, 1))
    if BUCKET:
        bucket_row = tile_scores + core_n * scores_row
        bucket_column = core_m * scores_column
        present_row_0 = (log_mu_0 > -float("inf"))[None, None, :, None, None]
        present_column_0 = (log_nu_0 > -float("inf"))[None, None, :, None, None]
        edge_row = _load_vector(
            bucket_row + tile_column * scores_column, present_row_0 & present_column, SHAPE, 1
        )
        edge_column = _load_vector(
            tile_scores + tile_row * scores_row + bucket_column,
            present_row & present_column_0,
            SHAPE,
            0,
        )
        corner = _load_scalar(bucket_row + bucket_column, present_row_0 & present_column_0, SHAPE)
        top = tl.maximum(top, tl.maximum(_max_vector(edge_row), _max_vector(edge_column)))
        top = tl.maximum(top, corner)
    top = tl.where(empty, 0.0, top)

    scale = _LOG2_E / epsilon
    log_mass = top_nu
    if not LOG:
        mass = _sum_vector(tl.exp2((log_nu - _over_vector(top_nu)) * _LOG2_E))
        if BUCKET:
            mass += tl.exp2((log_nu_0 - top_nu) * _LOG2_E)
        log_mass += tl.log2(tl.maximum(mass, _TINY)) * _LN_2
    core = _kernel(core, top[None, None, :, None, None], scale, LOG)
    # Both are shares of the columns' mass, so that no scaling depends on it.
    mu = _marginal(log_mu, _over_vector(log_mass), LOG)
    nu = _marginal(log_nu, _over_vector(log_mass), LOG)
    b = _first_scaling(log_nu, LOG)
    row_sums = tl.zeros_like(log_mu)
    column_sums = tl.zeros_like(log_nu)
    if BUCKET:
        edge_row = _kernel(edge_row, _over_vector(top), scale, LOG)
        edge_column = _kernel(edge_column, _over_vector(top), scale, LOG)
        corner = _kernel(corner, top, scale, LOG)
        mu_0 = _marginal(log_mu_0, log_mass, LOG)
        nu_0 = _marginal(log_nu_0, log_mass, LOG)
        b_0 = _first_scaling(log_nu_0, LOG)
        row_sum_0 = tl.zeros_like(log_mu_0)
        column_sum_0 = tl.zeros_like(log_nu_0)

    for _ in range(iterations):
        if BUCKET:
            row_sums = _sum_core(core, edge_column, b, b_0, 1, True, LOG)
            row_sum_0 = _sum_bucket(edge_row, corner, b, b_0, LOG)
            a = _scaling(mu, row_sums, LOG)
            a_0 = _scaling(mu_0, row_sum_0, LOG)
            column_sums = _sum_core(core, edge_row, a, a_0, 0, True, LOG)
            column_sum_0 = _sum_bucket(edge_column, corner, a, a_0, LOG)
            b = _scaling(nu, column_sums, LOG)
            b_0 = _scaling(nu_0, column_sum_0, LOG)
        else:
            row_sums = _sum_core(core, None, b, None, 1, False, LOG)
            a = _scaling(mu, row_sums, LOG)
            column_sums = _sum_core(core, None, a, None, 0, False, LOG)
            b = _scaling(nu, column_sums, LOG)

    # Undo the scaling of kernel and marginals: log_mu was left whole, nu was made a share.
    row_offset = top / epsilon
    column_offset = log_mass
    if LOG:
        column_offset = tl.zeros_like(log_mass)
    log_u = _last_scaling(log_mu, row_sums, _over_vector(row_offset), LOG)
    log_v = _last_scaling(log_nu, column_sums, _over_vector(column_offset), LOG)
    tl.store(log_u_ptr + _over_vector(problem) * n + row, log_u, has_row)
    tl.store(log_v_ptr + _over_vector(problem) * m + column, log_v, has_column)
    if BUCKET:
        log_u_0 = _last_scaling(log_mu_0, row_sum_0, row_offset, LOG)
        log_v_0 = _last_scaling(log_nu_0, column_sum_0, column_offset, LOG)
        tl.store(log_u_ptr + problem * n + core_n, log_u_0, valid)
        tl.store(log_v_ptr + problem * m + core_m, log_v_0, valid)


@torch.library.custom_op("norton_losses::small_sinkhorn", mutates_args=())
def small_sinkhorn(
    scores: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    epsilon: float,
    iterations: int,
    has_bucket: bool,
    log_domain: bool,
) -> tuple[Tensor, Tensor]:
    """Log-scalings (B, n) and (B, m), float32, of problems (B, n, m), without gradient.

    What absent cells hold has no effect. ``log_domain`` keeps logarithms; plain numbers are for
    scores within 60 epsilon of each other.
    """
    batch, n, m = scores.shape
    log_u, log_v = _outputs(log_mu, log_nu)
    variant = fitting(n, m, has_bucket, log_domain)
    configuration = CONFIGURATIONS[variant]
    if batch == 0:
        return log_u, log_v
    launch: Any = small_sinkhorn_kernel[(triton.cdiv(batch, configuration.block),)]
    with torch.cuda.device_of(scores):
        launch(
            scores,
            log_mu,
            log_nu,
            log_u,
            log_v,
            batch,
            n,
            m,
            *scores.stride(),
            *log_mu.stride(),
            *log_nu.stride(),
            epsilon,
            iterations,
            **constants(variant),
            num_warps=configuration.num_warps,
        )
    return log_u, log_v


@small_sinkhorn.register_fake
def _(scores: Tensor, log_mu: Tensor, log_nu: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _outputs(log_mu, log_nu)


def _outputs(log_mu: Tensor, log_nu: Tensor) -> tuple[Tensor, Tensor]:
    return (
        log_mu.new_empty(log_mu.shape, dtype=torch.float32),
        log_nu.new_empty(log_nu.shape, dtype=torch.float32),
    )


def fitting(n: int, m: int, has_bucket: bool, log_domain: bool) -> Variant:
    """The smallest tile that holds the core of an n x m problem."""
    longest = max(n, m) - has_bucket
    for side in sorted(_BY_SIDE):
        if longest <= side:
            return Variant(side, has_bucket, log_domain)
    raise ValueError(
        f"a problem may have at most {MAX_SIDE} rows and columns, its bucket not counted, got "
        f"{longest}"
    )


def constants(variant: Variant) -> dict[str, int | bool]:
    """The compile-time arguments of the kernel."""
    configuration = CONFIGURATIONS[variant]
    return {
        "SIDE": variant.side,
        "BUCKET": variant.has_bucket,
        "LOG": variant.log_domain,
        "BLOCK": configuration.block,
        "ROW_LANES": configuration.row_lanes,
        "COLUMN_LANES": configuration.column_lanes,
    }
