"""Many problems multiplied at once, in chunks that stay in the cache, with the batch last."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

# The size of a scaling's logarithm at which `absorbed` takes it into the kernel: what the kernel
# lost to underflow weighs nothing until then.
_ABSORB_BEYOND = {torch.float32: 20.0, torch.float64: 200.0}

Scalings: TypeAlias = tuple[Tensor, Tensor, Tensor]
Step: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def row_logsumexp(log_kernel: Tensor, log_v: Tensor) -> Tensor:
    return (log_kernel + log_v[..., None, :]).logsumexp(-1)


class Batch:
    """Problems (B, n, m) that are solved together on plain numbers.

    The batch comes last there, so that small problems fill the machine's vectors: mu (n, B) and nu
    (m, B). They have a mass of 1, so that none leaves the dtype, however small it was.
    """

    def __init__(self, log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor) -> None:
        self.log_mass = log_nu.logsumexp(-1, keepdim=True)
        self.log_kernel = log_kernel
        self.log_mu, self.log_nu = log_mu - self.log_mass, log_nu - self.log_mass
        # Contiguous, as the kernel is: what is computed from them follows their strides.
        self.mu, self.nu = (log.exp().T.contiguous() for log in (self.log_mu, self.log_nu))
        self.rows, self.columns = log_mu > -torch.inf, log_nu > -torch.inf
        readable = log_kernel.is_cpu and not torch.compiler.is_compiling()
        self.absent: Tensor | None = None  # (B, n, m), or None where nothing is seen to be absent
        if not (readable and self.rows.all() and self.columns.all()):
            self.absent = ~(self.rows[:, :, None] & self.columns[:, None, :])

    def largest(self) -> Tensor:
        """The largest entry (B, 1) of the log-kernel's present cells."""
        present = self.log_kernel
        if self.absent is not None:
            present = present.masked_fill(self.absent, -torch.inf)
        return present.amax((-2, -1))[:, None]

    def kernel(self, log_u: Tensor, log_v: Tensor | None = None) -> Tensor:
        """The kernel with logarithms taken in; 1 in absent cells, so that no sum of them is 0."""
        scaled = self.log_kernel + log_u[:, :, None]
        if log_v is not None:
            scaled.add_(log_v[:, None, :])
        return (scaled if self.absent is None else scaled.masked_fill_(self.absent, 0)).exp_()

    def unscaled(self) -> tuple[Tensor, Tensor]:
        """U and v of 1, and v of 0 at absent columns. (That u is 0 follows from mu.)"""
        return torch.ones_like(self.mu), self.columns.T.to(self.nu.dtype).contiguous()

    def log_step(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        log_u = self.log_mu - row_logsumexp(self.log_kernel, log_v)
        return log_u, self.log_nu - row_logsumexp(self.log_kernel.mT, log_u)

    def row_error(self, u: Tensor, next_u: Tensor) -> Tensor:
        """L1 distance (B,) of the rows from mu before a step, where they sum to mu u / next_u."""
        ratio = torch.where(next_u > 0, u / next_u, 1)
        return (self.mu * (ratio - 1).abs()).sum(0) * self.log_mass[:, 0].exp()

    def safe(self, u: Tensor, v: Tensor) -> bool:
        """Whether all scalings of present rows and columns are within the bounds of absorbing."""
        bound = math.exp(_ABSORB_BEYOND[u.dtype])
        scalings = torch.cat([u[self.rows.T], v[self.columns.T]])
        lo, hi = scalings.aminmax()
        return bool((lo >= 1 / bound) & (hi <= bound))


def by_chunks(
    solve: Callable[[Batch], Scalings],
    size: int,
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
) -> Scalings:
    *batch, n, m = log_kernel.shape
    log_kernel = log_kernel.reshape(-1, n, m)
    log_mu, log_nu = log_mu.reshape(-1, n), log_nu.reshape(-1, m)
    count = len(log_kernel)
    if log_kernel.is_cpu and not torch.compiler.is_compiling():
        count = max(1, size // (n * m * log_kernel.element_size()))
    parts: list[Scalings] = []
    for k in range(0, len(log_kernel), count):
        part = Batch(log_kernel[k : k + count], log_mu[k : k + count], log_nu[k : k + count])
        log_u, log_v, steps = solve(part)
        parts.append((log_u + part.log_mass, log_v, steps))
    log_u, log_v, steps = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return log_u.reshape(*batch, n), log_v.reshape(*batch, m), steps.reshape(batch)


def step_of(batch: Batch, kernel: Tensor, compiled: bool = False) -> Step:
    """From v (m, B) to u = mu / (K v) (n, B) and v = nu / (K' u) (m, B), for kernels (B, n, m)."""
    mu, nu = batch.mu, batch.nu
    compiling = torch.compiler.is_compiling()
    if len(kernel) == 1 and not compiled:
        single = kernel[0]

        def one(v: Tensor) -> tuple[Tensor, Tensor]:
            u = mu / torch.mv(single, v[:, 0])[:, None]
            return u, nu / torch.mv(single.T, u[:, 0])[:, None]

        return one
    by_column = kernel.permute(1, 2, 0).contiguous()  # (n, m, B)
    if compiling or compiled:
        fused = _fused_step if compiling else _compiled_step()
        return lambda v: fused(by_column, mu, nu, v)
    # Eagerly the product is written out: into the same memory each time, and summed over the first
    # dimension, along the batch.
    by_row = by_column.transpose(0, 1).contiguous()  # (m, n, B)
    row_scratch = torch.empty_like(by_row)
    column_scratch = row_scratch.view(by_column.shape)

    def many(v: Tensor) -> tuple[Tensor, Tensor]:
        u = mu / torch.mul(by_row, v[:, None], out=row_scratch).sum(0)
        return u, nu / torch.mul(by_column, u[:, None], out=column_scratch).sum(0)

    return many


def _fused_step(kernel: Tensor, mu: Tensor, nu: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    u = mu / (kernel * v).sum(1)
    return u, nu / (kernel * u[:, None]).sum(0)


@cache
def _compiled_step() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_fused_step)  # pyright: ignore[reportUnknownMemberType]
