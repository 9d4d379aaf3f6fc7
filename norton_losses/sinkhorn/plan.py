"""Transport plans: the solution of a problem, with its score, entropy and marginal error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from norton_losses.sinkhorn.problem import AbstractProblem

_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class TransportPlan:
    r"""Log-scalings of a problem, :math:`\log Q_{ij} = S_{ij} / \varepsilon + u_i + v_j`.

    By default the plan carries no gradient (Eq. (4)), while :attr:`score` and :attr:`value` carry
    that of the scores, with the plan held fixed. For :attr:`value` this is the exact gradient, by
    Danskin's theorem, once the plan has converged. A solver with another ``plan_gradient`` lets
    the plan carry its own.

    Of a problem whose rows are shared out among processes it has the rows of this one; score, value
    and errors are those of the whole, for which all processes must ask together.

    The plan of a :class:`~norton_losses.PointCloudProblem` is held by its scalings alone; score,
    value and errors go through it by row blocks, while ``log_plan``, ``plan`` and ``core`` write
    all of it out.

    Attributes:
        problem: what was solved.
        log_u: (..., n), -inf at absent rows.
        log_v: (..., m), -inf at absent columns.
        iterations: (...), int64, pairs of row and column updates made for each problem.
        tolerance: what :attr:`converged` compares the marginal error with; None means 1e-4.
        differentiable: whether the plan carries a gradient.

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

    problem: AbstractProblem
    log_u: Tensor
    log_v: Tensor
    iterations: Tensor
    tolerance: float | None = None
    differentiable: bool = False

    def __getitem__(self, index: Any) -> TransportPlan:
        """Some of the batch: ``plan[b, c]`` is that of video b with paragraph c.

        Example:
            >>> import torch
            >>> from norton_losses import TransportMeasure
            >>> plan = TransportMeasure(bucket=None).explain(torch.rand(3, 3, 4, 5)).plan
            >>> plan[0, 2].plan.shape
            torch.Size([4, 5])
        """
        part = self.problem[index]  # raises on an index of anything but the batch
        log_u, log_v = self.log_u[index], self.log_v[index]
        iterations = self.iterations[index]
        return replace(self, problem=part, log_u=log_u, log_v=log_v, iterations=iterations)

    @property
    def log_plan(self) -> Tensor:
        """Log Q (..., n, m), -inf where a row or a column is absent."""
        return self.log_rows(slice(None), self.problem.scores)

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

        def of_rows(rows: slice, scores: Tensor) -> Tensor:
            return (self.log_rows(rows, scores).exp() * scores).sum((-2, -1))

        return self.problem.shard.sum(torch.stack(self.problem.map_rows(of_rows)).sum(0))

    @property
    def entropy(self) -> Tensor:
        """H(Q) = -sum Q log Q (...)."""

        def of_rows(rows: slice, scores: Tensor) -> Tensor:
            log_q = self.log_rows(rows, scores)
            absent = log_q == -torch.inf  # 0 log 0 is 0
            return -(log_q.exp() * log_q.masked_fill(absent, 0)).sum((-2, -1))

        return self.problem.shard.sum(torch.stack(self.problem.map_rows(of_rows)).sum(0))

    @property
    def value(self) -> Tensor:
        """<Q, S> + epsilon * H(Q) (...), the objective of Eq. (2)."""
        return self.score + self.problem.epsilon * self.entropy

    @property
    @torch.no_grad()
    def marginal_error(self) -> Tensor:
        """L1 distance of the rows from mu or of the columns from nu, whichever is larger (...)."""

        def sums(rows: slice, scores: Tensor) -> tuple[Tensor, Tensor]:
            block = self.log_rows(rows, scores).exp()
            return block.sum(-1), block.sum(-2)

        row_sums, column_sums = zip(*self.problem.map_rows(sums), strict=True)
        shard = self.problem.shard
        rows = (torch.cat(row_sums, -1) - self.problem.log_mu.exp()).abs().sum(-1)
        all_columns = shard.sum(torch.stack(column_sums).sum(0))
        columns = (all_columns - self.problem.log_nu.exp()).abs().sum(-1)
        return torch.maximum(shard.sum(rows), columns)

    def log_rows(self, rows: slice, scores: Tensor) -> Tensor:
        """Log Q (..., rows, m) of a block of rows, from its scores (..., rows, m)."""
        scores = scores if self.differentiable else scores.detach()
        log_u, log_v = self.log_u[..., rows], self.log_v
        return scores / self.problem.epsilon + log_u[..., :, None] + log_v[..., None, :]

    @property
    def converged(self) -> Tensor:
        """Whether the marginal error (...) is within the tolerance, but for rounding."""
        mass = self.problem.log_nu.detach().exp().sum(-1)
        rounding = 8 * torch.finfo(mass.dtype).eps * mass
        return self.marginal_error <= (self.tolerance or _TOLERANCE) + rounding

    def detach(self) -> TransportPlan:
        """The same plan of the same problem, cut off from the graph."""
        return replace(
            self,
            problem=self.problem.detach(),
            log_u=self.log_u.detach(),
            log_v=self.log_v.detach(),
            differentiable=False,
        )
