from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from norton_losses import MaxSimilarity, MeanSimilarity, Segments, SoftMaximumSimilarity
from norton_losses._typing import Exponential
from norton_losses.functional import minmax, soft_maximum
from norton_losses.fusion import AbstractTokenSimilarity
from tests import naive
from tests.batches import Batch, make_batch

EVERY = [
    SoftMaximumSimilarity(),
    SoftMaximumSimilarity(1.0, exponential="sum", rescale="minmax"),
    SoftMaximumSimilarity(0.5, exponential="sum", count_padding=True, pooled_weight=0),
    MaxSimilarity(),
    MeanSimilarity(),
]
EXACT = [similarity for similarity in EVERY if not getattr(similarity, "count_padding", False)]


def named(similarity: AbstractTokenSimilarity) -> str:
    return f"{type(similarity).__name__}-{similarity.extra_repr()}".replace(" ", "")


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("exponential", ["mean", "sum"])
@pytest.mark.parametrize(("frames", "words"), [(1, 40), (100, 32), (3, 5)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_largest_and_the_smallest_lie_within_the_bounds(
    count_padding: bool, exponential: Exponential, frames: int, words: int, padded: bool
) -> None:
    options = {"pooled_weight": 0.0, "exponential": exponential, "count_padding": count_padding}
    similarity = SoftMaximumSimilarity(0.5, **options)  # type: ignore[arg-type]
    kept = (frames + 1) // 2 if padded else frames
    mask = (torch.arange(frames) < kept).expand(1, 1, -1)
    for sign in (1, -1):
        video = Segments(torch.ones(1, 1, frames, 2), mask)
        values = similarity(video, sign * torch.ones(1, 1, words, 2))
        lo, hi = similarity.bounds(frames, words)
        assert lo - 1e-6 <= values.item() <= hi + 1e-6
    others = MaxSimilarity(pooled_weight=0), MeanSimilarity(pooled_weight=0)
    assert [other.bounds(frames, words) for other in others] == [(-1.0, 1.0)] * 2


def by_loops(batch: Batch, alpha: float, mean: bool) -> np.ndarray:
    """Eq. (5) of every pair, each with its valid tokens only; 0 where there are none."""
    video = [t.numpy() for t in (batch.video_tokens, batch.frame_mask)]
    text = [t.numpy() for t in (batch.text_tokens, batch.word_mask)]
    (bv, n), (bt, m) = video[1].shape[:2], text[1].shape[:2]
    out = np.zeros((bv, bt, n, m))
    for a, b, i, j in np.ndindex(out.shape):
        frames, words = video[0][a, i][video[1][a, i]], text[0][b, j][text[1][b, j]]
        if len(frames) and len(words):
            out[a, b, i, j] = naive.soft_maximum(frames, words, alpha, mean)
    return out


@pytest.mark.parametrize("alpha", [0.005, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("exponential", ["mean", "sum"])
def test_soft_maximum_is_equation_5(alpha: float, exponential: str) -> None:
    batch = make_batch(2, 3, 4, ragged=True)
    actual = soft_maximum(
        *batch.token_sides,
        alpha=alpha,
        exponential=exponential,  # type: ignore[arg-type]
    )
    expected = by_loops(batch, alpha, exponential == "mean")
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_soft_maximum_gradcheck(alpha: float) -> None:
    batch = make_batch(2, 2, 2, ragged=True).leaves()
    assert torch.autograd.gradcheck(
        lambda v, t: soft_maximum(*batch.token_sides_of(v, t), alpha=alpha),
        batch.tokens,
    )


@pytest.mark.parametrize("similarity", EVERY, ids=named)
def test_modules_gradcheck(similarity: AbstractTokenSimilarity) -> None:
    batch = make_batch(2, 2, 3, frames=2, words=2, width=4, ragged=True).leaves()
    assert torch.autograd.gradcheck(
        lambda v, t: similarity(*batch.token_sides_of(v, t)),
        batch.tokens,
    )


def test_module_is_the_function_of_unit_tokens() -> None:
    batch = make_batch(ragged=True)
    video, text = (torch.nn.functional.normalize(t, dim=-1) for t in batch.tokens)
    module = SoftMaximumSimilarity(0.3, pooled_weight=0)(*batch.token_sides)
    torch.testing.assert_close(module, soft_maximum(*batch.token_sides_of(video, text), alpha=0.3))


@pytest.mark.parametrize("count_padding", [False, True])
def test_the_function_knows_no_masked_token_and_no_absent_segment(count_padding: bool) -> None:
    tokens, words = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4, requires_grad=True)
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    word_mask = torch.tensor([[[True, True, True, True, False], [False] * 5]])
    found = []
    for garbage in (0.0, math.nan):
        given = tokens.masked_fill(~mask[..., None], garbage).requires_grad_()
        sides = Segments(given, mask), Segments(words, word_mask)
        scores = soft_maximum(*sides, exponential="sum", count_padding=count_padding)
        assert scores[0, 0, 0, 0] != 0
        assert not scores[:, :, 1].any()
        assert not scores[:, :, :, 1].any()
        found.append((scores, *torch.autograd.grad(scores.sum(), (given, words))))
    torch.testing.assert_close(*found)


def test_the_function_has_second_derivatives() -> None:
    tokens = [torch.randn(1, 2, t, 3).double().requires_grad_() for t in (2, 3)]
    assert torch.autograd.gradgradcheck(soft_maximum, tokens)


def test_equal_maxima_share_their_gradient() -> None:
    frame = torch.tensor([[[[0.6, 0.8]]]])
    words = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], requires_grad=True)
    score = MaxSimilarity(pooled_weight=0)(frame, words)
    assert score.item() == pytest.approx(0.6)
    (gradient,) = torch.autograd.grad(score, words)
    # Half of the frame's 0.8 for each, and as much as one of two words: the mean of 0.4 and 0.4.
    torch.testing.assert_close(gradient, torch.tensor([[[[0.0, 0.4], [0.0, 0.4]]]]))


def test_small_alpha_is_the_maximum() -> None:
    batch = make_batch(ragged=True)
    soft = SoftMaximumSimilarity(1e-4, exponential="sum")(*batch.token_sides)
    torch.testing.assert_close(soft, MaxSimilarity()(*batch.token_sides), atol=1e-3, rtol=0)


def test_large_alpha_with_means_is_the_mean() -> None:
    batch = make_batch(ragged=True)
    soft = SoftMaximumSimilarity(1e4)(*batch.token_sides)
    torch.testing.assert_close(soft, MeanSimilarity()(*batch.token_sides), atol=1e-3, rtol=0)


@pytest.mark.parametrize("similarity", [SoftMaximumSimilarity(), MaxSimilarity(), MeanSimilarity()])
def test_one_frame_and_one_word_give_the_cosine(similarity: AbstractTokenSimilarity) -> None:
    video, text = torch.randn(2, 3, 1, 8), torch.randn(4, 5, 1, 8)
    cosine = torch.cosine_similarity(
        video.reshape(2, 1, 3, 1, 8), text.reshape(1, 4, 1, 5, 8), dim=-1
    )
    torch.testing.assert_close(similarity(video, text), cosine)


def test_sum_rewards_length_and_mean_does_not() -> None:
    word = torch.tensor([1.0, 0.0])
    once, thrice = word.expand(1, 1, 1, 2), word.expand(1, 1, 3, 2)
    clip = torch.tensor([0.6, 0.8]).expand(1, 1, 2, 2)
    by_sum = [soft_maximum(clip, text, exponential="sum").item() for text in (once, thrice)]
    by_mean = [soft_maximum(clip, text).item() for text in (once, thrice)]
    assert by_sum[1] - by_sum[0] == pytest.approx(0.1 * math.log(3) / 2, abs=1e-6)
    assert by_mean[1] == pytest.approx(by_mean[0], abs=1e-6)


def test_count_padding_leaks_as_its_closed_form_says() -> None:
    batch = make_batch(2, 2, 2, frames=3, words=5, ragged=True)
    alpha = 0.7
    leaking, exact = (
        soft_maximum(
            *batch.token_sides, alpha=alpha, exponential="sum", count_padding=count_padding
        )
        for count_padding in (True, False)
    )
    for a, b, i, j in np.ndindex(*exact.shape):
        f, w = int(batch.frame_mask[a, i].sum()), int(batch.word_mask[b, j].sum())
        leak = 0.0
        if f and w:
            leak = alpha * ((5 - w) * math.log(f) / w + (3 - f) * math.log(w) / f) / 2
        assert (leaking - exact)[a, b, i, j].item() == pytest.approx(leak, abs=1e-12)


@pytest.mark.parametrize("similarity", EXACT, ids=named)
def test_what_is_masked_has_no_effect(similarity: AbstractTokenSimilarity) -> None:
    batch = make_batch(ragged=True)

    def run(garbage: float) -> list[torch.Tensor]:
        leaves = batch.leaves()
        with torch.no_grad():
            leaves.video_tokens[~batch.frame_mask] = garbage
            leaves.text_tokens[~batch.word_mask] = -garbage
        value = similarity(*leaves.token_sides)
        return [value.detach(), *torch.autograd.grad(value.square().sum(), leaves.tokens)]

    for clean, dirty in zip(run(0.0), run(math.nan), strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("similarity", EXACT, ids=named)
def test_padding_is_as_if_cut_off(similarity: AbstractTokenSimilarity) -> None:
    batch = make_batch(frames=3, words=4)
    padded = make_batch(frames=6, words=7)
    padded.video_tokens[:, :, :3], padded.text_tokens[:, :, :4] = batch.tokens
    padded.frame_mask[:, :, 3:], padded.word_mask[:, :, 4:] = False, False
    actual = similarity(*padded.token_sides)
    torch.testing.assert_close(actual, similarity(*batch.tokens))


@pytest.mark.parametrize("similarity", EVERY, ids=named)
def test_absent_clips_and_captions_score_zero_without_gradient(
    similarity: AbstractTokenSimilarity,
) -> None:
    batch = make_batch().leaves()
    batch.frame_mask[0, 1], batch.word_mask[1, 2] = False, False
    value = similarity(*batch.token_sides)
    assert not value[0, :, 1].any()
    assert not value[:, 1, :, 2].any()
    value.sum().backward()
    assert batch.video_tokens.grad is not None
    assert not batch.video_tokens.grad[0, 1].any()
    assert batch.video_tokens.grad[0, 0].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("similarity", EVERY, ids=named)
def test_half_precision_in_float32_out(
    similarity: AbstractTokenSimilarity, dtype: torch.dtype
) -> None:
    batch = make_batch(dtype=torch.float32).leaves(dtype)
    value = similarity(*batch.tokens)
    expected = similarity(*(t.detach().float() for t in batch.tokens))
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    value.sum().backward()
    assert batch.video_tokens.grad is not None
    assert batch.video_tokens.grad.dtype == dtype


def test_pooled_part_uses_the_embeddings_given() -> None:
    batch = make_batch(2)
    clips, captions = torch.randn(2, 4, 6).double(), torch.randn(2, 4, 6).double()
    tokens_only = SoftMaximumSimilarity(pooled_weight=0)(*batch.tokens)
    fused = SoftMaximumSimilarity(pooled_weight=2.0)(
        Segments(batch.video_tokens, embeddings=clips),
        Segments(batch.text_tokens, embeddings=captions),
    )
    cosine = torch.cosine_similarity(clips[:, None, :, None], captions[None, :, None], dim=-1)
    torch.testing.assert_close(fused, (2 * cosine + tokens_only) / 3)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_pooled_part_has_its_weight(weight: float) -> None:
    video, text = torch.randn(2, 3, 4, 8).double(), torch.randn(2, 3, 5, 8).double()
    tokens = MeanSimilarity(pooled_weight=0)(video, text)
    clips, captions = (torch.nn.functional.normalize(s.mean(2), dim=-1) for s in (video, text))
    cosine = torch.einsum("and,bmd->abnm", clips, captions)
    mixed = MeanSimilarity(pooled_weight=weight)(video, text)
    torch.testing.assert_close(mixed, (weight * cosine + tokens) / (weight + 1))
    stretched = MeanSimilarity(pooled_weight=weight, rescale="minmax")(video, text)
    cosine, tokens = (minmax(part, torch.ones_like(part).bool()) for part in (cosine, tokens))
    torch.testing.assert_close(stretched, (weight * cosine + tokens) / (weight + 1))


def test_the_range_of_a_block_is_what_is_known_of_it() -> None:
    video, text = (Segments(tokens) for tokens in torch.randn(2, 2, 3, 4, 8))
    assert MaxSimilarity().between(video, text).bounds == (-1.0, 1.0)
    stretched = MaxSimilarity(rescale="minmax")
    assert stretched.between(video, text).bounds == (0.0, 1.0)
    assert stretched.between(video, text, (-0.5, 0.5)).bounds is None
    long = Segments(torch.randn(2, 3, 40, 8))
    summed = SoftMaximumSimilarity(0.5, exponential="sum", pooled_weight=0)
    for sides, longest in (((video, long), 40), ((long, text), 40), ((video, text), 4)):
        assert summed.between(*sides).bounds == summed.bounds(4, longest)


def test_stretching_counts_the_cells_of_two_present_segments_alone() -> None:
    tokens = [torch.rand(1, 3, t, 4) + 0.5 for t in (2, 3)]  # all similarities are well above 0
    mask = torch.tensor([[True, True, False]])
    similarity = MaxSimilarity(rescale="minmax")
    found = similarity(*(Segments(side, mask=mask) for side in tokens))
    torch.testing.assert_close(found[..., :2, :2], similarity(*(side[:, :2] for side in tokens)))


def test_non_contiguous_tokens() -> None:
    batch = make_batch(ragged=True)
    strided = [t.transpose(0, 3).contiguous().transpose(0, 3) for t in batch.tokens]
    assert not strided[0].is_contiguous()
    similarity = SoftMaximumSimilarity()
    torch.testing.assert_close(
        similarity(*batch.token_sides_of(*strided)), similarity(*batch.token_sides)
    )


class TestMinMax:
    @pytest.mark.parametrize("garbage", [1e6, -1e6, math.nan])
    def test_ends_at_zero_and_one_over_valid_entries(self, garbage: float) -> None:
        values, mask = torch.randn(4, 5), torch.rand(4, 5) < 0.7
        values[~mask] = garbage
        scaled = minmax(values, mask)
        assert scaled[mask].min() == 0
        assert scaled[mask].max() == 1
        assert not scaled[~mask].any()

    def test_gradient_goes_through_both_ends(self) -> None:
        values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        mask = torch.ones(3, 4, dtype=torch.bool)
        assert torch.autograd.gradcheck(lambda x: minmax(x, mask), values)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rounding_is_not_stretched(self, dtype: torch.dtype) -> None:
        mask = torch.ones(2, dtype=torch.bool)
        eps = torch.finfo(dtype).eps
        flat = torch.tensor([0.5, 0.5 + 4 * eps], dtype=dtype, requires_grad=True)
        scaled = minmax(flat, mask)
        scaled.sum().backward()
        assert not scaled.any()
        assert flat.grad is not None
        assert not flat.grad.any()
        for size in (0.5, 1e-3, -0.5):  # rounding is as large as the numbers are
            apart = torch.tensor([size, size + 64 * abs(size) * eps], dtype=dtype)
            assert minmax(apart, mask)[1] == 1

    def test_nothing_valid(self) -> None:
        values = torch.randn(3, requires_grad=True)
        scaled = minmax(values, torch.zeros(3, dtype=torch.bool))
        scaled.sum().backward()
        assert not scaled.any()
        assert values.grad is not None
        assert not values.grad.any()

    def test_arguments_are_checked(self) -> None:
        mask = torch.ones(3, dtype=torch.bool)
        with pytest.raises(TypeError, match="values must be a floating tensor"):
            minmax(torch.arange(3), mask)
        with pytest.raises(ValueError, match="known_range must be"):
            minmax(torch.rand(3), mask, known_range=(1.0, 1.0))
        tokens, stretched = torch.rand(1, 2, 3, 4), MaxSimilarity(rescale="minmax")
        with pytest.raises(ValueError, match="similarity_range is .* this similarity has none"):
            MaxSimilarity()(tokens, tokens, similarity_range=(0.0, 1.0))
        with pytest.raises(ValueError, match="similarity_range must be"):
            stretched(tokens, tokens, similarity_range=(1.0, 1.0))

    def test_known_range(self) -> None:
        scaled = minmax(torch.tensor([0.0, 1.0]), torch.ones(2, dtype=torch.bool), (-1.0, 1.0))
        torch.testing.assert_close(scaled, torch.tensor([0.5, 1.0]))
