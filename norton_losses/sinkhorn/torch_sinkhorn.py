"""Sinkhorn's iteration in plain torch, on every device, for every problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from norton_losses._checks import check_choice, check_positive
from norton_losses._numerics import is_traced
from norton_losses._typing import PlanGradient, SinkhornDomain
from norton_losses.sinkhorn import operator
from norton_losses.sinkhorn.blockwise import solve_by_blocks
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.log_domain import solve_by_logs
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support


@final
@dataclass(frozen=True)
class TorchSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration in plain torch.

    Algorithm:
        ``u = mu / (K v)``, then ``v = nu / (K' u)``, with ``K = exp(S / epsilon)``, Eq. (3); on
        plain numbers where that is safe, else on logarithms. A point cloud goes by blocks of rows.

    Args:
        iterations: the most pairs of updates.
        tolerance: stop updating a problem once the L1 error of its rows is within this, whatever
            the rest of its batch does. Checking it makes the host wait for the GPU at each step;
            None takes all the iterations without looking.
        domain: ``"scaling"`` multiplies plain numbers, for scores within 60 epsilons of each other
            (500 in float64); ``"stabilized"`` does so for any range, and looks at each step;
            ``"log"`` adds logarithms, is always safe and slow. ``"auto"`` takes the fastest that
            the range of the scores allows: the problem's ``score_range``, or on the CPU what they
            are seen to span. Without either it is ``"log"``, since looking makes the host wait.
        compiled: compile the steps of ``"scaling"``, which takes some seconds for a new shape and
            needs a compiler.
        plan_gradient: ``"detached"``, ``"implicit"`` or ``"unrolled"``, see
            :class:`AbstractSinkhorn`. ``"unrolled"`` is always carried out on logarithms.

    Under ``torch.compile`` all steps are one operator, so that a new shape compiles nothing.

    Raises:
        ValueError: ``iterations`` below 1, ``tolerance`` not above 0, an unknown choice.

    Source: Eq. (3) of Lin et al., ICLR 2024; Cuturi, 2013.

    Example:
        >>> import torch
        >>> from norton_losses import TorchSinkhorn, TransportProblem
        >>> third = torch.full((3,), 1 / 3).log()
        >>> problem = TransportProblem(torch.randn(3, 3), third, third, epsilon=1.0)
        >>> TorchSinkhorn(1000, tolerance=1e-5).solve(problem).marginal_error < 1e-4
        tensor(True)
    """

    plan_gradients: ClassVar[tuple[PlanGradient, ...]] = ("detached", "implicit", "unrolled")

    tolerance: float | None = field(default=None, kw_only=True)
    domain: SinkhornDomain = field(default="auto", kw_only=True)
    compiled: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            check_positive("tolerance", self.tolerance)
        check_choice("domain", self.domain, ("auto", "scaling", "stabilized", "log"))
        if self.plan_gradient == "unrolled" and self.domain not in ("auto", "log"):
            raise ValueError(
                f'plan_gradient="unrolled" differentiates logarithms, got domain={self.domain!r}; '
                'leave the domain at "auto", or take plan_gradient="implicit"'
            )

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(ok=True)

    def supports_shards(self) -> Support:
        return Support(
            self.plan_gradient == "detached" and self.domain in ("auto", "log"),
            "its rows are shared out among processes, which is done on logarithms and without a "
            'gradient; leave domain at "auto" and plan_gradient at "detached"',
        )

    def domain_of(self, problem: AbstractProblem) -> SinkhornDomain:
        """The domain in which a problem that holds its scores is solved."""
        if self.plan_gradient == "unrolled":
            return "log"
        if self.domain != "auto":
            return self.domain
        marginals = problem.log_mu, problem.log_nu
        return operator.domain_of(problem.scores, *marginals, problem.epsilon, problem.spread)

    def _solve(self, problem: AbstractProblem) -> Scalings:
        steps = self.iterations, self.tolerance
        if self.plan_gradient == "unrolled" or not problem.shard.alone:
            if not problem.holds_scores:
                return solve_by_blocks(problem, *steps)
            log_kernel = problem.scores / problem.epsilon
            marginals = problem.log_mu, problem.log_nu
            return solve_by_logs(log_kernel, *marginals, *steps, problem.shard)
        # Only a compiler needs the operators: eagerly their dispatch costs more than a small solve.
        compiling = is_traced(problem.log_mu)
        tensors: Any = (getattr(problem, name) for name in problem.tensors)
        if problem.holds_scores:
            solve: Any = operator.explicit_operator if compiling else operator.solve_explicit
            settings: Any = problem.spread, *steps, self.domain, self.compiled
        else:
            solve = operator.cloud_operator if compiling else operator.solve_cloud
            settings = problem.chunk_rows, *steps
        return Scalings(*solve(*tensors, problem.epsilon, *settings))
