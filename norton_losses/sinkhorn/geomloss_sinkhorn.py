"""Annealed Sinkhorn by GeomLoss, followed by plain steps."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from norton_losses._checks import check_choice, check_count
from norton_losses._optional import require
from norton_losses.sinkhorn.blockwise import solve_by_blocks
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.keops_sinkhorn import quietly, try_keops
from norton_losses.sinkhorn.log_domain import solve_by_logs
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support


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
        check_count("polish", self.polish, minimum=0)
        check_choice("points", self.points, ("tensorized", "online"))
        _import_geomloss()
        if self.points == "online":
            try_keops('GeomLossSinkhorn(points="online")')

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(ok=True)

    def _solve(self, problem: AbstractProblem) -> Scalings:
        log_mu, log_nu = problem.log_mu, problem.log_nu
        anneal = self._of_scores if problem.holds_scores else self._of_points
        with _grad_mode_restored():
            u, v = anneal(problem, log_mu.exp(), log_nu.exp())
        log_u, log_v = u + log_mu, v + log_nu
        annealed = self.iterations if problem.holds_scores else 0
        if not self.polish:
            return Scalings(log_u, log_v, annealed)
        if not problem.holds_scores:
            return solve_by_blocks(problem, self.polish, log_v=log_v)
        start = log_v.masked_fill(log_v == -torch.inf, 0)
        log_kernel = problem.scores / problem.epsilon + start[..., None, :]
        log_u, log_v, _ = solve_by_logs(log_kernel, log_mu, log_nu, self.polish)
        return Scalings(log_u, log_v + start, annealed + self.polish)

    def _of_scores(self, problem: AbstractProblem, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
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

    def _of_points(self, problem: AbstractProblem, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
        # Half a squared distance is a product up to norms, which the scalings take up.
        x, y = (getattr(problem, name) for name in problem.tensors[:2])
        # Annealing begins at the size of the cloud, which must not be 0.
        both = torch.cat([x, y])
        diameter = (both.amax(0) - both.amin(0)).square().sum().sqrt()
        solver = _import_geomloss().SamplesLoss(
            "sinkhorn",
            p=2,
            blur=problem.epsilon**0.5,
            diameter=max(diameter.item(), problem.epsilon**0.5),
            scaling=0.9,
            debias=False,
            potentials=True,
            backend=self.points,
        )
        with quietly():
            f, g = solver(mu, x, nu, y)
        x_norm, y_norm = (points.square().sum(-1) / 2 for points in (x, y))
        return (f.view(-1) - x_norm) / problem.epsilon, (g.view(-1) - y_norm) / problem.epsilon


@contextlib.contextmanager
def _grad_mode_restored() -> Generator[None, None, None]:
    """GeomLoss leaves gradients switched off for the whole process where it raises."""
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)


def _import_geomloss() -> Any:
    with quietly():  # it imports KeOps where that is installed
        require("geomloss.ot", "GeomLossSinkhorn", "GeomLoss 0.3.1", "geomloss", "TorchSinkhorn")
        return require("geomloss", "GeomLossSinkhorn", "GeomLoss 0.3.1", "geomloss")
