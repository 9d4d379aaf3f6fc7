"""Sinkhorn's iteration, Eq. (3), in the three domains in which it can be carried out.

:func:`scaling` multiplies plain numbers and is fast, :func:`log` adds logarithms and is always
safe, :func:`absorbed` multiplies as long as that is safe. All take the same arguments, and every
problem gets the same answer from each, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import TypeAlias

import torch
from torch import Tensor

# The range of scores over epsilon up to which `scaling` keeps every number, and every product of
# two, inside the dtype: that ends at e^88 and e^709, and small masses need some of it.
SCALING_RANGE = {torch.float32: 60.0, torch.float64: 500.0}
# The size of a scaling's logarithm at which `absorbed` takes it into the kernel: what the kernel
# lost to underflow weighs nothing until then.
_ABSORB_BEYOND = {torch.float32: 20.0, torch.float64: 200.0}
# How much kernel the CPU works on at a time, in bytes, so that it stays in the cache for all steps.
# The compiled step needs no scratch space, and each call of it costs more.
_CHUNK, _COMPILED_CHUNK = 1 << 21, 1 << 23

Scalings: TypeAlias = tuple[Tensor, Tensor, Tensor]
Domain: TypeAlias = Callable[..., Scalings]
Step: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def even_if_empty(log_mu: Tensor, log_nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Even marginals in the place of those of problems without any row or any column (..., 1).

    Nothing but -inf could be summed there, which would meet the -inf of the marginals. Whoever
    solves such a problem drops the answer.
    """
    empty = ((log_mu == -torch.inf).all(-1) | (log_nu == -torch.inf).all(-1))[..., None]
    log_mu, log_nu = (m.masked_fill(empty, -math.log(m.shape[-1])) for m in (log_mu, log_nu))
    return log_mu, log_nu, empty


def _sparing_the_empty(domain: Domain) -> Domain:
    @wraps(domain)
    def solve(
        log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor, *args: object, **options: object
    ) -> Scalings:
        log_mu, log_nu, empty = even_if_empty(log_mu, log_nu)
        log_u, log_v, steps = domain(log_kernel, log_mu, log_nu, *args, **options)
        return log_u.masked_fill(empty, -torch.inf), log_v.masked_fill(empty, -torch.inf), steps

    return solve


@_sparing_the_empty
def log(
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> Scalings:
    """The iteration on logarithms: no overflow whatever the range of scores over epsilon.

    Logarithms of size r carry an absolute error of about r ulp, so a range of 1e5 or more is work
    for float64. This is the one of the three that can be differentiated through.

    Args:
        log_kernel: S / epsilon (..., n, m).
        log_mu: (..., n), -inf at absent rows.
        log_nu: (..., m), -inf at absent columns.
        iterations: the most steps to take.
        tolerance: leave a problem alone once its rows are within this L1 distance of mu (columns
            are exact after every step), and stop when all are. Reading that waits for the GPU.

    Returns:
        log_u (..., n), log_v (..., m) and the steps taken for each problem (...).
    """
    log_u, log_v = torch.full_like(log_mu, -torch.inf), start(log_nu)
    steps = _Steps(log_mu[..., 0], tolerance, iterations)
    for _ in range(iterations):
        row_sums = _row_logsumexp(log_kernel, log_v)
        if tolerance is not None:
            steps.judge(((log_u + row_sums).exp() - log_mu.exp()).abs().sum(-1))
            if steps.finished():
                break
        next_u = log_mu - row_sums
        next_v = log_nu - _row_logsumexp(log_kernel.mT, next_u)
        if tolerance is not None:
            next_u = torch.where(steps.active[..., None], next_u, log_u)
            next_v = torch.where(steps.active[..., None], next_v, log_v)
            steps.count()
        log_u, log_v = next_u, next_v
    return log_u, log_v, steps.taken


@_sparing_the_empty
def scaling(
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
    *,
    compiled: bool = False,
) -> Scalings:
    """The iteration on plain numbers, u = mu / (K v) and v = nu / (K' u) with K = exp(S / epsilon).

    Right where the scores of present cells range over no more than :data:`SCALING_RANGE` epsilons.
    Arguments and results as :func:`log`; ``compiled`` fuses product and sum, which takes some
    seconds the first time.
    """

    def solve(batch: _Batch) -> Scalings:
        # The largest entry becomes 1: the kernel stays inside the dtype, whatever the scores were.
        log_u = -batch.largest().expand_as(batch.log_mu)
        step = _step(batch, batch.kernel(log_u), compiled)
        u, v = batch.unscaled()
        steps = _Steps(batch.log_mass[:, 0], tolerance, iterations)
        for _ in range(iterations):
            next_u, next_v = step(v)
            if tolerance is not None:
                steps.judge(batch.row_error(u, next_u))
                if steps.finished():
                    break
                next_u = torch.where(steps.active, next_u, u)
                next_v = torch.where(steps.active, next_v, v)
                steps.count()
            u, v = next_u, next_v
        return log_u + u.T.log(), v.T.log(), steps.taken

    size = _COMPILED_CHUNK if compiled else _CHUNK
    return _by_chunks(solve, size, log_kernel, log_mu, log_nu)


@_sparing_the_empty
def absorbed(
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> Scalings:
    """The iteration on plain numbers, with a kernel that has absorbed the logarithms so far.

    Safe for every range, as :func:`log`, and nearly as fast as :func:`scaling`: the first step, and
    every step whose scalings leave the safe range, is taken on logarithms. Looking at them makes
    the host wait for the GPU. Arguments and results as :func:`log`.

    Source: Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems, 2019.
    """

    def solve(batch: _Batch) -> Scalings:
        log_u, log_v = batch.log_step(start(batch.log_nu))
        step = _step(batch, batch.kernel(log_u, log_v))
        u, v = batch.unscaled()
        steps = _Steps(batch.log_mass[:, 0], tolerance, iterations)
        steps.count()
        for _ in range(iterations - 1):
            next_u, next_v = step(v)
            if tolerance is not None:
                steps.judge(batch.row_error(u, next_u))
                if steps.finished():
                    break
            if not batch.safe(next_u, next_v):
                old_u, old_v = log_u + u.T.log(), log_v + v.T.log()
                log_u, log_v = batch.log_step(old_v)
                log_u = torch.where(steps.active[:, None], log_u, old_u)
                log_v = torch.where(steps.active[:, None], log_v, old_v)
                step = _step(batch, batch.kernel(log_u, log_v))
                next_u, next_v = batch.unscaled()
            elif tolerance is not None:
                next_u = torch.where(steps.active, next_u, u)
                next_v = torch.where(steps.active, next_v, v)
            steps.count()
            u, v = next_u, next_v
        return log_u + u.T.log(), log_v + v.T.log(), steps.taken

    return _by_chunks(solve, _CHUNK, log_kernel, log_mu, log_nu)


def start(log_nu: Tensor) -> Tensor:
    """Log v before the first step. Absent columns begin at -inf: padding then changes nothing."""
    return torch.zeros_like(log_nu).masked_fill(log_nu == -torch.inf, -torch.inf)


class _Steps:
    """Which problems still take steps, and how many each has taken.

    Without a tolerance all take all of them, and nothing needs to be counted.
    """

    def __init__(self, like: Tensor, tolerance: float | None, iterations: int) -> None:
        self.tolerance = tolerance
        self.active: Tensor = torch.ones_like(like, dtype=torch.bool)
        start = iterations if tolerance is None else 0
        self.taken: Tensor = torch.full_like(self.active, start, dtype=torch.int64)

    def judge(self, row_error: Tensor) -> None:
        """Leave alone what is within the tolerance, except before its first step."""
        self.active = self.active & ((row_error > (self.tolerance or 0)) | (self.taken == 0))

    def finished(self) -> bool:
        return not self.active.any()

    def count(self) -> None:
        if self.tolerance is not None:
            self.taken = self.taken + self.active


def _row_logsumexp(log_kernel: Tensor, log_v: Tensor) -> Tensor:
    return (log_kernel + log_v[..., None, :]).logsumexp(-1)


class _Batch:
    """Problems (B, n, m) that are solved together on plain numbers.

    The batch comes last there, so that small problems fill the machine's vectors: mu (n, B) and nu
    (m, B). They have a mass of 1, so that none leaves the dtype, however small it was.
    """

    def __init__(self, log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor) -> None:
        self.log_mass = log_nu.logsumexp(-1, keepdim=True)
        self.log_kernel = log_kernel
        self.log_mu, self.log_nu = log_mu - self.log_mass, log_nu - self.log_mass
        # Contiguous, as the kernel is: what is computed from them follows their strides.
        self.mu, self.nu = (log.exp().T.contiguous() for log in (self.log_mu, self.log_nu))
        self.rows, self.columns = log_mu > -torch.inf, log_nu > -torch.inf
        readable = log_kernel.is_cpu and not torch.compiler.is_compiling()
        self.absent: Tensor | None = None  # (B, n, m), or None where nothing is seen to be absent
        if not (readable and self.rows.all() and self.columns.all()):
            self.absent = ~(self.rows[:, :, None] & self.columns[:, None, :])

    def largest(self) -> Tensor:
        """The largest entry (B, 1) of the log-kernel's present cells."""
        present = self.log_kernel
        if self.absent is not None:
            present = present.masked_fill(self.absent, -torch.inf)
        return present.amax((-2, -1))[:, None]

    def kernel(self, log_u: Tensor, log_v: Tensor | None = None) -> Tensor:
        """The kernel with logarithms taken in; 1 in absent cells, so that no sum of them is 0."""
        scaled = self.log_kernel + log_u[:, :, None]
        if log_v is not None:
            scaled.add_(log_v[:, None, :])
        return (scaled if self.absent is None else scaled.masked_fill_(self.absent, 0)).exp_()

    def unscaled(self) -> tuple[Tensor, Tensor]:
        """U and v of 1, and v of 0 at absent columns. (That u is 0 follows from mu.)"""
        return torch.ones_like(self.mu), self.columns.T.to(self.nu.dtype).contiguous()

    def log_step(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        log_u = self.log_mu - _row_logsumexp(self.log_kernel, log_v)
        return log_u, self.log_nu - _row_logsumexp(self.log_kernel.mT, log_u)

    def row_error(self, u: Tensor, next_u: Tensor) -> Tensor:
        """L1 distance (B,) of the rows from mu before a step, where they sum to mu u / next_u."""
        ratio = torch.where(next_u > 0, u / next_u, 1)
        return (self.mu * (ratio - 1).abs()).sum(0) * self.log_mass[:, 0].exp()

    def safe(self, u: Tensor, v: Tensor) -> bool:
        """Whether all scalings of present rows and columns are within the bounds of absorbing."""
        bound = math.exp(_ABSORB_BEYOND[u.dtype])
        scalings = torch.cat([u[self.rows.T], v[self.columns.T]])
        lo, hi = scalings.aminmax()
        return bool((lo >= 1 / bound) & (hi <= bound))


def _by_chunks(
    solve: Callable[[_Batch], Scalings],
    size: int,
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
) -> Scalings:
    *batch, n, m = log_kernel.shape
    log_kernel = log_kernel.reshape(-1, n, m)
    log_mu, log_nu = log_mu.reshape(-1, n), log_nu.reshape(-1, m)
    count = len(log_kernel)
    if log_kernel.is_cpu and not torch.compiler.is_compiling():
        count = max(1, size // (n * m * log_kernel.element_size()))
    parts: list[Scalings] = []
    for k in range(0, len(log_kernel), count):
        part = _Batch(log_kernel[k : k + count], log_mu[k : k + count], log_nu[k : k + count])
        log_u, log_v, steps = solve(part)
        parts.append((log_u + part.log_mass, log_v, steps))
    log_u, log_v, steps = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return log_u.reshape(*batch, n), log_v.reshape(*batch, m), steps.reshape(batch)


def _step(batch: _Batch, kernel: Tensor, compiled: bool = False) -> Step:
    """From v (m, B) to u = mu / (K v) (n, B) and v = nu / (K' u) (m, B), for kernels (B, n, m)."""
    mu, nu = batch.mu, batch.nu
    compiling = torch.compiler.is_compiling()
    if len(kernel) == 1 and not compiled:
        single = kernel[0]

        def one(v: Tensor) -> tuple[Tensor, Tensor]:
            u = mu / torch.mv(single, v[:, 0])[:, None]
            return u, nu / torch.mv(single.T, u[:, 0])[:, None]

        return one
    by_column = kernel.permute(1, 2, 0).contiguous()  # (n, m, B)
    if compiling or compiled:
        fused = _fused_step if compiling else _compiled_step()
        return lambda v: fused(by_column, mu, nu, v)
    # Eagerly the product is written out: into the same memory each time, and summed over the first
    # dimension, along the batch.
    by_row = by_column.transpose(0, 1).contiguous()  # (m, n, B)
    row_scratch = torch.empty_like(by_row)
    column_scratch = row_scratch.view(by_column.shape)

    def many(v: Tensor) -> tuple[Tensor, Tensor]:
        u = mu / torch.mul(by_row, v[:, None], out=row_scratch).sum(0)
        return u, nu / torch.mul(by_column, u[:, None], out=column_scratch).sum(0)

    return many


def _fused_step(kernel: Tensor, mu: Tensor, nu: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    u = mu / (kernel * v).sum(1)
    return u, nu / (kernel * u[:, None]).sum(0)


@cache
def _compiled_step() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_fused_step)  # pyright: ignore[reportUnknownMemberType]
