"""Sinkhorn's iteration on logarithms: no overflow, whatever the range of scores over epsilon."""

from __future__ import annotations

from typing import final

from torch import Tensor

from norton_losses.distributed import ONE_PROCESS, Shard
from norton_losses.sinkhorn.iteration import AbstractSteps, Scalings, State, iterate


@final
class LogSteps(AbstractSteps):
    """Steps on log-scalings, the ones that can be differentiated through.

    Logarithms of size r carry an absolute error of about r ulp: see
    :meth:`~norton_losses.AbstractProblem.precise`.

    Args:
        log_kernel: S / epsilon (..., n, m).
        log_mu: (..., n), -inf at absent rows.
        log_nu: (..., m), -inf at absent columns.
        shard: the processes that hold the rows.
    """

    def __init__(
        self, log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor, shard: Shard = ONE_PROCESS
    ) -> None:
        self.log_kernel, self.log_mu, self.log_nu = log_kernel, log_mu, log_nu
        self.shard = shard

    def __call__(self, state: State) -> State:
        log_u = self.log_mu - row_logsumexp(self.log_kernel, state[1])
        of_columns = self.shard.logsumexp(row_logsumexp(self.log_kernel.mT, log_u))
        return log_u, self.log_nu - of_columns


def solve_by_logs(
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
    shard: Shard = ONE_PROCESS,
) -> Scalings:
    step = LogSteps(log_kernel, log_mu, log_nu, shard)
    (log_u, log_v), steps = iterate(step, step.start(), iterations, tolerance)
    return Scalings(log_u, log_v, steps)


def row_logsumexp(log_kernel: Tensor, log_v: Tensor) -> Tensor:
    return (log_kernel + log_v[..., None, :]).logsumexp(-1)
