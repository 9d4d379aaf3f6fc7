"""A filter around a measure that leaves out a video's background: the protocol of YouCookII."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from norton_losses._checks import check_positive
from norton_losses.sequence_measures.measure import (
    AbstractSequenceMeasure,
    MeasureFunction,
    MeasureOutput,
    as_measure,
)
from norton_losses.similarity_block import SimilarityBlock


@final
class BackgroundFiltered(AbstractSequenceMeasure):
    r"""A measure of the clips that some caption fits best, in their order in time.

    Of a video with a paragraph of m captions it sees the :math:`\lfloor r m \rfloor` clips, one at
    least, with the largest :math:`\max_j S_{ij}`; of equals the earlier. All if there are not so
    many. Which clips are kept has no gradient.

    Args:
        measure: any measure that takes a clip mask for each pair, as those of this package do.
        clips_per_caption: r, above 0.

    Raises:
        ValueError: ``clips_per_caption`` not above 0.

    Source: the evaluation with background of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import BackgroundFiltered, DynamicTimeWarping
        >>> similarity = torch.tensor([[0.9, 0.1], [0.0, 0.1], [0.2, 0.8]])[None, None]
        >>> DynamicTimeWarping()(similarity)              # -(0.1 + 0.9 + 0.2) / (3 + 2)
        tensor([[-0.2400]])
        >>> BackgroundFiltered(DynamicTimeWarping())(similarity)   # -(0.1 + 0.2) / (2 + 2)
        tensor([[-0.0750]])
    """

    def __init__(
        self, measure: AbstractSequenceMeasure | MeasureFunction, clips_per_caption: float = 1.3
    ) -> None:
        super().__init__()
        check_positive("clips_per_caption", clips_per_caption)
        self.measure = as_measure(measure)
        self.clips_per_caption = clips_per_caption

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        return self.measure.evaluate(block.keep(_kept(block, self.clips_per_caption)))

    def for_retrieval(self, bucket_value: float | None = None) -> BackgroundFiltered:
        return BackgroundFiltered(self.measure.for_retrieval(bucket_value), self.clips_per_caption)

    def bucket_value(self, block: SimilarityBlock) -> Tensor | None:
        return self.measure.bucket_value(block.keep(_kept(block, self.clips_per_caption)))

    def extra_repr(self) -> str:
        return f"clips_per_caption={self.clips_per_caption}"


def kept_clips(
    similarity: Tensor,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    *,
    clips_per_caption: float = 1.3,
) -> Tensor:
    """The clips (Bv, Bt, N), bool, of each pair that :class:`BackgroundFiltered` keeps.

    Example:
        >>> import torch
        >>> from norton_losses.functional import kept_clips
        >>> similarity = torch.tensor([[0.9, 0.1], [0.0, 0.1], [0.2, 0.8]])[None, None]
        >>> kept_clips(similarity)                        # int(1.3 * 2) clips
        tensor([[[ True, False,  True]]])
    """
    check_positive("clips_per_caption", clips_per_caption)
    return _kept(SimilarityBlock(similarity, clip_mask, caption_mask), clips_per_caption)


def _kept(block: SimilarityBlock, clips_per_caption: float) -> Tensor:
    fit = block.raw.detach().masked_fill(~block.captions[..., None, :], -torch.inf).amax(-1)
    fit = fit.clamp(min=torch.finfo(fit.dtype).min).masked_fill(~block.clips, -torch.inf)
    place = fit.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    # float64, as floats of Python are: 1.3 * 10 must not become 12.999999.
    kept = (clips_per_caption * block.counts[1].double()).floor().clamp(min=1)
    return block.clips & (place < kept[..., None])
