"""Sinkhorn's iteration on point clouds by KeOps, on CPU or CUDA, without holding scores."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from norton_losses._optional import require
from norton_losses._typing import PlanGradient
from norton_losses.sinkhorn.iteration import AbstractSteps, Scalings, State, iterate
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support

_ABSENT = -1e30  # the logarithm of an absent scaling; unlike -inf, subtracting it gives no NaN


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

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(
            not problem.holds_scores,
            "KeOps makes scores from points and cannot read a matrix of them; give it a "
            "PointCloudProblem, as ClipCaptionOTLoss(chunk_rows=...) does, or use TorchSinkhorn",
        )

    def _solve(self, problem: AbstractProblem) -> Scalings:
        step = _KeOpsSteps(problem)
        with quietly():
            (log_u, log_v), steps = iterate(step, step.start(), self.iterations)
        return Scalings(log_u, log_v, steps)


class _KeOpsSteps(AbstractSteps):
    """Steps on log-scalings of points (n, D) and (m, D)."""

    def __init__(self, problem: AbstractProblem) -> None:
        x, self.y = (getattr(problem, name) for name in problem.tensors[:2])
        self.x = x / problem.epsilon
        self.log_mu, self.log_nu = problem.log_mu, problem.log_nu

    def start(self) -> State:
        absent = self.log_nu == -torch.inf
        return self.log_mu, torch.zeros_like(self.log_nu).masked_fill(absent, _ABSENT)

    def __call__(self, state: State) -> State:
        log_u = (self.log_mu - _row_logsumexp(self.x, self.y, state[1])).clamp(min=_ABSENT)
        return log_u, (self.log_nu - _row_logsumexp(self.y, self.x, log_u)).clamp(min=_ABSENT)


def _row_logsumexp(x: Tensor, y: Tensor, log_v: Tensor) -> Tensor:
    """Log-sum-exp over j of <x_i, y_j> + log_v_j: (n,), from points (n, D) and (m, D)."""
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingTypeStubs]

    x_i: Any = LazyTensor(x.contiguous()[:, None, :])
    y_j: Any = LazyTensor(y.contiguous()[None, :, :])
    v_j: Any = LazyTensor(log_v.contiguous()[None, :, None])
    return ((x_i | y_j) + v_j).logsumexp(1)[:, 0]


def quietly() -> contextlib.redirect_stdout[io.StringIO]:
    """Hide what KeOps prints to stdout: that it finds no GPU, and each formula it compiles."""
    return contextlib.redirect_stdout(io.StringIO())


def try_keops(who: str) -> None:
    """Raise unless KeOps is installed and can compile a formula here; ``who`` needs it."""
    with quietly():
        require("pykeops.torch", who, "KeOps 2.3", "keops", "TorchSinkhorn")
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
