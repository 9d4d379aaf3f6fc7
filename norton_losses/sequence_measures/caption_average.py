"""The mean over captions of their best clip: what retrieval is often judged by."""

from __future__ import annotations

from typing import final

from torch import Tensor

from norton_losses._numerics import masked_amax, masked_mean
from norton_losses.sequence_measures.measure import AbstractSequenceMeasure, MeasureOutput
from norton_losses.similarity_block import SimilarityBlock


def caption_average(
    similarity: Tensor, clip_mask: Tensor | None = None, caption_mask: Tensor | None = None
) -> Tensor:
    r"""Mean over a paragraph's captions of the best clip for each.

    .. math:: A = \frac1m \sum_j \max_i S_{ij}

    Args:
        similarity: (Bv, Bt, N, M), floating.
        clip_mask: (Bv, N) or (Bv, Bt, N), bool, True where valid; None means all.
        caption_mask: (Bt, M) or (Bv, Bt, M), bool, True where valid; None means all.

    Returns:
        (Bv, Bt); 0 where the video or the paragraph is absent.

    Source: the paragraph-to-video measure of Xu et al., VideoCLIP, EMNLP 2021, as evaluated in
    Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import caption_average
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.5]])[None, None]
        >>> caption_average(similarity)
        tensor([[0.7000]])
    """
    return CaptionAverage()(similarity, clip_mask, caption_mask)


@final
class CaptionAverage(AbstractSequenceMeasure):
    """Mean over captions of their best clip: see :func:`caption_average`.

    Example:
        >>> import torch
        >>> from norton_losses import CaptionAverage
        >>> CaptionAverage()(torch.eye(4).expand(2, 2, 4, 4))
        tensor([[1., 1.],
                [1., 1.]])
    """

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        best = masked_amax(block.values, block.clips[..., None], dim=2)  # (Bv, Bt, M)
        return MeasureOutput(masked_mean(best, block.captions, dim=-1))
