"""GeomLoss behind our interface: annealed solvers, brought home by a few plain steps of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from norton_losses._checks import check_choice, check_count
from norton_losses.sinkhorn import domains
from norton_losses.sinkhorn.domains import Scalings, even_if_empty
from norton_losses.sinkhorn.keops_sinkhorn import quietly, try_keops
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem, TransportProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.streaming import streamed


@final
@dataclass(frozen=True)
class GeomLossSinkhorn(AbstractSinkhorn):
    """GeomLoss's annealed Sinkhorn, then plain steps (``pip install 'norton-losses[geomloss]'``).

    Approximate: GeomLoss lowers epsilon step by step and averages its two updates, so that it does
    not take the steps of Eq. (3), while it converges to the same plan. ``polish`` plain steps
    bring its columns to their marginals and, down to an epsilon of a twentieth of the scores'
    range, the plan to within 1e-4 of the converged one.

    Args:
        iterations: steps of GeomLoss on explicit problems. For points it takes those that its
            annealing asks for, and the plan counts the polish alone.
        polish: plain steps after it; 0 shows what GeomLoss found.
        points: ``"tensorized"`` holds the squared distances of a point cloud, ``"online"`` makes
            them by KeOps in passing.

    Raises:
        ImportError: GeomLoss 0.3.1 or newer is not installed, or KeOps for ``"online"``.
        RuntimeError: ``"online"`` where KeOps cannot compile.
        ValueError: ``iterations`` below 1, ``polish`` below 0 or not whole, an unknown choice.

    Source: Eq. (2) of Lin et al., ICLR 2024; Feydy et al., 2019.

    Example:
        >>> import torch
        >>> from norton_losses import GeomLossSinkhorn, TransportProblem
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> problem = TransportProblem(torch.eye(2), half, half, epsilon=0.5)
        >>> GeomLossSinkhorn().solve(problem).plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
    """

    polish: int = field(default=100, kw_only=True)
    points: Literal["tensorized", "online"] = field(default="tensorized", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("polish", self.polish, least=0)
        check_choice("points", self.points, ("tensorized", "online"))
        _import_geomloss()
        if self.points == "online":
            try_keops('GeomLossSinkhorn(points="online")')

    def supports(self, problem: Problem) -> Support:
        return Support(ok=True)

    def _solve(self, problem: Problem) -> TransportPlan:
        no_row, no_column = problem.log_mu == -torch.inf, problem.log_nu == -torch.inf
        log_mu, log_nu, empty = even_if_empty(problem.log_mu, problem.log_nu)
        with _grad_mode_restored():
            if isinstance(problem, PointCloudProblem):
                log_u, log_v = self._of_points(problem, log_mu.exp(), log_nu.exp())
            else:
                log_u, log_v = self._of_scores(problem, log_mu.exp(), log_nu.exp())
        log_u = (log_u + log_mu).masked_fill(no_row | empty, -torch.inf)
        log_v = (log_v + log_nu).masked_fill(no_column | empty, -torch.inf)
        annealed = 0 if isinstance(problem, PointCloudProblem) else self.iterations
        steps = torch.full(empty.shape[:-1], annealed, device=log_u.device)
        if self.polish:
            log_u, log_v, polished = self._polished(problem, log_v)
            steps = steps + polished
        return TransportPlan(problem, log_u, log_v, steps)

    def _of_scores(
        self, problem: TransportProblem, mu: Tensor, nu: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, m = problem.scores.shape[-2:]
        result = _import_geomloss().ot.solve_batch(
            -problem.scores.reshape(-1, n, m),
            reg=problem.epsilon,
            a=mu.reshape(-1, n),
            b=nu.reshape(-1, m),
            max_iter=self.iterations,
        )
        f, g = result.potential_a.reshape(mu.shape), result.potential_b.reshape(nu.shape)
        return f / problem.epsilon, g / problem.epsilon

    def _of_points(
        self, problem: PointCloudProblem, mu: Tensor, nu: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Half a squared distance is a product up to norms, which the scalings take up.
        solver = _import_geomloss().SamplesLoss(
            "sinkhorn",
            p=2,
            blur=problem.epsilon**0.5,
            scaling=0.9,
            debias=False,
            potentials=True,
            backend=self.points,
        )
        with quietly():
            f, g = solver(mu, problem.x, nu, problem.y)
        x_norm, y_norm = (points.square().sum(-1) / 2 for points in (problem.x, problem.y))
        return (f.view(-1) - x_norm) / problem.epsilon, (g.view(-1) - y_norm) / problem.epsilon

    def _polished(self, problem: Problem, log_v: Tensor) -> Scalings:
        if isinstance(problem, PointCloudProblem):
            return streamed(problem, self.polish, log_v=log_v)
        start = log_v.masked_fill(log_v == -torch.inf, 0)
        log_kernel = problem.scores / problem.epsilon + start[..., None, :]
        log_u, log_v, steps = domains.log(log_kernel, problem.log_mu, problem.log_nu, self.polish)
        return log_u, log_v + start, steps


@contextlib.contextmanager
def _grad_mode_restored() -> Generator[None, None, None]:
    """GeomLoss leaves gradients switched off for the whole process where it raises."""
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)


def _import_geomloss() -> Any:
    try:
        with quietly():  # it imports KeOps where that is installed
            import geomloss  # pyright: ignore[reportMissingTypeStubs]
            import geomloss.ot  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            "GeomLossSinkhorn needs GeomLoss 0.3.1 or newer; install it with "
            "pip install 'norton-losses[geomloss]', or use TorchSinkhorn, which needs nothing more"
        ) from error
    return geomloss
