# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The text of all processes, gathered for the videos of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from norton_losses._numerics import padded_to
from norton_losses.distributed import NUMBERS, Shard
from norton_losses.segments import Segments

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def gather_text(
    video: Segments,
    text: Segments,
    shard: Shard,
    wire: torch.dtype,
    alike: Sequence[Tensor],
    has_group_ids: bool,
    by_turns: bool,
) -> tuple[Segments, Segments, Shard]:
    """The text of all processes beside the video of this one, and the shard that knows its padding.

    Text is padded to the largest of all processes, and clips to as many frames, for what depends on
    padded widths.

    Args:
        video, text: of this process, in their working precision.
        shard: its place.
        wire: what the tokens of text are sent as, without loss.
        alike: numbers that all processes must hold alike, such as temperatures.
        has_group_ids: whether there are any, which all processes must agree on too.
        by_turns: leave the text where it is, padded alike on all processes.

    Raises:
        RuntimeError: another process has failed.
        ValueError: widths or dtypes that differ, or numbers that should be alike.
    """
    tokens, embeddings = text.tokens, text.embeddings
    same = {
        "width of tokens": tokens.shape[-1],
        "width of embeddings": embeddings.shape[-1],
        "dtype of text": _DTYPES.index(wire),
        "working precision": _DTYPES.index(tokens.dtype),
        "number of single numbers": len(alike),
        "number of single numbers that are trained": sum(value.requires_grad for value in alike),
        "presence of group_ids": has_group_ids,
    }
    trained = [torch.is_grad_enabled() and _differentiable(side) for side in (text, video)]
    sizes = *tokens.shape[:3], video.tokens.shape[2], *trained
    first = len(sizes) + len(same)
    numbers = [*sizes, *same.values(), *(float(value.detach()) for value in alike)]
    numbers = numbers[: NUMBERS - 1]  # the last of very many are not compared
    world = shard.tell(numbers)[:, : len(numbers)]
    for name, values in zip(same, world.T[len(sizes) :].long().tolist(), strict=False):
        if len(set(values)) > 1:
            raise ValueError(f"the {name} must be the same on all processes, got {values}")
    held_alike = world[:, first:]
    if not torch.allclose(
        held_alike, held_alike[:1].expand_as(held_alike), 1e-6, 0, equal_nan=True
    ):
        raise ValueError(
            "temperatures, and other single numbers of a loss, must be the same on all processes, "
            f"got {held_alike.tolist()}; load one checkpoint on all of them, and hand "
            "loss.parameters() to the same optimiser"
        )
    sequences, segments, words, frames, *some_trained = world.amax(0).long().tolist()[: len(sizes)]
    shard = replace(shard, layout=(sequences, segments, words))
    if torch.is_grad_enabled():
        # The backward pass of the others waits for this process, whatever it trains itself.
        text, video = (
            _with_gradients(side) if some else side
            for side, some in zip((text, video), some_trained, strict=True)
        )
    tokens, embeddings = text.tokens, text.embeddings
    place = shard.pad if by_turns else shard.gather
    given = text.has_embeddings  # else they are those of the tokens, on every process
    text = Segments(
        shard.pad(tokens, 3) if by_turns else shard.gather(tokens, 3, wire),
        place(text.token_mask, 3),
        embeddings=place(embeddings, 2) if given else None,
    )
    if frames > video.tokens.shape[2]:
        shape = *video.mask.shape, frames
        padded = padded_to(video.tokens, shape), padded_to(video.token_mask, shape)
        video = Segments(*padded, embeddings=video.embeddings)
    return video, text, shard


def _differentiable(side: Segments) -> bool:
    return side.tokens.requires_grad or side.embeddings.requires_grad


def _with_gradients(side: Segments) -> Segments:
    # Embeddings that are those of the tokens stay so, and are not sent beside them.
    tensors = [side.tokens, side.embeddings] if side.has_embeddings else [side.tokens]
    return side.with_tokens(
        *(t if t.requires_grad else t.detach().requires_grad_() for t in tensors)
    )
