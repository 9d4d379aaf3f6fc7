"""Sinkhorn's iteration on a point cloud, a block of rows at a time: no scores are held."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from norton_losses.sinkhorn.iteration import AbstractSteps, Scalings, State, iterate
from norton_losses.sinkhorn.problem import AbstractProblem

# The smallest column sum of a plan that has kept its digits, above what underflow takes from it.
_SMALLEST_COLUMN = {torch.float32: 1e-25, torch.float64: 1e-250}


@final
class BlockwiseSteps(AbstractSteps):
    """Steps on log-scalings that make each block of scores once.

    Args:
        problem: of n and m points.
    """

    def __init__(self, problem: AbstractProblem) -> None:
        self.problem = problem
        self.log_mu, self.log_nu, self.shard = problem.log_mu, problem.log_nu, problem.shard

    def __call__(self, state: State) -> State:
        log_v = state[1]
        if log_v.is_cpu:
            log_u, next_v = self._quick(log_v)
            if next_v is not None:
                return log_u, next_v

        def of_rows(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
            log_kernel = scores / self.problem.epsilon
            log_u = self.log_mu[rows] - (log_kernel + log_v).logsumexp(-1)
            return log_u, (log_kernel + log_u[:, None]).logsumexp(-2)

        log_u, column_sums = zip(*self.problem.map_rows(of_rows), strict=True)
        of_columns = self.shard.logsumexp(torch.stack(column_sums).logsumexp(0))
        return torch.cat(log_u), self.log_nu - of_columns

    def _quick(self, log_v: Tensor) -> tuple[Tensor, Tensor | None]:
        """A step whose exponentials serve rows and columns; no log_v if a column lost too much.

        ``e^(S_ij / epsilon + v_j - top_i)`` sums to at least 1 along its row. Times ``mu_i`` over
        that sum it is the plan between the two updates, whose columns are summed next. One that
        holds almost nothing has lost digits to underflow.
        """

        def of_rows(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
            # In place: a block is made for this call alone.
            terms = scores.div_(self.problem.epsilon).add_(log_v)
            top = terms.amax(-1, keepdim=True)
            weights = terms.sub_(top).exp_()
            sums = weights.sum(-1)
            log_u = self.log_mu[rows] - top[:, 0] - sums.log()
            return log_u, torch.mv(weights.T, self.log_mu[rows].exp() / sums)

        log_u, columns = zip(*self.problem.map_rows(of_rows), strict=True)
        column_sums = self.shard.sum(torch.stack(columns).sum(0))
        absent = self.log_nu == -torch.inf
        if (column_sums.masked_fill(absent, 1) < _SMALLEST_COLUMN[log_v.dtype]).any():
            return torch.cat(log_u), None
        next_v = self.log_nu + log_v - column_sums.log()
        return torch.cat(log_u), next_v.masked_fill(absent, -torch.inf)


def solve_by_blocks(
    problem: AbstractProblem,
    iterations: int,
    tolerance: float | None = None,
    log_v: Tensor | None = None,
) -> Scalings:
    """Solve a point cloud, from ``log_v`` (m,) where it is given."""
    step = BlockwiseSteps(problem)
    start = step.start() if log_v is None else (problem.log_mu, log_v)
    (log_u, log_v), steps = iterate(step, start, iterations, tolerance)
    return Scalings(log_u, log_v, steps)
