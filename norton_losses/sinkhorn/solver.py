"""What a Sinkhorn backend is: it says what it serves, and turns a problem into a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from norton_losses._checks import check_choice, check_count
from norton_losses._numerics import full_precision
from norton_losses._typing import PlanGradient
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.plan_gradient import implicit_scalings
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem


@dataclass(frozen=True)
class Support:
    """Whether a solver serves a problem; if not, why, and what to use instead."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class AbstractSinkhorn(ABC):
    """A solver of Eq. (2), carrying its settings.

    Rows are updated first and columns last, so that before convergence the columns' marginals are
    exact and the rows' carry the error.

    Args:
        iterations: pairs of updates; fewer only where ``tolerance`` stops a problem early.
        plan_gradient: ``"detached"``, the plan is a constant (Eq. (4)); ``"implicit"``, its
            gradient at convergence, one small linear system a problem; ``"unrolled"``, the gradient
            of the very steps taken, which keeps all of them in memory.
    """

    plan_gradients: ClassVar[tuple[PlanGradient, ...]] = ("detached", "implicit")

    iterations: int = 50
    plan_gradient: PlanGradient = field(default="detached", kw_only=True)

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_choice("plan_gradient", self.plan_gradient, self.plan_gradients)

    @abstractmethod
    def supports(self, problem: Problem) -> Support:
        """Whether :meth:`solve` serves this problem."""

    @abstractmethod
    def _solve(self, problem: Problem) -> TransportPlan:
        """The plan of a supported problem; it carries gradient only if ``"unrolled"`` asks it."""

    def solve(self, problem: Problem) -> TransportPlan:
        """Transport plan of every problem in the batch, never in half precision.

        Raises:
            ValueError: the problem is not supported; the text says what to use instead.
        """
        support = self.supports(problem)
        if support.ok and self.plan_gradient != "detached":
            support = _has_plan_gradient(problem)
        if not support.ok:
            raise ValueError(f"{type(self).__name__} cannot solve this problem: {support.reason}")
        with full_precision(problem.log_mu):
            if self.plan_gradient == "unrolled":
                return replace(self._solve(problem), problem=problem, differentiable=True)
            with torch.no_grad():
                plan = replace(self._solve(problem.detach()), problem=problem)
            if self.plan_gradient == "implicit" and not isinstance(problem, PointCloudProblem):
                log_u, log_v = implicit_scalings(problem, plan.log_u, plan.log_v)
                plan = replace(plan, log_u=log_u, log_v=log_v, differentiable=True)
            return plan


def _has_plan_gradient(problem: Problem) -> Support:
    return Support(
        not isinstance(problem, PointCloudProblem),
        "the gradient of a plan needs all of it; solve problem.explicit(), or leave plan_gradient "
        'at "detached"',
    )
