"""Sinkhorn's iteration on the scalings u and v themselves, in chunks that fit the cache.

:class:`ScalingSteps` is the fastest and serves a limited range of scores;
:class:`StabilizedSteps` serves any range. Both give the answer of :mod:`.log_domain`, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from norton_losses.sinkhorn.iteration import (
    AbstractSteps,
    Scalings,
    State,
    iterate,
    log_start,
)
from norton_losses.sinkhorn.log_domain import LogSteps
from norton_losses.sinkhorn.scaling_step import Step, step_of

# The range of scores over epsilon up to which ScalingSteps keeps every number, and every product of
# two, inside the dtype: that ends at e^88 and e^709, and small masses need some of it.
SCALING_RANGE = {torch.float32: 60.0, torch.float64: 500.0}
# The size of a scaling's logarithm at which StabilizedSteps absorbs it into the kernel: before,
# kernel entries that underflowed to 0 are negligible.
_ABSORB_BEYOND = {torch.float32: 20.0, torch.float64: 200.0}
# How much kernel the CPU works on at a time, in bytes, so that it stays in the cache for all steps.
_CHUNK = 1 << 22


class _PlainSteps(AbstractSteps):
    """Base of the steps on scalings: marginals mu (n, B) and nu (m, B), batch last.

    Small problems fill the machine's vectors that way. Marginals are shares of the mass, so that
    none leaves the dtype, however small it was; log_u lacks the mass again at the end.
    """

    def __init__(self, log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor) -> None:
        self.log_mass = log_nu.logsumexp(-1, keepdim=True)  # (B, 1)
        self.logs = LogSteps(log_kernel, log_mu - self.log_mass, log_nu - self.log_mass)
        self.log_mu, self.log_nu = self.logs.log_mu, self.logs.log_nu
        # Contiguous, as the kernel is: what is computed from them follows their strides.
        self.mu, self.nu = (log.exp().T.contiguous() for log in (self.log_mu, self.log_nu))
        self.no_row, self.no_column = (log.T.isneginf() for log in (self.log_mu, self.log_nu))
        self.absent: Tensor | None = None  # (B, n, m), or None where nothing is seen to be absent
        if not log_kernel.is_cpu or self.no_row.any() or self.no_column.any():
            self.absent = self.no_row.T[:, :, None] | self.no_column.T[:, None, :]

    def kernel(self, log_u: Tensor, log_v: Tensor | None = None) -> Tensor:
        """The kernel with logarithms taken in; 1 in absent cells, so that no sum of them is 0."""
        scaled = self.logs.log_kernel + log_u[:, :, None]
        if log_v is not None:
            scaled.add_(log_v[:, None, :])
        return (scaled if self.absent is None else scaled.masked_fill_(self.absent, 0)).exp_()

    def ones(self) -> State:
        """U of 1 everywhere and v of 1 at present columns, 0 at absent ones."""
        return torch.ones_like(self.mu), (~self.no_column).to(self.nu.dtype).contiguous()

    def log_scalings(self, state: State) -> tuple[Tensor, Tensor]:
        """Log u (B, n) and log v (B, m) of a state."""
        raise NotImplementedError


@final
class ScalingSteps(_PlainSteps):
    """Steps on u and v, with K = exp(S / epsilon) over its largest entry.

    Right where the scores of present cells range over no more than :data:`SCALING_RANGE` epsilons.
    States are u (n, B) and v (m, B).

    ``compiled`` is of :func:`step_of`.
    """

    def __init__(
        self, log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor, *, compiled: bool = False
    ) -> None:
        super().__init__(log_kernel, log_mu, log_nu)
        present = log_kernel
        if self.absent is not None:
            present = present.masked_fill(self.absent, -torch.inf)
        self.offset = -present.amax((-2, -1))[:, None]  # (B, 1)
        kernel = self.kernel(self.offset.expand_as(log_mu))
        self.step = step_of(kernel, self.mu, self.nu, compiled=compiled)

    def start(self) -> State:
        return self.ones()

    def __call__(self, state: State) -> State:
        return self.step(state[1])

    def row_error(self, before: State, after: State) -> Tensor:
        ratio = torch.where(self.no_row, 1, before[0] / after[0])
        return (self.mu * (ratio - 1).abs()).sum(0) * self.log_mass[:, 0].exp()

    def log_scalings(self, state: State) -> tuple[Tensor, Tensor]:
        return state[0].T.log() + self.offset, state[1].T.log()


@final
class StabilizedSteps(_PlainSteps):
    """Steps on u and v, with a kernel that absorbs their logarithms when they grow.

    The first step, and every step whose scalings leave the safe range, is taken on logarithms.
    Looking at them makes the host wait for the GPU. States are u (n, B), v (m, B) and the absorbed
    logarithms of both.

    Source: Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems, 2019.
    """

    step: Step | None = None

    def start(self) -> State:
        return *self.ones(), torch.zeros_like(self.mu), log_start(self.log_nu).T

    def __call__(self, state: State) -> State:
        if self.step is not None:
            u, v = self.step(state[1])
            if self._safe(u, v):
                return u, v, *state[2:]
        log_u, log_v = self.logs(self.log_scalings(state))
        self.step = step_of(self.kernel(log_u, log_v), self.mu, self.nu)
        return *self.ones(), log_u.T, log_v.T

    def row_error(self, before: State, after: State) -> Tensor:
        logs = (self.log_scalings(state) for state in (before, after))
        return super().row_error(*logs)[:, 0] * self.log_mass[:, 0].exp()

    def log_scalings(self, state: State) -> tuple[Tensor, Tensor]:
        u, v, log_u, log_v = state
        return (log_u + u.log()).T, (log_v + v.log()).T

    def _safe(self, u: Tensor, v: Tensor) -> bool:
        """Whether no scaling of a present row or column has to be absorbed yet."""
        bound = math.exp(_ABSORB_BEYOND[u.dtype])
        if self.absent is not None:
            u, v = u.masked_fill(self.no_row, 1), v.masked_fill(self.no_column, 1)
        lo, hi = torch.cat([u, v]).aminmax()
        return bool((lo >= 1 / bound) & (hi <= bound))


def solve_by_chunks(
    make: Callable[[Tensor, Tensor, Tensor], ScalingSteps | StabilizedSteps],
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> Scalings:
    """Solve problems (..., n, m) in chunks: on the CPU as many as fit its cache, else all."""
    *batch, n, m = log_kernel.shape
    log_kernel = log_kernel.reshape(-1, n, m)
    log_mu, log_nu = log_mu.reshape(-1, n), log_nu.reshape(-1, m)
    count = len(log_kernel)
    if log_kernel.is_cpu:
        count = max(1, _CHUNK // (n * m * log_kernel.element_size()))
    parts: list[tuple[Tensor, Tensor]] = []
    taken: list[Tensor] = []
    for k in range(0, len(log_kernel), count):
        step = make(log_kernel[k : k + count], log_mu[k : k + count], log_nu[k : k + count])
        state, steps = iterate(step, step.start(), iterations, tolerance)
        log_u, log_v = step.log_scalings(state)
        parts.append((log_u + step.log_mass, log_v))
        taken.append(steps)
    log_u, log_v = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    steps = torch.cat(taken).reshape(batch)
    return Scalings(log_u.reshape(*batch, n), log_v.reshape(*batch, m), steps)
