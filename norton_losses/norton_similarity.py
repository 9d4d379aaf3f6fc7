"""The whole objective, Eq. (1), of similarities that a model brings along in place of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from norton_losses._checks import check_group_ids
from norton_losses._numerics import full_precision, is_traced
from norton_losses.clip_caption import ClipCaptionOTLoss
from norton_losses.contrastive import COLDEST, Pairs
from norton_losses.distributed import ONE_PROCESS
from norton_losses.loss import loss_of
from norton_losses.outputs import NortonOutput
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.video_paragraph import NortonVideoParagraphLoss, block_of_batch


@final
class NortonSimilarityLoss(nn.Module):
    r"""What :meth:`NortonLoss.from_similarity` gives: the same loss, called with similarities.

    .. math:: L = L_{clip}(S / \tau_{clip}) + \lambda L_{video}(S)

    Both terms compare the same S: that of clip i of video b with caption j of paragraph c.

    Args:
        video_paragraph: as of :meth:`norton_losses.NortonLoss.from_similarity`, which fills in
            defaults.
        clip_caption: the same.
        weight: the same.
        cosines: the same.

    Source: Eq. (1) of Lin et al., ICLR 2024.
    """

    def __init__(
        self,
        video_paragraph: NortonVideoParagraphLoss,
        clip_caption: ClipCaptionOTLoss,
        weight: float,
        *,
        cosines: bool = True,
    ) -> None:
        super().__init__()
        if clip_caption.chunk_rows is not None:
            raise ValueError(
                f"chunk_rows={clip_caption.chunk_rows} makes logits a few rows at a time, and here "
                "all similarities are there; leave it out"
            )
        self.video_paragraph, self.clip_caption = video_paragraph, clip_caption
        self.weight = weight
        self.cosines = cosines
        self._looked = False

    def explain(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        *,
        group_ids: Tensor | None = None,
        logit_scale: Tensor | float | None = None,
    ) -> NortonOutput:
        """The loss and what it was made of.

        Args:
            similarity: (B, B, N, N), floating; entry [b, c, i, j] is clip i of video b with caption
                j of paragraph c, and clip i of video b came with its own caption i.
            clip_mask: (B, N), bool, True where valid; None means all.
            caption_mask: (B, N), bool, True where valid; None means all.
            group_ids: (B,), integer. Sequences of the same group are not each other's negatives in
                the video-paragraph term.
            logit_scale: () multiplies the logits of a term that was built with
                ``temperature=None``. It is already exponentiated: 1 / tau, not its logarithm.

        Raises:
            ValueError: shapes that do not fit; similarities outside [-1, 1], unless the loss was
                built with ``cosines=False``. On a GPU only those of the first call are looked at.
            TypeError: similarities that are not floating, masks that are not bool.
        """
        block = block_of_batch(similarity, clip_mask, caption_mask, self._bounds)
        b, _, clips, captions = similarity.shape
        if clips != captions:
            raise ValueError(
                "clip i is paired with caption i, so there must be as many of each, got N = "
                f"{clips} clips and M = {captions} captions; use "
                "norton_losses.functional.video_paragraph_loss for the video-paragraph term alone"
            )
        if group_ids is not None:
            check_group_ids("group_ids", group_ids, (b,), similarity)
        terms = self.video_paragraph, self.clip_caption
        takers = [term for term in terms if term.temperature is None] or [self.clip_caption]
        for term in takers:
            term.check_logit_scale(logit_scale)
        self._look(block)
        with full_precision(similarity):
            scales = [term.scale(logit_scale, block.raw, ONE_PROCESS) for term in terms]
            of_videos = self.video_paragraph.explain_block(block, group_ids, scales[0])
            logits = block.values.transpose(1, 2).flatten(2).flatten(0, 1) * scales[1]
            pairs = Pairs.alone((block.clip_mask & block.caption_mask).flatten())
            own_scale = logit_scale is None or self.clip_caption.temperature is not None
            cold = self.cosines and own_scale  # so that logits are known to be below 1 / COLDEST
            of_clips = self.clip_caption.of_logits(logits, pairs, 1 / COLDEST if cold else None)
        of_clips = replace(of_clips, temperature=1 / scales[1].detach())
        loss = of_clips.loss + self.weight * of_videos.loss
        return NortonOutput(loss, of_videos, of_clips)

    forward = loss_of(explain)

    def score(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        *,
        bucket_value: float | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph, as :meth:`NortonLoss.score`.

        Args:
            similarity: (Bv, Bt, N, M), floating.
            clip_mask: (Bv, N), bool, True where valid; None means all.
            caption_mask: (Bt, M), bool, True where valid; None means all.
            bucket_value: as of :meth:`NortonLoss.score`.
        """
        block = SimilarityBlock(similarity, clip_mask, caption_mask, self._bounds)
        self._look(block)
        with full_precision(similarity):
            return self.video_paragraph.score_of(block, bucket_value)

    @property
    def _bounds(self) -> tuple[float, float] | None:
        return (-1.0, 1.0) if self.cosines else None

    def _look(self, block: SimilarityBlock) -> None:
        """Raise where similarities are no cosines; a GPU waits for that once."""
        values = block.raw.detach()
        if not self.cosines or is_traced(values) or (self._looked and not values.is_cpu):
            return
        self._looked = True
        largest = values.masked_fill(~block.valid, 0).abs().amax().item()
        if largest > 1 + 8 * torch.finfo(torch.bfloat16).eps:
            raise ValueError(
                f"similarity must be cosines, in [-1, 1], got {largest:.4g}; if these are logits, "
                "divide them by the model's scale, and if they are no cosines, build the loss with "
                "cosines=False"
            )

    def extra_repr(self) -> str:
        return f"weight={self.weight}, cosines={self.cosines}"
