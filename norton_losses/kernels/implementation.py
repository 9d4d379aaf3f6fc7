"""Which implementation of the token similarities runs, and how far it may go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from norton_losses._checks import check_choice
from norton_losses._typing import ImplementationName, SaveScores
from norton_losses.kernels import soft_maximum as operator

MAX_SLOTS = 64
"""The most frames of a clip and words of a caption that the Triton kernel holds."""

LEAST_ROUNDED_ALPHA = 0.05
"""Below it, products rounded to half precision would decide which word is best."""


@dataclass(frozen=True)
class Implementation:
    """How the best words and frames are found; see :class:`~norton_losses.SoftMaximumSimilarity`.

    ``"reference"`` is not served here: the caller has the definition.
    """

    name: ImplementationName = "auto"
    save_scores: SaveScores = "auto"
    operand_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_choice("implementation", self.name, ("auto", "reference", "chunked", "triton"))
        check_choice("save_scores", self.save_scores, ("auto", True, False))
        check_choice("operand_dtype", self.operand_dtype, (None, torch.float16, torch.bfloat16))
        if self.name == "reference" and (self.operand_dtype or self.save_scores != "auto"):
            raise ValueError(
                "save_scores and operand_dtype are options of the fused implementations, got "
                f"{self.save_scores!r} and {self.operand_dtype} with implementation='reference'; "
                "leave them out, or choose 'auto' or 'chunked'"
            )
        if self.name == "triton":
            if self.save_scores is True:
                raise ValueError(
                    "save_scores=True is for implementation='chunked', got 'triton', which "
                    "computes the scores again; leave it out"
                )
            operator.import_triton()

    def __call__(
        self,
        video_tokens: Tensor,
        text_tokens: Tensor,
        frame_mask: Tensor,
        word_mask: Tensor,
        alpha: float,
        mean: bool,
    ) -> tuple[Tensor, Tensor]:
        """By frame and by word, each (Bv, Bt, N, M); 0 where the clip or caption is absent.

        Tokens have unit norm and are zero where masked; alpha 0 is the hard maximum.
        """
        self._check_rounding(video_tokens.device, alpha)
        clips, captions = video_tokens.flatten(0, 1), text_tokens.flatten(0, 1)
        name = self._chosen(clips, captions)
        by_frame, by_word, _ = operator.soft_maximum(
            clips,
            captions,
            frame_mask.flatten(0, 1),
            word_mask.flatten(0, 1),
            alpha,
            mean,
            name,
            self.operand_dtype,
            self._most_kept(name, clips, captions),
        )
        shape = *video_tokens.shape[:2], *text_tokens.shape[:2]
        return by_frame.view(shape).transpose(1, 2), by_word.view(shape).transpose(1, 2)

    def _chosen(self, clips: Tensor, captions: Tensor) -> Literal["chunked", "triton"]:
        if self.name == "chunked" or (self.name == "auto" and self.save_scores is True):
            return "chunked"
        missing = _what_triton_lacks(clips, captions)
        if self.name == "triton" and missing:
            raise ValueError(f"implementation='triton' {missing}; use 'chunked', or 'auto'")
        return "triton" if self.name == "triton" or (clips.is_cuda and not missing) else "chunked"

    def _most_kept(self, name: str, clips: Tensor, captions: Tensor) -> int:
        differentiated = torch.is_grad_enabled() and (clips.requires_grad or captions.requires_grad)
        if name == "triton" or not differentiated or not self.save_scores:
            return 0
        if self.save_scores == "auto":
            return operator.KEPT_BYTES // clips.element_size()
        return clips.shape[:2].numel() * captions.shape[:2].numel()

    def _check_rounding(self, device: torch.device, alpha: float) -> None:
        if self.operand_dtype is None:
            return
        if device.type == "cuda" and not hasattr(torch.ops.aten.mm, "dtype"):
            raise RuntimeError(
                f"operand_dtype={self.operand_dtype} on CUDA needs torch 2.8 or newer, whose "
                f"products of half precision can stay float32, found {torch.__version__}; leave "
                "operand_dtype out"
            )
        if device.type == "cpu" and alpha < LEAST_ROUNDED_ALPHA:
            raise ValueError(
                f"operand_dtype={self.operand_dtype} needs an alpha of at least "
                f"{LEAST_ROUNDED_ALPHA} on the CPU, which rounds its products, got "
                f"{alpha or 'the hard maximum'}; leave operand_dtype out"
            )

    def extra_repr(self) -> str:
        return (
            f"implementation={self.name!r}, save_scores={self.save_scores!r}, "
            f"operand_dtype={self.operand_dtype}"
        )


def _what_triton_lacks(clips: Tensor, captions: Tensor) -> str | None:
    """What keeps the Triton kernel from these tokens, or None."""
    if torch.version.hip is not None:
        return "is written for NVIDIA GPUs, and this torch is built for ROCm"
    if not clips.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"runs on CUDA, and the tokens are on {clips.device}"
    if clips.dtype != torch.float32:
        return f"computes in float32, and the tokens are {clips.dtype}"
    longest = max(clips.shape[1], captions.shape[1])
    if longest > MAX_SLOTS:
        return f"holds {MAX_SLOTS} frames and words, and the tokens have {longest}"
    return None
