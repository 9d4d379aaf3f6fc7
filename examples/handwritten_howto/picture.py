"""The picture of one noisy video: where its captions go, and where they belong."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.handwritten_howto.corpus import Corpus, sentence
from examples.handwritten_howto.towers import Towers
from norton_losses import NortonLoss
from norton_losses.plotting import plot_alignment


@torch.no_grad()
def draw_alignment(
    towers: Towers, loss: NortonLoss, corpus: Corpus, video: int, path: Path
) -> None:
    """Draw one video of a noisy held-out corpus; the bucket's value is that of the corpus."""
    out = loss.explain(*towers(corpus)).video_paragraph
    assert out.plan is not None
    figure = plot_alignment(
        out.plan[video, video],
        captions=[sentence(caption) for caption in corpus.words[video]],
        truth=corpus.truth[video],
        title="One noisy held-out video, narrated early or late (dots are filler words)",
    )
    figure.savefig(path, dpi=110)


def first_shifted(corpus: Corpus) -> int:
    """The first video in which a caption comes early or late."""
    diagonal = torch.eye(corpus.truth.shape[-1], dtype=torch.bool)
    return int((corpus.truth & ~diagonal).flatten(1).any(1).int().argmax())
