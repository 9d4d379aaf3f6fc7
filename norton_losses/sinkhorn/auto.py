"""Solvers by name, and the choice that ``"auto"`` makes for a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from norton_losses.kernels import MAX_SIDE
from norton_losses.sinkhorn.geomloss_sinkhorn import GeomLossSinkhorn
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.keops_sinkhorn import KeOpsSinkhorn
from norton_losses.sinkhorn.pot_sinkhorn import POTSinkhorn
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.torch_sinkhorn import TorchSinkhorn
from norton_losses.sinkhorn.triton_sinkhorn import TritonSinkhorn

_SMALL_BATCH = 16  # problems; one launch for fewer leaves most of a GPU idle


@dataclass(frozen=True)
class Selection:
    """What ``"auto"`` chooses for a problem, and why.

    Attributes:
        solver: the class of the solver.
        reason: a sentence about the problem.
    """

    solver: type[TorchSinkhorn] | type[TritonSinkhorn]
    reason: str


def select(problem: AbstractProblem) -> Selection:
    """What ``"auto"`` chooses: Triton on CUDA for batches of small problems, else torch.

    It looks at device, dtype and shape alone: never at what is installed, and never at a number
    for which the host would wait for the GPU.

    Example:
        >>> import torch
        >>> from norton_losses import TransportProblem
        >>> from norton_losses.sinkhorn import select
        >>> valid = torch.ones(256, 9, dtype=torch.bool)
        >>> choice = select(TransportProblem.uniform(torch.rand(256, 9, 9), valid, valid, 0.1))
        >>> choice.solver.__name__, choice.reason
        ('TorchSinkhorn', 'the problem is on cpu, and Triton runs on CUDA')
    """
    if not problem.shard.alone:
        return Selection(TorchSinkhorn, "rows are shared out among processes, which torch solves")
    if not problem.holds_scores:
        return Selection(TorchSinkhorn, "a point cloud is solved by row blocks, which torch does")
    scores = problem.scores
    if not scores.is_cuda:
        return Selection(
            TorchSinkhorn, f"the problem is on {scores.device.type}, and Triton runs on CUDA"
        )
    if scores.dtype != torch.float32:
        return Selection(TorchSinkhorn, "the problem is float64, and the kernel is float32")
    *batch, n, m = scores.shape
    longest, count = max(n, m) - problem.has_bucket, torch.Size(batch).numel()
    if longest > MAX_SIDE:
        return Selection(
            TorchSinkhorn, f"{longest} rows or columns are more than the kernel's {MAX_SIDE}"
        )
    if count < _SMALL_BATCH:
        return Selection(
            TorchSinkhorn, f"{count} problems are too few to fill a GPU in a single launch"
        )
    return Selection(TritonSinkhorn, f"{count} problems of side {longest} are one launch on CUDA")


@final
@dataclass(frozen=True)
class AutoSinkhorn(AbstractSinkhorn):
    """The solver that :func:`select` names for each problem: what ``"auto"`` stands for.

    Raises:
        ValueError: ``iterations`` below 1, a ``plan_gradient`` of ``"unrolled"``.

    Example:
        >>> import torch
        >>> from norton_losses import AutoSinkhorn, TransportProblem
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> AutoSinkhorn(100).solve(TransportProblem(torch.eye(2), half, half, 0.5)).converged
        tensor(True)
    """

    def supports(self, problem: AbstractProblem) -> Support:
        return self._choice(problem).supports(problem)

    def supports_shards(self) -> Support:
        return TorchSinkhorn(plan_gradient=self.plan_gradient).supports_shards()

    def _solve(self, problem: AbstractProblem) -> Scalings:
        return self._choice(problem)._solve(problem)

    def _choice(self, problem: AbstractProblem) -> AbstractSinkhorn:
        return select(problem).solver(self.iterations)


SOLVERS: dict[str, type[AbstractSinkhorn]] = {
    "auto": AutoSinkhorn,
    "torch": TorchSinkhorn,
    "pot": POTSinkhorn,
    "geomloss": GeomLossSinkhorn,
    "keops": KeOpsSinkhorn,
    "triton": TritonSinkhorn,
}


def resolve(sinkhorn: str | AbstractSinkhorn) -> AbstractSinkhorn:
    """The solver itself, or the one of that name with its default settings.

    A name never falls back to another: it works or raises.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a solver.
        ImportError: the package behind the name is not installed.
        RuntimeError: the package behind the name is installed and does not work here.

    Example:
        >>> from norton_losses.sinkhorn import resolve
        >>> resolve("torch").iterations
        50
    """
    if isinstance(sinkhorn, AbstractSinkhorn):
        return sinkhorn
    if not isinstance(sinkhorn, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"sinkhorn must be a name or a solver object, got {type(sinkhorn).__name__}; "
            f"pass one of {list(SOLVERS)} or for example TorchSinkhorn(100)"
        )
    if sinkhorn not in SOLVERS:
        raise ValueError(
            f"sinkhorn must be one of {list(SOLVERS)} or a solver object, got {sinkhorn!r}"
        )
    return SOLVERS[sinkhorn]()
