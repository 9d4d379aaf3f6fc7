"""Caption averaging: the mean over captions of the similarity of their best clip."""

from __future__ import annotations

from typing import final

from torch import Tensor

from norton_losses._numerics import masked_amax, masked_mean
from norton_losses.sequence_measures.measure import AbstractSequenceMeasure, MeasureOutput
from norton_losses.similarity_block import SimilarityBlock


@final
class CaptionAverage(AbstractSequenceMeasure):
    r"""Mean over a paragraph's captions of the best clip for each.

    .. math:: A = \frac1m \sum_j \max_i S_{ij}

    Source: the paragraph-to-video measure of Xu et al., VideoCLIP, EMNLP 2021, as evaluated in
    Lin et al., ICLR 2024.

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


def caption_average(
    similarity: Tensor, clip_mask: Tensor | None = None, caption_mask: Tensor | None = None
) -> Tensor:
    """Score (Bv, Bt) of similarities (Bv, Bt, N, M) by :class:`CaptionAverage`.

    Example:
        >>> import torch
        >>> from norton_losses.functional import caption_average
        >>> caption_average(torch.tensor([[0.9, 0.1], [0.2, 0.5]])[None, None])
        tensor([[0.7000]])
    """
    return CaptionAverage()(similarity, clip_mask, caption_mask)
