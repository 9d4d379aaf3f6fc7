"""Our own solver: plain torch, every device, every problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from norton_losses._checks import check_positive
from norton_losses.sinkhorn import domains
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import TransportProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support


@final
@dataclass(frozen=True)
class TorchSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration in plain torch, on logarithms.

    Algorithm:
        ``log_u = log_mu - logsumexp_j(S / epsilon + log_v)``, then
        ``log_v = log_nu - logsumexp_i(S / epsilon + log_u)``, Eq. (3).

    Args:
        iterations: the most pairs of updates.
        tolerance: stop updating a problem once the L1 error of its rows is within this, whatever
            the rest of its batch does. Checking it makes the host wait for the GPU at each step;
            None takes all the iterations without looking.

    Raises:
        ValueError: ``iterations`` below 1, ``tolerance`` not above 0.

    Source: Eq. (3) of Lin et al., ICLR 2024; Cuturi, 2013.

    Example:
        >>> import torch
        >>> from norton_losses import TorchSinkhorn, TransportProblem
        >>> third = torch.full((3,), 1 / 3).log()
        >>> problem = TransportProblem(torch.randn(3, 3), third, third, epsilon=1.0)
        >>> TorchSinkhorn(1000, tolerance=1e-5).solve(problem).marginal_error < 1e-4
        tensor(True)
    """

    tolerance: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            check_positive("tolerance", self.tolerance)

    def supports(self, problem: TransportProblem) -> Support:
        return Support(ok=True)

    def _solve(self, problem: TransportProblem) -> TransportPlan:
        log_kernel = problem.scores / problem.epsilon
        log_u, log_v, steps = domains.log(
            log_kernel, problem.log_mu, problem.log_nu, self.iterations, self.tolerance
        )
        return TransportPlan(problem, log_u, log_v, steps, self.tolerance)
