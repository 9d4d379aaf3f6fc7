"""Python Optimal Transport behind our interface: batched explicit problems through ``ot.batch``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from norton_losses.sinkhorn.domains import even_if_empty
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem
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

    def supports(self, problem: Problem) -> Support:
        return Support(
            not isinstance(problem, PointCloudProblem),
            "ot.batch takes explicit scores, and a point cloud does not hold them; solve "
            "problem.explicit() if they fit into memory, or use TorchSinkhorn or KeOpsSinkhorn",
        )

    def _solve(self, problem: Problem) -> TransportPlan:
        scores, log_mu, log_nu = problem.scores, problem.log_mu, problem.log_nu
        no_row, no_column = log_mu == -torch.inf, log_nu == -torch.inf
        # It answers an empty problem with NaN: give it mass to move, and drop the answer.
        even_mu, even_nu, nothing = even_if_empty(log_mu, log_nu)
        mu, nu = even_mu.exp(), even_nu.exp()
        # POT starts absent columns at v = 0: their cells must score too low to count in that step.
        low = scores.amin((-2, -1), keepdim=True) - 200 * problem.epsilon
        scores = torch.where(no_row[..., :, None] | no_column[..., None, :], low, scores)
        result = _import_ot_batch().solve_batch(
            -scores.reshape(-1, *scores.shape[-2:]),
            reg=problem.epsilon,
            a=mu.reshape(-1, mu.shape[-1]),
            b=nu.reshape(-1, nu.shape[-1]),
            max_iter=self.iterations,
            tol=0.0,
            method="log_sinkhorn",
            grad="detach",
        )
        log_u, log_v = result.potentials
        steps = torch.full_like(nothing[..., 0], self.iterations, dtype=torch.int64)
        return TransportPlan(
            problem,
            log_u.reshape(log_mu.shape).masked_fill(no_row | nothing, -torch.inf),
            log_v.reshape(log_nu.shape).masked_fill(no_column | nothing, -torch.inf),
            steps,
        )


def _import_ot_batch() -> Any:
    try:
        import ot.batch  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise ImportError(
            "POTSinkhorn needs Python Optimal Transport 0.9.7 or newer; install it with "
            "pip install 'norton-losses[pot]', or use TorchSinkhorn, which needs nothing more"
        ) from error
    return ot.batch
