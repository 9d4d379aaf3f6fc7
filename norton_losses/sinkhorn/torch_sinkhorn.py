"""Our own solver: plain torch, every device, every problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, final

import torch

from norton_losses._checks import check_choice, check_positive
from norton_losses._typing import PlanGradient, SinkhornDomain
from norton_losses.sinkhorn import domains
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem, TransportProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.streaming import streamed


@final
@dataclass(frozen=True)
class TorchSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration in plain torch.

    Algorithm:
        ``u = mu / (K v)``, then ``v = nu / (K' u)``, with ``K = exp(S / epsilon)``, Eq. (3); on
        plain numbers where that is safe, else on logarithms. A point cloud goes by row blocks.

    Args:
        iterations: the most pairs of updates.
        tolerance: stop updating a problem once the L1 error of its rows is within this, whatever
            the rest of its batch does. Checking it makes the host wait for the GPU at each step;
            None takes all the iterations without looking.
        domain: ``"scaling"``, ``"absorbed"`` or ``"log"``, see
            :mod:`norton_losses.sinkhorn.domains`. ``"auto"`` takes the fastest that the range of
            the scores allows: the problem's ``score_range``, or on the CPU what the scores are seen
            to span. Without either it is ``"log"``, since looking makes the host wait.
        compiled: compile the steps of ``"scaling"``, which takes some seconds for every new shape
            and needs a compiler. Inside a compiled loss it is not needed.
        plan_gradient: ``"detached"``, ``"implicit"`` or ``"unrolled"``, see
            :class:`AbstractSinkhorn`. ``"unrolled"`` is always carried out on logarithms.

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
        check_choice("domain", self.domain, ("auto", "scaling", "absorbed", "log"))
        if self.plan_gradient == "unrolled" and self.domain not in ("auto", "log"):
            raise ValueError(
                f'plan_gradient="unrolled" differentiates logarithms, got domain={self.domain!r}; '
                'leave the domain at "auto", or take plan_gradient="implicit"'
            )

    def supports(self, problem: Problem) -> Support:
        return Support(ok=True)

    def _solve(self, problem: Problem) -> TransportPlan:
        if isinstance(problem, PointCloudProblem):
            scalings = streamed(problem, self.iterations, self.tolerance)
        else:
            log_kernel = problem.scores / problem.epsilon
            scalings = self._iterate(problem)(
                log_kernel, problem.log_mu, problem.log_nu, self.iterations, self.tolerance
            )
        return TransportPlan(problem, *scalings, self.tolerance)

    def domain_of(self, problem: TransportProblem) -> SinkhornDomain:
        """The domain in which an explicit problem is solved."""
        if self.plan_gradient == "unrolled":
            return "log"
        if self.domain != "auto":
            return self.domain
        readable = problem.scores.is_cpu and not torch.compiler.is_compiling()
        if problem.score_range is not None:
            lo, hi = problem.score_range
            spread = hi - lo
        elif readable:
            spread = _spread(problem)
        else:
            return "log"
        if spread / problem.epsilon <= domains.SCALING_RANGE[problem.scores.dtype]:
            return "scaling"
        return "absorbed" if readable else "log"

    def _iterate(self, problem: TransportProblem) -> domains.Domain:
        match self.domain_of(problem):
            case "scaling":
                return partial(domains.scaling, compiled=self.compiled)
            case "absorbed":
                return domains.absorbed
            case _:
                return domains.log


def _spread(problem: TransportProblem) -> float:
    """The largest range of the scores of present cells in one problem of the batch."""
    rows, columns = problem.log_mu > -torch.inf, problem.log_nu > -torch.inf
    lo = hi = problem.scores
    if not (rows.all() and columns.all()):
        absent = ~(rows[..., :, None] & columns[..., None, :])
        lo, hi = lo.masked_fill(absent, torch.inf), hi.masked_fill(absent, -torch.inf)
    lo, hi = lo.amin((-2, -1)), hi.amax((-2, -1))
    return float((hi - lo).clamp(min=0).max())  # -inf where all is absent
