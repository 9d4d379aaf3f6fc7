"""One training run: a tower pair, an objective, a seed, a budget of steps."""

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
    objective: str,
    corpus: Corpus,
    *,
    seed: int,
    steps: int,
    batch_videos: int = 16,
    learning_rate: float = 1e-3,
    on_step: Callable[[float], object] = lambda loss: None,
) -> tuple[Towers, ClipCaptionOTLoss | NortonLoss]:
    """Towers trained from scratch. A seed fixes weights and batches alike for every objective."""
    torch.manual_seed(seed)
    towers, loss = Towers(), OBJECTIVES[objective]()
    batches = torch.Generator().manual_seed(seed)
    # The temperature lives in the loss.
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=learning_rate)
    for _ in range(steps):
        batch = corpus[torch.randint(len(corpus), (batch_videos,), generator=batches)]
        value = loss(*towers(batch))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        on_step(value.item())
    return towers, loss
