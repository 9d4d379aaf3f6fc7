"""Random batches of sequences, full or ragged, for every test that needs one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Arguments of a loss, named as its `forward` names them."""

    video_tokens: Tensor
    text_tokens: Tensor
    frame_mask: Tensor
    word_mask: Tensor
    clip_mask: Tensor
    caption_mask: Tensor

    @property
    def masks(self) -> dict[str, Tensor]:
        return {
            "frame_mask": self.frame_mask,
            "word_mask": self.word_mask,
            "clip_mask": self.clip_mask,
            "caption_mask": self.caption_mask,
        }

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
