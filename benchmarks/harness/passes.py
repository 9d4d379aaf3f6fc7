"""One pass of a prepared contender: forward, forward and backward, no-grad, a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.work import Contender, Mode, Prepared


def one_pass(
    contender: Contender, prepared: Prepared, mode: Mode, upstream: Tensor | None = None
) -> Callable[[], Any]:
    """What is put on the clock. Without ``upstream``, a call tells how large it must be."""
    if mode == "training step":
        return lambda: training_step(prepared)
    if contender.role == "floor" or mode == "forward":
        return prepared.call
    if mode == "no-grad":
        return torch.no_grad()(prepared.call)
    if upstream is None:
        with torch.no_grad():
            upstream = upstream_of(prepared.read(prepared.call()))
    return lambda: value_and_gradients(prepared, upstream)


def value_and_gradients(
    prepared: Prepared, upstream: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    result = prepared.read(prepared.call())
    upstream = upstream_of(result) if upstream is None else upstream
    return result.detach(), torch.autograd.grad(result, prepared.leaves, upstream.to(result))


def training_step(prepared: Prepared) -> None:
    prepared.read(prepared.call()).backward()
    if prepared.step is not None:
        prepared.step()


def upstream_of(result: Tensor) -> Tensor:
    """1 for a loss; dense standard normal for anything larger, the same for every contender."""
    if result.ndim == 0:
        return torch.ones_like(result)
    g = torch.Generator().manual_seed(1)
    return torch.randn(result.shape, generator=g, dtype=torch.float64).to(result)
