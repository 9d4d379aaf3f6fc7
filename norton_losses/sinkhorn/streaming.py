"""Sinkhorn's iteration on a point cloud, by blocks of rows: the scores are never held at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from norton_losses.sinkhorn.domains import Scalings, even_if_empty, start
from norton_losses.sinkhorn.problem import PointCloudProblem


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
    return log_u, log_v, torch.tensor(steps, device=log_u.device)


def _step(problem: PointCloudProblem, log_v: Tensor) -> tuple[Tensor, Tensor]:
    def of_rows(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
        log_kernel = scores / problem.epsilon
        log_u = problem.log_mu[rows] - (log_kernel + log_v).logsumexp(-1)
        return log_u, (log_kernel + log_u[:, None]).logsumexp(-2)

    log_u, column_sums = zip(*problem.map_rows(of_rows), strict=True)
    return torch.cat(log_u), problem.log_nu - torch.stack(column_sums).logsumexp(0)
