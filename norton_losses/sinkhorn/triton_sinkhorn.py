"""Sinkhorn's iteration by a Triton kernel: many small problems on CUDA in a single launch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, final

import torch

from norton_losses._optional import require
from norton_losses.kernels import MAX_SIDE
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.problem import AbstractProblem
from norton_losses.sinkhorn.scaling_domain import SCALING_RANGE
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support


@final
@dataclass(frozen=True)
class TritonSinkhorn(AbstractSinkhorn):
    """Sinkhorn's iteration on small problems, all steps of all problems in one CUDA launch.

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

    def supports(self, problem: AbstractProblem) -> Support:
        reason = _obstacle(problem)
        return Support(not reason, f"{reason}use TorchSinkhorn, which serves every problem")

    def _solve(self, problem: AbstractProblem) -> Scalings:
        *batch, n, m = problem.scores.shape
        spread = problem.spread
        small = spread is not None and spread / problem.epsilon <= SCALING_RANGE[torch.float32]
        log_u, log_v = _import_kernel().small_sinkhorn(
            problem.scores.reshape(-1, n, m),
            problem.log_mu.reshape(-1, n),
            problem.log_nu.reshape(-1, m),
            problem.epsilon,
            self.iterations,
            problem.has_bucket,
            not small,
        )
        return Scalings(log_u.reshape(*batch, n), log_v.reshape(*batch, m), self.iterations)


def _obstacle(problem: AbstractProblem) -> str:
    """Why the kernel cannot solve a problem, and a first remedy; empty if it can."""
    if not problem.holds_scores:
        return "its problems have explicit scores, not points; solve problem.explicit(), or "
    scores = problem.scores
    if not scores.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on CUDA and the scores are on {scores.device}; move them with .cuda(), or "
    if scores.dtype != torch.float32:
        return (
            f"it computes in float32 and the scores are {scores.dtype}; call "
            "problem.to(torch.float32), or "
        )
    longest = max(scores.shape[-2:]) - problem.has_bucket
    if longest > MAX_SIDE:
        return (
            f"it holds {MAX_SIDE} rows and columns, and a bucket, and the scores have {longest}; "
        )
    return ""


def _import_kernel() -> Any:
    kernel = "norton_losses.kernels.small_sinkhorn_triton"
    return require(kernel, "TritonSinkhorn", "Triton 3.2", "triton", "TorchSinkhorn")
