# pyright: reportUnknownMemberType=false
"""Sinkhorn's iteration as custom operators, which ``torch.compile`` does not trace into."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from norton_losses._typing import SinkhornDomain
from norton_losses.sinkhorn.blockwise import solve_by_blocks
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.log_domain import solve_by_logs
from norton_losses.sinkhorn.point_cloud import PointCloudProblem
from norton_losses.sinkhorn.problem import TransportProblem
from norton_losses.sinkhorn.scaling_domain import (
    SCALING_RANGE,
    ScalingSteps,
    StabilizedSteps,
    solve_by_chunks,
)


def solve_explicit(
    scores: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    epsilon: float,
    spread: float | None,
    iterations: int,
    tolerance: float | None,
    domain: SinkhornDomain,
    compiled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log_u (..., n), log_v (..., m) and steps (...) of problems with scores (..., n, m)."""
    if domain == "auto":
        domain = domain_of(scores, log_mu, log_nu, epsilon, spread)
    problem = scores / epsilon, log_mu, log_nu, iterations, tolerance
    if domain == "log":
        return _contiguous(solve_by_logs(*problem))
    if domain == "stabilized":
        return _contiguous(solve_by_chunks(StabilizedSteps, *problem))
    return _contiguous(solve_by_chunks(partial(ScalingSteps, compiled=compiled), *problem))


def solve_cloud(
    x: Tensor,
    y: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    epsilon: float,
    chunk_rows: int | None,
    iterations: int,
    tolerance: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log_u (n,), log_v (m,) and steps () of points (n, D) and (m, D)."""
    cloud = PointCloudProblem(
        x, y, log_mu, log_nu, epsilon, chunk_rows=chunk_rows, check_values=False
    )
    return _contiguous(solve_by_blocks(cloud, iterations, tolerance))


def domain_of(
    scores: Tensor, log_mu: Tensor, log_nu: Tensor, epsilon: float, spread: float | None
) -> SinkhornDomain:
    """The fastest domain that is safe for the range of the scores; the CPU may look at them."""
    if spread is None and scores.is_cpu:
        problem = TransportProblem(scores, log_mu, log_nu, epsilon, check_values=False)
        spread = problem.look_for_spread()
    if spread is None:
        return "log"
    if spread / epsilon <= SCALING_RANGE[scores.dtype]:
        return "scaling"
    return "stabilized" if scores.is_cpu else "log"


def _contiguous(scalings: Scalings) -> tuple[Tensor, Tensor, Tensor]:
    log_u, log_v, steps = scalings
    return log_u.contiguous(), log_v.contiguous(), torch.as_tensor(steps).contiguous()


# Schemas are written out: torch before 2.6 cannot read them from postponed annotations.
explicit_operator = torch.library.custom_op(
    "norton_losses::sinkhorn",
    solve_explicit,
    mutates_args=(),
    schema="(Tensor scores, Tensor log_mu, Tensor log_nu, float epsilon, float? spread, "
    "int iterations, float? tolerance, str domain, bool compiled) -> (Tensor, Tensor, Tensor)",
)
cloud_operator = torch.library.custom_op(
    "norton_losses::point_cloud_sinkhorn",
    solve_cloud,
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor log_mu, Tensor log_nu, float epsilon, int? chunk_rows, "
    "int iterations, float? tolerance) -> (Tensor, Tensor, Tensor)",
)


@explicit_operator.register_fake
def _(scores: Tensor, log_mu: Tensor, log_nu: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _like(log_mu, log_nu)


@cloud_operator.register_fake
def _(
    x: Tensor, y: Tensor, log_mu: Tensor, log_nu: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(log_mu, log_nu)


def _like(log_mu: Tensor, log_nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    steps = log_mu.new_empty(log_mu.shape[:-1], dtype=torch.int64)
    return log_mu.new_empty(log_mu.shape), log_nu.new_empty(log_nu.shape), steps
