"""The mean over captions of their best clip: what retrieval is often judged by."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from norton_losses._numerics import masked_amax, masked_mean
from norton_losses._sequences import by_pair
from norton_losses.sequence_measures.blocks import read_similarity


def caption_average(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
    r"""Mean over a paragraph's captions of the best clip for each.

    .. math:: A = \frac1m \sum_j \max_i S_{ij}

    Args:
        similarity: (Bv, Bt, N, M), floating.
        clip_mask: (Bv, N) or (Bv, Bt, N), bool.
        caption_mask: (Bt, M) or (Bv, Bt, M), bool.

    Returns:
        (Bv, Bt); 0 where the video or the paragraph is absent.

    Source: the paragraph-to-video measure of Xu et al., VideoCLIP, EMNLP 2021, as evaluated in
    Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import caption_average
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.5]])[None, None]
        >>> valid = torch.ones(1, 2, dtype=torch.bool)
        >>> caption_average(similarity, valid, valid)
        tensor([[0.7000]])
    """
    clips, captions = by_pair(clip_mask, caption_mask)
    best = masked_amax(similarity, clips[..., None], dim=2)  # (Bv, Bt, M)
    return masked_mean(best, captions, dim=-1)


@final
class CaptionAverage(nn.Module):
    """Mean over captions of their best clip: see :func:`caption_average`.

    Example:
        >>> import torch
        >>> from norton_losses import CaptionAverage
        >>> CaptionAverage()(torch.eye(4).expand(2, 2, 4, 4))
        tensor([[1., 1.],
                [1., 1.]])
    """

    def forward(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph; 0 where either is absent.

        Args:
            similarity: (Bv, Bt, N, M), floating.
            clip_mask: (Bv, N), bool, True where valid; None means all. (Bv, Bt, N) if it differs
                from paragraph to paragraph.
            caption_mask: (Bt, M), bool, True where valid; None means all. Or (Bv, Bt, M).
        """
        return caption_average(*read_similarity(similarity, clip_mask, caption_mask))
