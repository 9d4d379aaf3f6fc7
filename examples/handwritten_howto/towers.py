"""A small video tower and a small text tower, trained from scratch."""

from __future__ import annotations

from torch import nn

from examples.handwritten_howto.corpus import VOCABULARY, Corpus
from norton_losses import Segments


class Towers(nn.Module):
    """One token for each frame and each word, of a common width D."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.video = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, width),
        )
        self.text = nn.Embedding(VOCABULARY, width, padding_idx=0)

    def forward(self, corpus: Corpus) -> tuple[Segments, Segments]:
        """Frame tokens (B, N, F, D) and word tokens (B, N, W, D), with their masks."""
        return self.watch(corpus), self.read(corpus)

    def watch(self, corpus: Corpus) -> Segments:
        frames = self.video(corpus.frames.flatten(0, 2)[:, None])  # (B * N * F, D)
        return Segments(frames.unflatten(0, corpus.frame_mask.shape), corpus.frame_mask)

    def read(self, corpus: Corpus) -> Segments:
        return Segments(self.text(corpus.words), corpus.word_mask)
