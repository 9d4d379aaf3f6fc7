"""A small video tower and a small text tower, trained from scratch, and what they are to become."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from examples.handwritten_howto.corpus import VOCABULARY, Corpus
from examples.handwritten_howto.scans import DIGITS
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


class PerfectTowers(Towers):
    """Tokens that are one-hot digits, of what a frame shows and a word says: nothing to train.

    What is not a digit is a zero vector. Their scores are the most that a corpus leaves to reach.
    """

    def watch(self, corpus: Corpus) -> Segments:
        return Segments(_digits(corpus.frame_digit), corpus.frame_mask)

    def read(self, corpus: Corpus) -> Segments:
        return Segments(_digits(corpus.words - 1), corpus.word_mask)


def _digits(entries: Tensor) -> Tensor:
    """(..., 10), one-hot where an entry is a digit."""
    shown = (entries >= 0) & (entries < DIGITS)
    return one_hot(entries.clamp(0, DIGITS - 1), DIGITS).float() * shown[..., None]
