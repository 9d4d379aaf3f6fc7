"""What users get wrong is refused before any work, with the rule, what came, and the remedy."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from norton_losses import (
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    PromptBucket,
    Segments,
    SimilarityBlock,
    SoftMaximumSimilarity,
    TorchSinkhorn,
    TransportProblem,
    _checks,
    contrastive,
)
from norton_losses.functional import bucket_problem, soft_maximum

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
            ValueError, match=r"video must have 4 dimensions \(B, N, T, D\), got shape \(8,\)"
        ):
            take(video[0, 0, 0], text)
        with pytest.raises(ValueError, match=r"text must have 4 dimensions \(B, N, T, D\), got"):
            take(video, text[None])

    def test_flat(self, take) -> None:
        with pytest.raises(
            ValueError, match=r"text must have shape \(B, N, T, D\).*\.from_flat\(t"
        ):
            take(video, text[0, 0])

    def test_width(self, take) -> None:
        with pytest.raises(ValueError, match="share their width D, got 8 and 6; project"):
            take(video, text[..., :6])

    def test_a_similarity_in_place_of_tokens(self, take) -> None:
        with pytest.raises(ValueError, match=r"similarities \(B, B, N, M\) go to .*functional"):
            take(torch.rand(2, 2, 3, 3), text)

    def test_token_ids(self, take) -> None:
        with pytest.raises(
            TypeError, match=r"text must be a floating tensor, got torch.int64; .*em"
        ):
            take(video, text.long())

    def test_tensor(self, take) -> None:
        with pytest.raises(
            TypeError, match=r"video must be a torch.Tensor .*, got list; .*from_li"
        ):
            take(video.tolist(), text)
        with pytest.raises(TypeError, match=r"got ndarray; convert it by torch.as_tensor"):
            take(video.numpy(), text)

    def test_empty(self, take) -> None:
        with pytest.raises(ValueError, match="video must have no empty dimension"):
            take(video[:, :0], text)


class TestMasks:
    def test_dtype(self) -> None:
        for mask in (torch.ones(2, 3, 4), torch.zeros(2, 3, 4).long()):
            with pytest.raises(
                TypeError, match=r"token_mask must be a bool .*mask == 0 if it marks"
            ):
                Segments(video, mask)
        with pytest.raises(TypeError, match="mask must be a bool tensor with True where valid"):
            Segments(video, mask=torch.ones(2, 3))

    def test_shape(self) -> None:
        with pytest.raises(
            ValueError, match=r"token_mask must have shape \(2, 3, 4\), got \(2, 3, 5"
        ):
            Segments(video, torch.ones(2, 3, 5).bool())
        with pytest.raises(ValueError, match=r"^mask must have shape \(2, 3\), got \(3, 2\)"):
            Segments(video, mask=torch.ones(3, 2).bool())

    def test_a_mask_of_segments_in_the_place_of_tokens(self) -> None:
        with pytest.raises(
            ValueError, match=r"got shape \(2, 3\); a mask of whole segments .* mask="
        ):
            Segments(video, torch.ones(2, 3).bool())

    def test_token_mask_beside_single_or_flat_tokens(self) -> None:
        with pytest.raises(
            ValueError, match=r"pass mask instead or.*Segments\.from_flat\(tokens, co"
        ):
            Segments(video[0], torch.ones(3, 4).bool())

    def test_embeddings(self) -> None:
        with pytest.raises(ValueError, match=r"embeddings must have 3 dimensions \(B, N, D\)"):
            Segments(video, embeddings=torch.randn(6, 8))
        with pytest.raises(ValueError, match=r"embeddings must have shape \(2, 3, 8\), got"):
            Segments(video, embeddings=torch.randn(2, 4, 8))
        for take in (*LOSSES.values(), SoftMaximumSimilarity()):
            with pytest.raises(ValueError, match="share their width of embeddings, got 6 and 8"):
                take(Segments(video, embeddings=torch.randn(2, 3, 6)), text)


@pytest.mark.parametrize("make", [NortonLoss, NortonVideoParagraphLoss, ClipCaptionOTLoss])
def test_inputs_are_checked_once_a_call(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor at the door it comes in by; the similarity, which may be a user's, at its own."""
    seen: list[str] = []

    def counted(check):
        def wrapper(name, *arguments, **options):
            seen.append(name)
            return check(name, *arguments, **options)

        return wrapper

    modules = [m for n, m in sys.modules.items() if n.startswith("norton_losses") and m is not None]
    for name in ("check_floating", "check_mask"):
        check = counted(getattr(_checks, name))
        for module in modules:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, check)
    sides = Segments(video, torch.rand(2, 3, 4) < 0.9), Segments(text, torch.rand(2, 3, 5) < 0.9)
    assert seen == 2 * ["tokens", "token_mask"]
    seen.clear()
    loss = make()
    loss(*sides)
    # No input any more; the similarity with its masks, and the masks of the transport's two sides.
    assert len(seen) == len(set(seen)), seen
    assert not {"tokens", "token_mask", "video", "text"} & set(seen), seen
    assert len(seen) <= 5, seen
    seen.clear()
    loss(video, text)
    assert len(seen) == len(set(seen)), seen
    assert {"video", "text"} <= set(seen)


@pytest.mark.parametrize("loss", [NortonLoss(), ClipCaptionOTLoss()])
def test_flat_tokens_of_unlike_widths_are_told_of_from_flat(loss: torch.nn.Module) -> None:
    frames, words = torch.randn(6, 4, 8), torch.randn(6, 5, 8)
    with pytest.raises(ValueError, match=r"N = 4 clips and M = 5 captions; group flat .*from_flat"):
        loss(frames, words)


@pytest.mark.parametrize("loss", [NortonLoss(), NortonVideoParagraphLoss()])
def test_training_needs_pairs_of_sequences(loss: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"as many sequences, got B = 2 and 1; .* use .score"):
        loss(video, text[:1])


@pytest.mark.parametrize("loss", [NortonLoss(), NortonVideoParagraphLoss()])
def test_group_ids(loss: torch.nn.Module) -> None:
    with pytest.raises(TypeError, match=r"group_ids must be an integer tensor, got torch.float32"):
        loss(video, text, group_ids=torch.ones(2))
    with pytest.raises(TypeError, match=r"group_ids must be an integer tensor, got torch.bool"):
        loss(video, text, group_ids=torch.ones(2).bool())
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


@pytest.mark.parametrize("wrong", [torch.tensor(0.5), True, "0.5", None], ids=repr)
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("beta", ClipCaptionOTLoss),
        ("ratio", PromptBucket),
        ("alpha", SoftMaximumSimilarity),
        ("weight", lambda x: NortonLoss(weight=x)),
        ("value", lambda x: PromptBucket(value=x)),
        ("temperature", lambda x: ClipCaptionOTLoss(temperature=x)),
        ("smoothing", DynamicTimeWarping),
    ],
)
def test_a_setting_is_a_plain_number(name: str, build: Callable[[object], object], wrong) -> None:
    """A parameter that passed for a number would silently never be trained."""
    if wrong is None and name in ("value", "temperature"):
        build(None)
        return
    with pytest.raises(TypeError, match=f"{name} must be a plain number, got .*call .item"):
        build(wrong)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), 1.0, (0, 1, 2)])
def test_a_range_is_two_finite_numbers_in_order(bounds) -> None:
    message = r"must be finite numbers \(lo, hi\) with lo <= hi, got"
    with pytest.raises(ValueError, match="^bounds " + message):
        SimilarityBlock(torch.rand(1, 1, 2, 2), bounds=bounds)
    loss = NortonVideoParagraphLoss(SoftMaximumSimilarity(rescale="minmax"))
    with pytest.raises(ValueError, match="^similarity_range " + message):
        loss.score(video, text, similarity_range=bounds)


class TestMistakesThatPeopleMade:
    def test_sequences_in_the_place_of_segments(self) -> None:
        turned = torch.randn(4, 2, 3, 8)  # (N, B, F, D)
        for sides in ((turned, torch.randn(2, 4, 5, 8)), (torch.randn(2, 4, 5, 8), turned)):
            with pytest.raises(
                ValueError, match=r"are \(N, B, T, D\), give their .transpose\(0, 1"
            ):
                NortonLoss()(*sides)

    def test_frames_in_the_place_of_clips(self) -> None:
        with pytest.raises(ValueError, match=r"are \(B, F, N, D\), give their .transpose\(1, 2\)"):
            NortonLoss()(torch.randn(2, 6, 3, 8), text)
        with pytest.raises(ValueError, match="group flat tokens"):  # there is nothing to transpose
            NortonLoss()(torch.randn(2, 4, 8), torch.randn(2, 1, 8))

    def test_pixels(self) -> None:
        with pytest.raises(TypeError, match=r"if pixels, encode them"):
            NortonLoss()(torch.zeros(2, 3, 4, 3, 8, 8, dtype=torch.uint8), text)
        with pytest.raises(ValueError, match=r"pixels go through an encoder .* \.flatten\(2, -2"):
            NortonLoss()(torch.zeros(2, 3, 4, 3, 8, 8), text)

    def test_what_flat_gave(self) -> None:
        with pytest.raises(TypeError, match=r"group it by Segments.from_flat\(\*flat\)"):
            NortonLoss()(Segments(video).flat(), text)  # type: ignore[arg-type]

    def test_a_mask_that_is_added_to_scores(self) -> None:
        mask = torch.zeros(2, 3, 4)
        with pytest.raises(TypeError, match="mask == 0 .*added to scores, 0 where valid and -inf"):
            Segments(video, mask)

    def test_methods_of_tensors(self) -> None:
        with pytest.raises(AttributeError, match=r"has no cuda, which is of tensors.* by \.to\("):
            Segments(video).cuda()
        with pytest.raises(AttributeError, match=r"no shape, .*; read \.tokens\.shape"):
            Segments(video).shape  # noqa: B018
        with pytest.raises(AttributeError, match="Segments has no nothing$"):
            Segments(video).nothing  # noqa: B018

    @pytest.mark.parametrize(
        ("build", "name", "remedy"),
        [
            (NortonLoss, "beta", r"NortonLoss\(clip_caption=ClipCaptionOTLoss\(beta=\.\.\.\)\)$"),
            (NortonLoss, "temperature", r" or NortonLoss\(NortonVideoParagraphLoss\(temperature="),
            (NortonLoss, "alpha", r"NortonVideoParagraphLoss\(SoftMaximumSimilarity\(alpha="),
            (NortonVideoParagraphLoss, "bucket", r"\(measure=TransportMeasure\(bucket=\.\.\.\)\)$"),
            (NortonVideoParagraphLoss, "alpha", r"Loss\(SoftMaximumSimilarity\(alpha=\.\.\.\)\)$"),
            (NortonLoss, "lambda_", r"NortonLoss has no argument 'lambda_'$"),
            (NortonLoss, "misplaced", r"NortonLoss has no argument 'misplaced'$"),
        ],
    )
    def test_an_argument_of_a_part(self, build: Callable[..., object], name: str, remedy) -> None:
        with pytest.raises(TypeError, match=remedy):
            build(**{name: 0.1})

    def test_an_inverted_mask(self) -> None:
        nothing = torch.zeros(2, 3, 4, dtype=torch.bool)
        with pytest.warns(UserWarning, match="no clip, or no caption, .* goes in as ~mask"):
            loss = NortonLoss()(Segments(video, nothing), text)
        assert loss == 0

    def test_a_scale_that_is_still_a_logarithm(self) -> None:
        loss = ClipCaptionOTLoss(temperature=None)
        scale = torch.nn.Parameter(torch.tensor(2.66))
        with pytest.warns(UserWarning, match=r"most likely a logarithm: .*logit_scale\.exp\(\)"):
            loss(video, text[:, :, :4], logit_scale=scale)
        loss(video, text[:, :, :4], logit_scale=scale.exp())

    def test_a_temperature_that_nobody_trains(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contrastive, "PATIENCE", 4)
        loss = ClipCaptionOTLoss()
        for _ in range(3):
            loss(video, text)
        loss.eval()(video, text)
        with torch.no_grad():
            loss.train()(video, text)
        with pytest.warns(UserWarning, match="the temperature has not changed in 4 steps"):
            loss(video, text)
        for _ in range(9):  # it was said
            loss(video, text)

    def test_a_loss_that_is_moved_between_is_watched_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contrastive, "PATIENCE", 2)
        loss = ClipCaptionOTLoss()
        loss(video, text[:, :, :4])
        with pytest.warns(UserWarning, match="the temperature has not changed in 2 steps"):
            loss.double()(video.double(), text[:, :, :4].double())

    def test_a_temperature_that_is_not_to_be_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contrastive, "PATIENCE", 2)
        frozen = ClipCaptionOTLoss()
        frozen.requires_grad_(False)
        for loss in (frozen, ClipCaptionOTLoss(learnable_temperature=False)):
            for _ in range(3):
                loss(video, text)

    def test_what_was_watched_is_neither_copied_nor_saved(self) -> None:
        loss = ClipCaptionOTLoss()
        torch.func.grad(lambda x: loss(x, text[:, :, :4]))(video)
        for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert again(video, text[:, :, :4]) == loss(video, text[:, :, :4])

    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda p: torch.optim.AdamW(p, fused=True),  # counts up no version
            "data",
        ],
    )
    def test_a_temperature_that_is_trained(
        self, optimizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contrastive, "PATIENCE", 4)
        loss = ClipCaptionOTLoss()
        parameters = list(loss.parameters())
        step = optimizer(parameters).step if callable(optimizer) else None
        for _ in range(9):
            loss(video, text).backward()
            if step is None:
                parameters[0].data -= 0.1  # as some optimisers of fewer bits do
            else:
                step()


@pytest.mark.parametrize(
    ("shape", "other", "told"),
    [
        ((2, 3, 4, 5), (3, 2, 6, 5), True),
        ((2, 3, 4, 5), (3, 7, 6, 5), True),  # the text may have been cut or padded since
        ((7, 3, 4, 5), (2, 7, 6, 5), True),
        ((2, 3, 4, 5), (4, 3, 6, 5), False),
    ],
)
def test_segments_before_the_batch_are_told(
    shape: tuple[int, ...], other: tuple[int, ...], told: bool
) -> None:
    with pytest.raises(ValueError, match="video and text must hold as many sequences") as raised:
        NortonLoss()(torch.randn(shape), torch.randn(other))
    assert (".transpose(0, 1)" in str(raised.value)) == told


def test_counts_may_be_of_numpy() -> None:
    assert TorchSinkhorn(np.int64(5)).iterations == 5  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="iterations must be a whole number of at least 1, got 5.0"
    ):
        TorchSinkhorn(np.float64(5))  # type: ignore[arg-type]


def test_numbers_of_problems_are_checked_at_every_door() -> None:
    valid, similarity = torch.ones(1, 2, dtype=torch.bool), torch.eye(2)[None, None]
    block = SimilarityBlock(similarity)
    for build in (
        lambda **how: TransportProblem.uniform(torch.eye(2), valid[0], valid[0], **how),
        lambda **how: bucket_problem(similarity, 0.3, valid, valid, **how),
    ):
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got -0.1"):
            build(epsilon=-0.1)
        with pytest.raises(TypeError, match="epsilon must be a plain number"):
            build(epsilon=torch.tensor(0.1))
        with pytest.raises(ValueError, match=r"score_range must be finite numbers \(lo, hi\)"):
            build(epsilon=0.1, score_range=(1.0, 0.0))
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got 0.0"):
        PromptBucket()(block, 0.0)
    with pytest.raises(ValueError, match="p must be a finite similarity, got nan"):
        bucket_problem(similarity, math.nan, valid, valid, 0.1)
    with pytest.raises(ValueError, match=r"p must be a single number, got shape \(3,\)"):
        bucket_problem(similarity, torch.ones(3), valid, valid, 0.1)
    one = bucket_problem(similarity, torch.ones(1), valid, valid, 0.1)
    assert torch.equal(one.scores, bucket_problem(similarity, 1.0, valid, valid, 0.1).scores)


def test_a_block_and_a_tensor_are_told_apart() -> None:
    block = SimilarityBlock(torch.rand(1, 1, 2, 2))
    with pytest.raises(TypeError, match="got SimilarityBlock; call evaluate"):
        DynamicTimeWarping()(block)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"block must be a SimilarityBlock, got Tensor; write Sim"):
        PromptBucket()(block.values, 0.1)  # type: ignore[arg-type]


def test_tensors_on_different_devices() -> None:
    with pytest.raises(ValueError, match="text must be on cpu like the other inputs, got meta"):
        NortonLoss()(video, text.to("meta"))
    with pytest.raises(
        ValueError, match="token_mask must be on cpu like the other inputs, got met"
    ):
        Segments(video, torch.ones(2, 3, 4).bool().to("meta"))
