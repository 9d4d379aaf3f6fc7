"""Leaves out a video's background before it is measured: the protocol of YouCookII."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from norton_losses._checks import check_positive
from norton_losses._sequences import by_pair
from norton_losses._typing import SequenceMeasure
from norton_losses.sequence_measures.blocks import check_similarity
from norton_losses.sequence_measures.judging_alone import check_measure, judging_alone


def background_mask(
    similarity: Tensor,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    *,
    clips_per_caption: float = 1.3,
) -> Tensor:
    r"""Which clips of each pair to keep: those that some caption fits best.

    Of a video with a paragraph of m captions, the :math:`\lfloor r m \rfloor` clips, one at least,
    with the largest :math:`\max_j S_{ij}`; of equals the earlier. All if there are not so many.

    Args:
        similarity: S (Bv, Bt, N, M), floating.
        clip_mask: (Bv, N) or (Bv, Bt, N), bool, True where valid; None means all.
        caption_mask: (Bt, M) or (Bv, Bt, M), bool, True where valid; None means all.
        clips_per_caption: r, above 0.

    Returns:
        (Bv, Bt, N), bool, a clip mask that differs from paragraph to paragraph.

    Raises:
        ValueError: a wrong rank, masks of another shape, ``clips_per_caption`` not above 0.

    Source: the evaluation with background of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import background_mask
        >>> similarity = torch.tensor([[0.9, 0.1], [0.0, 0.1], [0.2, 0.8]])[None, None]
        >>> background_mask(similarity)                   # int(1.3 * 2) clips
        tensor([[[ True, False,  True]]])
    """
    check_positive("clips_per_caption", clips_per_caption)
    clips, captions = by_pair(*check_similarity(similarity, clip_mask, caption_mask))
    fit = similarity.detach().masked_fill(~captions[..., None, :], -torch.inf).amax(-1)
    fit = fit.clamp(min=torch.finfo(fit.dtype).min).masked_fill(~clips, -torch.inf)
    place = fit.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    # float64, as floats of Python are: 1.3 * 10 must not become 12.999999.
    kept = (clips_per_caption * captions.sum(-1).double()).floor().clamp(min=1)
    return clips & (place < kept[..., None])


@final
class BackgroundFiltered(nn.Module):
    """A measure of the clips that fit, in their order in time: see :func:`background_mask`.

    Args:
        measure: any measure that takes a clip mask for each pair, as those of this package do.
        clips_per_caption: how many clips are kept for each caption of a paragraph, rounded down.

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

    def __init__(self, measure: SequenceMeasure, clips_per_caption: float = 1.3) -> None:
        super().__init__()
        check_positive("clips_per_caption", clips_per_caption)
        check_measure(measure)
        self.measure = measure
        self.clips_per_caption = clips_per_caption

    def forward(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph; 0 where either is absent.

        Args:
            similarity: (Bv, Bt, N, M), floating; which clips are kept has no gradient.
            clip_mask: (Bv, N), bool, True where valid; None means all. Or (Bv, Bt, N).
            caption_mask: (Bt, M), bool, True where valid; None means all. Or (Bv, Bt, M).
            options: what else the measure takes.
        """
        masks = self._masks(similarity, clip_mask, caption_mask)
        return self.measure(similarity, *masks, **options)

    def explain(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """What the measure's own ``explain`` returns, of the clips that are kept."""
        explain = getattr(self.measure, "explain", None)
        if explain is None:
            raise TypeError(
                f"a {type(self.measure).__name__} has no plan or path to explain; filter a "
                "TransportMeasure, DynamicTimeWarping or OrderedAlignment"
            )
        return explain(similarity, *self._masks(similarity, clip_mask, caption_mask), **options)

    def with_bucket(self, value: float | None) -> BackgroundFiltered:
        """The same with its measure judging a pair by itself: see :func:`judging_alone`."""
        return BackgroundFiltered(judging_alone(self.measure, value), self.clips_per_caption)

    def _masks(
        self, similarity: Tensor, clip_mask: Tensor | None, caption_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        clip_mask, caption_mask = check_similarity(similarity, clip_mask, caption_mask)
        kept = background_mask(
            similarity, clip_mask, caption_mask, clips_per_caption=self.clips_per_caption
        )
        return kept, caption_mask

    def extra_repr(self) -> str:
        return f"clips_per_caption={self.clips_per_caption}"
