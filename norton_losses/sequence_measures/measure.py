"""The base class of sequence measures, and the wrapper of functions that are one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast, final

from torch import Tensor, nn

from norton_losses._numerics import up_cast, working_dtype
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.sinkhorn import TransportPlan

MeasureFunction: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor | MeasureOutput]"
Measure = TypeVar("Measure", bound="AbstractSequenceMeasure")


@final
class MeasureOutput:
    """The scores of a measure, and what explains them.

    Args:
        score: (Bv, Bt), with the gradient of the similarity, a mean per match; 0 where the video or
            the paragraph is absent.
        plan: of every video with every paragraph; rows are clips, columns captions.
        alignment: (Bv, Bt, N, M), how often the path of a pair matches clip and caption; or a
            function that finds it, called when :attr:`alignment` is first read. That is to happen
            before similarity, masks or parameters are changed in place.
        bucket_value: p () of the prompt bucket.
    """

    def __init__(
        self,
        score: Tensor,
        plan: TransportPlan | None = None,
        alignment: Tensor | Callable[[], Tensor] | None = None,
        bucket_value: Tensor | None = None,
    ) -> None:
        self.score, self.plan, self.bucket_value = score, plan, bucket_value
        self._alignment = alignment

    def with_score(self, score: Tensor) -> MeasureOutput:
        """The same with other scores."""
        return MeasureOutput(score, self.plan, self._alignment, self.bucket_value)

    @property
    def alignment(self) -> Tensor | None:
        """The path, or None."""
        if callable(self._alignment):
            self._alignment = self._alignment()
        return self._alignment


class AbstractSequenceMeasure(nn.Module, ABC):
    """How well each video matches each paragraph: a mean per match.

    A subclass implements :meth:`evaluate`, for any masks that the block may have.
    """

    @abstractmethod
    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        """Scores (Bv, Bt) of a block, and what explains them."""

    def evaluate_checked(self, block: SimilarityBlock) -> MeasureOutput:
        """:meth:`evaluate`, maybe a user's own: one score a pair, 0 where a side is absent."""
        output: Any = self.evaluate(block)
        if not isinstance(output, MeasureOutput):
            raise TypeError(
                f"evaluate must return a MeasureOutput, got {type(output).__name__}; write "
                "MeasureOutput(score)"
            )
        if not isinstance(output.score, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"a measure must give a torch.Tensor, got {type(output.score).__name__}; return "
                "the scores (Bv, Bt)"
            )
        shape = block.raw.shape[:2]
        if output.score.shape != shape:
            raise ValueError(
                f"a measure must give a score for each video with each paragraph, here "
                f"{tuple(shape)}, got shape {tuple(output.score.shape)}"
            )
        # A mean over nothing may be NaN, which would reach the gradient of a temperature.
        clips, captions = block.counts
        score = up_cast(output.score, working_dtype(output.score))
        score = score.masked_fill((clips == 0) | (captions == 0), 0)
        return output.with_score(score)

    def for_retrieval(self: Measure, bucket_value: float | None = None) -> Measure:
        """The same measure without statistics of the batch: a pair's score depends on it alone.

        Args:
            bucket_value: a fixed value for the prompt bucket of a transport; None means no bucket.

        Raises:
            ValueError: a value for a measure that has no bucket.
        """
        if bucket_value is not None:
            raise ValueError(
                "bucket_value is for a TransportMeasure, and here is a "
                f"{type(self).__name__}; leave it out"
            )
        return self

    def bucket_value(self, block: SimilarityBlock) -> Tensor | None:
        """The value p () of the prompt bucket for a block; None without a bucket."""
        return None

    def forward(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Tensor:
        """Score (Bv, Bt) of every video with every paragraph; 0 where either is absent.

        Of alignments 0 is the best score there is, so mask absent pairs before you rank; the
        losses' ``score`` does.

        Args:
            similarity: (Bv, Bt, N, M), floating; clips and captions in their order in time.
            clip_mask: (Bv, N), bool, True where valid; None means all. (Bv, Bt, N) where it differs
                from paragraph to paragraph.
            caption_mask: (Bt, M), bool, True where valid; None means all. Or (Bv, Bt, M).

        Raises:
            ValueError: a wrong rank, masks of another shape.
            TypeError: a similarity that is not floating, masks that are not bool.
        """
        return self.explain(similarity, clip_mask, caption_mask).score

    def explain(
        self,
        similarity: Tensor,
        clip_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> MeasureOutput:
        """As :meth:`forward`, with what explains the score: a plan or a path."""
        if isinstance(similarity, SimilarityBlock):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("similarity must be a torch.Tensor, got SimilarityBlock; call evaluate")
        return self.evaluate_checked(SimilarityBlock(similarity, clip_mask, caption_mask))


@final
class FunctionMeasure(AbstractSequenceMeasure):
    """Wraps a function of similarities and masks as a measure.

    Args:
        function: from similarity (Bv, Bt, N, M), clip mask (Bv, N) and caption mask (Bt, M) to
            (Bv, Bt), or to a :class:`MeasureOutput`. Masks are (Bv, Bt, N) and (Bv, Bt, M) inside
            :class:`~norton_losses.BackgroundFiltered`.
    """

    def __init__(self, function: MeasureFunction) -> None:
        super().__init__()
        self.function = function

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        found = self.function(block.values, block.clip_mask, block.caption_mask)
        return found if isinstance(found, MeasureOutput) else MeasureOutput(found)


def as_measure(given: Any) -> AbstractSequenceMeasure:
    """Return a measure as it is, and wrap a function of similarity and masks.

    Raises:
        TypeError: neither a measure nor a function.
    """
    given = getattr(given, "_orig_mod", given)  # of torch.compile: a loss is compiled whole
    if isinstance(given, AbstractSequenceMeasure):
        return given
    if callable(given) and not isinstance(given, type):
        return FunctionMeasure(cast(MeasureFunction, given))
    shown = given.__name__ if isinstance(given, type) else repr(given)
    raise TypeError(
        f"measure must be called with (similarity, clip_mask, caption_mask), got {shown}; pass an "
        "object such as DynamicTimeWarping()"
    )
