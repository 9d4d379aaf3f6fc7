from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from norton_losses import (
    BackgroundFiltered,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    PromptBucket,
    Segments,
    SoftMaximumSimilarity,
    TorchSinkhorn,
    TransportMeasure,
)
from norton_losses.functional import video_paragraph_loss
from tests import naive
from tests.batches import Batch, make_batch

# Differencing goes through the transport plan as well, so only the entropic score, whose gradient
# is exact with the plan held fixed, can be checked whole; the others are checked with theirs fixed.
ENTROPIC = TransportMeasure(0.3, PromptBucket(value=0.1), TorchSinkhorn(400), objective="entropic")


def explained_by_loops(batch: Batch, loss: NortonVideoParagraphLoss) -> float:
    """The loss from its definition: every pair of sequences on its own, valid entries only."""
    similarity = loss.similarity(*batch.sides).numpy()
    clips, captions = batch.clips_present.numpy(), batch.captions_present.numpy()
    size = len(clips)
    length = min(clips.shape[1], captions.shape[1])
    own = sorted(
        similarity[b, b, i, i]
        for b in range(size)
        for i in range(length)
        if clips[b, i] and captions[b, i]
    )
    p = own[max(1, int(0.3 * len(own))) - 1]
    scores = np.array(
        [
            [
                naive.transport_measure(
                    similarity[a, b][clips[a]][:, captions[b]], p, 0.05, 50, True
                )
                for b in range(size)
            ]
            for a in range(size)
        ]
    )
    factor = (clips.sum() + captions.sum()) / (2 * size) if loss.scale_by_length else 1
    return naive.cross_entropy(scores * factor / loss.temperature().item(), np.eye(size))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("clips", "captions"), [(4, 4), (5, 3), (1, 4)])
@pytest.mark.parametrize("scale_by_length", [False, True])
def test_value_is_the_definition(
    ragged: bool, clips: int, captions: int, scale_by_length: bool
) -> None:
    batch = make_batch(3, clips, captions, ragged=ragged and clips > 1)
    loss = NortonVideoParagraphLoss(scale_by_length=scale_by_length)
    actual = loss(*batch.sides)
    assert actual.item() == pytest.approx(explained_by_loops(batch, loss), rel=1e-6)


def test_defaults() -> None:
    loss = NortonVideoParagraphLoss()
    assert loss.temperature is not None
    assert loss.temperature().item() == pytest.approx(0.1)
    assert not loss.scale_by_length
    assert not list(loss.parameters())


def test_length_is_that_of_sequences_valid_on_both_sides() -> None:
    batch = make_batch(4)
    batch.clip_mask[0, 2:] = False  # 2 clips, 4 captions
    batch.caption_mask[1, 1:] = False  # 4 clips, 1 caption
    batch.caption_mask[2] = False  # 4 clips, no captions: a negative, and of no length
    batch.clip_mask[3] = False  # no clips, 4 captions
    plain, scaled = (
        NortonVideoParagraphLoss(scale_by_length=by_length).explain(*batch.sides)
        for by_length in (False, True)
    )
    torch.testing.assert_close(scaled.logits, (2 + 4 + 4 + 1) / 4 * plain.logits)
    of_function = video_paragraph_loss(
        plain.similarity,
        clip_mask=batch.clips_present,
        caption_mask=batch.captions_present,
        scale_by_length=True,
    )
    torch.testing.assert_close(of_function, scaled.loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        NortonVideoParagraphLoss(measure=ENTROPIC, temperature=0.5, learnable_temperature=True),
        NortonVideoParagraphLoss(MaxSimilarity(), ENTROPIC, temperature=0.5, scale_by_length=True),
        NortonVideoParagraphLoss(MeanSimilarity(), CaptionAverage(), temperature=0.5),
        NortonVideoParagraphLoss(SoftMaximumSimilarity(rescale="minmax"), CaptionAverage()),
    ],
    ids=["entropic", "max", "mean", "minmax"],
)
def test_gradcheck(loss: NortonVideoParagraphLoss) -> None:
    batch = make_batch(2, 2, 3, frames=2, words=2, width=3, ragged=True).leaves()
    loss = loss.double()
    assert torch.autograd.gradcheck(
        lambda v, t, *_: loss(*batch.sides_of(v, t)), (*batch.tokens, *loss.parameters())
    )


@pytest.mark.parametrize("conserve_mass", [True, False])
def test_gradient_with_the_plan_held_fixed(conserve_mass: bool) -> None:
    batch = make_batch(2, 3, 3, ragged=True).leaves()
    measure = TransportMeasure(conserve_mass=conserve_mass)
    loss = NortonVideoParagraphLoss(measure=measure).double()
    out = loss.explain(*batch.sides)
    assert out.plan is not None
    core = out.plan.core
    weights = core / core.sum((-2, -1), keepdim=True) if conserve_mass else 2 * core

    class Frozen(torch.nn.Module):
        def forward(self, similarity, clip_mask, caption_mask):
            return (weights * similarity).sum((-2, -1))

    frozen = NortonVideoParagraphLoss(measure=Frozen()).double()
    expected = torch.autograd.grad(frozen(*batch.sides), batch.tokens)
    for ours, theirs in zip(torch.autograd.grad(out.loss, batch.tokens), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda v, t: frozen(*batch.sides_of(v, t)), batch.tokens)


def test_a_gradient_step_lowers_the_loss() -> None:
    batch = make_batch(4).leaves()
    loss = NortonVideoParagraphLoss()
    before = loss(*batch.tokens)
    gradients = torch.autograd.grad(before, batch.tokens)
    after = loss(*(t - 1e-3 * g for t, g in zip(batch.tokens, gradients, strict=True)))
    assert after < before


def test_module_is_the_function_of_its_similarity() -> None:
    batch = make_batch(ragged=True)
    loss = NortonVideoParagraphLoss(temperature=0.3)
    group_ids = torch.arange(len(batch.clips_present)).clamp(min=1)  # the first two are one group
    for ids in (None, group_ids):
        out = loss.explain(*batch.sides, group_ids=ids)
        value = video_paragraph_loss(
            out.similarity,
            clip_mask=batch.clips_present,
            caption_mask=batch.captions_present,
            temperature=loss.temperature(),
            group_ids=ids,
        )
        assert torch.equal(value, out.loss)
    assert torch.equal(out.clip_mask, batch.clips_present)


@pytest.mark.parametrize(
    "similarity",
    [SoftMaximumSimilarity(), SoftMaximumSimilarity(rescale="minmax"), MaxSimilarity()],
)
def test_what_is_masked_has_no_effect(similarity: torch.nn.Module) -> None:
    batch = make_batch(ragged=True)
    loss = NortonVideoParagraphLoss(similarity)  # type: ignore[arg-type]

    def run(garbage: float) -> list[torch.Tensor]:
        leaves = batch.leaves()
        with torch.no_grad():
            leaves.video_tokens[~(batch.frame_mask & batch.clip_mask[..., None])] = garbage
            leaves.text_tokens[~(batch.word_mask & batch.caption_mask[..., None])] = -garbage
        value = loss(*leaves.sides)
        return [value.detach(), *torch.autograd.grad(value, leaves.tokens)]

    for clean, dirty in zip(run(0.0), run(math.nan), strict=True):
        assert torch.equal(clean, dirty)


def test_padding_with_whole_clips_changes_nothing() -> None:
    batch, padded = make_batch(clips=4, captions=3), make_batch(clips=6, captions=7)
    padded.video_tokens[:, :4], padded.text_tokens[:, :3] = batch.tokens
    padded.clip_mask[:, 4:], padded.caption_mask[:, 3:] = False, False
    loss = NortonVideoParagraphLoss()
    torch.testing.assert_close(loss(*padded.sides), loss(*batch.tokens))


def test_an_absent_sequence_is_as_if_not_in_the_batch() -> None:
    batch = make_batch(4).leaves()
    batch.clip_mask[2], batch.word_mask[2] = False, False
    loss = NortonVideoParagraphLoss()
    rest = torch.tensor([0, 1, 3])
    value = loss(*batch.sides)
    expected = loss(*(t[rest] for t in batch.tokens))
    torch.testing.assert_close(value, expected)
    for gradient in torch.autograd.grad(value, batch.tokens):
        assert not gradient[2].any()


def test_a_video_without_paragraph_is_still_a_negative() -> None:
    batch = make_batch(3)
    batch.caption_mask[2] = False
    out = NortonVideoParagraphLoss().explain(*batch.sides)
    rows = out.logits[:2, :2].log_softmax(1).diagonal()
    columns = out.logits[:, :2].log_softmax(0).diagonal()
    torch.testing.assert_close(out.loss, -(rows + columns).mean())
    assert not out.scores[:, 2].any()


def test_nothing_valid_gives_zero_on_the_graph() -> None:
    batch = make_batch().leaves()
    batch.frame_mask[:] = False
    loss = NortonVideoParagraphLoss(learnable_temperature=True, scale_by_length=True)
    value = loss(*batch.sides)
    value.backward()
    assert value.item() == 0
    for leaf in (*batch.tokens, *loss.parameters()):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize(
    "loss",
    [NortonVideoParagraphLoss(), NortonVideoParagraphLoss(SoftMaximumSimilarity(rescale="minmax"))],
)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_all_equal_similarity_is_finite(loss: NortonVideoParagraphLoss, fill: float) -> None:
    tokens = torch.full((3, 2, 2, 4), fill, requires_grad=True)
    value = loss(tokens, tokens)
    value.backward()
    assert value.item() == pytest.approx(2 * math.log(3), rel=1e-5)
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize(("batch_size", "clips"), [(1, 4), (3, 1), (1, 1)])
def test_batch_of_one_and_one_clip(batch_size: int, clips: int) -> None:
    batch = make_batch(batch_size, clips, clips).leaves()
    value = NortonVideoParagraphLoss()(*batch.tokens)
    value.backward()
    assert batch.video_tokens.grad is not None
    assert batch.video_tokens.grad.isfinite().all()
    assert (value == 0) == (batch_size == 1)


def test_three_dimensional_tokens_stand_for_one_token_each() -> None:
    batch = make_batch(frames=1, words=1, ragged=True)
    masks = batch.clips_present, batch.captions_present
    loss = NortonVideoParagraphLoss()
    flat = loss(
        *(Segments(t[:, :, 0], mask=mask) for t, mask in zip(batch.tokens, masks, strict=True))
    )
    torch.testing.assert_close(flat, loss(*batch.sides))


def test_embeddings_default_to_the_mean_of_valid_tokens() -> None:
    batch = make_batch(ragged=True)
    clips = torch.zeros(3, 4, 8).double()
    for b, i in np.ndindex(3, 4):
        if batch.frame_mask[b, i].any():
            clips[b, i] = batch.video_tokens[b, i][batch.frame_mask[b, i]].mean(0)
    loss = NortonVideoParagraphLoss()
    torch.testing.assert_close(
        loss(
            Segments(batch.video_tokens, batch.frame_mask, mask=batch.clip_mask, embeddings=clips),
            batch.sides[1],
        ),
        loss(*batch.sides),
    )


def test_group_members_are_not_negatives() -> None:
    batch = make_batch(3)
    loss = NortonVideoParagraphLoss()
    out = loss.explain(*batch.tokens, group_ids=torch.tensor([7, 7, 9]))
    hidden = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    seen = out.logits.masked_fill(hidden, -torch.inf)
    expected = -(seen.log_softmax(0) + seen.log_softmax(1)).diagonal().mean()
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(loss(*batch.tokens, group_ids=torch.arange(3)), loss(*batch.tokens))
    assert loss(*batch.tokens, group_ids=torch.zeros(3).long()).item() == pytest.approx(
        0, abs=1e-12
    )


class TestExplain:
    def test_only_the_loss_carries_gradient(self) -> None:
        batch = make_batch().leaves()
        loss = NortonVideoParagraphLoss(learnable_temperature=True)
        out = loss.explain(*batch.tokens)
        assert out.loss.requires_grad
        assert out.plan is not None
        assert out.bucket_value is not None
        rest = (out.similarity, out.scores, out.logits, out.temperature, out.bucket_value)
        assert not any(t.requires_grad for t in (*rest, out.plan.plan, out.plan.score))
        assert torch.equal(out.loss, loss(*batch.tokens))

    def test_is_frozen(self) -> None:
        out = NortonVideoParagraphLoss().explain(*make_batch().tokens)
        with pytest.raises(AttributeError):
            out.loss = out.scores  # type: ignore[misc]

    def test_measures_without_plan_have_none(self) -> None:
        loss = NortonVideoParagraphLoss(measure=CaptionAverage())
        out = loss.explain(*make_batch().tokens)
        assert out.plan is None
        assert out.bucket_value is None

    def test_plan_finds_late_captions(self) -> None:
        clips = torch.eye(6)[None].expand(2, 6, 6)
        captions = clips.roll(1, dims=1)  # every caption comes one clip late
        out = NortonVideoParagraphLoss(measure=TransportMeasure(bucket=None)).explain(
            clips, captions
        )
        assert out.plan is not None
        assert (out.plan.core[0, 0].argmax(0) == torch.arange(6).roll(1)).all()


def test_masks_for_each_pair_are_for_measures() -> None:
    masks = torch.ones(3, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"clip_mask must have shape \(3, 4\), got \(3, 3, 4\)"):
        video_paragraph_loss(torch.rand(3, 3, 4, 5), clip_mask=masks)


def test_what_is_no_measure_is_refused_at_construction() -> None:
    for wrong in ("dtw", DynamicTimeWarping):
        with pytest.raises(TypeError, match=r"pass an object such as DynamicTimeWarping\(\)"):
            NortonVideoParagraphLoss(measure=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="measure must be called with"):
            BackgroundFiltered(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a NortonLoss is a loss; leave it out"):
        NortonVideoParagraphLoss(NortonLoss())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a DynamicTimeWarping is a measure; pass it as measure="):
        NortonVideoParagraphLoss(DynamicTimeWarping())  # type: ignore[arg-type]
    for wrong in (MaxSimilarity(), ClipCaptionOTLoss()):
        with pytest.raises(TypeError, match="measure must score similarities, got a "):
            NortonVideoParagraphLoss(measure=wrong)
        with pytest.raises(TypeError, match="measure must score similarities, got a "):
            video_paragraph_loss(torch.rand(2, 2, 3, 3), measure=wrong)


class TestScore:
    @pytest.mark.parametrize("bucket_value", [None, 0.2])
    def test_any_tiling_gives_the_same(self, bucket_value: float | None) -> None:
        videos, texts = make_batch(5, ragged=True), make_batch(4, seed=1, ragged=True)
        loss = NortonVideoParagraphLoss()

        def score(rows: slice, columns: slice) -> torch.Tensor:
            video, text = videos.sides[0][rows], texts.sides[1][columns]
            return loss.score(video, text, bucket_value=bucket_value)

        whole = score(slice(None), slice(None))
        assert whole.shape == (5, 4)
        tiles = torch.cat(
            [
                torch.cat([score(slice(r, r + 2), slice(c, c + 3)) for c in (0, 3)], dim=1)
                for r in (0, 2, 4)
            ]
        )
        torch.testing.assert_close(tiles, whole, rtol=0, atol=1e-14)

    def test_is_the_measure_without_length_or_temperature(self) -> None:
        batch = make_batch(3)
        loss = NortonVideoParagraphLoss(scale_by_length=True)
        out = loss.explain(*batch.tokens)
        assert out.bucket_value is not None
        fixed = loss.score(*batch.tokens, bucket_value=out.bucket_value.item())
        torch.testing.assert_close(fixed, out.scores)
        free = NortonVideoParagraphLoss(measure=TransportMeasure(bucket=None))
        torch.testing.assert_close(loss.score(*batch.tokens), free.explain(*batch.tokens).scores)

    def test_absent_candidates_score_minus_infinity(self) -> None:
        batch = make_batch(3)
        batch.clip_mask[1], batch.word_mask[2] = False, False
        score = NortonVideoParagraphLoss().score(*batch.sides)
        assert (score[1] == -torch.inf).all()
        assert (score[:, 2] == -torch.inf).all()
        assert score[[0, 2]][:, :2].isfinite().all()

    def test_a_paragraph_with_padding_is_a_candidate(self) -> None:
        video, text = make_batch(3).tokens
        captions = torch.arange(text.shape[1]) < torch.tensor([[1], [2], [3]])
        scores = NortonVideoParagraphLoss().score(video, Segments(text, mask=captions))
        assert scores.isfinite().all()

    def test_min_max_needs_its_range(self) -> None:
        batch = make_batch(3)
        loss = NortonVideoParagraphLoss(SoftMaximumSimilarity(rescale="minmax"))
        with pytest.raises(ValueError, match=r"pass similarity_range=\(lo, hi\)"):
            loss.score(*batch.tokens)
        whole = loss.score(*batch.tokens, similarity_range=(-1.0, 1.0))
        part = loss.score(*(t[1:] for t in batch.tokens), similarity_range=(-1.0, 1.0))
        torch.testing.assert_close(whole[1:, 1:], part)
        with pytest.raises(ValueError, match="lo < hi"):
            loss.score(*batch.tokens, similarity_range=(1.0, 1.0))
        with pytest.raises(ValueError, match="and this similarity has none"):
            NortonVideoParagraphLoss().score(*batch.tokens, similarity_range=(0.0, 1.0))

    def test_bucket_value_needs_a_transport(self) -> None:
        loss = NortonVideoParagraphLoss(measure=CaptionAverage())
        with pytest.raises(ValueError, match=r"TransportMeasure, and here is a CaptionAv"):
            loss.score(*make_batch().tokens, bucket_value=0.1)


class TestFunction:
    def test_garbage_in_absent_cells_has_no_effect(self) -> None:
        similarity = torch.rand(2, 2, 3, 3)
        clips = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
        dirty = similarity.clone()
        dirty[0, :, 2] = math.nan
        assert torch.equal(
            video_paragraph_loss(dirty, clip_mask=clips),
            video_paragraph_loss(similarity, clip_mask=clips),
        )

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="as many videos as paragraphs"):
            video_paragraph_loss(torch.rand(2, 3, 4, 4))
        with pytest.raises(ValueError, match="similarity must have 4 dimensions"):
            video_paragraph_loss(torch.rand(4, 4))
        with pytest.raises(ValueError, match="temperature must lie in"):
            video_paragraph_loss(torch.rand(2, 2, 3, 3), temperature=0.0)
        with pytest.raises(
            ValueError, match=r"temperature must be a single number, got shape \(3,\)"
        ):
            video_paragraph_loss(torch.rand(3, 3, 3, 3), temperature=torch.ones(3))
        with pytest.raises(TypeError, match=r"similarity must be a torch.Tensor .*, got list"):
            video_paragraph_loss([[1.0]])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="group_ids must be an integer torch.Tensor, got list"):
            video_paragraph_loss(torch.rand(2, 2, 3, 3), group_ids=[0, 1])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="similarity must be a floating tensor"):
            video_paragraph_loss(torch.ones(2, 2, 3, 3).long())
        for name in ("clip_mask", "caption_mask"):
            masks = {name: torch.ones(2, 2, 3).bool()}
            with pytest.raises(
                ValueError, match=rf"{name} must have shape \(2, 3\), got \(2, 2, 3"
            ):
                video_paragraph_loss(torch.rand(2, 2, 3, 3), **masks)  # type: ignore[arg-type]


def test_a_sequence_without_the_other_side_has_no_length() -> None:
    g = torch.Generator().manual_seed(0)
    frames, words = torch.randn(3, 6, 2, 5, generator=g), torch.randn(3, 4, 3, 5, generator=g)
    clips, captions = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    clips[0, 4:] = False
    captions[2] = False
    sides = Segments(frames, mask=clips), Segments(words, mask=captions)
    # Of the first two L is ((4 + 4) / 2 + (6 + 4) / 2) / 2 = 4.5.
    scaled = NortonVideoParagraphLoss(temperature=0.45, scale_by_length=True)
    torch.testing.assert_close(scaled(*sides), NortonVideoParagraphLoss(temperature=0.1)(*sides))
