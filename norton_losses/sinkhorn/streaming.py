"""Sinkhorn's iteration on a point cloud, by blocks of rows: the scores are never held at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from norton_losses.sinkhorn.domains import Scalings, even_if_empty, start
from norton_losses.sinkhorn.problem import PointCloudProblem

# The smallest column of a plan that has kept its digits, above what underflow takes from it.
_LEAST_COLUMN = {torch.float32: 1e-25, torch.float64: 1e-250}


def streamed(
    problem: PointCloudProblem,
    iterations: int,
    tolerance: float | None = None,
    log_v: Tensor | None = None,
) -> Scalings:
    """The iteration on logarithms, which makes each block of scores once a step.

    Args:
        problem: of n and m points.
        iterations: the most steps to take.
        tolerance: stop once the rows are within this L1 distance of mu.
        log_v: where to start (m,); None means 0.

    Returns:
        log_u (n,), log_v (m,) and the steps taken ().
    """
    log_mu, log_nu, empty = even_if_empty(problem.log_mu, problem.log_nu)
    problem = replace(problem, log_mu=log_mu, log_nu=log_nu, check_values=False)
    log_u, log_v = log_mu, start(log_nu) if log_v is None else log_v
    steps = 0
    while steps < iterations:
        next_u, next_v = _step(problem, log_v)
        if tolerance is not None and steps > 0:
            # The rows sum to mu * u / next_u before this step.
            ratio = (log_u - next_u).masked_fill(log_mu == -torch.inf, 0)
            if (log_mu.exp() * ratio.expm1().abs()).sum() <= tolerance:
                break
        log_u, log_v, steps = next_u, next_v, steps + 1
    log_u, log_v = log_u.masked_fill(empty, -torch.inf), log_v.masked_fill(empty, -torch.inf)
    return log_u, log_v, torch.full((), steps, device=log_u.device)


def _step(problem: PointCloudProblem, log_v: Tensor) -> tuple[Tensor, Tensor]:
    if log_v.is_cpu and not torch.compiler.is_compiling():
        log_u, next_v = _quick_step(problem, log_v)
        if next_v is not None:
            return log_u, next_v

    def of_rows(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
        log_kernel = scores / problem.epsilon
        log_u = problem.log_mu[rows] - (log_kernel + log_v).logsumexp(-1)
        return log_u, (log_kernel + log_u[:, None]).logsumexp(-2)

    log_u, column_sums = zip(*problem.map_rows(of_rows), strict=True)
    return torch.cat(log_u), problem.log_nu - torch.stack(column_sums).logsumexp(0)


def _quick_step(problem: PointCloudProblem, log_v: Tensor) -> tuple[Tensor, Tensor | None]:
    """A step whose exponentials serve rows and columns; no log_v where a column lost too much.

    ``e^(S_ij / epsilon + v_j - top_i)`` sums to at least 1 along its row. Times
    ``mu_i`` over that sum it is the plan between the two updates, whose columns are summed next.
    One that holds almost nothing has lost digits to underflow.
    """

    def of_rows(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
        terms = scores.div_(problem.epsilon).add_(log_v)  # a block is made for this call alone
        top = terms.amax(-1, keepdim=True)
        weights = terms.sub_(top).exp_()
        sums = weights.sum(-1)
        log_u = problem.log_mu[rows] - top[:, 0] - sums.log()
        return log_u, torch.mv(weights.T, problem.log_mu[rows].exp() / sums)

    log_u, columns = zip(*problem.map_rows(of_rows), strict=True)
    column_sums, absent = torch.stack(columns).sum(0), problem.log_nu == -torch.inf
    if (column_sums.masked_fill(absent, 1) < _LEAST_COLUMN[log_v.dtype]).any():
        return torch.cat(log_u), None
    next_v = problem.log_nu + log_v - column_sums.log()
    return torch.cat(log_u), next_v.masked_fill(absent, -torch.inf)
