"""Linear towers on frozen features, trained on sentences that are paired by their number.

The annotators cut the videos differently, so that sentence i of the one and sentence i of the other
often tell different things: misalignment as it comes, and not as somebody made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from examples.paragraph_alignment.encoder import WIDTH
from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments

Features = Sequence[Tensor]  # of one paragraph: the tokens (T, D) of each sentence

OBJECTIVES: dict[str, Callable[[], ClipCaptionOTLoss | NortonLoss]] = {
    "InfoNCE": lambda: ClipCaptionOTLoss(beta=0.0),
    "NortonLoss": NortonLoss,
}


class LinearTowers(nn.Module):
    """A linear map for each annotator, from token features to a width of their own."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.sides = nn.ModuleList([nn.Linear(WIDTH, width) for _ in range(2)])

    def forward(self, first: Segments, second: Segments) -> tuple[Segments, Segments]:
        one, other = (
            side.with_tokens(tower(side.tokens))
            for side, tower in zip((first, second), self.sides, strict=True)
        )
        return one, other

    @torch.no_grad()
    def embed(self, means: Sequence[Tensor], side: int) -> list[Tensor]:
        """Embeddings (n, width) of sentences, from what :func:`pooled` gives."""
        return [self.sides[side](mean) for mean in means]


def pooled(paragraphs: Sequence[Features]) -> list[Tensor]:
    """Mean token (n, D) of the sentences of each paragraph, as the encoder itself pools them.

    A linear map of the mean is the mean of the maps, so these also do for the towers.
    """
    return [torch.stack([tokens.float().mean(0) for tokens in p]) for p in paragraphs]


def train(
    towers: LinearTowers,
    loss: nn.Module,
    first: Sequence[Features],
    second: Sequence[Features],
    *,
    seed: int,
    steps: int,
    batch_videos: int = 32,
    learning_rate: float = 1e-3,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Train towers and temperatures on paragraphs of the same videos; a seed fixes the batches."""
    batches = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=learning_rate)
    batch_videos = min(batch_videos, len(first))
    for _ in range(steps):
        chosen = torch.randperm(len(first), generator=batches)[:batch_videos].tolist()
        pairs = [_as_many(first[i], second[i]) for i in chosen]
        sides = (Segments.from_list([p[k] for p in pairs]) for k in (0, 1))
        value = loss(*towers(*(side.to(torch.float32) for side in sides)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        on_step()


def _as_many(first: Features, second: Features) -> tuple[list[Tensor], list[Tensor]]:
    """Both with as many sentences, the shorter with empty ones at its end, which pair with none."""
    n = max(len(first), len(second))
    empty = torch.empty(0, WIDTH, dtype=torch.float16)
    one, other = ([*side, *[empty] * (n - len(side))] for side in (first, second))
    return one, other
