"""The picture of one noisy video: where its captions go, and where they belong."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.handwritten_howto.corpus import NOTHING, Corpus, sentence
from examples.handwritten_howto.towers import Towers
from norton_losses import NortonLoss
from norton_losses.plotting import plot_alignment


@torch.no_grad()
def draw_alignment(
    towers: Towers, loss: NortonLoss, corpus: Corpus, video: int, path: Path
) -> None:
    """Draw one video of a noisy corpus; the bucket's value is that of the corpus."""
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
    """The first video of which more than half of the captions on topic are early or late."""
    told = corpus.caption_place != NOTHING
    moved = told & (corpus.caption_place != torch.arange(told.shape[1]))
    return int((moved.sum(1) > told.sum(1) / 2).int().argmax())
