"""The soft maximum as Eq. (5) defines it, which holds the products of all frames with all words."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_losses._numerics import masked_amax, masked_logsumexp, masked_mean
from norton_losses.segments import Segments

_FRAMES, _WORDS = 2, 5  # the dimensions of frames and words in the token scores


def best_tokens(
    video: Segments, text: Segments, alpha: float, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """Both directions of Eq. (5), the mean over frames and the mean over words: (Bv, Bt, N, M).

    Both are 0 where the clip or the caption is absent.

    Args:
        video: tokens (Bv, N, F, D), 0 where masked.
        text: tokens (Bt, M, W, D), 0 where masked.
        alpha: temperature of the soft maximum; 0 is the hard maximum.
        mean: divide the inner sum by its number of terms.
    """
    # One matrix product gives (Bv, N, F, Bt, M, W); other orders would need a copy.
    scores = video.tokens.flatten(0, -2) @ text.tokens.flatten(0, -2).T
    scores = scores.view(*video.token_mask.shape, *text.token_mask.shape)
    frames, words = video.token_mask[..., None, None, None], text.token_mask[None, None, None]
    if alpha == 0:
        best_word = masked_amax(scores, words, _WORDS)  # (Bv, N, F, Bt, M)
        best_frame = masked_amax(scores, frames, _FRAMES)  # (Bv, N, Bt, M, W)
    else:
        best_word = alpha * masked_logsumexp(scores / alpha, words, _WORDS)
        best_frame = alpha * masked_logsumexp(scores / alpha, frames, _FRAMES)
    by_frame = masked_mean(best_word, frames.squeeze(_WORDS), _FRAMES).transpose(1, 2)
    by_word = masked_mean(best_frame, words.squeeze(_FRAMES), -1).transpose(1, 2)
    f, w = lengths(video, text, scores.dtype)
    if mean and alpha > 0:
        by_frame = by_frame - alpha * w.clamp(min=1).log()
        by_word = by_word - alpha * f.clamp(min=1).log()
    absent = (f == 0) | (w == 0)
    return by_frame.masked_fill(absent, 0), by_word.masked_fill(absent, 0)


def lengths(video: Segments, text: Segments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Valid frames (Bv, 1, N, 1) and valid words (1, Bt, 1, M)."""
    f, w = (side.token_mask.sum(-1).to(dtype) for side in (video, text))
    return f[:, None, :, None], w[None, :, None, :]
