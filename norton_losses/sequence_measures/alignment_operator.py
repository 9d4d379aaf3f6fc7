# pyright: reportUnknownMemberType=false
"""Alignment measures as one custom operator, which ``torch.compile`` does not trace into.

No postponed annotations here: torch before 2.6 reads the operators' schemas from the types.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from norton_losses.sequence_measures.alignment_tiles import Distance, Tiles
from norton_losses.similarity_block import SimilarityBlock

MEASURES: dict[str, Any] = {}
"""The classes that it knows by their names, as the operator takes no objects."""


@torch.library.custom_op("norton_losses::alignment", mutates_args=())
def alignment(
    similarity: Tensor, clips: Tensor, captions: Tensor, measure: str, smoothing: float
) -> Tensor:
    """Scores (Bv, Bt), with masks (Bv, Bt, N) and (Bv, Bt, M)."""
    return _tiles(similarity, clips, captions, MEASURES[measure](smoothing).distance).scores(
        similarity
    )


@alignment.register_fake
def _(similarity: Tensor, *_: Any) -> Tensor:
    return similarity.new_empty(similarity.shape[:2])


@torch.library.custom_op("norton_losses::alignment_backward", mutates_args=())
def alignment_backward(
    of_scores: Tensor,
    similarity: Tensor,
    clips: Tensor,
    captions: Tensor,
    measure: str,
    smoothing: float,
) -> Tensor:
    """The gradient of the similarity (Bv, Bt, N, M)."""
    tiles = _tiles(similarity, clips, captions, MEASURES[measure](smoothing).distance)
    on_cuda = similarity.is_cuda
    stream = torch.cuda.current_stream(similarity.device) if on_cuda else None

    def gradient() -> Tensor:
        with torch.cuda.stream(stream), torch.no_grad():
            return tiles.gradient(similarity.detach(), of_scores)

    # Within an operator there is no autograd, in a thread of its own there is.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(gradient).result()


@alignment_backward.register_fake
def _(of_scores: Tensor, similarity: Tensor, *_: Any) -> Tensor:
    return similarity.new_empty(similarity.shape)  # contiguous, however the similarity lies


def _tiles(similarity: Tensor, clips: Tensor, captions: Tensor, distance: Distance) -> Tiles:
    return Tiles(SimilarityBlock(similarity, clips, captions), distance)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.measure, ctx.smoothing = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, of_scores: Tensor) -> tuple[Any, ...]:
    how = ctx.measure, ctx.smoothing
    return alignment_backward(of_scores, *ctx.saved_tensors, *how), None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "a compiled alignment has a first derivative only, and the gradient of its gradient was "
        "asked for; leave the loss out of what torch.compile gets"
    )


alignment.register_autograd(_differentiate, setup_context=_save)
alignment_backward.register_autograd(_refuse_second_derivative)
