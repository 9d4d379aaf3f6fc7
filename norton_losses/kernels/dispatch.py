"""Implementations of the soft maximum over tokens: the objects that a token similarity calls."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from norton_losses._checks import check_choice
from norton_losses._numerics import is_traced
from norton_losses.kernels import soft_maximum as fused
from norton_losses.kernels.soft_maximum_reference import best_tokens
from norton_losses.segments import Segments

SaveScores: TypeAlias = Literal["auto"] | bool

MAX_SLOTS = 64
"""The most frames of a clip and words of a caption that the Triton kernels hold."""

SMALLEST_ROUNDED_ALPHA = 0.05
"""Below it, products rounded to half precision would decide which word is best."""


class AbstractSoftMaximum(ABC):
    """Computes both directions of Eq. (5): words for each frame, and frames for each word."""

    @abstractmethod
    def __call__(
        self, video: Segments, text: Segments, alpha: float, *, mean: bool
    ) -> tuple[Tensor, Tensor]:
        """Means over frames and over words of the soft maximum: (Bv, Bt, N, M), 0 where absent.

        Args:
            video: tokens of unit norm (Bv, N, F, D), 0 where masked.
            text: tokens of unit norm (Bt, M, W, D), 0 where masked.
            alpha: temperature of the soft maximum; 0 is the hard maximum.
            mean: divide the inner sum by its number of terms; not with the hard maximum.
        """


@final
@dataclass(frozen=True)
class ReferenceSoftMaximum(AbstractSoftMaximum):
    """The definition: holds the products of all frames with all words, and has all derivatives."""

    def __call__(
        self, video: Segments, text: Segments, alpha: float, *, mean: bool
    ) -> tuple[Tensor, Tensor]:
        return best_tokens(video, text, alpha, mean=mean)


@dataclass(frozen=True)
class AbstractFused(AbstractSoftMaximum):
    """Base of what never holds all products: first derivatives only.

    Args:
        operand_dtype: ``torch.bfloat16`` or ``torch.float16``: tokens are rounded to it for matrix
            products, whose sums stay float32 on CUDA and are rounded on the CPU. Reductions are
            never in half precision. None keeps the tokens' dtype.

    Raises:
        ValueError: an unknown choice; when called, ``operand_dtype`` with alpha below 0.05 on the
            CPU.
        RuntimeError: ``operand_dtype`` on CUDA with torch before 2.8.
    """

    operand_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_choice("operand_dtype", self.operand_dtype, (None, torch.float16, torch.bfloat16))

    def launch(
        self,
        implementation: str,
        video: Segments,
        text: Segments,
        alpha: float,
        mean: bool,
        most_kept: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """One call of the operator, on clips and captions of all sequences together."""
        self._check_rounding(video.tokens.device, alpha)
        tokens = (side.tokens.flatten(0, 1) for side in (video, text))
        masks = (side.token_mask.flatten(0, 1) for side in (video, text))
        how = implementation, self.operand_dtype, most_kept
        traced = is_traced(video.tokens)
        operator: Any = fused.soft_maximum if traced else fused.SoftMaximum.apply  # pyright: ignore
        by_frame, by_word, _ = operator(*tokens, *masks, alpha, mean, *how)
        shape = *video.mask.shape, *text.mask.shape
        return by_frame.view(shape).transpose(1, 2), by_word.view(shape).transpose(1, 2)

    def _check_rounding(self, device: torch.device, alpha: float) -> None:
        if self.operand_dtype is None:
            return
        if device.type == "cuda" and not hasattr(torch.ops.aten.mm, "dtype"):
            raise RuntimeError(
                f"operand_dtype={self.operand_dtype} on CUDA needs torch 2.8 or newer, whose "
                f"products of half precision can stay float32, found {torch.__version__}; leave "
                "operand_dtype out"
            )
        if device.type == "cpu" and alpha < SMALLEST_ROUNDED_ALPHA:
            raise ValueError(
                f"operand_dtype={self.operand_dtype} needs an alpha of at least "
                f"{SMALLEST_ROUNDED_ALPHA} on the CPU, which rounds its products, got "
                f"{alpha or 'the hard maximum'}; leave operand_dtype out"
            )


@final
@dataclass(frozen=True)
class ChunkedSoftMaximum(AbstractFused):
    """One tile of products at a time, in torch on any device; reads the lengths on the host.

    Args:
        operand_dtype: as in :class:`AbstractFused`.
        save_scores: keep the products of valid tokens for the backward pass, which then has one
            matrix product less. ``"auto"`` keeps them where they fit in 256 MiB. True takes room
            for padded ones as well, which the CPU fills only as far as needed.

    Example:
        >>> import torch
        >>> from norton_losses import SoftMaximumSimilarity
        >>> from norton_losses.kernels import ChunkedSoftMaximum
        >>> chunked = ChunkedSoftMaximum(torch.bfloat16, save_scores=False)
        >>> similarity = SoftMaximumSimilarity(implementation=chunked)
    """

    save_scores: SaveScores = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("save_scores", self.save_scores, ("auto", True, False))

    def __call__(
        self, video: Segments, text: Segments, alpha: float, *, mean: bool
    ) -> tuple[Tensor, Tensor]:
        most_kept = self._most_kept(video.tokens, text.tokens)
        return self.launch("chunked", video, text, alpha, mean, most_kept)

    def _most_kept(self, frames: Tensor, words: Tensor) -> int:
        """How many products may be kept for the backward pass."""
        differentiated = torch.is_grad_enabled() and (frames.requires_grad or words.requires_grad)
        if not differentiated or not self.save_scores:
            return 0
        if self.save_scores == "auto":
            return fused.KEPT_BYTES // frames.element_size()
        return frames.shape[:3].numel() * words.shape[:3].numel()


@final
@dataclass(frozen=True)
class TritonSoftMaximum(AbstractFused):
    """Kernels for CUDA: float32 tokens, at most 64 frames and words, products never kept.

    Triton comes with torch's CUDA builds (else ``pip install 'norton-losses[triton]'``).

    Raises:
        ImportError: Triton 3.2 or newer is not installed.
        ValueError: when called, tokens that the kernels do not serve.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        fused.import_triton()

    def __call__(
        self, video: Segments, text: Segments, alpha: float, *, mean: bool
    ) -> tuple[Tensor, Tensor]:
        obstacle = _obstacle(video.tokens, text.tokens)
        if obstacle:
            raise ValueError(f"TritonSoftMaximum {obstacle}; use ChunkedSoftMaximum, or 'auto'")
        return self.launch("triton", video, text, alpha, mean)


@final
@dataclass(frozen=True)
class AutoSoftMaximum(AbstractFused):
    """Triton on CUDA where it serves the tokens, else chunked: what ``"auto"`` stands for.

    It goes by device, dtype and shape, never by what is installed.
    """

    def __call__(
        self, video: Segments, text: Segments, alpha: float, *, mean: bool
    ) -> tuple[Tensor, Tensor]:
        served = video.tokens.is_cuda and not _obstacle(video.tokens, text.tokens)
        choice = TritonSoftMaximum if served else ChunkedSoftMaximum
        return choice(self.operand_dtype)(video, text, alpha, mean=mean)


IMPLEMENTATIONS: dict[str, type[AbstractSoftMaximum]] = {
    "auto": AutoSoftMaximum,
    "reference": ReferenceSoftMaximum,
    "chunked": ChunkedSoftMaximum,
    "triton": TritonSoftMaximum,
}


def resolve_implementation(given: str | AbstractSoftMaximum) -> AbstractSoftMaximum:
    """The object itself, or the one of that name with its defaults; a name never falls back."""
    if isinstance(given, AbstractSoftMaximum):
        return given
    check_choice("implementation", given, list(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[given]()


def _obstacle(frames: Tensor, words: Tensor) -> str | None:
    """Why the Triton kernels cannot serve tokens (B, N, T, D), or None if they can."""
    if torch.version.hip is not None:
        return "is written for NVIDIA GPUs, and this torch is built for ROCm"
    if not frames.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"runs on CUDA, and the tokens are on {frames.device}"
    if frames.dtype != torch.float32:
        return f"computes in float32, and the tokens are {frames.dtype}"
    longest = max(frames.shape[2], words.shape[2])
    if longest > MAX_SLOTS:
        return f"holds {MAX_SLOTS} frames and words, and the tokens have {longest}"
    return None
