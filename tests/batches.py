"""Random batches of sequences, full or ragged, for every test that needs one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from norton_losses import Segments


@dataclass
class Batch:
    """What the two sides of a loss are made of."""

    video_tokens: Tensor
    text_tokens: Tensor
    frame_mask: Tensor
    word_mask: Tensor
    clip_mask: Tensor
    caption_mask: Tensor

    @property
    def sides(self) -> tuple[Segments, Segments]:
        """Both sides of a loss, with every mask."""
        return self.sides_of(*self.tokens)

    @property
    def token_sides(self) -> tuple[Segments, Segments]:
        """Both sides with the masks of tokens alone."""
        return self.token_sides_of(*self.tokens)

    def sides_of(self, video: Tensor, text: Tensor) -> tuple[Segments, Segments]:
        """The same of other tokens."""
        return (
            Segments(video, self.frame_mask, mask=self.clip_mask),
            Segments(text, self.word_mask, mask=self.caption_mask),
        )

    def token_sides_of(self, video: Tensor, text: Tensor) -> tuple[Segments, Segments]:
        return Segments(video, self.frame_mask), Segments(text, self.word_mask)

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        return self.video_tokens, self.text_tokens

    def leaves(self, dtype: torch.dtype | None = None) -> Batch:
        """The same batch, its tokens fresh leaves that require gradient."""
        video, text = (t.detach().clone().to(dtype or t.dtype) for t in self.tokens)
        return replace(self, video_tokens=video.requires_grad_(), text_tokens=text.requires_grad_())

    @property
    def clips_present(self) -> Tensor:
        return self.clip_mask & self.frame_mask.any(-1)

    @property
    def captions_present(self) -> Tensor:
        return self.caption_mask & self.word_mask.any(-1)


def make_batch(
    batch: int = 3,
    clips: int = 4,
    captions: int = 4,
    frames: int = 3,
    words: int = 5,
    width: int = 8,
    *,
    ragged: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def mask(*shape: int) -> Tensor:
        if not ragged:
            return torch.ones(shape, dtype=torch.bool)
        return torch.rand(shape, generator=g) < 0.75

    made = Batch(
        torch.randn(batch, clips, frames, width, generator=g, dtype=dtype),
        torch.randn(batch, captions, words, width, generator=g, dtype=dtype),
        mask(batch, clips, frames),
        mask(batch, captions, words),
        mask(batch, clips),
        mask(batch, captions),
    )
    if (
        ragged
    ):  # the first clip and caption of each sequence stay, so that every sequence is present
        made.frame_mask[:, 0, 0] = made.word_mask[:, 0, 0] = True
        made.clip_mask[:, 0] = made.caption_mask[:, 0] = True
        made.clip_mask[0, -1], made.caption_mask[-1, -1] = (
            False,
            False,
        )  # raggedness, whatever the seed
        made.frame_mask[-1, -1] = False
    return made
