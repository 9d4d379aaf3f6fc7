"""The whole objective, Eq. (1): clip-caption contrast plus weighted video-paragraph contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn, final

from torch import Tensor

from norton_losses._checks import check_misplaced, check_not_negative
from norton_losses._typing import Gather, Range
from norton_losses.clip_caption import ClipCaptionOTLoss
from norton_losses.distributed import ProcessGroup
from norton_losses.loss import AbstractLoss, LossInputs
from norton_losses.norton_similarity import NortonSimilarityLoss
from norton_losses.outputs import NortonOutput
from norton_losses.segments import Segments
from norton_losses.sequence_measures import TransportMeasure
from norton_losses.sinkhorn import TorchSinkhorn
from norton_losses.token_similarity import SoftMaximumSimilarity
from norton_losses.video_paragraph import NortonVideoParagraphLoss

# Where arguments go that people give to the whole.
_PLACES: dict[str, Callable[..., object]] = {
    "clip_caption=ClipCaptionOTLoss({})": ClipCaptionOTLoss,
    "NortonVideoParagraphLoss({})": NortonVideoParagraphLoss,
    "NortonVideoParagraphLoss(SoftMaximumSimilarity({}))": SoftMaximumSimilarity,
    "NortonVideoParagraphLoss(measure=TransportMeasure({}))": TransportMeasure,
}


@final
class NortonLoss(AbstractLoss[NortonOutput]):
    r"""Noise-robust contrast of clips with captions and of videos with paragraphs.

    .. math:: L = L_{clip} + \lambda L_{video}

    Clip i of video b is paired with caption i of paragraph b, so there are as many of each; the
    caption may well be late or wrong. The temperature of the clip-caption term is a parameter of
    the loss: hand ``loss.parameters()`` to the optimiser beside the model's. ``group_ids`` (B,)
    are for the video-paragraph term, and a ``logit_scale`` is for a term built with
    ``temperature=None``.

    Args:
        video_paragraph: None means :class:`~norton_losses.NortonVideoParagraphLoss` with its
            defaults.
        clip_caption: None means :class:`~norton_losses.ClipCaptionOTLoss` with its defaults.
        weight: lambda, 0 or above.
        process_group: of both terms, as of :class:`~norton_losses.NortonVideoParagraphLoss`.
        gather: of the video-paragraph term; the clip-caption term gathers embeddings alone.
        **misplaced: refused, with the part that takes such an argument.

    Raises:
        ValueError: ``weight`` below 0; a term that was built with a ``process_group``.
        TypeError: what is no such term; arguments of a part, with the part that takes them.

    Source: Eq. (1) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import NortonLoss, Segments
        >>> frames, words = torch.randn(13, 4, 16), torch.randn(13, 6, 16)   # flat
        >>> video, text = (Segments.from_flat(tokens, [8, 5]) for tokens in (frames, words))
        >>> NortonLoss()(video, text).shape                 # two videos, of 8 and 5 clips
        torch.Size([])
    """

    def __init__(
        self,
        video_paragraph: NortonVideoParagraphLoss | None = None,
        clip_caption: ClipCaptionOTLoss | None = None,
        *,
        weight: float = 1.0,
        process_group: ProcessGroup = None,
        gather: Gather = "all",
        **misplaced: NoReturn,
    ) -> None:
        check_misplaced("NortonLoss", misplaced, _PLACES)
        super().__init__(process_group, gather)
        check_not_negative("weight", weight)
        _check_loss("video_paragraph", video_paragraph, NortonVideoParagraphLoss)
        _check_loss("clip_caption", clip_caption, ClipCaptionOTLoss)
        self.video_paragraph = (
            NortonVideoParagraphLoss() if video_paragraph is None else video_paragraph
        )
        self.clip_caption = ClipCaptionOTLoss() if clip_caption is None else clip_caption
        self.weight = weight
        self.clip_caption.check_group(process_group)
        self.video_paragraph.check_gather(gather)

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
        process_group: ProcessGroup = None,
    ) -> NortonLoss:
        """The objective as the authors' released code computes it, faults included.

        Min-max rescaling over the batch, padded tokens that leak, raw dot products in the
        clip-caption term, a temperature that is not trained. It will not change. It is for going on
        from a trained checkpoint, and not the best choice for a model that is not trained yet.

        Args:
            alpha: temperature of the soft maximum.
            epsilon: entropy of the video-paragraph transport.
            prompt_ratio: ratio of the prompt bucket.
            beta: share of the clip-caption target that follows the plan.
            pooled_weight: weight of the embeddings' cosine beside the tokens.
            iterations: of both transports.
            weight: of the video-paragraph term.
            process_group: as of :class:`NortonLoss`. The authors' code is of one process.

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
            NortonVideoParagraphLoss(similarity, measure, temperature=0.07, scale_by_length=True),
            ClipCaptionOTLoss(beta, sinkhorn=solver, normalize=False, temperature=None),
            weight=weight,
            process_group=process_group,
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
        process_group: ProcessGroup = None,
    ) -> NortonLoss:
        """The objective as the paper writes it, Eq. (1) to (8). It will not change.

        Arguments are those of :meth:`released`, without ``pooled_weight``.

        Example:
            >>> from norton_losses import NortonLoss
            >>> NortonLoss.paper().video_paragraph.similarity.pooled_weight
            0.0
        """
        solver = TorchSinkhorn(iterations)
        similarity = SoftMaximumSimilarity(alpha, pooled_weight=0.0, exponential="sum")
        measure = TransportMeasure(epsilon, prompt_ratio, solver, conserve_mass=False)
        return cls(
            NortonVideoParagraphLoss(
                similarity,
                measure,
                temperature=0.07,
                learnable_temperature=True,
                scale_by_length=True,
            ),
            ClipCaptionOTLoss(beta, sinkhorn=solver, normalize=False, temperature=0.07),
            weight=weight,
            process_group=process_group,
        )

    @classmethod
    def from_similarity(
        cls,
        video_paragraph: NortonVideoParagraphLoss | None = None,
        clip_caption: ClipCaptionOTLoss | None = None,
        *,
        weight: float = 1.0,
        cosines: bool = True,
    ) -> NortonSimilarityLoss:
        """The same loss for a model that brings its similarities along, in place of tokens.

        It is called with similarities and masks, ``loss(similarity, clip_mask, caption_mask)``, and
        has ``explain``, ``score``, diagnostics and temperatures as this one; a ``state_dict`` of
        either loads into the other. Negatives are those of one process.

        Args:
            video_paragraph: as of :class:`NortonLoss`; its similarity is not used.
            clip_caption: as of :class:`NortonLoss`; its ``normalize`` is not used.
            weight: as of :class:`NortonLoss`.
            cosines: whether similarities lie in [-1, 1]. True refuses others, such as logits; False
                takes any, and solves transports in float64.

        Example:
            >>> import torch
            >>> from norton_losses import NortonLoss
            >>> loss = NortonLoss.from_similarity()
            >>> clips, captions = (torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
            ...                    for _ in range(2))
            >>> similarity = torch.einsum("bnd,cmd->bcnm", clips, captions)   # (2, 2, 8, 8)
            >>> loss(similarity).shape, loss.score(similarity).shape
            (torch.Size([]), torch.Size([2, 2]))
        """
        built = cls(video_paragraph, clip_caption, weight=weight)
        terms = built.video_paragraph, built.clip_caption
        return NortonSimilarityLoss(*terms, built.weight, cosines=cosines)

    def check(self, inputs: LossInputs) -> None:
        of_sequences, of_pairs = self._for_terms(inputs)
        self.video_paragraph.check(of_sequences)
        self.clip_caption.check(of_pairs)

    def evaluate(self, inputs: LossInputs) -> NortonOutput:
        of_sequences, of_pairs = self._for_terms(inputs)
        video_paragraph = self.video_paragraph.evaluate(of_sequences)
        clip_caption = self.clip_caption.evaluate(of_pairs.with_all_embeddings())
        loss = clip_caption.loss + self.weight * video_paragraph.loss
        return NortonOutput(loss, video_paragraph, clip_caption)

    def score(
        self,
        video: Segments | Tensor,
        text: Segments | Tensor,
        *,
        bucket_value: float | None = None,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) for retrieval: see :meth:`NortonVideoParagraphLoss.score`."""
        return self.video_paragraph.score(
            video, text, bucket_value=bucket_value, similarity_range=similarity_range
        )

    def _for_terms(self, inputs: LossInputs) -> tuple[LossInputs, LossInputs]:
        """The inputs of each term: group ids are of sequences, a scale is for who has none.

        Where both have a temperature the clip-caption term is handed the scale, and refuses it.
        """
        of_sequences = of_pairs = inputs.logit_scale
        if self.video_paragraph.temperature is not None:
            of_sequences = None
        elif self.clip_caption.temperature is not None:
            of_pairs = None
        return (
            replace(inputs, logit_scale=of_sequences),
            replace(inputs, logit_scale=of_pairs, group_ids=None),
        )

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _check_loss(name: str, given: object, kind: type) -> None:
    if given is not None and not isinstance(given, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__}, or None for the default, got "
            f"{type(given).__name__}; a similarity or a measure goes into NortonVideoParagraphLoss"
        )
    if getattr(given, "process_group", None) is not None:
        raise ValueError(
            f"{name} must be built without a process_group, since text is gathered once for both "
            "terms; give it to the NortonLoss"
        )
