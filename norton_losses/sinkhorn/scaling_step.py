"""One step on scalings, u = mu / (K v) and v = nu / (K' u): for few, many and large kernels.

Threads may share no cache, so that on the CPU none may read in one half of the step what another
wrote in the other half, but for the scalings themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

_ONE_THREAD = 1 << 15  # numbers, up to which torch keeps an operation to one thread
_SMALL = 400  # entries of a kernel, below which a product of its own costs more than it computes


def step_of(kernel: Tensor, mu: Tensor, nu: Tensor, *, compiled: bool = False) -> Step:
    """The function from v (m, B) to u (n, B) and the next v (m, B), for kernels (B, n, m).

    ``compiled`` fuses product and sum, which takes some seconds the first time.
    """
    if compiled:
        return _fused(kernel, mu, nu)
    n, m = kernel.shape[-2:]
    if n * m >= _SMALL and _products_are_exact(kernel):
        return _multiplied(kernel, mu, nu)
    if kernel.is_cpu and kernel.numel() > _ONE_THREAD and n * m < _SMALL:
        return _accumulated(kernel, mu, nu)
    return _summed(kernel, mu, nu)


def _multiplied(kernel: Tensor, mu: Tensor, nu: Tensor) -> Step:
    """A matrix product for each problem: a row vector times a matrix, which is the faster order."""
    transposed, mu, nu = kernel.mT, mu.T.contiguous(), nu.T.contiguous()

    def step(v: Tensor) -> tuple[Tensor, Tensor]:
        u = mu / torch.bmm(v.T.contiguous()[:, None], transposed)[:, 0]
        # Of the next step the transpose is contiguous already.
        return u.T, (nu / torch.bmm(u[:, None], kernel)[:, 0]).T

    return step


def _accumulated(kernel: Tensor, mu: Tensor, nu: Tensor) -> Step:
    """Row after row of all problems added up: a thread reads the same part of the kernel always."""
    rows, columns = (
        kernel.permute(order).contiguous().unbind() for order in ((1, 2, 0), (2, 1, 0))
    )

    def step(v: Tensor) -> tuple[Tensor, Tensor]:
        u = _over(mu, _combination(columns, v))
        return u, _over(nu, _combination(rows, u))

    return step


def _combination(slices: Sequence[Tensor], factors: Tensor) -> Tensor:
    """Sum over k of slices (n, B) times the factors [k] of (k, B)."""
    first, *others = zip(slices, factors.unbind(), strict=True)
    total = torch.mul(*first)
    for part, factor in others:
        total.addcmul_(part, factor)
    return total


def _over(marginal: Tensor, sums: Tensor) -> Tensor:
    return torch.div(marginal, sums, out=sums)


def _summed(kernel: Tensor, mu: Tensor, nu: Tensor) -> Step:
    """Few operations: the product written out, always into the same memory, and summed."""
    by_column = kernel.permute(1, 2, 0).contiguous()  # (n, m, B)
    by_row = by_column.transpose(0, 1).contiguous()  # (m, n, B), summed over its first dimension
    row_scratch = torch.empty_like(by_row)
    column_scratch = row_scratch.view(by_column.shape)

    def step(v: Tensor) -> tuple[Tensor, Tensor]:
        u = mu / torch.mul(by_row, v[:, None], out=row_scratch).sum(0)
        return u, nu / torch.mul(by_column, u[:, None], out=column_scratch).sum(0)

    return step


def _fused(kernel: Tensor, mu: Tensor, nu: Tensor) -> Step:
    by_column, step = kernel.permute(1, 2, 0).contiguous(), _compiled_step()
    return lambda v: step(by_column, mu, nu, v)


def _fused_step(kernel: Tensor, mu: Tensor, nu: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    u = mu / (kernel * v).sum(1)
    return u, nu / (kernel * u[:, None]).sum(0)


@cache
def _compiled_step() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_fused_step)  # pyright: ignore[reportUnknownMemberType]


def _products_are_exact(kernel: Tensor) -> bool:
    """Whether matrix products keep all digits: of float32 a user may have allowed fewer."""
    if kernel.dtype == torch.float64:
        return True
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was allowed by torch's newer options, which this one cannot express
        return False
