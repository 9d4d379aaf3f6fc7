"""Clip-caption similarity from frames and words: Eq. (5) and its ablations.

``video tokens, text tokens -> similarity (Bv, Bt, N, M)``
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from norton_losses._checks import check_choice, check_positive
from norton_losses._numerics import (
    full_precision,
    masked_amax,
    masked_logsumexp,
    masked_mean,
)
from norton_losses._sequences import read_sequences
from norton_losses._typing import (
    Exponential,
    ImplementationName,
    Range,
    Rescale,
    SaveScores,
)
from norton_losses.fusion import AbstractTokenSimilarity
from norton_losses.kernels.implementation import Implementation


def soft_maximum(
    video_tokens: Tensor,
    text_tokens: Tensor,
    *,
    frame_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    alpha: float = 0.1,
    exponential: Exponential = "mean",
    count_padding: bool = False,
) -> Tensor:
    r"""Soft-maximum similarity of every clip with every caption.

    .. math::
        S_{ab} = \frac12 \Big[ \frac1f \sum_i \alpha \log \sum_j e^{v_i \cdot t_j / \alpha}
               + \frac1w \sum_j \alpha \log \sum_i e^{v_i \cdot t_j / \alpha} \Big]

    with ``f`` valid frames :math:`v_i` in clip a and ``w`` valid words :math:`t_j` in caption b.

    Args:
        video_tokens: (Bv, N, F, D), floating. Eq. (5) asks for unit norm; the products are taken as
            they come, and :class:`SoftMaximumSimilarity` normalises first.
        text_tokens: (Bt, M, W, D), floating.
        frame_mask: (Bv, N, F), bool, True where valid; None means all.
        word_mask: (Bt, M, W), bool, True where valid; None means all.
        alpha: temperature of the soft maximum, in units of similarity. Towards 0 it becomes the
            maximum.
        exponential: ``"sum"`` is Eq. (5); ``"mean"`` divides the inner sum by its number of terms,
            so that a longer caption does not score ``alpha * log(length)`` higher.
        count_padding: also count the padded tokens of the outer sums, as the released code does.
            The result then depends on the padded widths F and W.

    Returns:
        (Bv, Bt, N, M), float32 or wider; 0 where the clip or the caption has no valid token.

    Raises:
        ValueError: wrong rank, width, mask shape, or ``alpha`` not above 0.
        TypeError: tokens that are not floating, masks that are not bool.

    Source: Eq. (5) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import soft_maximum
        >>> clip = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])   # one clip of two frames
        >>> caption = torch.tensor([[[[1.0, 0.0]]]])            # one caption of one word
        >>> soft_maximum(clip, caption, alpha=0.01).item()      # frames (1 + 0)/2, word max(1, 0)
        0.746...
    """
    _check_exponent(alpha, exponential)
    video, text = read_sequences(
        video_tokens, text_tokens, frame_mask=frame_mask, word_mask=word_mask
    )
    with full_precision(video_tokens):
        by_frame, by_word = _soft_maximum_directions(
            video.tokens.masked_fill(~video.token_mask[..., None], 0),
            text.tokens.masked_fill(~text.token_mask[..., None], 0),
            video.token_mask,
            text.token_mask,
            alpha,
            exponential,
            count_padding,
        )
        return (by_frame + by_word) / 2


@final
class SoftMaximumSimilarity(AbstractTokenSimilarity):
    """Soft-maximum over words for each frame and over frames for each word, Eq. (5).

    See :func:`soft_maximum` for the formula. Tokens are normalised here, and the cosine of the
    clip and caption embeddings is mixed in: ``(w * cosine + S) / (w + 1)``.

    Args:
        alpha: temperature of the soft maximum, in units of cosine similarity.
        pooled_weight: the weight ``w`` of the embeddings' cosine; 0 is Eq. (5) alone.
        exponential: ``"mean"`` or ``"sum"``, see :func:`soft_maximum`.
        rescale: ``"minmax"`` stretches each part to [0, 1] over the batch, as the released code
            does; None leaves cosines as they are.
        count_padding: reproduce the released code's leak of padded tokens.
        implementation: ``"reference"`` is :func:`soft_maximum`, which holds the products of all
            frames with all words; ``"chunked"`` (torch, any device; on a GPU it waits for the
            lengths) and ``"triton"`` (CUDA, float32, at most 64 frames and words) never do. They
            have a first derivative only, and no ``torch.func.grad``. ``"auto"`` is Triton on
            CUDA where it applies, else chunked; what is named never falls back.
        save_scores: keep the products of valid tokens for the backward pass, which then has one
            matrix product less. ``"auto"`` keeps them where they fit in 256 MiB; Triton never does.
            True takes room for padded ones as well, which the CPU fills only as far as needed.
        operand_dtype: ``torch.bfloat16`` or ``torch.float16``: tokens are rounded to it for matrix
            products, whose sums stay float32 on CUDA and are rounded on the CPU. Reductions are
            never in half precision.

    Raises:
        ValueError: ``alpha`` not above 0, ``pooled_weight`` below 0, an unknown choice; when
            called, ``operand_dtype`` with ``alpha`` below 0.05 on the CPU, tokens that
            ``"triton"`` cannot serve.
        ImportError: ``"triton"``, or ``"auto"`` on CUDA, without Triton 3.2 or newer.
        RuntimeError: the gradient of the gradient of a fused implementation; ``operand_dtype`` on
            CUDA with torch before 2.8.

    Example:
        >>> import torch
        >>> from norton_losses import SoftMaximumSimilarity
        >>> similarity = SoftMaximumSimilarity(alpha=0.1)
        >>> similarity(torch.randn(2, 3, 4, 8), torch.randn(5, 6, 7, 8)).shape
        torch.Size([2, 5, 3, 6])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        pooled_weight: float = 0.5,
        exponential: Exponential = "mean",
        rescale: Rescale = None,
        count_padding: bool = False,
        implementation: ImplementationName = "auto",
        save_scores: SaveScores = "auto",
        operand_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(pooled_weight, rescale)
        _check_exponent(alpha, exponential)
        self.implementation = Implementation(implementation, save_scores, operand_dtype)
        self.alpha = alpha
        self.exponential: Exponential = exponential
        self.count_padding = count_padding

    def directions(
        self, video_tokens: Tensor, text_tokens: Tensor, frame_mask: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = video_tokens, text_tokens, frame_mask, word_mask
        if self.implementation.name == "reference":
            return _soft_maximum_directions(
                *tokens, self.alpha, self.exponential, self.count_padding
            )
        directions = self.implementation(*tokens, self.alpha, self.exponential == "mean")
        if self.count_padding and self.exponential == "sum":
            return _count_padding(*directions, frame_mask, word_mask, self.alpha)
        return directions

    def bounds(self, frames: int, words: int) -> Range:
        if self.rescale == "minmax":
            return 0.0, 1.0
        if self.exponential == "mean":
            return -1.0, 1.0
        # A sum of equal terms is log(length) higher; counted padding adds at most that once more
        # for each padded token, of which there are fewer than tokens.
        tallest = self.alpha * math.log(max(frames, words, 2))
        return -1.0, 1.0 + tallest * (1 + max(frames, words) * self.count_padding)

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, {super().extra_repr()}, exponential={self.exponential!r}, "
            f"count_padding={self.count_padding}, {self.implementation.extra_repr()}"
        )


@final
class MaxSimilarity(AbstractTokenSimilarity):
    r"""Hard maximum: the limit of Eq. (5) as alpha goes to 0, known as late interaction.

    .. math::
        S_{ab} = \frac12 \Big[ \frac1f \sum_i \max_j v_i \cdot t_j
               + \frac1w \sum_j \max_i v_i \cdot t_j \Big]

    Args and shapes as :class:`SoftMaximumSimilarity`. Equal maxima share their gradient.

    Example:
        >>> import torch
        >>> from norton_losses import MaxSimilarity
        >>> tokens = torch.eye(4).reshape(1, 2, 2, 4)       # two segments of two tokens
        >>> MaxSimilarity(pooled_weight=0)(tokens, tokens)[0, 0]
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        *,
        pooled_weight: float = 0.5,
        rescale: Rescale = None,
        implementation: ImplementationName = "auto",
        save_scores: SaveScores = "auto",
        operand_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(pooled_weight, rescale)
        self.implementation = Implementation(implementation, save_scores, operand_dtype)

    def directions(
        self, video_tokens: Tensor, text_tokens: Tensor, frame_mask: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.implementation.name != "reference":
            return self.implementation(
                video_tokens, text_tokens, frame_mask, word_mask, alpha=0.0, mean=False
            )
        scores, frames, words = _token_scores(video_tokens, text_tokens, frame_mask, word_mask)
        by_frame = masked_mean(masked_amax(scores, words, _WORDS), frames.squeeze(_WORDS), _FRAMES)
        by_word = masked_mean(masked_amax(scores, frames, _FRAMES), words.squeeze(_FRAMES), -1)
        return _pairs_first(by_frame), _pairs_first(by_word)

    def bounds(self, frames: int, words: int) -> Range:
        return (0.0, 1.0) if self.rescale == "minmax" else (-1.0, 1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.implementation.extra_repr()}"


@final
class MeanSimilarity(AbstractTokenSimilarity):
    r"""Mean over all frame-word pairs: the limit of Eq. (5) with means as alpha grows.

    .. math:: S_{ab} = \frac{1}{f w} \sum_i \sum_j v_i \cdot t_j

    Args and shapes as :class:`SoftMaximumSimilarity`.

    Example:
        >>> import torch
        >>> from norton_losses import MeanSimilarity
        >>> tokens = torch.eye(4).reshape(1, 2, 2, 4)       # two segments of two tokens
        >>> MeanSimilarity(pooled_weight=0)(tokens, tokens)[0, 0]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    def __init__(self, *, pooled_weight: float = 0.5, rescale: Rescale = None) -> None:
        super().__init__(pooled_weight, rescale)

    def directions(
        self, video_tokens: Tensor, text_tokens: Tensor, frame_mask: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The mean of products is the product of means: no token tensor is needed.
        clips = masked_mean(video_tokens, frame_mask[..., None], dim=2)  # (Bv, N, D)
        captions = masked_mean(text_tokens, word_mask[..., None], dim=2)  # (Bt, M, D)
        mean = torch.einsum("and,bmd->abnm", clips, captions)
        return mean, mean

    def bounds(self, frames: int, words: int) -> Range:
        return (0.0, 1.0) if self.rescale == "minmax" else (-1.0, 1.0)


_FRAMES, _WORDS = 2, 5  # the dimensions of frames and words in the token scores


def _token_scores(
    video_tokens: Tensor, text_tokens: Tensor, frame_mask: Tensor, word_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Products of all frames with all words (Bv, N, F, Bt, M, W), and both masks beside them.

    This order is the one in which a single matrix product leaves them.
    """
    scores = video_tokens.flatten(0, -2) @ text_tokens.flatten(0, -2).T
    scores = scores.view(*video_tokens.shape[:-1], *text_tokens.shape[:-1])
    return scores, frame_mask[..., None, None, None], word_mask[None, None, None]


def _pairs_first(directed: Tensor) -> Tensor:
    return directed.transpose(1, 2)  # (Bv, N, Bt, M) -> (Bv, Bt, N, M)


def _soft_maximum_directions(
    video_tokens: Tensor,
    text_tokens: Tensor,
    frame_mask: Tensor,
    word_mask: Tensor,
    alpha: float,
    exponential: Exponential,
    count_padding: bool,
) -> tuple[Tensor, Tensor]:
    """The two halves of Eq. (5): by frame over words, by word over frames; each (Bv, Bt, N, M)."""
    scores, frames, words = _token_scores(video_tokens, text_tokens, frame_mask, word_mask)
    best_word = alpha * masked_logsumexp(scores / alpha, words, _WORDS)  # (Bv, N, F, Bt, M)
    best_frame = alpha * masked_logsumexp(scores / alpha, frames, _FRAMES)  # (Bv, N, Bt, M, W)
    by_frame = _pairs_first(masked_mean(best_word, frames.squeeze(_WORDS), _FRAMES))
    by_word = _pairs_first(masked_mean(best_frame, words.squeeze(_FRAMES), -1))

    f, w, log_f, log_w = _lengths(frame_mask, word_mask, scores.dtype)
    if exponential == "mean":
        by_frame, by_word = by_frame - alpha * log_w, by_word - alpha * log_f
    both = (f > 0) & (w > 0)
    by_frame, by_word = by_frame.masked_fill(~both, 0), by_word.masked_fill(~both, 0)
    if count_padding and exponential == "sum":  # with means it would add log(1) = 0
        return _count_padding(by_frame, by_word, frame_mask, word_mask, alpha)
    return by_frame, by_word


def _count_padding(
    by_frame: Tensor, by_word: Tensor, frame_mask: Tensor, word_mask: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """A padded outer token has products 0 with the valid inner ones: it adds log(w) or log(f)."""
    f, w, log_f, log_w = _lengths(frame_mask, word_mask, by_frame.dtype)
    padded_frames, padded_words = frame_mask.shape[-1] - f, word_mask.shape[-1] - w
    both = (f > 0) & (w > 0)
    by_frame = by_frame + both * (alpha * padded_frames * log_w / f.clamp(min=1))
    by_word = by_word + both * (alpha * padded_words * log_f / w.clamp(min=1))
    return by_frame, by_word


def _lengths(
    frame_mask: Tensor, word_mask: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames (Bv, 1, N, 1), words (1, Bt, 1, M), and the logarithms of both, 0 where absent."""
    f = frame_mask.sum(-1)[:, None, :, None].to(dtype)
    w = word_mask.sum(-1)[None, :, None, :].to(dtype)
    return f, w, f.clamp(min=1).log(), w.clamp(min=1).log()


def _check_exponent(alpha: float, exponential: Exponential) -> None:
    check_positive("alpha", alpha)
    check_choice("exponential", exponential, ("mean", "sum"))
