"""The solution of a transport problem, and everything one wants to know about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from norton_losses.sinkhorn.problem import TransportProblem

_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class TransportPlan:
    r"""Log-scalings of a problem, :math:`\log Q_{ij} = S_{ij} / \varepsilon + u_i + v_j`.

    The plan carries no gradient (Eq. (4)), while :attr:`score` and :attr:`value` carry that of the
    scores, with the plan held fixed. For :attr:`value` this is the exact gradient, by Danskin's
    theorem, once the plan has converged.

    Attributes:
        problem: what was solved.
        log_u: (..., n), -inf at absent rows.
        log_v: (..., m), -inf at absent columns.
        iterations: (...), int64, pairs of row and column updates made for each problem.
        tolerance: what :attr:`converged` compares the marginal error with; None means 1e-4.

    Source: Eq. (3) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import TorchSinkhorn, TransportProblem
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> plan = TorchSinkhorn().solve(TransportProblem(torch.eye(2), half, half, epsilon=0.5))
        >>> plan.plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
        >>> plan.converged
        tensor(True)
    """

    problem: TransportProblem
    log_u: Tensor
    log_v: Tensor
    iterations: Tensor
    tolerance: float | None = None

    @property
    def log_plan(self) -> Tensor:
        """Log Q (..., n, m), -inf where a row or a column is absent."""
        log_kernel = self.problem.scores.detach() / self.problem.epsilon
        return log_kernel + self.log_u[..., :, None] + self.log_v[..., None, :]

    @property
    def plan(self) -> Tensor:
        """Q (..., n, m), the mass moved from each row to each column; 0 where one is absent."""
        return self.log_plan.exp()

    @property
    def core(self) -> Tensor:
        """Q without the prompt bucket's row and column, or all of Q if there is none."""
        return self.plan[..., :-1, :-1] if self.problem.has_bucket else self.plan

    @property
    def T(self) -> TransportPlan:
        """The plan of the transposed problem."""
        return replace(self, problem=self.problem.T, log_u=self.log_v, log_v=self.log_u)

    @property
    def score(self) -> Tensor:
        """<Q, S> (...)."""
        return (self.plan * self.problem.scores).sum((-2, -1))

    @property
    def value(self) -> Tensor:
        """<Q, S> + epsilon * H(Q) (...), the objective of Eq. (2)."""
        plan = self.plan
        return self.score - self.problem.epsilon * torch.xlogy(plan, plan).sum((-2, -1))

    @property
    def marginal_error(self) -> Tensor:
        """L1 distance of the rows from mu or of the columns from nu, whichever is larger (...)."""
        plan = self.plan
        rows = (plan.sum(-1) - self.problem.log_mu.exp()).abs().sum(-1)
        columns = (plan.sum(-2) - self.problem.log_nu.exp()).abs().sum(-1)
        return torch.maximum(rows, columns)

    @property
    def converged(self) -> Tensor:
        """Whether the marginal error (...) is within the tolerance."""
        return self.marginal_error <= (self.tolerance or _TOLERANCE)

    def detach(self) -> TransportPlan:
        """The same plan of the same problem, cut off from the graph."""
        return replace(self, problem=self.problem.detach())
