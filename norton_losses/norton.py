"""The whole objective, Eq. (1): clip-caption contrast plus weighted video-paragraph contrast."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from norton_losses._checks import check_not_negative
from norton_losses._numerics import full_precision
from norton_losses._sequences import check_paired, read_sequences
from norton_losses._typing import Range
from norton_losses.clip_caption import ClipCaptionOTLoss
from norton_losses.outputs import NortonOutput
from norton_losses.sequence_measures import TransportMeasure
from norton_losses.sinkhorn import TorchSinkhorn
from norton_losses.token_similarity import SoftMaximumSimilarity
from norton_losses.video_paragraph import NortonVideoParagraphLoss


@final
class NortonLoss(nn.Module):
    r"""Noise-robust contrast of clips with captions and of videos with paragraphs.

    .. math:: L = L_{clip} + \lambda L_{video}

    The temperatures live in the loss: hand ``loss.parameters()`` to the optimiser beside the
    model's.

    Args:
        video_paragraph: None means :class:`~norton_losses.NortonVideoParagraphLoss` with its
            defaults.
        clip_caption: None means :class:`~norton_losses.ClipCaptionOTLoss` with its defaults.
        weight: lambda, 0 or above.

    Raises:
        ValueError: ``weight`` below 0.

    Source: Eq. (1) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import NortonLoss
        >>> loss = NortonLoss()
        >>> frames, words = torch.randn(2, 8, 4, 16), torch.randn(2, 8, 6, 16)
        >>> frame_mask = torch.ones(2, 8, 4, dtype=torch.bool)
        >>> frame_mask[1, 5:] = False                       # the second video has five clips
        >>> loss(frames, words, frame_mask=frame_mask).shape
        torch.Size([])
    """

    def __init__(
        self,
        video_paragraph: NortonVideoParagraphLoss | None = None,
        clip_caption: ClipCaptionOTLoss | None = None,
        *,
        weight: float = 0.3,
    ) -> None:
        super().__init__()
        check_not_negative("weight", weight)
        _check_loss("video_paragraph", video_paragraph, NortonVideoParagraphLoss)
        _check_loss("clip_caption", clip_caption, ClipCaptionOTLoss)
        self.video_paragraph = (
            NortonVideoParagraphLoss() if video_paragraph is None else video_paragraph
        )
        self.clip_caption = ClipCaptionOTLoss() if clip_caption is None else clip_caption
        self.weight = weight

    @classmethod
    def released(
        cls,
        *,
        alpha: float = 1.0,
        epsilon: float = 0.1,
        prompt_ratio: float = 0.3,
        beta: float = 0.3,
        pooled_weight: float = 0.5,
        iterations: int = 50,
        weight: float = 0.1,
    ) -> NortonLoss:
        """The objective as the authors' released code computes it, faults included.

        Min-max rescaling over the batch, padded tokens that leak, raw dot products in the
        clip-caption term, a temperature that is not trained. Fixed for ever; made to continue from
        a trained checkpoint, and not the best choice from a cold start.

        Args:
            alpha: temperature of the soft maximum.
            epsilon: entropy of the video-paragraph transport.
            prompt_ratio: ratio of the prompt bucket.
            beta: share of the clip-caption target that follows the plan.
            pooled_weight: weight of the embeddings' cosine beside the tokens.
            iterations: of both transports.
            weight: of the video-paragraph term.

        Example:
            >>> from norton_losses import NortonLoss
            >>> NortonLoss.released(epsilon=0.05).video_paragraph.measure.epsilon
            0.05
        """
        solver = TorchSinkhorn(iterations)
        similarity = SoftMaximumSimilarity(
            alpha,
            pooled_weight=pooled_weight,
            exponential="sum",
            rescale="minmax",
            count_padding=True,
        )
        measure = TransportMeasure(epsilon, prompt_ratio, solver)
        return cls(
            NortonVideoParagraphLoss(similarity, measure, learnable_temperature=False),
            ClipCaptionOTLoss(beta, sinkhorn=solver, normalize=False, temperature=None),
            weight=weight,
        )

    @classmethod
    def paper(
        cls,
        *,
        alpha: float = 1.0,
        epsilon: float = 0.1,
        prompt_ratio: float = 0.3,
        beta: float = 0.3,
        iterations: int = 50,
        weight: float = 0.1,
    ) -> NortonLoss:
        """The objective as the paper writes it, Eq. (1) to (8). Fixed for ever.

        Args:
            alpha: temperature of the soft maximum.
            epsilon: entropy of the video-paragraph transport.
            prompt_ratio: ratio of the prompt bucket.
            beta: share of the clip-caption target that follows the plan.
            iterations: of both transports.
            weight: of the video-paragraph term.

        Example:
            >>> from norton_losses import NortonLoss
            >>> NortonLoss.paper().video_paragraph.similarity.pooled_weight
            0.0
        """
        solver = TorchSinkhorn(iterations)
        similarity = SoftMaximumSimilarity(alpha, pooled_weight=0.0, exponential="sum")
        measure = TransportMeasure(epsilon, prompt_ratio, solver, conserve_mass=False)
        return cls(
            NortonVideoParagraphLoss(similarity, measure),
            ClipCaptionOTLoss(beta, sinkhorn=solver, normalize=False),
            weight=weight,
        )

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
        logit_scale: Tensor | float | None = None,
    ) -> Tensor:
        """The loss (), float32 or wider.

        Args:
            video_tokens: (B, N, F, D), floating; or (B, N, D), one token a clip.
            text_tokens: (B, N, W, D), floating; or (B, N, D), one token a caption. Caption i of
                paragraph b is the one that came with clip i of video b, rightly or wrongly.
            frame_mask: (B, N, F), bool, True where valid. Not with 3-d video tokens.
            word_mask: (B, N, W), bool, True where valid. Not with 3-d text tokens.
            clip_mask: (B, N), bool. A clip without a valid frame is absent all the same.
            caption_mask: (B, N), bool. A caption without a valid word is absent all the same. A
                clip-caption pair counts if both are there.
            clip_embeddings: (B, N, D'); None means the mean of the clip's valid tokens.
            caption_embeddings: (B, N, D'); None means the mean of the caption's valid tokens.
            group_ids: (B,), integer, for the video-paragraph term: sequences of the same group are
                not each other's negatives.
            logit_scale: () for the clip-caption term, which must have been built with
                ``temperature=None``.

        Raises:
            ValueError: as many clips as captions are needed; shapes that do not fit each other.
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
            logit_scale=logit_scale,
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
        logit_scale: Tensor | float | None = None,
    ) -> NortonOutput:
        """As :meth:`forward`, with both terms explained beside the loss."""
        self.clip_caption.check_logit_scale(logit_scale)
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
        if video.mask.shape != text.mask.shape:
            raise ValueError(
                "NortonLoss pairs clip i with caption i, so there must be as many of each, got N = "
                f"{video.mask.shape[1]} clips and M = {text.mask.shape[1]} captions; use "
                "NortonVideoParagraphLoss, which takes any N and M"
            )
        with full_precision(video_tokens):
            video_paragraph = self.video_paragraph.explain(
                video.tokens,
                text.tokens,
                frame_mask=video.token_mask,
                word_mask=text.token_mask,
                clip_embeddings=video.embeddings,
                caption_embeddings=text.embeddings,
                group_ids=group_ids,
            )
            clip_caption = self.clip_caption.explain(
                video.embeddings,
                text.embeddings,
                mask=video.mask & text.mask,
                logit_scale=logit_scale,
            )
            loss = clip_caption.loss + self.weight * video_paragraph.loss
        return NortonOutput(loss, video_paragraph, clip_caption)

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
        """Score (Bv, Bt) for retrieval: see :meth:`NortonVideoParagraphLoss.score`."""
        return self.video_paragraph.score(
            video_tokens,
            text_tokens,
            frame_mask=frame_mask,
            word_mask=word_mask,
            clip_mask=clip_mask,
            caption_mask=caption_mask,
            clip_embeddings=clip_embeddings,
            caption_embeddings=caption_embeddings,
            bucket_value=bucket_value,
            similarity_range=similarity_range,
        )

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _check_loss(name: str, given: object, kind: type) -> None:
    if given is not None and not isinstance(given, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__}, or None for the default, got "
            f"{type(given).__name__}; a similarity or a measure goes into NortonVideoParagraphLoss"
        )
