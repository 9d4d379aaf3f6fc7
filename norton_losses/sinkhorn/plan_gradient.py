"""The gradient of a plan, from the equations that its marginals satisfy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from norton_losses.sinkhorn.plan import TransportPlan

_RIDGE = 1e-12  # of a matrix whose eigenvalues lie in [0, 1]


def implicit_plan(plan: TransportPlan) -> TransportPlan:
    r"""A converged plan, with its gradient in scores and log-marginals.

    Differentiating :math:`\sum_j Q_{ij} = \mu_i` and :math:`\sum_i Q_{ij} = \nu_j` at
    :math:`\log Q_{ij} = S_{ij} / \varepsilon + u_i + v_j` gives a linear system for du and dv,

    .. math::
        \mathrm{diag}(Q 1) \, du + Q \, dv &= \mu \, d\log\mu - (Q \circ dS / \varepsilon) 1 \\
        Q^\top du + \mathrm{diag}(Q^\top 1) \, dv &=
            \nu \, d\log\nu - (Q \circ dS / \varepsilon)^\top 1

    whose solver does not matter, so that every backend can be differentiated.

    Source: the implicit function theorem on Eq. (2)'s constraints.
    """
    problem = plan.problem
    log_u, log_v = _Implicit.apply(  # pyright: ignore
        problem.scores, problem.log_mu, problem.log_nu, problem.epsilon, plan.log_u, plan.log_v
    )
    return replace(plan, log_u=log_u, log_v=log_v, differentiable=True)


class _Implicit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor,
        log_mu: Tensor,
        log_nu: Tensor,
        epsilon: float,
        log_u: Tensor,
        log_v: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return log_u.clone(), log_v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        scores, log_mu, log_nu, ctx.epsilon, *_ = inputs
        # The scalings that are given out, which carry the gradient that a second derivative needs.
        ctx.save_for_backward(scores, log_mu, log_nu, *output)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        scores, log_mu, log_nu, log_u, log_v = ctx.saved_tensors
        dtype = scores.dtype
        # Nearly disjoint blocks of the plan leave the system nearly singular.
        log_u, log_v = log_u.double(), log_v.double()
        plan = (scores.double() / ctx.epsilon + log_u[..., :, None] + log_v[..., None, :]).exp()
        grad_u = grad_outputs[0].double().masked_fill(log_u == -torch.inf, 0)
        grad_v = grad_outputs[1].double().masked_fill(log_v == -torch.inf, 0)
        a, b = _solve(plan, grad_u, grad_v)
        grad_scores = -plan * (a[..., :, None] + b[..., None, :]) / ctx.epsilon
        grad_mu, grad_nu = a * log_mu.double().exp(), b * log_nu.double().exp()
        return grad_scores.to(dtype), grad_mu.to(dtype), grad_nu.to(dtype), None, None, None


def _solve(plan: Tensor, right_u: Tensor, right_v: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``(Q 1) a + Q b = right_u`` and ``Q' a + (Q' 1) b = right_v``, by eliminating a.

    What is left for b, scaled by the root of the column sums, is ``I - B' B``. It is singular,
    since a + c and b - c are one solution: the known null vector is added to it. A Cholesky factor,
    unlike a general solve, needs no look at its outcome by the host.
    """
    row_sums, column_sums = plan.sum(-1), plan.sum(-2)
    row_inverse, column_root = _power(row_sums, -1), _power(column_sums, -0.5)
    scaled = _power(row_sums, -0.5)[..., :, None] * plan * column_root[..., None, :]  # B
    null = _power(column_sums, 0.5) * _power(column_sums.sum(-1, keepdim=True), -0.5)
    identity = torch.eye(plan.shape[-1], dtype=plan.dtype, device=plan.device)
    matrix = (1 + _RIDGE) * identity - scaled.mT @ scaled + null[..., :, None] * null[..., None, :]
    factor = cast(Tensor, torch.linalg.cholesky_ex(matrix)[0])  # pyright: ignore
    right = column_root * (right_v - _product(plan.mT, row_inverse * right_u))
    b = column_root * torch.cholesky_solve(right[..., None], factor)[..., 0]
    return row_inverse * (right_u - _product(plan, b)), b


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _power(sums: Tensor, exponent: float) -> Tensor:
    """A power of positive numbers, and 0 where they are 0: at absent rows and columns."""
    zero = sums == 0
    return sums.masked_fill(zero, 1).pow(exponent).masked_fill(zero, 0)
