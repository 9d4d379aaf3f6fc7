"""Similarities of all videos with all paragraphs: what a similarity gives and a measure takes."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from norton_losses._checks import check_floating, check_mask, check_range
from norton_losses._numerics import up_cast, working_dtype
from norton_losses._typing import Range
from norton_losses.distributed import ONE_PROCESS, Shard


@final
class SimilarityBlock:
    """Similarity of every clip with every caption, the masks of both, and the range it lies in.

    Args:
        values: (Bv, Bt, N, M), floating; what absent clips and captions hold has no effect.
        clip_mask: (Bv, N), bool, True where valid; None means all. (Bv, Bt, N) where it differs
            from paragraph to paragraph.
        caption_mask: (Bt, M), bool, True where valid; None means all. Or (Bv, Bt, M).
        bounds: ``(lo, hi)`` that the values are known to lie in: a solver of transport may then
            choose a faster way without looking. None means that nothing is known.
        shard: the processes whose videos are compared with these paragraphs.

    Attributes:
        raw: the values, float32 or wider, with whatever they hold where absent.
        clips: (Bv, N) as (Bv, 1, N), or (Bv, Bt, N): the clip mask of each pair.
        captions: (Bt, M) as (1, Bt, M), or (Bv, Bt, M).

    Raises:
        ValueError: a wrong rank, masks of another shape or device.
        TypeError: values that are not floating, masks that are not bool.

    Example:
        >>> import torch
        >>> from norton_losses import CaptionAverage, SimilarityBlock
        >>> clip_mask = torch.tensor([[True, True, False], [True, True, True]])
        >>> block = SimilarityBlock(torch.rand(2, 5, 3, 4), clip_mask, bounds=(0.0, 1.0))
        >>> CaptionAverage().evaluate(block).score.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        values: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        bounds: Range | None = None,
        shard: Shard | None = None,  # torch's compiler cannot make an object as a default
    ) -> None:
        check_floating("similarity", values, "(Bv, Bt, N, M)")
        if bounds is not None:
            check_range("bounds", bounds)
        bv, bt, n, m = values.shape
        if clip_mask is None:
            clip_mask = values.new_ones((bv, n), dtype=torch.bool)
        if caption_mask is None:
            caption_mask = values.new_ones((bt, m), dtype=torch.bool)
        for name, mask, own, length in (
            ("clip_mask", clip_mask, bv, n),
            ("caption_mask", caption_mask, bt, m),
        ):
            of_pairs = isinstance(mask, Tensor) and mask.dim() == 3  # pyright: ignore[reportUnnecessaryIsInstance]
            check_mask(name, mask, (bv, bt, length) if of_pairs else (own, length), values)
        self.clip_mask, self.caption_mask, self.bounds = clip_mask, caption_mask, bounds
        self.shard = ONE_PROCESS if shard is None else shard
        self.clips = clip_mask[:, None] if clip_mask.dim() == 2 else clip_mask
        self.captions = caption_mask[None] if caption_mask.dim() == 2 else caption_mask
        self.raw = up_cast(values, working_dtype(values))
        self._values: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """(Bv, Bt, N, M), float32 or wider, 0 where absent."""
        if self._values is not None:
            return self._values
        values = torch.where(self.valid, self.raw, 0)
        if torch.is_grad_enabled():  # what is made without a graph must not be kept for later
            self._values = values
        return values

    @property
    def valid(self) -> Tensor:
        """(Bv, Bt, N, M), bool, where both the clip and the caption are there."""
        return self.clips[..., :, None] & self.captions[..., None, :]

    @property
    def own(self) -> Tensor:
        """Which paragraph came with each video, (Bv,)."""
        return self.shard.own(self.raw.shape[0], self.raw.device)

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many clips and how many captions each pair has, both (Bv, Bt)."""
        shape = self.raw.shape[:2]
        return self.clips.sum(-1).expand(shape), self.captions.sum(-1).expand(shape)

    def keep(self, clips: Tensor) -> SimilarityBlock:
        """The same block with fewer valid clips: those in a mask (Bv, Bt, N)."""
        kept = self.clips & clips
        return SimilarityBlock(self.raw, kept, self.caption_mask, self.bounds, self.shard)
