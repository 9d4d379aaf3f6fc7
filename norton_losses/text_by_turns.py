# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
"""Scores of videos with the text of one process at a time, which is sent again on the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_losses._numerics import full_precision
from norton_losses._random import RandomState
from norton_losses.distributed import Shard
from norton_losses.segments import Segments

ScoreFunction = Callable[[Segments, Segments], Tensor]


def scores_by_turns(
    score: ScoreFunction,
    video: Segments,
    text: Segments,
    shard: Shard,
    wire: torch.dtype,
    parameters: Sequence[nn.Parameter],
) -> Tensor:
    """Scores (Bv, R * Bt) of the videos of this process with the paragraphs of all R.

    Every process in turn sends its text to the others, and only one process's text and its
    similarities exist at a time. They are not kept: the backward pass sends the text and computes
    the similarities once more, and returns its gradient, summed, to the process it came from.

    Args:
        score: of Segments of Bv videos and Bt paragraphs, (Bv, Bt).
        video: Bv videos.
        text: the paragraphs of this process, padded to the layout of the shard.
        shard: the processes.
        wire: the dtype in which tokens are sent.
        parameters: what else the scores depend on.
    """
    parameters = [p for p in parameters if p.requires_grad]
    turns = _Turns(score, video, text, shard, wire, parameters)
    return _ByTurns.apply(turns, *turns.tensors)  # pyright: ignore


@dataclass(frozen=True, eq=False)
class _Turns:
    score: ScoreFunction
    video: Segments
    text: Segments
    shard: Shard
    wire: torch.dtype
    parameters: list[nn.Parameter]

    @property
    def tensors(self) -> list[Tensor]:
        """What the scores depend on."""
        video, text = self.video, self.text
        return [video.tokens, video.embeddings, text.tokens, text.embeddings, *self.parameters]

    def text_of(self, rank: int) -> Segments:
        """The text of a process, detached."""
        tokens, embeddings = self.text.tokens.detach(), self.text.embeddings.detach()
        sent = self.shard.broadcast(tokens.to(self.wire), rank).to(tokens.dtype)
        mask = self.shard.broadcast(self.text.token_mask.view(torch.uint8), rank).view(torch.bool)
        return Segments(sent, mask, embeddings=self.shard.broadcast(embeddings, rank))


class _ByTurns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turns: _Turns, *tensors: Tensor) -> Tensor:
        ctx.turns, ctx.states = turns, []
        scores: list[Tensor] = []
        for rank in range(turns.shard.size):
            text = turns.text_of(rank)
            ctx.states.append(RandomState())
            scores.append(turns.score(turns.video, text))
        return torch.cat(scores, dim=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        turns: _Turns = ctx.turns
        text_wanted = any(ctx.needs_input_grad[3:5])
        given = turns, ctx.states, text_wanted, grad_outputs[0], *turns.tensors
        return None, *_Gradients.apply(*given)  # pyright: ignore


class _Gradients(torch.autograd.Function):
    """Those of all that the scores depend on; a function of its own, since it has none itself."""

    @staticmethod
    def forward(
        ctx: Any,
        turns: _Turns,
        states: list[RandomState],
        text_wanted: bool,
        gradient: Tensor,
        *tensors: Tensor,
    ) -> tuple[Any, ...]:
        shard = turns.shard
        of_video = [tensor.detach().requires_grad_() for tensor in tensors[:2]]
        video = turns.video.with_tokens(*of_video)
        sums = [torch.zeros_like(leaf) for leaf in (*of_video, *turns.parameters)]
        of_text: Any = [None, None]
        now = RandomState()
        for rank, part in enumerate(gradient.chunk(shard.size, dim=1)):
            sent = turns.text_of(rank)
            of_sent = [sent.tokens.requires_grad_(), sent.embeddings.requires_grad_()]
            text = Segments(of_sent[0], sent.token_mask, embeddings=of_sent[1])
            states[rank].restore()
            with torch.enable_grad(), full_precision(text.tokens):  # of the caller's autocast
                scores = turns.score(video, text)
            leaves = [*of_video, *turns.parameters, *of_sent]
            found: Any = torch.autograd.grad(scores, leaves, part, allow_unused=True)
            *kept, tokens, embeddings = (
                torch.zeros_like(leaf) if g is None else g
                for g, leaf in zip(found, leaves, strict=True)
            )
            sums = [total + more for total, more in zip(sums, kept, strict=True)]
            if text_wanted:
                # In the end each process has the sums of its own text.
                returned = [shard.reduced_to(rank, g) for g in (tokens, embeddings)]
                of_text = returned if rank == shard.rank else of_text
        now.restore()
        return (*sums[:2], *of_text, *sums[2:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError(
            'gather="chunked" has a first derivative only, and the gradient of its gradient was '
            'asked for; take gather="all"'
        )
