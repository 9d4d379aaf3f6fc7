"""Blocks of similarities and their masks, as measures and the video-paragraph loss take them."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_losses._checks import check_floating, check_pair_mask
from norton_losses._numerics import up_cast, working_dtype
from norton_losses._sequences import by_pair


def check_similarity(
    similarity: Tensor, clip_mask: Tensor | None, caption_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both masks, all True where left out; (Bv, N) and (Bt, M), or one for each pair."""
    check_floating("similarity", similarity, "(Bv, Bt, N, M)")
    bv, bt, n, m = similarity.shape
    if clip_mask is None:
        clip_mask = similarity.new_ones((bv, n), dtype=torch.bool)
    if caption_mask is None:
        caption_mask = similarity.new_ones((bt, m), dtype=torch.bool)
    check_pair_mask("clip_mask", clip_mask, 0, (bv, bt, n), similarity)
    check_pair_mask("caption_mask", caption_mask, 1, (bv, bt, m), similarity)
    return clip_mask, caption_mask


def read_similarity(
    similarity: Tensor, clip_mask: Tensor | None, caption_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked, in the working precision, 0 where absent; with both masks, all True if left out."""
    clip_mask, caption_mask = check_similarity(similarity, clip_mask, caption_mask)
    clips, captions = by_pair(clip_mask, caption_mask)
    absent = ~(clips[..., :, None] & captions[..., None, :])
    similarity = up_cast(similarity, working_dtype(similarity)).masked_fill(absent, 0)
    return similarity, clip_mask, caption_mask
