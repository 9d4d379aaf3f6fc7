"""The video-paragraph contrast, Eq. (4): which paragraph tells which video, judged by transport.

``tokens -> similarity (B, B, N, M) -> scores (B, B) -> symmetric cross-entropy``
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from norton_losses._checks import check_floating, check_group_ids, check_mask
from norton_losses._numerics import full_precision, working_dtype
from norton_losses._sequences import Sequences, check_paired, read_sequences
from norton_losses._typing import Range, SequenceMeasure, TokenSimilarity
from norton_losses.contrastive import (
    Temperature,
    check_temperature,
    other_members,
    symmetric_cross_entropy,
)
from norton_losses.fusion import AbstractTokenSimilarity
from norton_losses.outputs import VideoParagraphOutput
from norton_losses.sequence_measures import (
    AbstractAlignment,
    BackgroundFiltered,
    CaptionAverage,
    TransportMeasure,
    check_measure,
    judging_alone,
)
from norton_losses.sequence_measures.blocks import read_similarity
from norton_losses.token_similarity import SoftMaximumSimilarity


def video_paragraph_loss(
    similarity: Tensor,
    *,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    group_ids: Tensor | None = None,
    measure: SequenceMeasure | None = None,
    temperature: float | Tensor = 0.07,
) -> Tensor:
    r"""The video-paragraph loss from similarities that a model already has.

    .. math:: -\frac1B \sum_b \big[ \log \mathrm{softmax}_c(L A_{bc} / \tau)_b
              + \log \mathrm{softmax}_c(L A_{cb} / \tau)_b \big]

    with A the measure of video b with paragraph c, a mean per match, and L the mean number of valid
    clips and captions of a sequence, one number for the batch.

    Args:
        similarity: (B, B, N, M), floating; entry [b, c, i, j] is clip i of video b with caption j
            of paragraph c.
        clip_mask: (B, N), bool, True where valid; None means all.
        caption_mask: (B, M), bool, True where valid; None means all.
        group_ids: (B,), integer. Sequences of the same group, such as parts of one source video,
            are not each other's negatives.
        measure: None means :class:`~norton_losses.TransportMeasure` with its defaults.
        temperature: tau in [0.01, 1]. A tensor's range is not read: the GPU would have to wait.

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
    check_floating("similarity", similarity, "(B, B, N, M)")
    measure = TransportMeasure() if measure is None else measure
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        temperature = similarity.new_full((), temperature, dtype=working_dtype(similarity))
    elif temperature.numel() != 1:
        raise ValueError(
            f"temperature must be a single number, got shape {tuple(temperature.shape)}; "
            "divide the similarity yourself if every sequence has its own"
        )
    return explain_video_paragraph(
        similarity, clip_mask, caption_mask, group_ids, measure, temperature.reshape(())
    ).loss


def explain_video_paragraph(
    similarity: Tensor,
    clip_mask: Tensor | None,
    caption_mask: Tensor | None,
    group_ids: Tensor | None,
    measure: SequenceMeasure,
    temperature: Tensor,
    similarity_range: Range | None = None,
) -> VideoParagraphOutput:
    """:func:`video_paragraph_loss` and everything on the way to it."""
    check_floating("similarity", similarity, "(B, B, N, M)")
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError(
            "similarity must hold as many videos as paragraphs (B, B, N, M), got "
            f"{tuple(similarity.shape)}; video b is contrasted with paragraph b"
        )
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, similarity.shape[:1], similarity)
    for name, mask, length in (
        ("clip_mask", clip_mask, similarity.shape[2]),
        ("caption_mask", caption_mask, similarity.shape[3]),
    ):
        if mask is not None:  # of sequences: masks for each pair are for measures
            check_mask(name, mask, (len(similarity), length), similarity)
    similarity, clip_mask, caption_mask = read_similarity(similarity, clip_mask, caption_mask)

    with full_precision(similarity):
        plan, bucket_value = None, None
        inner = measure.measure if isinstance(measure, BackgroundFiltered) else measure
        if isinstance(measure, (TransportMeasure, BackgroundFiltered)) and isinstance(
            inner, TransportMeasure
        ):
            transport = measure.explain(
                similarity, clip_mask, caption_mask, similarity_range=similarity_range
            )
            scores, plan, bucket_value = transport.score, transport.plan, transport.bucket_value
        else:
            scores = measure(similarity, clip_mask, caption_mask)
        videos, paragraphs = clip_mask.any(-1), caption_mask.any(-1)
        candidates = videos[:, None] & paragraphs[None, :]
        if group_ids is not None:
            candidates = candidates & ~other_members(group_ids)
        logits = scores * _mean_length(clip_mask, caption_mask).to(scores.dtype) / temperature
        loss = symmetric_cross_entropy(logits, anchors=videos & paragraphs, candidates=candidates)
    return VideoParagraphOutput(
        loss=loss,
        similarity=similarity.detach(),
        scores=scores.detach(),
        logits=logits.detach(),
        plan=None if plan is None else plan.detach(),
        bucket_value=None if bucket_value is None else bucket_value.detach(),
        temperature=temperature.detach(),
        clip_mask=clip_mask,
        caption_mask=caption_mask,
    )


def _mean_length(clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
    """Mean number of valid clips and captions in the sequences that are valid on both sides."""
    clips, captions = clip_mask.sum(-1), caption_mask.sum(-1)
    both = (clips > 0) & (captions > 0)
    return ((clips + captions) * both).sum() / (2 * both.sum()).clamp(min=1)


@final
class NortonVideoParagraphLoss(nn.Module):
    r"""Contrasts whole videos with whole paragraphs; transport realigns clips and captions.

    .. math:: L_{video} = -\frac1B \sum_b \big[ \log \mathrm{softmax}_c(L A_{bc} / \tau)_b
              + \log \mathrm{softmax}_c(L A_{cb} / \tau)_b \big],
              \quad A = \langle Q, S \rangle / \sum Q

    Clips and captions that come early or late are matched by the transport plan Q, those that match
    nothing go to the prompt bucket, and frames and words meet in the soft-maximum similarity S.
    L is the mean number of valid clips and captions of a sequence, one number for the batch.

    Args:
        similarity: from tokens to S (Bv, Bt, N, M); None means
            :class:`~norton_losses.SoftMaximumSimilarity` with its defaults.
        measure: from S to A (Bv, Bt), a mean per match; None means
            :class:`~norton_losses.TransportMeasure` with its defaults.
        temperature: the start of tau, in [0.01, 1].
        learnable_temperature: whether tau is trained: then hand ``loss.parameters()`` to the
            optimiser.

    Raises:
        ValueError: a temperature out of range.
        TypeError: a measure that cannot be called, or one in place of the similarity.

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
        similarity: TokenSimilarity | None = None,
        measure: SequenceMeasure | None = None,
        *,
        temperature: float = 0.07,
        learnable_temperature: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(
            similarity, (AbstractAlignment, BackgroundFiltered, CaptionAverage, TransportMeasure)
        ):
            raise TypeError(
                f"similarity must compare tokens, and a {type(similarity).__name__} is a measure; "
                "pass it as measure=..."
            )
        check_measure(measure)
        self.similarity = SoftMaximumSimilarity() if similarity is None else similarity
        self.measure = TransportMeasure() if measure is None else measure
        self.temperature = Temperature(temperature, learnable=learnable_temperature)

    def forward(
        self,
        video_tokens: Tensor,
        text_tokens: Tensor,
        *,
        frame_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        clip_embeddings: Tensor | None = None,
        caption_embeddings: Tensor | None = None,
        group_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss (), float32 or wider.

        Args:
            video_tokens: (B, N, F, D), floating; or (B, N, D), one token a clip.
            text_tokens: (B, M, W, D), floating; or (B, M, D), one token a caption.
            frame_mask: (B, N, F), bool, True where valid. Not with 3-d video tokens.
            word_mask: (B, M, W), bool, True where valid. Not with 3-d text tokens.
            clip_mask: (B, N), bool. A clip without a valid frame is absent all the same.
            caption_mask: (B, M), bool. A caption without a valid word is absent all the same.
            clip_embeddings: (B, N, D'); None means the mean of the clip's valid tokens.
            caption_embeddings: (B, M, D'); None means the mean of the caption's valid tokens.
            group_ids: (B,), integer. Sequences of the same group are not each other's negatives.

        Raises:
            ValueError: shapes that do not fit each other; the text names the rule.
            TypeError: tokens that are not floating, masks that are not bool.
        """
        return self.explain(
            video_tokens,
            text_tokens,
            frame_mask=frame_mask,
            word_mask=word_mask,
            clip_mask=clip_mask,
            caption_mask=caption_mask,
            clip_embeddings=clip_embeddings,
            caption_embeddings=caption_embeddings,
            group_ids=group_ids,
        ).loss

    def explain(
        self,
        video_tokens: Tensor,
        text_tokens: Tensor,
        *,
        frame_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        clip_embeddings: Tensor | None = None,
        caption_embeddings: Tensor | None = None,
        group_ids: Tensor | None = None,
    ) -> VideoParagraphOutput:
        """As :meth:`forward`, with similarity, plan and scores beside the loss."""
        video, text = read_sequences(
            video_tokens,
            text_tokens,
            frame_mask=frame_mask,
            word_mask=word_mask,
            clip_mask=clip_mask,
            caption_mask=caption_mask,
            clip_embeddings=clip_embeddings,
            caption_embeddings=caption_embeddings,
        )
        check_paired(video, text)
        if group_ids is not None:  # here, before the similarity is computed
            check_group_ids("group_ids", group_ids, video.mask.shape[:1], video.tokens)
        with full_precision(video_tokens):
            return explain_video_paragraph(
                self._similarity(video, text),
                video.mask,
                text.mask,
                group_ids,
                self.measure,
                self.temperature(),
                self._bounds(video, text),
            )

    def score(
        self,
        video_tokens: Tensor,
        text_tokens: Tensor,
        *,
        frame_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        clip_embeddings: Tensor | None = None,
        caption_embeddings: Tensor | None = None,
        bucket_value: float | None = None,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph, for retrieval.

        A pair's score depends on that pair alone, so any tiling of candidates gives the same: there
        is no temperature, no factor of length, and no statistic of the batch. -inf where the video
        or the paragraph has nothing valid. (``count_padding=True`` counts padding here too: then
        only tiles of the same padded widths agree.)

        Args:
            video_tokens: (Bv, N, F, D) or (Bv, N, D), floating. Other arguments as in
                :meth:`forward`; Bt may differ from Bv.
            bucket_value: a fixed p for a transport measure, in units of similarity, for example one
                seen in ``explain(...).bucket_value``; None means no bucket, even where training
                uses a fixed one.
            similarity_range: ``(lo, hi)``, needed by a similarity with ``rescale="minmax"``, which
                otherwise looks at the batch.

        Raises:
            ValueError: a min-max similarity without a range, a bucket value for a measure that has
                no bucket, shapes that do not fit.
        """
        if getattr(self.similarity, "rescale", None) is not None and similarity_range is None:
            raise ValueError(
                'rescale="minmax" takes its range from the batch, so scores would depend on the '
                "other candidates; pass similarity_range=(lo, hi)"
            )
        measure = judging_alone(self.measure, bucket_value)
        video, text = read_sequences(
            video_tokens,
            text_tokens,
            frame_mask=frame_mask,
            word_mask=word_mask,
            clip_mask=clip_mask,
            caption_mask=caption_mask,
            clip_embeddings=clip_embeddings,
            caption_embeddings=caption_embeddings,
        )
        with full_precision(video_tokens):
            similarity = self._similarity(video, text, similarity_range)
            if isinstance(measure, TransportMeasure) and similarity_range is None:
                bounds = self._bounds(video, text)
                scores = measure(similarity, video.mask, text.mask, similarity_range=bounds)
            else:
                scores = measure(similarity, video.mask, text.mask)
        present = video.present[:, None] & text.present[None, :]
        return scores.masked_fill(~present, -torch.inf)

    def _bounds(self, video: Sequences, text: Sequences) -> Range | None:
        if not isinstance(self.similarity, AbstractTokenSimilarity):
            return None
        return self.similarity.bounds(video.tokens.shape[2], text.tokens.shape[2])

    def _similarity(
        self, video: Sequences, text: Sequences, similarity_range: Range | None = None
    ) -> Tensor:
        options = {} if similarity_range is None else {"similarity_range": similarity_range}
        return self.similarity(
            video.tokens,
            text.tokens,
            frame_mask=video.token_mask,
            word_mask=text.token_mask,
            clip_embeddings=video.embeddings,
            caption_embeddings=text.embeddings,
            **options,
        )
