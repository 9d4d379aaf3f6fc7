# pyright: reportUnknownMemberType=false
"""The soft maximum of all clips with all captions as one custom operator, with its gradient.

Autograd and the compiler see one node; which implementation runs is an argument. Only inputs and
masks are saved for the backward pass, and the scores where that was asked for and they fit.

No postponed annotations here: torch before 2.6 reads the operators' schemas from the types.
"""

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from norton_losses._numerics import full_precision
from norton_losses._optional import require
from norton_losses.kernels import soft_maximum_chunked as chunked

KEPT_BYTES = 256 << 20
"""What ``save_scores="auto"`` may keep for the backward pass."""


def forward(
    clips: Tensor,
    captions: Tensor,
    frame_mask: Tensor,
    word_mask: Tensor,
    alpha: float,
    mean: bool,
    implementation: str,
    operand_dtype: torch.dtype | None,
    most_kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over frames (K, L), mean over words (K, L) of the soft maximum; and kept scores.

    ``operand_dtype`` None means the tokens' own, and ``most_kept`` is how many numbers may be kept
    for the backward pass; the rest as :class:`.soft_maximum_chunked.Operands`.
    """
    kept = _empty_scores(clips, captions, most_kept)
    dtype = operand_dtype or clips.dtype
    operands = chunked.Operands(clips, captions, frame_mask, word_mask, alpha, dtype)
    if implementation == "triton":
        return *import_triton().forward(operands, mean), kept
    return *chunked.forward(operands, mean, kept), kept


soft_maximum = torch.library.custom_op("norton_losses::soft_maximum", forward, mutates_args=())


@soft_maximum.register_fake
def _(clips: Tensor, captions: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = clips.shape[0], captions.shape[0]
    return (
        clips.new_empty(shape),
        clips.new_empty(shape),
        _empty_scores(clips, captions, options[-1]),
    )


def backward(
    by_frame: Tensor,
    by_word: Tensor,
    clips: Tensor,
    captions: Tensor,
    frame_mask: Tensor,
    word_mask: Tensor,
    kept: Tensor,
    alpha: float,
    implementation: str,
    operand_dtype: torch.dtype | None,
    of_clips: bool,
    of_captions: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of clips and captions, given those of both results; empty where not wanted."""
    largest = None
    if operand_dtype is not None:  # half precision holds the smallest weights if the largest is 1
        largest = torch.maximum(by_frame.abs().amax(), by_word.abs().amax())
        largest = largest.masked_fill(largest == 0, 1)
        by_frame, by_word = by_frame / largest, by_word / largest
    dtype, wanted = operand_dtype or clips.dtype, (of_clips, of_captions)
    operands = chunked.Operands(clips, captions, frame_mask, word_mask, alpha, dtype)
    if implementation == "triton":
        gradients = import_triton().backward(by_frame, by_word, operands, wanted)
    else:
        gradients = chunked.backward(by_frame, by_word, operands, kept, wanted)
    if largest is not None:
        for gradient in gradients:
            gradient.mul_(largest)
    return gradients


soft_maximum_backward = torch.library.custom_op(
    "norton_losses::soft_maximum_backward", backward, mutates_args=()
)


@soft_maximum_backward.register_fake
def _(
    by_frame: Tensor, by_word: Tensor, clips: Tensor, captions: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    of_clips, of_captions = options[-2:]
    return (
        clips.new_empty(clips.shape if of_clips else 0),
        captions.new_empty(captions.shape if of_captions else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    clips, captions, frame_mask, word_mask, ctx.alpha, _, *ctx.how, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(clips, captions, frame_mask, word_mask, output[2])


def _differentiate(
    operator: Any, ctx: Any, by_frame: Tensor | None, by_word: Tensor | None, _kept: None
) -> tuple[Tensor | None, ...]:
    clips, captions, *rest = ctx.saved_tensors
    nothing = clips.new_zeros(clips.shape[0], captions.shape[0])
    wanted = ctx.needs_input_grad[:2]
    with full_precision(clips):  # a backward pass may be called inside autocast
        gradients = operator(
            nothing if by_frame is None else by_frame,
            nothing if by_word is None else by_word,
            clips,
            captions,
            *rest,
            ctx.alpha,
            *ctx.how,
            *wanted,
        )
    found = (g if wants else None for g, wants in zip(gradients, wanted, strict=True))
    return (*found, *[None] * 7)


def _refuse_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "the fused soft maximum has a first derivative only, and the gradient of its gradient was "
        'asked for; build the similarity with implementation="reference", which has both'
    )


soft_maximum.register_autograd(partial(_differentiate, soft_maximum_backward), setup_context=_save)
soft_maximum_backward.register_autograd(_refuse_second_derivative)


class _Gradients(torch.autograd.Function):
    forward = staticmethod(backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None: ...

    backward = staticmethod(_refuse_second_derivative)


class SoftMaximum(torch.autograd.Function):
    """The operator in eager mode: torch.func.grad refuses what register_autograd makes.

    Nor does it import the compiler, as an operator does at its first call.
    """

    forward = staticmethod(forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(partial(_differentiate, _Gradients.apply))  # pyright: ignore


def _empty_scores(clips: Tensor, captions: Tensor, most_kept: int) -> Tensor:
    # The scores that fill it are counted from the masks' values, its size from shapes alone, as a
    # compiler needs. On the CPU, memory that is never written costs nothing; elsewhere no room is
    # taken that the scores might not fit in.
    products = math.prod(clips.shape[:2]) * math.prod(captions.shape[:2])
    if clips.device.type != "cpu" and products > most_kept:
        return clips.new_empty(0)
    return clips.new_empty(cast(int, torch.sym_min(products, most_kept)))


def import_triton() -> Any:
    """The module of the Triton kernels; an error names what to install."""
    kernels = "norton_losses.kernels.soft_maximum_triton"
    return require(kernels, "TritonSoftMaximum", "Triton 3.2", "triton", "ChunkedSoftMaximum")
