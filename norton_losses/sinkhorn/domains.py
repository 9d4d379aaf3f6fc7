"""Sinkhorn's iteration, Eq. (3), in the three domains in which it can be carried out.

:func:`scaling` multiplies plain numbers and is fast, :func:`log` adds logarithms and is always
safe, :func:`absorbed` multiplies as long as that is safe. All take the same arguments, and every
problem gets the same answer from each, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TypeAlias

import torch
from torch import Tensor

from norton_losses.sinkhorn.plain_numbers import (
    Batch,
    Scalings,
    by_chunks,
    row_logsumexp,
    step_of,
)

# The range of scores over epsilon up to which `scaling` keeps every number, and every product of
# two, inside the dtype: that ends at e^88 and e^709, and small masses need some of it.
SCALING_RANGE = {torch.float32: 60.0, torch.float64: 500.0}
# How much kernel the CPU works on at a time, in bytes, so that it stays in the cache for all steps.
# The compiled step needs no scratch space, and each call of it costs more.
_CHUNK, _COMPILED_CHUNK = 1 << 21, 1 << 23

Domain: TypeAlias = Callable[..., Scalings]


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
        row_sums = row_logsumexp(log_kernel, log_v)
        if tolerance is not None:
            steps.judge(((log_u + row_sums).exp() - log_mu.exp()).abs().sum(-1))
            if steps.finished():
                break
        next_u = log_mu - row_sums
        next_v = log_nu - row_logsumexp(log_kernel.mT, next_u)
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

    def solve(batch: Batch) -> Scalings:
        # The largest entry becomes 1: the kernel stays inside the dtype, whatever the scores were.
        log_u = -batch.largest().expand_as(batch.log_mu)
        step = step_of(batch, batch.kernel(log_u), compiled)
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
    return by_chunks(solve, size, log_kernel, log_mu, log_nu)


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

    def solve(batch: Batch) -> Scalings:
        log_u, log_v = batch.log_step(start(batch.log_nu))
        step = step_of(batch, batch.kernel(log_u, log_v))
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
                step = step_of(batch, batch.kernel(log_u, log_v))
                next_u, next_v = batch.unscaled()
            elif tolerance is not None:
                next_u = torch.where(steps.active, next_u, u)
                next_v = torch.where(steps.active, next_v, v)
            steps.count()
            u, v = next_u, next_v
        return log_u + u.T.log(), log_v + v.T.log(), steps.taken

    return by_chunks(solve, _CHUNK, log_kernel, log_mu, log_nu)


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
