"""Sinkhorn's iteration by Python Optimal Transport, for batches of explicit problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from norton_losses._optional import require
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support


@final
@dataclass(frozen=True)
class POTSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration by Python Optimal Transport (``pip install 'norton-losses[pot]'``).

    Takes exactly ``iterations`` steps, on logarithms. There is no tolerance: POT's stop test looks
    at the whole batch, and a plan must not depend on its batch mates.

    Raises:
        ImportError: POT 0.9.7 or newer is not installed.
        ValueError: ``iterations`` below 1.

    Source: Eq. (3) of Lin et al., ICLR 2024; Flamary et al., 2021.

    Example:
        >>> import torch
        >>> from norton_losses import POTSinkhorn, TransportProblem
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> problem = TransportProblem(torch.eye(2), half, half, epsilon=0.5)
        >>> POTSinkhorn().solve(problem).plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _import_ot_batch()

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(
            problem.holds_scores,
            "ot.batch takes explicit scores, and a point cloud does not hold them; solve "
            "problem.explicit() if they fit into memory, or use TorchSinkhorn or KeOpsSinkhorn",
        )

    def _solve(self, problem: AbstractProblem) -> Scalings:
        scores, log_mu, log_nu = problem.scores, problem.log_mu, problem.log_nu
        absent = (log_mu == -torch.inf)[..., :, None] | (log_nu == -torch.inf)[..., None, :]
        # POT starts absent columns at v = 0: their cells must score too low to count in that step.
        low = scores.amin((-2, -1), keepdim=True) - 200 * problem.epsilon
        scores = torch.where(absent, low, scores)
        result = _import_ot_batch().solve_batch(
            -scores.reshape(-1, *scores.shape[-2:]),
            reg=problem.epsilon,
            a=log_mu.exp().reshape(-1, log_mu.shape[-1]),
            b=log_nu.exp().reshape(-1, log_nu.shape[-1]),
            max_iter=self.iterations,
            tol=0.0,
            method="log_sinkhorn",
            grad="detach",
        )
        log_u, log_v = result.potentials
        return Scalings(log_u.reshape(log_mu.shape), log_v.reshape(log_nu.shape), self.iterations)


def _import_ot_batch() -> Any:
    package = "Python Optimal Transport 0.9.7"
    return require("ot.batch", "POTSinkhorn", package, "pot", "TorchSinkhorn")
