"""One modality of a batch of sequences: checked, completed and in the working precision.

A video is a sequence of clips and a clip a bag of frames; a paragraph is a sequence of captions
and a caption a bag of words. Both are the same thing to the code, under two sets of names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from norton_losses._checks import check_device, check_floating, check_mask, check_shape
from norton_losses._numerics import masked_mean, up_cast, working_dtype


@dataclass(frozen=True)
class Sequences:
    """Tokens of L segments (clips or captions) in each of B sequences, with exact masks."""

    tokens: Tensor  # (B, L, T, D)
    token_mask: Tensor  # (B, L, T)
    embeddings: Tensor  # (B, L, D)
    mask: Tensor  # (B, L): the segment is given as valid, and has a valid token

    @property
    def present(self) -> Tensor:
        """(B,): whether the sequence has any valid segment."""
        return self.mask.any(-1)


@dataclass(frozen=True)
class _Names:
    tokens: str
    token_mask: str
    mask: str
    embeddings: str
    layout: str
    single_layout: str


_VIDEO = _Names(
    "video_tokens", "frame_mask", "clip_mask", "clip_embeddings", "(B, N, F, D)", "(B, N, D)"
)
_TEXT = _Names(
    "text_tokens", "word_mask", "caption_mask", "caption_embeddings", "(B, M, W, D)", "(B, M, D)"
)


def read_sequences(
    video_tokens: Tensor,
    text_tokens: Tensor,
    *,
    frame_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    clip_embeddings: Tensor | None = None,
    caption_embeddings: Tensor | None = None,
) -> tuple[Sequences, Sequences]:
    """Check what a user passed, derive what was left out, and up-cast half precision once."""
    for names, tokens, token_mask, mask, embeddings in (
        (_VIDEO, video_tokens, frame_mask, clip_mask, clip_embeddings),
        (_TEXT, text_tokens, word_mask, caption_mask, caption_embeddings),
    ):
        _check(names, tokens, token_mask, mask, embeddings)
    check_device("text_tokens", text_tokens, video_tokens)
    if video_tokens.shape[-1] != text_tokens.shape[-1]:
        raise ValueError(
            "video_tokens and text_tokens must share their width D, got "
            f"{video_tokens.shape[-1]} and {text_tokens.shape[-1]}; project one of them first"
        )
    dtype = working_dtype(video_tokens, text_tokens, clip_embeddings, caption_embeddings)
    video = _complete(
        up_cast(video_tokens, dtype), frame_mask, clip_mask, up_cast(clip_embeddings, dtype)
    )
    text = _complete(
        up_cast(text_tokens, dtype), word_mask, caption_mask, up_cast(caption_embeddings, dtype)
    )
    if video.embeddings.shape[-1] != text.embeddings.shape[-1]:
        raise ValueError(
            "clip_embeddings and caption_embeddings must share their width, got "
            f"{video.embeddings.shape[-1]} and {text.embeddings.shape[-1]}; pass both, or project "
            "one of them first"
        )
    return video, text


def check_paired(video: Sequences, text: Sequences) -> None:
    """Training contrasts video b with paragraph b, so there must be as many of each."""
    if len(video.tokens) != len(text.tokens):
        raise ValueError(
            "video_tokens and text_tokens must hold as many sequences, got B = "
            f"{len(video.tokens)} and {len(text.tokens)}; to rank candidates against each other "
            "use .score(...), which allows it"
        )


def by_pair(clip_mask: Tensor, caption_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of all videos with all paragraphs: (Bv, 1 or Bt, N) and (1 or Bv, Bt, M)."""
    clips = clip_mask[:, None] if clip_mask.dim() == 2 else clip_mask
    captions = caption_mask[None] if caption_mask.dim() == 2 else caption_mask
    return clips, captions


def _check(
    names: _Names,
    tokens: Tensor,
    token_mask: Tensor | None,
    mask: Tensor | None,
    embeddings: Tensor | None,
) -> None:
    single = isinstance(tokens, Tensor) and tokens.dim() == 3  # pyright: ignore[reportUnnecessaryIsInstance]
    check_floating(names.tokens, tokens, names.single_layout if single else names.layout)
    if token_mask is not None:
        if single:
            raise ValueError(
                f"{names.token_mask} describes 4-d tokens {names.layout}, but {names.tokens} has "
                f"shape {tuple(tokens.shape)}, one token for each segment; pass "
                f"{names.mask} instead"
            )
        check_mask(names.token_mask, token_mask, tokens.shape[:3], tokens)
    if mask is not None:
        check_mask(names.mask, mask, tokens.shape[:2], tokens)
    if embeddings is not None:
        check_floating(names.embeddings, embeddings, names.single_layout)
        check_shape(names.embeddings, embeddings, (*tokens.shape[:2], embeddings.shape[-1]))
        check_device(names.embeddings, embeddings, tokens)


def _complete(
    tokens: Tensor, token_mask: Tensor | None, mask: Tensor | None, embeddings: Tensor | None
) -> Sequences:
    if tokens.dim() == 3:
        tokens = tokens[:, :, None]  # (B, L, 1, D)
    if token_mask is None:
        token_mask = tokens.new_ones(tokens.shape[:3], dtype=torch.bool)
    if mask is not None:
        token_mask = token_mask & mask[..., None]
    if embeddings is None:
        embeddings = masked_mean(tokens, token_mask[..., None], dim=2)
    return Sequences(tokens, token_mask, embeddings, token_mask.any(-1))
