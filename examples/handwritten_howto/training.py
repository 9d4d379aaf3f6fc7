"""One training run: towers, an objective, a seed, a budget of steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from examples.handwritten_howto.corpus import Corpus
from examples.handwritten_howto.towers import Towers
from norton_losses import ClipCaptionOTLoss, NortonLoss

# Name, and what builds the loss. InfoNCE is the clip-caption loss with hard targets.
OBJECTIVES: dict[str, Callable[[], ClipCaptionOTLoss | NortonLoss]] = {
    "InfoNCE": lambda: ClipCaptionOTLoss(beta=0.0),
    "ClipCaptionOTLoss": ClipCaptionOTLoss,
    "NortonLoss": NortonLoss,
}


def train(
    towers: Towers,
    loss: torch.nn.Module,
    corpus: Corpus,
    *,
    seed: int,
    steps: int,
    batch_videos: int = 8,
    learning_rate: float = 1e-3,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Train towers, and the temperature of the loss; a seed fixes the batches, for every objective.

    `on_step` is called after each step.
    """
    batches = torch.Generator().manual_seed(seed)
    # The temperature lives in the loss.
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=learning_rate)
    for _ in range(steps):
        batch = corpus[torch.randint(len(corpus), (batch_videos,), generator=batches)]
        value = loss(*towers(batch))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        on_step()
