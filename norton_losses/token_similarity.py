"""Clip-caption similarity from frames and words: Eq. (5) and its ablations.

``video, text -> similarity (Bv, Bt, N, M)``
"""

from __future__ import annotations

import math
from typing import Any, cast, final

import torch
from torch import Tensor

from norton_losses._checks import check_choice, check_positive
from norton_losses._numerics import full_precision, masked_mean
from norton_losses._typing import Exponential, Range, Rescale
from norton_losses.fusion import (
    AbstractSimilarity,
    AbstractTokenSimilarity,
    FunctionSimilarity,
    SimilarityFunction,
)
from norton_losses.kernels.dispatch import AbstractSoftMaximum, resolve_implementation
from norton_losses.kernels.soft_maximum_reference import lengths
from norton_losses.segments import Segments, read_pair


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
        implementation: how it is computed: an object of :mod:`norton_losses.kernels`, or its name.
            ``"reference"`` is :func:`soft_maximum`, which holds the products of all frames with all
            words; ``"chunked"`` (torch, any device) and ``"triton"`` (CUDA, float32, at most 64
            frames and words) never hold them at large sizes. They have a first derivative only, and
            no ``torch.func.grad``. ``"auto"`` is Triton on CUDA where it applies, else chunked;
            what is named never falls back. What each keeps for the backward pass, and half
            precision in its products, are options of the objects.

    Raises:
        ValueError: ``alpha`` not above 0, ``pooled_weight`` below 0, an unknown choice; when
            called, tokens that ``"triton"`` cannot serve.
        ImportError: ``"triton"``, or ``"auto"`` on CUDA, without Triton 3.2 or newer.
        RuntimeError: the gradient of the gradient of a fused implementation.

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
        implementation: str | AbstractSoftMaximum = "auto",
    ) -> None:
        super().__init__(pooled_weight, rescale)
        check_positive("alpha", alpha)
        check_choice("exponential", exponential, ("mean", "sum"))
        self.alpha = alpha
        self.exponential: Exponential = exponential
        self.count_padding = count_padding
        self.implementation = resolve_implementation(implementation)

    def directions(self, video: Segments, text: Segments) -> tuple[Tensor, ...]:
        mean = self.exponential == "mean"
        directions = self.implementation(video, text, self.alpha, mean=mean)
        if self.count_padding and not mean:  # with means it would add log(1) = 0
            return _count_padding(*directions, video, text, self.alpha)
        return directions

    def bounds(self, frames: int, words: int) -> Range:
        if self.exponential == "mean":
            return -1.0, 1.0
        # Rounded up: a compiler makes a graph for each value of the range.
        longest = max(_power_of_two(frames), _power_of_two(words))
        # A sum of equal terms is log(length) higher; counted padding adds at most that once more
        # for each padded token, of which there are fewer than tokens.
        tallest = self.alpha * math.log(longest)
        return -1.0, 1.0 + tallest * (1 + longest * self.count_padding)

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, {super().extra_repr()}, exponential={self.exponential!r}, "
            f"count_padding={self.count_padding}, implementation={self.implementation}"
        )


def soft_maximum(
    video: Segments | Tensor,
    text: Segments | Tensor,
    *,
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
        video: :class:`~norton_losses.Segments`, or tokens (Bv, N, F, D) that are all valid. Eq. (5)
            asks for unit norm; the products are taken as they come, and
            :class:`SoftMaximumSimilarity` normalises first.
        text: the same of captions, (Bt, M, W, D).
        alpha: temperature of the soft maximum, in units of similarity. Towards 0 it becomes the
            maximum.
        exponential: ``"sum"`` is Eq. (5); ``"mean"`` divides the inner sum by its number of terms,
            so that a longer caption does not score ``alpha * log(length)`` higher.
        count_padding: also count the padded tokens of the outer sums, as the released code does.
            The result then depends on the padded widths F and W.

    Returns:
        (Bv, Bt, N, M), float32 or wider; 0 where the clip or the caption has no valid token.

    Raises:
        ValueError: wrong rank or width, ``alpha`` not above 0.
        TypeError: tokens that are not floating.

    Source: Eq. (5) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import soft_maximum
        >>> clip = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])   # one clip of two frames
        >>> caption = torch.tensor([[[[1.0, 0.0]]]])            # one caption of one word
        >>> soft_maximum(clip, caption, alpha=0.01).item()      # frames (1 + 0)/2, word max(1, 0)
        0.746...
    """
    similarity = SoftMaximumSimilarity(
        alpha,
        exponential=exponential,
        count_padding=count_padding,
        implementation="reference",
    )
    video, text = (side.zeroed() for side in read_pair(video, text))
    with full_precision(video.tokens):
        by_frame, by_word = similarity.directions(video, text)
        return (by_frame + by_word) / 2


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
        implementation: str | AbstractSoftMaximum = "auto",
    ) -> None:
        super().__init__(pooled_weight, rescale)
        self.implementation = resolve_implementation(implementation)

    def directions(self, video: Segments, text: Segments) -> tuple[Tensor, ...]:
        return self.implementation(video, text, 0.0, mean=False)

    def bounds(self, frames: int, words: int) -> Range:
        return -1.0, 1.0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, implementation={self.implementation}"


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

    def directions(self, video: Segments, text: Segments) -> tuple[Tensor, ...]:
        # The mean of products is the product of means: no token tensor is needed.
        clips, captions = (
            masked_mean(side.tokens, side.token_mask[..., None], dim=2) for side in (video, text)
        )
        return (torch.einsum("and,bmd->abnm", clips, captions),)

    def bounds(self, frames: int, words: int) -> Range:
        return -1.0, 1.0


def as_similarity(given: Any) -> AbstractSimilarity:
    """Return a similarity as it is, wrap a function of two sides, and give the default for None.

    Raises:
        TypeError: neither a similarity nor a function.
    """
    given = getattr(given, "_orig_mod", given)  # of torch.compile: a loss is compiled whole
    if given is None:
        return SoftMaximumSimilarity()
    if isinstance(given, AbstractSimilarity):
        return given
    if callable(given) and not isinstance(given, type):
        return FunctionSimilarity(cast(SimilarityFunction, given))
    shown = given.__name__ if isinstance(given, type) else repr(given)
    raise TypeError(
        f"similarity must be called with (video, text), two Segments, got {shown}; pass an object "
        "such as SoftMaximumSimilarity()"
    )


def _count_padding(
    by_frame: Tensor, by_word: Tensor, video: Segments, text: Segments, alpha: float
) -> tuple[Tensor, Tensor]:
    """A padded outer token has products 0 with the valid inner ones: it adds log(w) or log(f)."""
    f, w = lengths(video, text, by_frame.dtype)
    padded_frames, padded_words = video.token_mask.shape[-1] - f, text.token_mask.shape[-1] - w
    both = (f > 0) & (w > 0)
    f, w = f.clamp(min=1), w.clamp(min=1)
    by_frame = by_frame + both * (alpha * padded_frames * w.log() / f)
    by_word = by_word + both * (alpha * padded_words * f.log() / w)
    return by_frame, by_word


def _power_of_two(length: int) -> int:
    """The next power of two, 32 at least."""
    power = 32
    while power < length:
        power *= 2
    return power
