"""Random clips and captions, made alike for every suite: float32, on the CPU, seeded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness.work import Inputs


def lengths(count: int, most: int, least: int, g: torch.Generator) -> Tensor:
    """Uniform between both, the longest there for certain."""
    drawn = torch.randint(least, most + 1, (count,), generator=g)
    drawn[0] = most
    return drawn


def tokens(
    clips: int, frames: int, words: int, width: int, *, ragged: bool, length: int | None = None
) -> Inputs:
    """Unit tokens (K, F, D) and (K, W, D), padded ones zero, and their masks.

    Ragged clips have at least a sixth of the frames, and captions a fourth of the words: 3 to 18
    and 8 to 32. With ``length`` the leading dimension is (K / length, length).
    """
    g = torch.Generator().manual_seed(0)
    frame_mask, word_mask = (
        torch.arange(most) < lengths(clips, most, least if ragged else most, g)[:, None]
        for most, least in ((frames, max(frames // 6, 1)), (words, max(words // 4, 1)))
    )
    video = normalize(torch.randn(clips, frames, width, generator=g), dim=-1)
    text = normalize(torch.randn(clips, words, width, generator=g), dim=-1)
    made = {
        "video": video * frame_mask[..., None],
        "text": text * word_mask[..., None],
        "frame_mask": frame_mask,
        "word_mask": word_mask,
    }
    if length is not None:
        made = {name: tensor.unflatten(0, (-1, length)) for name, tensor in made.items()}
    for name in ("video", "text"):
        made[name].requires_grad_()
    return made


def similarity(sequences: int, length: int) -> Inputs:
    """(B, B, N, N) in [0, 1], own sequences more alike, every fourth clip about nothing."""
    g = torch.Generator().manual_seed(0)
    made = 0.85 * torch.rand(sequences, sequences, length, length, generator=g)
    own = torch.eye(sequences)[:, :, None, None] * torch.eye(length)
    told = (torch.arange(length) % 4 != 3)[:, None]
    return {"similarity": (made + 0.15 * own * told).requires_grad_()}


def embeddings(pairs: int, width: int) -> Inputs:
    """Clips and captions (K, D) of any norm, an own pair at a cosine near one half."""
    g = torch.Generator().manual_seed(0)
    clips, noise = (torch.randn(pairs, width, generator=g) for _ in range(2))
    captions = clips + 3**0.5 * noise
    return {"clips": clips.requires_grad_(), "captions": captions.requires_grad_()}


def ragged_similarity(
    sequences: int, longest: int, shortest: int, *, differentiable: bool = True
) -> Inputs:
    """(B, B, N, N) in [0, 1], and masks of both sides, valid entries first."""
    g = torch.Generator().manual_seed(0)
    made = {"similarity": torch.rand(sequences, sequences, longest, longest, generator=g)}
    for name in ("clip_mask", "caption_mask"):
        drawn = lengths(sequences, longest, shortest, g)
        made[name] = torch.arange(longest) < drawn[:, None]
    made["similarity"].requires_grad_(differentiable)
    return made


def corpus(sequences: int, length: int, width: int) -> Inputs:
    """Embeddings (B, N, D) of videos and of their paragraphs, at a cosine near one half."""
    g = torch.Generator().manual_seed(0)
    videos, noise = (torch.randn(sequences, length, width, generator=g) for _ in range(2))
    return {"videos": videos, "paragraphs": videos + 3**0.5 * noise}
