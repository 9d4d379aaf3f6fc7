"""Our Triton kernel behind the interface: many small problems on CUDA in a single launch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, final

import torch

from norton_losses.sinkhorn.domains import SCALING_RANGE
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support

MAX_SIDE = 32  # rows and columns that fit into registers, the bucket's not counted


@final
@dataclass(frozen=True)
class TritonSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration on small problems, all steps of all problems in one launch on CUDA.

    Takes exactly ``iterations`` steps in float32: on plain numbers where the problem's
    ``score_range`` spans no more than 60 epsilons, else on logarithms. At most 32 rows and columns,
    and the bucket. Triton comes with torch's CUDA builds (else
    ``pip install 'norton-losses[triton]'``). With ``TRITON_INTERPRET=1`` in the environment it also
    takes tensors of the CPU, slowly, for tests.

    Algorithm:
        Eq. (3), the bucket's row and column apart: ``a = mu / (K b + k b0)``,
        ``a0 = mu0 / (<k, b> + q b0)``, and transposed.

    Raises:
        ImportError: Triton 3.2 or newer is not installed.
        ValueError: ``iterations`` below 1, a ``plan_gradient`` of ``"unrolled"``.

    Source: Eq. (3) and (6) of Lin et al., ICLR 2024.

    Example:
        >>> from norton_losses import TransportMeasure, TritonSinkhorn
        >>> measure = TransportMeasure(sinkhorn=TritonSinkhorn(100))   # similarities on CUDA
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _import_kernel()

    def supports(self, problem: Problem) -> Support:
        elsewhere = "use TorchSinkhorn, which serves every problem"
        if isinstance(problem, PointCloudProblem):
            return Support(False, f"its problems have explicit scores, not points; {elsewhere}")
        scores = problem.scores
        if not scores.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return Support(False, f"it runs on CUDA and the scores are on {scores.device}; move "
                           f"them with .cuda(), or {elsewhere}")  # fmt: skip
        if scores.dtype != torch.float32:
            return Support(False, f"it computes in float32 and the scores are {scores.dtype}; call "
                           f"problem.to(torch.float32), or {elsewhere}")  # fmt: skip
        longest = max(scores.shape[-2:]) - problem.has_bucket
        if longest > MAX_SIDE:
            return Support(False, f"it holds {MAX_SIDE} rows and columns, and a bucket, and the "
                           f"scores have {longest}; {elsewhere}")  # fmt: skip
        return Support(True)

    def _solve(self, problem: Problem) -> TransportPlan:
        *batch, n, m = problem.scores.shape
        log_u, log_v = _import_kernel().small_sinkhorn(
            problem.scores.reshape(-1, n, m),
            problem.log_mu.reshape(-1, n),
            problem.log_nu.reshape(-1, m),
            problem.epsilon,
            self.iterations,
            problem.has_bucket,
            not _has_small_range(problem),
        )
        steps = torch.full(batch, self.iterations, device=log_u.device)
        return TransportPlan(problem, log_u.reshape(*batch, n), log_v.reshape(*batch, m), steps)


def _has_small_range(problem: Problem) -> bool:
    if isinstance(problem, PointCloudProblem) or problem.score_range is None:
        return False
    lo, hi = problem.score_range
    return (hi - lo) / problem.epsilon <= SCALING_RANGE[torch.float32]


def _import_kernel() -> Any:
    try:
        import norton_losses.kernels.small_sinkhorn_triton as kernel
    except (ImportError, TypeError) as error:  # an older Triton does not know the kernel's options
        raise ImportError(
            "TritonSinkhorn needs Triton 3.2 or newer; install it with "
            "pip install 'norton-losses[triton]', or use TorchSinkhorn, which needs nothing more"
        ) from error
    return kernel
