"""What a Sinkhorn backend is: it says what it serves, and turns a problem into a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch

from norton_losses._numerics import full_precision
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import TransportProblem


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
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, int) or self.iterations < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"iterations must be a whole number of at least 1, got {self.iterations}"
            )

    @abstractmethod
    def supports(self, problem: TransportProblem) -> Support:
        """Whether :meth:`solve` serves this problem."""

    @abstractmethod
    def _solve(self, problem: TransportProblem) -> TransportPlan:
        """The plan of a supported problem that carries no gradient."""

    def solve(self, problem: TransportProblem) -> TransportPlan:
        """Transport plan of every problem in the batch, without gradient, never in half precision.

        Raises:
            ValueError: the problem is not supported; the text says what to use instead.
        """
        support = self.supports(problem)
        if not support.ok:
            raise ValueError(f"{type(self).__name__} cannot solve this problem: {support.reason}")
        with torch.no_grad(), full_precision(problem.scores):
            plan = self._solve(problem.detach())
        return replace(plan, problem=problem)
