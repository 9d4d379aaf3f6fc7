"""Base classes of similarities, and the fusion of token similarities with pooled embeddings.

The similarities themselves are in :mod:`~norton_losses.token_similarity`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from norton_losses._checks import (
    check_choice,
    check_floating,
    check_mask,
    check_not_negative,
    check_open_range,
    check_shape,
)
from norton_losses._numerics import full_precision, unit, up_cast, working_dtype
from norton_losses._typing import Range, Rescale
from norton_losses.distributed import ONE_PROCESS, Shard
from norton_losses.segments import Segments, read_pair
from norton_losses.similarity_block import SimilarityBlock


def minmax(
    values: Tensor,
    mask: Tensor,
    known_range: Range | None = None,
    shard: Shard = ONE_PROCESS,
) -> Tensor:
    """Rescale the valid entries to [0, 1]: ``(x - min) / (max - min)``, gradient through both.

    Args:
        values: any shape, floating.
        mask: same shape, bool. Entries outside it do not count, and become 0.
        known_range: ``(lo, hi)`` to use in place of the extremes found.
        shard: the processes whose extremes count as well.

    Returns:
        Same shape, float32 or wider. Zeros where the range is below 16 units in the last place,
        since what is left of a constant matrix is rounding, which would become structure.

    Raises:
        ValueError: a mask of another shape, a range that is empty or not finite.
        TypeError: values that are not floating, a mask that is not bool.

    Source: the released implementation; not in the paper.

    Example:
        >>> import torch
        >>> from norton_losses.functional import minmax
        >>> minmax(torch.tensor([2.0, 4.0, 3.0]), torch.tensor([True, True, True]))
        tensor([0.0000, 1.0000, 0.5000])
    """
    check_floating("values", values, "(...)")
    check_mask("mask", mask, values.shape, values)
    if known_range is not None:
        check_open_range("known_range", known_range)
    values = up_cast(values, working_dtype(values))
    if known_range is None:
        lo = shard.amin(values.masked_fill(~mask, torch.inf))
        hi = shard.amax(values.masked_fill(~mask, -torch.inf))
    else:
        lo, hi = (values.new_full((), bound) for bound in known_range)
    span = hi - lo
    flat = span <= 16 * torch.finfo(values.dtype).eps * torch.maximum(lo.abs(), hi.abs())
    shifted = (values - lo).masked_fill(~mask | flat, 0)
    return shifted / span.masked_fill(flat, 1)


SimilarityFunction: TypeAlias = Callable[[Segments, Segments], Tensor]


class AbstractSimilarity(nn.Module, ABC):
    """Compares all clips with all captions: Segments in, a SimilarityBlock out."""

    needs_range = False  # whether a pair's similarity depends on the rest of the batch

    @abstractmethod
    def between(
        self,
        video: Segments,
        text: Segments,
        similarity_range: Range | None = None,
        shard: Shard = ONE_PROCESS,
    ) -> SimilarityBlock:
        """The similarities of two sides that share their working precision.

        Args:
            video: of Bv sequences.
            text: of Bt sequences.
            similarity_range: with ``rescale="minmax"``, the ``(lo, hi)`` to use in place of the
                extremes of this batch, for each part of the similarity.
            shard: the processes whose videos are compared with this text, for the block.
        """

    def check_range(self, similarity_range: Range | None) -> None:
        """Raise unless this similarity can use the range."""
        if similarity_range is not None:
            raise ValueError(
                "similarity_range is the range of min-max rescaling, and this similarity has none; "
                'leave it out, or build the similarity with rescale="minmax"'
            )

    def forward(
        self,
        video: Segments | Tensor,
        text: Segments | Tensor,
        *,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """Similarity (Bv, Bt, N, M) of every clip with every caption; 0 where one is absent.

        Args:
            video: :class:`~norton_losses.Segments`, or tokens (Bv, N, F, D) or (Bv, N, D) that are
                all valid, any norm.
            text: the same of captions, (Bt, M, W, D) or (Bt, M, D).
            similarity_range: see :meth:`between`.
        """
        self.check_range(similarity_range)
        return self.between(*read_pair(video, text), similarity_range).values


@final
class FunctionSimilarity(AbstractSimilarity):
    """Wraps a function of two :class:`~norton_losses.Segments` as a similarity.

    Args:
        function: from Segments of Bv and Bt sequences, which hold zeros where masked, to
            (Bv, Bt, N, M), floating. Values of absent clips and captions have no effect, if they
            and their gradients are finite: normalise by ``torch.nn.functional.normalize``, which
            takes zeros, and not by a division.
    """

    def __init__(self, function: SimilarityFunction) -> None:
        super().__init__()
        self.function = function

    def between(
        self,
        video: Segments,
        text: Segments,
        similarity_range: Range | None = None,
        shard: Shard = ONE_PROCESS,
    ) -> SimilarityBlock:
        values = self.function(video.zeroed(), text.zeroed())
        check_floating("similarity", values, "(Bv, Bt, N, M)")
        shape = len(video), len(text), video.mask.shape[1], text.mask.shape[1]
        check_shape("similarity", values, shape)
        return SimilarityBlock(values, video.mask, text.mask, shard=shard)


class AbstractTokenSimilarity(AbstractSimilarity):
    """Compares unit-norm tokens, and mixes in the cosine of the embeddings.

    A subclass implements :meth:`directions`, how tokens of a clip and a caption are compared.
    """

    def __init__(self, pooled_weight: float, rescale: Rescale) -> None:
        super().__init__()
        check_not_negative("pooled_weight", pooled_weight)
        check_choice("rescale", rescale, (None, "minmax"))
        self.pooled_weight = pooled_weight
        self.rescale: Rescale = rescale

    @abstractmethod
    def directions(self, video: Segments, text: Segments) -> tuple[Tensor, ...]:
        """Similarities (Bv, Bt, N, M) whose mean is that of the tokens, 0 where absent.

        Tokens have unit norm, padded ones are zero.
        """

    def bounds(self, frames: int, words: int) -> Range | None:
        """What the similarity of clips of ``frames`` and captions of ``words`` must lie in.

        None where a class does not say: a solver of transport may then have to look. It is not
        asked where the range is rescaled.
        """
        return None

    def between(
        self,
        video: Segments,
        text: Segments,
        similarity_range: Range | None = None,
        shard: Shard = ONE_PROCESS,
    ) -> SimilarityBlock:
        with full_precision(video.tokens):
            units = (side.with_tokens(unit(side.tokens, side.token_mask)) for side in (video, text))
            parts = self.directions(*units)
            pooled = None
            if self.pooled_weight > 0:
                clips, captions = (unit(side.embeddings, side.mask) for side in (video, text))
                pooled = torch.einsum("and,bmd->abnm", clips, captions)
            if self.rescale == "minmax":
                both = video.mask[:, None, :, None] & text.mask[None, :, None, :]
                known = similarity_range, shard
                parts = tuple(minmax(part, both, *known) for part in parts)
                pooled = None if pooled is None else minmax(pooled, both, *known)
            values = sum(parts[1:], parts[0]) / len(parts)
            if pooled is not None:
                values = (self.pooled_weight * pooled + values) / (self.pooled_weight + 1)
        if self.rescale is None:
            bounds = self.bounds(video.tokens.shape[2], text.tokens.shape[2])
        else:
            bounds = (0.0, 1.0) if similarity_range is None else None
        return SimilarityBlock(values, video.mask, text.mask, bounds, shard)

    @property
    def needs_range(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rescale == "minmax"

    def check_range(self, similarity_range: Range | None) -> None:
        if not self.needs_range:
            super().check_range(similarity_range)
        elif similarity_range is not None:
            check_open_range("similarity_range", similarity_range)

    def extra_repr(self) -> str:
        return f"pooled_weight={self.pooled_weight}, rescale={self.rescale!r}"
