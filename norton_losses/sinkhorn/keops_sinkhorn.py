"""KeOps behind our interface: point clouds whose scores never exist, on the CPU or on CUDA."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from norton_losses._typing import PlanGradient
from norton_losses.sinkhorn.domains import even_if_empty
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support

_ABSENT = -1e30  # weighs nothing beside any logarithm and, unlike -inf, can be taken from itself


@final
@dataclass(frozen=True)
class KeOpsSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration on a point cloud by KeOps (``pip install 'norton-losses[keops]'``).

    Takes exactly ``iterations`` steps, on logarithms. Memory grows with the number of points, not
    with its square. KeOps compiles its formulas for every width D and dtype, some ten seconds each
    the first time, and keeps them on disk. Wide points are slow on the CPU.

    Algorithm:
        ``log_u_i = log_mu_i - logsumexp_j(<x_i, y_j> / epsilon + log_v_j)``, and transposed,
        Eq. (3).

    Raises:
        ImportError: KeOps 2.3 or newer is not installed.
        RuntimeError: KeOps is installed and cannot compile here. A tiny sum is tried at
            construction, so that this does not come up in the first training step.
        ValueError: ``iterations`` below 1, a ``plan_gradient`` other than ``"detached"``.

    Source: Eq. (3) of Lin et al., ICLR 2024; Charlier et al., 2021.

    Example:
        >>> import torch
        >>> from norton_losses import KeOpsSinkhorn, PointCloudProblem
        >>> x, even = torch.randn(500, 3), torch.full((500,), 1 / 500).log()
        >>> KeOpsSinkhorn().solve(PointCloudProblem(x, x, even, even, epsilon=4.0)).converged
        tensor(True)
    """

    plan_gradients: ClassVar[tuple[PlanGradient, ...]] = ("detached",)

    def __post_init__(self) -> None:
        super().__post_init__()
        try_keops("KeOpsSinkhorn")

    def supports(self, problem: Problem) -> Support:
        return Support(
            isinstance(problem, PointCloudProblem),
            "KeOps makes scores from points and cannot read a matrix of them; give it a "
            "PointCloudProblem, as ClipCaptionOTLoss(chunk_rows=...) does, or use TorchSinkhorn",
        )

    def _solve(self, problem: Problem) -> TransportPlan:
        problem = cast(PointCloudProblem, problem)
        log_mu, log_nu, empty = even_if_empty(problem.log_mu, problem.log_nu)
        x, y = problem.x / problem.epsilon, problem.y
        log_u, log_v = log_mu, torch.zeros_like(log_nu).masked_fill(log_nu == -torch.inf, _ABSENT)
        with quietly():
            for _ in range(self.iterations):
                log_u = (log_mu - _row_logsumexp(x, y, log_v)).clamp(min=_ABSENT)
                log_v = (log_nu - _row_logsumexp(y, x, log_u)).clamp(min=_ABSENT)
        return TransportPlan(
            problem,
            log_u.masked_fill(empty | (log_mu == -torch.inf), -torch.inf),
            log_v.masked_fill(empty | (log_nu == -torch.inf), -torch.inf),
            torch.full((), self.iterations, device=log_u.device),
        )


def _row_logsumexp(x: Tensor, y: Tensor, log_v: Tensor) -> Tensor:
    """Log-sum-exp over j of <x_i, y_j> + log_v_j: (n,), from points (n, D) and (m, D)."""
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingTypeStubs]

    x_i: Any = LazyTensor(x.contiguous()[:, None, :])
    y_j: Any = LazyTensor(y.contiguous()[None, :, :])
    v_j: Any = LazyTensor(log_v.contiguous()[None, :, None])
    return ((x_i | y_j) + v_j).logsumexp(1)[:, 0]


def quietly() -> contextlib.redirect_stdout[io.StringIO]:
    """Keep from stdout what KeOps prints: that it finds no GPU, and each formula it compiles."""
    return contextlib.redirect_stdout(io.StringIO())


def try_keops(who: str) -> None:
    """Raise unless KeOps is installed and can compile a formula here; ``who`` needs it."""
    try:
        with quietly():
            import pykeops.torch  # noqa: F401  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            f"{who} needs KeOps 2.3 or newer; install it with pip install 'norton-losses[keops]', "
            "or use TorchSinkhorn, which streams point clouds with nothing more"
        ) from error
    failure = _compilation_failure()
    if failure is not None:
        raise RuntimeError(
            f"{who} needs KeOps to compile its formulas, and a tiny one failed with: {failure}; "
            "install a C++ compiler and the headers of Python (on Debian: apt-get install g++ "
            "python3-dev), or use TorchSinkhorn, which needs neither"
        )


@cache
def _compilation_failure() -> str | None:
    point = torch.zeros(1, 1)
    try:
        with quietly():
            total = _row_logsumexp(point, point, torch.zeros(1))
    except (Exception, SystemExit) as error:  # KeOps raises whatever its compiler step ran into
        return f"{type(error).__name__}: {error}".strip()
    return None if total.item() == 0 else f"a wrong sum, {total.item()} in place of 0"
