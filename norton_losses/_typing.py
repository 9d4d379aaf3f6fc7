"""The names that signatures share. Nothing here is needed at run time."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

Exponential: TypeAlias = Literal["mean", "sum"]
Rescale: TypeAlias = Literal["minmax"] | None
Range: TypeAlias = tuple[float, float]
TransportScore: TypeAlias = Literal["similarity", "entropic"]
PlanGradient: TypeAlias = Literal["detached", "implicit", "unrolled"]
ImplementationName: TypeAlias = Literal["auto", "reference", "chunked", "triton"]
SaveScores: TypeAlias = Literal["auto"] | bool
SinkhornDomain: TypeAlias = Literal["auto", "scaling", "absorbed", "log"]


class SequenceMeasure(Protocol):
    """How well each video matches each paragraph: a mean per match, 0 where either is absent."""

    def __call__(
        self,
        similarity: Tensor,  # (Bv, Bt, N, M)
        clip_mask: Tensor,  # (Bv, N); or (Bv, Bt, N), which BackgroundFiltered hands on
        caption_mask: Tensor,  # (Bt, M); or (Bv, Bt, M)
    ) -> Tensor: ...  # (Bv, Bt)


class TokenSimilarity(Protocol):
    """How similar each clip is to each caption, from their tokens."""

    def __call__(
        self,
        video_tokens: Tensor,  # (Bv, N, F, D)
        text_tokens: Tensor,  # (Bt, M, W, D)
        *,
        frame_mask: Tensor,  # (Bv, N, F)
        word_mask: Tensor,  # (Bt, M, W)
        clip_embeddings: Tensor,  # (Bv, N, D)
        caption_embeddings: Tensor,  # (Bt, M, D)
        **options: Any,
    ) -> Tensor: ...  # (Bv, Bt, N, M)
