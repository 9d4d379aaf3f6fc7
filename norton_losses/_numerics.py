"""Masked and normalising operations whose values and gradients stay finite.

Absent entries are handled by mask, never by large constants, so that -inf never meets -inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad


class _UpCast(torch.autograd.Function):
    """Half precision to float32; the gradient saturates at the half dtype's largest number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        bound = torch.finfo(ctx.dtype).max
        return grad_outputs[0].clamp(-bound, bound).to(ctx.dtype), None


class _Unit(torch.autograd.Function):
    """Unit vectors and their norms, which are all that is saved; infinite norm where zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        units = vectors.clone() if mask is None else vectors.masked_fill(~mask[..., None], 0)
        # Divided by the largest entry first: squares of entries near the dtype's limits would leave
        # its range.
        largest = torch.maximum(units.amax(-1, keepdim=True), -units.amin(-1, keepdim=True))
        zero = largest <= torch.finfo(units.dtype).tiny
        units.masked_fill_(zero, 0).div_(largest.masked_fill_(zero, 1))
        norms = _length(units).masked_fill_(zero, 1)
        return units.div_(norms), norms.mul_(largest).masked_fill_(zero, torch.inf)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, None]:
        units, norms = ctx.saved_tensors
        of_units, of_norms = grad_outputs
        of_vectors = None if of_norms is None else units * of_norms
        if of_units is None:
            return of_vectors, None
        with full_precision(units):  # a backward pass may be called inside autocast
            along = torch.einsum("...d,...d->...", units, of_units)[..., None]
            across = torch.addcmul(of_units, units, along, value=-1).div_(norms)
        return across if of_vectors is None else of_vectors + across, None


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)  # pyright: ignore


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The common dtype of the given tensors, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


@overload
def up_cast(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def up_cast(tensor: None, dtype: torch.dtype) -> None: ...
def up_cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``tensor`` in the working dtype, with a gradient that cannot overflow on its way back."""
    if tensor is None or tensor.dtype == dtype:
        return tensor
    if tensor.dtype.itemsize < 4:
        return _UpCast.apply(tensor, dtype)  # pyright: ignore
    return tensor.to(dtype)


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off: inside it, matrix products would be rounded to 8 or 11 bits."""
    if like.is_meta:  # which has no autocast
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def is_traced(tensor: Tensor) -> bool:
    """Whether a compiler looks on, or the tensor has no values, as of meta or FakeTensorMode."""
    valueless = tensor.is_meta or type(tensor) not in (Tensor, Parameter)
    return torch.compiler.is_compiling() or valueless


def unit(vectors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Divide the last dimension by its Euclidean norm; zero and masked vectors become zero.

    Their gradient is zero as well, and what a masked vector held (NaN included) has no effect.
    """
    return _Unit.apply(vectors, mask)[0]  # pyright: ignore


def padded_to(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Values with zeros after them, up to the sizes of their leading dimensions."""
    missing = [want - have for want, have in zip(sizes, values.shape, strict=False)]
    if not any(missing):
        return values
    if not len(values):  # torch 2.4 refuses to pad nothing
        return values.new_zeros(*sizes, *values.shape[len(missing) :])
    # Of the last dimension first, before it and after it.
    after = [n for short in reversed(missing) for n in (0, short)]
    return pad(values, [0, 0] * (values.dim() - len(missing)) + after)


def masked_mean(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean over the valid entries of ``dim``; zero where there are none."""
    total = values.masked_fill(~mask, 0).sum(dim)
    return total / mask.sum(dim).clamp(min=1)


def masked_logsumexp(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Log-sum-exp over the valid entries of ``dim``; zero where there are none."""
    empty = ~mask.any(dim, keepdim=True)
    kept = values.masked_fill(~(mask | empty), -torch.inf)
    return kept.logsumexp(dim).masked_fill(empty.squeeze(dim), 0)


def masked_amax(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Largest valid entry along ``dim``; zero where there are none."""
    empty = ~mask.any(dim, keepdim=True)
    kept = values.masked_fill(~(mask | empty), -torch.inf)
    return kept.amax(dim).masked_fill(empty.squeeze(dim), 0)


def masked_log_softmax(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Log-softmax over the valid entries of ``dim``; zero at every other entry."""
    empty = ~mask.any(dim, keepdim=True)
    kept = logits.masked_fill(~mask, -torch.inf).masked_fill(empty, 0)
    return kept.log_softmax(dim).masked_fill(~mask, 0)
