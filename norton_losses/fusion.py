"""From two directions of token similarity to one similarity: unit norm, rescaling, fusing.

What the three similarities share; :mod:`~norton_losses.token_similarity` says how they differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from norton_losses._checks import check_choice, check_not_negative
from norton_losses._numerics import full_precision, unit
from norton_losses._sequences import read_sequences
from norton_losses._typing import Range, Rescale


def minmax(values: Tensor, mask: Tensor, known_range: Range | None = None) -> Tensor:
    """Rescale the valid entries to [0, 1]: ``(x - min) / (max - min)``, gradient through both.

    Args:
        values: any shape, floating.
        mask: same shape, bool. Entries outside it do not count, and become 0.
        known_range: ``(lo, hi)`` to use in place of the extremes found.

    Returns:
        Same shape. Zeros where the range is below 16 units in the last place: what is left of a
        constant matrix is rounding, and stretching it to [0, 1] would invent structure.

    Source: the released implementation; not in the paper.

    Example:
        >>> import torch
        >>> from norton_losses.functional import minmax
        >>> minmax(torch.tensor([2.0, 4.0, 3.0]), torch.tensor([True, True, True]))
        tensor([0.0000, 1.0000, 0.5000])
    """
    if known_range is None:
        lo = values.masked_fill(~mask, torch.inf).amin()
        hi = values.masked_fill(~mask, -torch.inf).amax()
    else:
        lo, hi = (values.new_full((), bound) for bound in known_range)
    span = hi - lo
    flat = span <= 16 * torch.finfo(values.dtype).eps * torch.maximum(lo.abs(), hi.abs())
    shifted = (values - lo).masked_fill(~mask | flat, 0)
    return shifted / span.masked_fill(flat, 1)


class AbstractTokenSimilarity(nn.Module, ABC):
    """What the three similarities share: unit-norm tokens, two directions, one way to fuse them.

    A subclass says only how the token similarities of a clip and a caption are reduced, in
    :meth:`directions`.
    """

    def __init__(self, pooled_weight: float, rescale: Rescale) -> None:
        super().__init__()
        check_not_negative("pooled_weight", pooled_weight)
        check_choice("rescale", rescale, (None, "minmax"))
        self.pooled_weight = pooled_weight
        self.rescale: Rescale = rescale

    @abstractmethod
    def directions(
        self, video_tokens: Tensor, text_tokens: Tensor, frame_mask: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean over frames of the best word, and mean over words of the best frame.

        Tokens have unit norm, padded ones are zero; both results are (Bv, Bt, N, M), and 0 where
        the clip or the caption is absent.
        """

    def bounds(self, frames: int, words: int) -> Range | None:
        """What the similarity of clips of ``frames`` and captions of ``words`` must lie in.

        None where a class does not say: a solver of transport may then have to look. With a
        ``similarity_range`` from outside nothing is promised.
        """
        return None

    def forward(
        self,
        video_tokens: Tensor,
        text_tokens: Tensor,
        *,
        frame_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        clip_embeddings: Tensor | None = None,
        caption_embeddings: Tensor | None = None,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """Similarity (Bv, Bt, N, M) of every clip with every caption; absent ones have 0.

        Args:
            video_tokens: (Bv, N, F, D), floating, any norm.
            text_tokens: (Bt, M, W, D), floating, any norm.
            frame_mask: (Bv, N, F), bool, True where valid.
            word_mask: (Bt, M, W), bool, True where valid.
            clip_embeddings: (Bv, N, D'), of the pooled part; None means the mean of valid tokens.
            caption_embeddings: (Bt, M, D').
            similarity_range: with ``rescale="minmax"``, the ``(lo, hi)`` to use in place of the
                extremes of this batch, for each of the three parts.
        """
        if similarity_range is not None:
            self._check_range(similarity_range)
        video, text = read_sequences(
            video_tokens,
            text_tokens,
            frame_mask=frame_mask,
            word_mask=word_mask,
            clip_embeddings=clip_embeddings,
            caption_embeddings=caption_embeddings,
        )
        with full_precision(video_tokens):
            by_frame, by_word = self.directions(
                unit(video.tokens, video.token_mask),
                unit(text.tokens, text.token_mask),
                video.token_mask,
                text.token_mask,
            )
            pooled = None
            if self.pooled_weight > 0:
                clips, captions = (
                    unit(video.embeddings, video.mask),
                    unit(text.embeddings, text.mask),
                )
                pooled = torch.einsum("and,bmd->abnm", clips, captions)
            both = video.mask[:, None, :, None] & text.mask[None, :, None, :]
            return self.fuse(by_frame, by_word, pooled, both, similarity_range)

    def fuse(
        self,
        by_frame: Tensor,
        by_word: Tensor,
        pooled: Tensor | None,
        mask: Tensor,
        similarity_range: Range | None = None,
    ) -> Tensor:
        """``(w * pooled + (by_frame + by_word) / 2) / (w + 1)``, each part rescaled if asked."""
        if self.rescale == "minmax":
            by_frame = minmax(by_frame, mask, similarity_range)
            by_word = minmax(by_word, mask, similarity_range)
        tokens = (by_frame + by_word) / 2
        if pooled is None:
            return tokens
        if self.rescale == "minmax":
            pooled = minmax(pooled, mask, similarity_range)
        return (self.pooled_weight * pooled + tokens) / (self.pooled_weight + 1)

    def _check_range(self, similarity_range: Range) -> None:
        if self.rescale is None:
            raise ValueError(
                "similarity_range is the range of min-max rescaling, and rescale is None here; "
                'leave it out, or build the similarity with rescale="minmax"'
            )
        lo, hi = similarity_range
        if not lo < hi:
            raise ValueError(f"similarity_range must be (lo, hi) with lo < hi, got {(lo, hi)}")

    def extra_repr(self) -> str:
        return f"pooled_weight={self.pooled_weight}, rescale={self.rescale!r}"
