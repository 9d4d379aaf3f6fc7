"""The video-paragraph contrast, Eq. (4): each video against all paragraphs, scored by transport.

``video, text -> similarity -> measure -> scores (B, B) -> symmetric cross-entropy``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn, cast, final

import torch
from torch import Tensor

from norton_losses._checks import check_group_ids, check_mask, check_misplaced
from norton_losses._numerics import full_precision
from norton_losses._typing import Gather, Range
from norton_losses.contrastive import Groups, check_temperature, contrast
from norton_losses.distributed import ONE_PROCESS, ProcessGroup, Shard
from norton_losses.fusion import AbstractSimilarity, SimilarityFunction
from norton_losses.loss import AbstractContrastiveLoss, AbstractLoss, LossInputs
from norton_losses.outputs import VideoParagraphOutput
from norton_losses.segments import Segments, read_pair
from norton_losses.sequence_measures import (
    AbstractSequenceMeasure,
    MeasureFunction,
    MeasureOutput,
    TransportMeasure,
    as_measure,
)
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.text_by_turns import scores_by_turns
from norton_losses.token_similarity import SoftMaximumSimilarity, as_similarity

# Where arguments go that people give to the loss.
_PLACES: dict[str, Callable[..., object]] = {
    "SoftMaximumSimilarity({})": SoftMaximumSimilarity,
    "measure=TransportMeasure({})": TransportMeasure,
}


@final
class NortonVideoParagraphLoss(AbstractContrastiveLoss[VideoParagraphOutput]):
    r"""Contrasts whole videos with whole paragraphs, whose clips and captions transport realigns.

    .. math:: L_{video} = -\frac1B \sum_b \big[ \log \mathrm{softmax}_c(A_{bc} / \tau)_b
              + \log \mathrm{softmax}_c(A_{cb} / \tau)_b \big],
              \quad A = \langle Q, S \rangle / \sum Q

    Clips and captions that come early or late are matched by the transport plan Q, those that match
    nothing go to the prompt bucket, and frames and words meet in the soft-maximum similarity S.

    Args:
        similarity: from both sides to S (Bv, Bt, N, M); None means
            :class:`~norton_losses.SoftMaximumSimilarity` with its defaults. One of your own is any
            function of two :class:`~norton_losses.Segments`.
        measure: from S to A (Bv, Bt), a mean per match; None means
            :class:`~norton_losses.TransportMeasure` with its defaults. One of your own is any
            function of similarity, clip mask and caption mask.
        temperature: tau, or its start, in [0.01, 1]; None means 1, and lets ``forward`` take a
            ``logit_scale`` from outside.
        learnable_temperature: whether tau is trained: then hand ``loss.parameters()`` to the
            optimiser.
        scale_by_length: multiply the logits by L, the mean number of valid clips and captions of
            the sequences that are valid on both sides, one number for the batch, as the authors'
            code does: logits are then sharper the longer the videos are.
        process_group: the processes whose paragraphs are negatives too, see
            :class:`~norton_losses.distributed.Shard`: ``"world"``, or a group of
            torch.distributed. None means this process alone.
        gather: ``"all"`` brings the text of all processes here at once; ``"chunked"`` one process's
            at a time, which is sent and compared once more in the backward pass: less memory, more
            work. Then ``explain`` has similarities of this process's own text alone, and no plan.
        **misplaced: refused, with the part that takes such an argument.

    Raises:
        ValueError: a temperature out of range; ``gather="chunked"`` with a similarity that is
            rescaled over the batch, or with a learnable bucket.
        TypeError: what cannot be called as a similarity or a measure; arguments of one of them.

    Source: Eq. (4)-(6) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import NortonVideoParagraphLoss
        >>> loss = NortonVideoParagraphLoss()
        >>> frames = torch.randn(2, 8, 4, 16, requires_grad=True)   # 2 videos, 8 clips, 4 frames
        >>> words = torch.randn(2, 6, 5, 16)                        # 6 captions of 5 words each
        >>> loss(frames, words).backward()
        >>> frames.grad.shape
        torch.Size([2, 8, 4, 16])
    """

    def __init__(
        self,
        similarity: AbstractSimilarity | SimilarityFunction | None = None,
        measure: AbstractSequenceMeasure | MeasureFunction | None = None,
        *,
        temperature: float | None = 0.1,
        learnable_temperature: bool = False,
        scale_by_length: bool = False,
        process_group: ProcessGroup = None,
        gather: Gather = "all",
        **misplaced: NoReturn,
    ) -> None:
        check_misplaced(type(self).__name__, misplaced, _PLACES)
        super().__init__(temperature, learnable_temperature, process_group, gather)
        if isinstance(similarity, (AbstractSequenceMeasure, AbstractLoss)):
            is_loss = isinstance(similarity, AbstractLoss)
            name = type(cast(object, similarity)).__name__
            kind = "loss; leave it out" if is_loss else "measure; pass it as measure=..."
            raise TypeError(f"similarity must compare tokens, and a {name} is a {kind}")
        self.similarity = as_similarity(similarity)
        self.measure = _read_measure(measure)
        self.scale_by_length = scale_by_length
        self.check_gather(gather)

    def check_gather(self, gather: Gather) -> None:
        """Raise unless scores can be made by turns, one process's text at a time."""
        if gather == "all":
            return
        if self.similarity.needs_range:
            raise ValueError(
                'rescale="minmax" needs the similarities of all text at once, and gather="chunked" '
                'has them in turn; take gather="all"'
            )
        fixed = {id(p) for p in self.measure.for_retrieval().parameters()}
        if any(id(p) not in fixed for p in self.measure.parameters()):
            raise ValueError(
                'gather="chunked" fixes the value of the bucket before it compares, so a learnable '
                'one would not be trained; take gather="all"'
            )

    def check(self, inputs: LossInputs) -> None:
        self.check_logit_scale(inputs.logit_scale)
        if inputs.group_ids is not None:
            mask = inputs.video.mask
            check_group_ids("group_ids", inputs.group_ids, mask.shape[:1], mask)

    def evaluate(self, inputs: LossInputs) -> VideoParagraphOutput:
        shard, ids = inputs.shard, inputs.group_ids
        if inputs.by_turns:
            block, measured = self._by_turns(inputs)
            captions = shard.gather(block.caption_mask, 2)
        else:
            block = self.similarity.between(inputs.video, inputs.text, shard=shard)
            measured, captions = self.measure.evaluate_checked(block), block.caption_mask
        scale = self.scale(inputs.logit_scale, inputs.video.tokens, shard)
        groups = None if ids is None else Groups.of(ids).gathered(shard)
        out = _contrast_videos(
            block, measured, captions, shard, scale, groups, self.scale_by_length
        )
        words = inputs.text.token_mask
        if not inputs.by_turns:
            words = words[shard.own(len(inputs.video), words.device)]
        return replace(out, frame_mask=inputs.video.token_mask, word_mask=words)

    def _by_turns(self, inputs: LossInputs) -> tuple[SimilarityBlock, MeasureOutput]:
        """Similarities with this process's own text, without gradient, and scores with that of all.

        The quantile of a bucket is that of all processes' own text, and is fixed then.
        """
        video, text, shard = inputs.video, inputs.text, inputs.shard
        with torch.no_grad():
            own = replace(shard, gathered=False)
            block = self.similarity.between(video, text, shard=own)
            p = self.measure.bucket_value(block)
        measure = self.measure.for_retrieval(None if p is None else p.item())

        def score(video: Segments, text: Segments) -> Tensor:
            return measure.evaluate_checked(self.similarity.between(video, text)).score

        parameters = [*self.similarity.parameters(), *measure.parameters()]
        scores = scores_by_turns(score, video, text, shard, inputs.wire, parameters)
        return block, MeasureOutput(scores, bucket_value=p)

    def score(
        self,
        video: Segments | Tensor,
        text: Segments | Tensor,
        *,
        bucket_value: float | None = None,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph, for retrieval.

        A pair's score depends on that pair alone, so any tiling of candidates gives the same: there
        is no temperature, no factor of length, and no statistic of the batch. -inf where the video
        or the paragraph has nothing valid. (``count_padding=True`` counts padding here too: then
        only tiles of the same padded widths agree.)

        Args:
            video: Bv videos, as in :meth:`explain`.
            text: Bt paragraphs; Bt may differ from Bv.
            bucket_value: a fixed p for a transport measure, in units of similarity, for example one
                seen in ``explain(...).bucket_value``; None means no bucket, even where training
                uses a fixed one.
            similarity_range: ``(lo, hi)``, needed by a similarity with ``rescale="minmax"``, which
                otherwise looks at the batch.

        Raises:
            ValueError: a min-max similarity without a range, a bucket value for a measure that has
                no bucket, shapes that do not fit.
        """
        if self.similarity.needs_range and similarity_range is None:
            raise ValueError(
                'rescale="minmax" takes its range from the batch, so scores would depend on the '
                "other candidates; pass similarity_range=(lo, hi)"
            )
        self.similarity.check_range(similarity_range)
        video, text = read_pair(video, text)
        with full_precision(video.tokens):
            block = self.similarity.between(video, text, similarity_range)
            return self.score_of(block, bucket_value)

    def score_of(self, block: SimilarityBlock, bucket_value: float | None = None) -> Tensor:
        """:meth:`score` of similarities that a model already has."""
        scores = self.measure.for_retrieval(bucket_value).evaluate_checked(block).score
        present = block.clip_mask.any(-1)[:, None] & block.caption_mask.any(-1)
        return scores.masked_fill(~present, -torch.inf)

    def explain_block(
        self, block: SimilarityBlock, group_ids: Tensor | None, scale: Tensor
    ) -> VideoParagraphOutput:
        """:meth:`explain` of similarities (B, B, N, M) that a model already has, at a scale ()."""
        groups = None if group_ids is None else Groups.of(group_ids)
        measured = self.measure.evaluate_checked(block)
        whole = block, measured, block.caption_mask, ONE_PROCESS
        return _contrast_videos(*whole, scale, groups, self.scale_by_length)

    def extra_repr(self) -> str:
        return f"scale_by_length={self.scale_by_length}"


def video_paragraph_loss(
    similarity: Tensor,
    *,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    group_ids: Tensor | None = None,
    measure: AbstractSequenceMeasure | MeasureFunction | None = None,
    temperature: float | Tensor = 0.1,
    scale_by_length: bool = False,
) -> Tensor:
    """The loss of :class:`NortonVideoParagraphLoss` from similarities that a model already has.

    Args:
        similarity: (B, B, N, M), floating; entry [b, c, i, j] is clip i of video b with caption j
            of paragraph c.
        clip_mask: (B, N), bool, True where valid; None means all.
        caption_mask: (B, M), bool, True where valid; None means all.
        group_ids: (B,), integer. Sequences of the same group, such as parts of one source video,
            are not each other's negatives.
        measure: as of :class:`NortonVideoParagraphLoss`.
        temperature: tau in [0.01, 1]. A tensor's range is not read: the GPU would have to wait.
        scale_by_length: as of :class:`NortonVideoParagraphLoss`.

    Returns:
        (), float32 or wider; 0 with zero gradients where no sequence is valid on both sides.

    Raises:
        ValueError: wrong rank, B that differ, masks of another shape, a temperature out of range.
        TypeError: a similarity that is not floating, masks that are not bool.

    Source: Eq. (4) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import video_paragraph_loss
        >>> clips = torch.nn.functional.one_hot(torch.arange(8).view(2, 4)).float()
        >>> similarity = torch.einsum("and,bmd->abnm", clips, clips)   # each fits its own
        >>> video_paragraph_loss(similarity) < 1e-3
        tensor(True)
    """
    block = block_of_batch(similarity, clip_mask, caption_mask)
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, similarity.shape[:1], similarity)
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        temperature = block.raw.new_full((), temperature)
    elif temperature.numel() != 1:
        raise ValueError(
            f"temperature must be a single number, got shape {tuple(temperature.shape)}; "
            "divide the similarity yourself if every sequence has its own"
        )
    loss = NortonVideoParagraphLoss(
        measure=measure, temperature=None, scale_by_length=scale_by_length
    )
    with full_precision(similarity):
        return loss.explain_block(block, group_ids, 1 / temperature.reshape(())).loss


def block_of_batch(
    similarity: Tensor,
    clip_mask: Tensor | None,
    caption_mask: Tensor | None,
    bounds: Range | None = None,
) -> SimilarityBlock:
    """A block (B, B, N, M) whose video b came with paragraph b."""
    block = SimilarityBlock(similarity, clip_mask, caption_mask, bounds)
    videos, paragraphs, clips, captions = similarity.shape
    if videos != paragraphs:
        raise ValueError(
            "similarity must hold as many videos as paragraphs (B, B, N, M), got "
            f"{tuple(similarity.shape)}; video b is contrasted with paragraph b"
        )
    # A block also takes masks of pairs (Bv, Bt, N), which a loss of sequences cannot.
    check_mask("clip_mask", block.clip_mask, (videos, clips), similarity)
    check_mask("caption_mask", block.caption_mask, (videos, captions), similarity)
    return block


def _read_measure(
    measure: AbstractSequenceMeasure | MeasureFunction | None,
) -> AbstractSequenceMeasure:
    if isinstance(measure, (AbstractSimilarity, AbstractLoss)):
        kind: type = type(measure)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        raise TypeError(
            f"measure must score similarities, got a {kind.__name__}; pass for example "
            "TransportMeasure()"
        )
    return TransportMeasure() if measure is None else as_measure(measure)


def _contrast_videos(
    block: SimilarityBlock,
    measured: MeasureOutput,
    caption_mask: Tensor,
    shard: Shard,
    scale: Tensor,
    groups: Groups | None,
    scale_by_length: bool,
) -> VideoParagraphOutput:
    """Eq. (4), from scores with all paragraphs, of which ``caption_mask`` (Bt, M) is."""
    clip_mask = block.clip_mask
    own = shard.own(len(clip_mask), clip_mask.device)
    videos, paragraphs = clip_mask.any(-1), caption_mask.any(-1)
    candidates = videos[:, None] & paragraphs[None, :]
    if groups is not None:
        candidates = candidates & ~groups.duplicates(own)
    logits = measured.score * scale
    if scale_by_length:
        length = _mean_length(clip_mask, caption_mask[own], shard)
        logits = logits * length.to(logits.dtype)
    loss = contrast(logits, None, videos & paragraphs[own], candidates, own, shard)
    return VideoParagraphOutput(loss, block, measured, logits.detach(), 1 / scale.detach())


def _mean_length(clip_mask: Tensor, caption_mask: Tensor, shard: Shard) -> Tensor:
    """Mean number of valid clips and captions in the sequences that are valid on both sides."""
    clips, captions = clip_mask.sum(-1), caption_mask.sum(-1)
    both = (clips > 0) & (captions > 0)
    total = shard.sum(((clips + captions) * both).sum()).double()
    return total / (2 * shard.sum(both.sum())).clamp(min=1)
