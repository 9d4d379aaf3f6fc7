"""The base class of Sinkhorn solvers: which problems each supports, and their plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch

from norton_losses._checks import check_choice, check_count
from norton_losses._numerics import full_precision
from norton_losses._typing import PlanGradient
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.plan_gradient import implicit_plan
from norton_losses.sinkhorn.problem import AbstractProblem

Problem = TypeVar("Problem", bound=AbstractProblem)


@dataclass(frozen=True)
class Support:
    """Whether a solver serves a problem; if not, why, and what to use instead.

    Attributes:
        ok: it does.
        reason: empty where it does.
    """

    ok: bool
    reason: str = ""

    def __post_init__(self) -> None:
        if self.ok:
            object.__setattr__(self, "reason", "")


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
        object.__setattr__(self, "iterations", int(self.iterations))  # also of numpy's integers
        check_choice("plan_gradient", self.plan_gradient, self.plan_gradients)

    @abstractmethod
    def supports(self, problem: AbstractProblem) -> Support:
        """Whether :meth:`solve` serves this problem."""

    def supports_shards(self) -> Support:
        """Whether :meth:`solve` serves problems whose rows are shared out among processes."""
        return Support(
            False,
            "its rows are shared out among processes, which only TorchSinkhorn can solve; take "
            'sinkhorn="torch", or "auto"',
        )

    @abstractmethod
    def _solve(self, problem: AbstractProblem) -> Scalings:
        """Scalings of a supported problem; every problem of its batch has rows and columns.

        Those of absent rows and columns may be anything. They carry gradient only if
        ``"unrolled"`` asks for it.
        """

    def solve(self, problem: AbstractProblem) -> TransportPlan:
        """Transport plan of every problem in the batch, never in half precision.

        Raises:
            ValueError: the problem is not supported; the text says what to use instead.
            TypeError: it is no problem.
        """
        if not isinstance(problem, AbstractProblem):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"problem must be a TransportProblem, got {type(problem).__name__}; write for "
                "example TransportProblem.uniform(scores, row_mask, column_mask, epsilon)"
            )
        support = self.supports(problem)
        if support.ok and not problem.shard.alone:
            support = self.supports_shards()
        elif support.ok and self.plan_gradient != "detached":
            support = Support(
                problem.holds_scores,
                "the gradient of a plan needs all of it; solve problem.explicit(), or leave "
                'plan_gradient at "detached"',
            )
        if not support.ok:
            raise ValueError(f"{type(self).__name__} cannot solve this problem: {support.reason}")
        with full_precision(problem.log_mu):
            if self.plan_gradient == "unrolled":
                return self._plan(problem, problem, differentiable=True)
            with torch.no_grad():
                plan = self._plan(problem, problem.detach())
            return implicit_plan(plan) if self.plan_gradient == "implicit" else plan

    def with_digits(self, problem: Problem, spread: float | None) -> Problem:
        """A problem whose scores are known to span so much, in float64 if that takes it.

        A solver that has float32 alone gets it as it is.
        """
        wide = problem.precise(spread)
        return wide if self.supports(wide).ok else problem

    def _plan(
        self, problem: AbstractProblem, solved: AbstractProblem, *, differentiable: bool = False
    ) -> TransportPlan:
        """The plan of ``problem``, solved as ``solved``; handles absent rows and empty problems."""
        log_mu, log_nu = solved.log_mu, solved.log_nu
        no_row, no_column = log_mu == -torch.inf, log_nu == -torch.inf
        # A problem without rows or columns has only -inf to sum: it is solved with even marginals
        # instead, and its answer is dropped.
        no_rows = ~solved.shard.any((~no_row).any(-1))
        empty = (no_rows | no_column.all(-1))[..., None]
        even_mu, even_nu = (-log.new_full((), log.shape[-1]).log() for log in (log_mu, log_nu))
        solved = solved.replace(
            log_mu=torch.where(empty, even_mu, log_mu), log_nu=torch.where(empty, even_nu, log_nu)
        )
        log_u, log_v, steps = self._solve(solved)
        log_u = log_u.masked_fill(no_row | empty, -torch.inf)
        log_v = log_v.masked_fill(no_column | empty, -torch.inf)
        if isinstance(steps, int):
            steps = torch.full_like(no_row[..., 0], steps, dtype=torch.int64)
        tolerance: float | None = getattr(self, "tolerance", None)
        return TransportPlan(problem, log_u, log_v, steps, tolerance, differentiable)
