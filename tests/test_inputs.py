"""What users get wrong is refused before any work, with the rule, what came, and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from norton_losses import (
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    SoftMaximumSimilarity,
)
from norton_losses.functional import soft_maximum

video, text = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8)

LOSSES: dict[str, Callable[..., object]] = {
    "norton": NortonLoss(),
    "norton-explain": NortonLoss().explain,
    "norton-score": NortonLoss().score,
    "video-paragraph": NortonVideoParagraphLoss(),
}
SIMILARITIES: dict[str, Callable[..., object]] = {
    "soft-maximum-function": soft_maximum,
    "soft-maximum": SoftMaximumSimilarity(),
    "max": MaxSimilarity(),
    "mean": MeanSimilarity(),
}
WITH_TOKENS = LOSSES | SIMILARITIES
every_taker = pytest.mark.parametrize("take", WITH_TOKENS.values(), ids=WITH_TOKENS.keys())
every_loss = pytest.mark.parametrize("take", LOSSES.values(), ids=LOSSES.keys())


@every_taker
class TestTokens:
    def test_rank(self, take) -> None:
        with pytest.raises(
            ValueError, match=r"video_tokens must have 4 dimensions \(B, N, F, D\), g"
        ):
            take(video[0, 0], text)
        with pytest.raises(
            ValueError, match=r"text_tokens must have 4 dimensions \(B, M, W, D\), go"
        ):
            take(video, text[None])

    def test_width(self, take) -> None:
        with pytest.raises(ValueError, match="share their width D, got 8 and 6; project"):
            take(video, text[..., :6])

    def test_floating(self, take) -> None:
        with pytest.raises(
            TypeError, match=r"text_tokens must be a floating tensor, got torch.int64"
        ):
            take(video, text.long())

    def test_tensor(self, take) -> None:
        with pytest.raises(TypeError, match=r"video_tokens must be a torch.Tensor .*, got list"):
            take(video.tolist(), text)

    def test_empty(self, take) -> None:
        with pytest.raises(ValueError, match=r"video_tokens must have no empty dimension"):
            take(video[:, :0], text)

    def test_mask_dtype(self, take) -> None:
        with pytest.raises(
            TypeError, match=r"frame_mask must be a bool tensor with True where val"
        ):
            take(video, text, frame_mask=torch.ones(2, 3, 4))

    def test_mask_shape(self, take) -> None:
        with pytest.raises(
            ValueError, match=r"word_mask must have shape \(2, 3, 5\), got \(2, 3, 4"
        ):
            take(video, text, word_mask=torch.ones(2, 3, 4).bool())


@every_loss
class TestSequences:
    def test_segment_mask(self, take) -> None:
        with pytest.raises(ValueError, match=r"clip_mask must have shape \(2, 3\), got \(3, 2\)"):
            take(video, text, clip_mask=torch.ones(3, 2).bool())
        with pytest.raises(TypeError, match="caption_mask must be a bool tensor"):
            take(video, text, caption_mask=torch.ones(2, 3).long())

    def test_token_mask_beside_single_tokens(self, take) -> None:
        with pytest.raises(
            ValueError, match=r"frame_mask describes 4-d tokens .*pass clip_mask ins"
        ):
            take(video[:, :, 0], text, frame_mask=torch.ones(2, 3).bool())
        with pytest.raises(ValueError, match=r"word_mask describes 4-d.*pass caption_mask instead"):
            take(video, text[:, :, 0], word_mask=torch.ones(2, 3).bool())

    def test_embeddings(self, take) -> None:
        with pytest.raises(ValueError, match=r"clip_embeddings must have 3 dimensions \(B, N, D\)"):
            take(video, text, clip_embeddings=torch.randn(6, 8))
        with pytest.raises(
            ValueError, match=r"caption_embeddings must have shape \(2, 3, 8\), got"
        ):
            take(video, text, caption_embeddings=torch.randn(2, 4, 8))
        with pytest.raises(
            ValueError, match="clip_embeddings and caption_embeddings must share th"
        ):
            take(video, text, clip_embeddings=torch.randn(2, 3, 6))


@pytest.mark.parametrize("loss", [NortonLoss(), NortonVideoParagraphLoss()])
def test_training_needs_pairs_of_sequences(loss: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"as many sequences, got B = 2 and 1; .* use .score"):
        loss(video, text[:1])


@pytest.mark.parametrize("loss", [NortonLoss(), NortonVideoParagraphLoss()])
def test_group_ids(loss: torch.nn.Module) -> None:
    with pytest.raises(TypeError, match=r"group_ids must be an integer tensor, got torch.float32"):
        loss(video, text, group_ids=torch.ones(2))
    with pytest.raises(ValueError, match=r"group_ids must have shape \(2,\), got \(3,\)"):
        loss(video, text, group_ids=torch.arange(3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftMaximumSimilarity(0.0), "alpha must be a finite number above 0, got 0.0"),
        (
            lambda: SoftMaximumSimilarity(float("nan")),
            "alpha must be a finite number above 0, got nan",
        ),
        (
            lambda: SoftMaximumSimilarity(exponential="max"),
            r"exponential must be one of \['mean', 's",
        ),  # type: ignore[arg-type]
        (
            lambda: SoftMaximumSimilarity(rescale="max"),
            r"rescale must be one of \[None, 'minmax'\]",
        ),  # type: ignore[arg-type]
        (
            lambda: MaxSimilarity(pooled_weight=-1.0),
            "pooled_weight must be a finite number, 0 or ab",
        ),
        (lambda: soft_maximum(video, text, alpha=-1.0), "alpha must be a finite number above 0"),
        (
            lambda: NortonVideoParagraphLoss(temperature=0.0),
            r"temperature must lie in \[0.01, 1.0\]",
        ),
        (
            lambda: NortonVideoParagraphLoss(temperature=1.5),
            r"temperature must lie in \[0.01, 1.0\]",
        ),
        (lambda: NortonLoss(weight=-0.1), "weight must be a finite number, 0 or above, got -0.1"),
        (lambda: NortonLoss.released(prompt_ratio=1.2), r"ratio must lie in \[0, 1\], got 1.2"),
        (lambda: NortonLoss.paper(beta=2.0), r"beta must lie in \[0, 1\], got 2.0"),
        (lambda: NortonLoss.paper(iterations=0), "iterations must be a whole number"),
    ],
)
def test_settings(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_tensors_on_different_devices() -> None:
    with pytest.raises(
        ValueError, match="text_tokens must be on cpu like the other inputs, got me"
    ):
        NortonLoss()(video, text.to("meta"))
    with pytest.raises(
        ValueError, match="frame_mask must be on cpu like the other inputs, got met"
    ):
        NortonLoss()(video, text, frame_mask=torch.ones(2, 3, 4).bool().to("meta"))
