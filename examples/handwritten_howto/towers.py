"""A small video tower and a small text tower, trained from scratch."""

from __future__ import annotations

import torch
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
        mask = corpus.frame_mask
        # Valid frames alone, and so many at a time that what the layers give stays in the cache.
        parts = corpus.frames[mask][:, None].split(1024)
        shown = torch.cat([self.video(part) for part in parts])
        tokens = shown.new_zeros(*mask.shape, shown.shape[-1])
        return Segments(tokens.masked_scatter(mask[..., None], shown), mask)

    def read(self, corpus: Corpus) -> Segments:
        return Segments(self.text(corpus.words), corpus.word_mask)
