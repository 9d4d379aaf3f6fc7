"""The numbers that `explain(...).diagnostics()` gives to a training log."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from norton_losses import (
    BackgroundFiltered,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    NortonLoss,
    NortonVideoParagraphLoss,
    PromptBucket,
    Segments,
    TransportMeasure,
)
from tests.batches import make_batch


def test_video_paragraph_numbers_are_those_of_the_plan() -> None:
    batch = make_batch(ragged=True)
    out = NortonVideoParagraphLoss(temperature=0.2).explain(*batch.sides)
    numbers = out.diagnostics()
    assert out.plan is not None
    taken, entropies, sims = [], [], []
    for b in range(3):
        plan = out.plan[b, b]
        to_bucket = plan.plan[:-1, -1].sum() + plan.plan[-1, :-1].sum()
        held = plan.plan[:-1].sum() + plan.plan[:, :-1].sum()
        assert held.item() == pytest.approx(1)  # of n clips and m captions, 1/(n+m) each
        taken.append(to_bucket.item())
        entropies.append(torch.special.entr(plan.plan).sum().item())
        for c in range(3):
            sims.append(out.similarity[b, c][out.clip_mask[b]][:, out.caption_mask[c]].flatten())
    assert numbers["bucket_mass"] == pytest.approx(sum(taken) / 3, abs=1e-4)
    assert 0 < numbers["bucket_mass"] < 1
    assert numbers["plan_entropy"] == pytest.approx(sum(entropies) / 3)
    assert numbers["marginal_error"] == pytest.approx(out.plan.marginal_error.max().item())
    assert numbers["similarity_min"] == torch.cat(sims).min()
    assert numbers["similarity_max"] == torch.cat(sims).max()
    assert numbers["temperature"] == pytest.approx(0.2)
    assert numbers["bucket_value"] == out.bucket_value
    assert numbers["loss"] == out.loss


def test_a_measure_without_plan_has_no_numbers_of_one() -> None:
    batch = make_batch()
    counts = {"videos", "clips", "captions", "frames", "words"}
    names = {"loss", "temperature", "similarity_min", "similarity_max"} | counts
    out = NortonVideoParagraphLoss(measure=DynamicTimeWarping()).explain(*batch.tokens)
    assert set(out.diagnostics()) == names
    bare = NortonVideoParagraphLoss(measure=TransportMeasure(bucket=None)).explain(*batch.tokens)
    assert set(bare.diagnostics()) == names | {"plan_entropy", "marginal_error"}


@pytest.mark.parametrize("p", [-3.0, 3.0])
def test_bucket_mass_tells_a_full_bucket_from_an_empty_one(p: float) -> None:
    measure = TransportMeasure(bucket=PromptBucket(value=p))
    out = NortonVideoParagraphLoss(measure=measure).explain(*make_batch().tokens)
    assert out.diagnostics()["bucket_mass"] == pytest.approx(float(p > 0), abs=0.02)


@pytest.mark.parametrize("clips", [4, 8, 16])
def test_the_bucket_takes_more_than_half_of_what_is_aligned(clips: int) -> None:
    """As docs/how_to/logging.md says: it competes with every clip of a perfect video."""
    same = torch.eye(2 * clips).view(2, clips, 2 * clips)
    numbers = NortonVideoParagraphLoss().explain(same, same).diagnostics()
    assert 0.5 < numbers["bucket_mass"] < 0.9


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_clip_caption_numbers(chunk_rows: int | None) -> None:
    clips = torch.randn(8, 6, dtype=torch.float64)
    mask = torch.arange(8) != 5
    loss = ClipCaptionOTLoss(temperature=0.3, chunk_rows=chunk_rows)
    out = loss.explain(Segments(clips[None], mask=mask[None]), (clips + 0.1)[None])
    numbers = out.diagnostics()
    assert out.plan is not None
    plan = out.plan.plan
    assert numbers["faulty_negative_mass"] == pytest.approx((plan.sum() - plan.trace()).item())
    assert 0 < numbers["faulty_negative_mass"] < 1
    assert numbers["plan_entropy"] == pytest.approx(torch.special.entr(plan).sum().item())
    assert numbers["temperature"] == pytest.approx(0.3)
    if chunk_rows is None:
        assert out.logits is not None
        valid = out.logits[mask][:, mask]
        assert (numbers["logit_min"], numbers["logit_max"]) == (valid.min(), valid.max())
    else:
        assert "logit_max" not in numbers


def test_a_scale_from_outside_is_one_over_the_temperature() -> None:
    clips = torch.randn(4, 6)
    loss = ClipCaptionOTLoss(0.0, temperature=None)
    for scale in (torch.tensor([20.0]), 20.0):
        numbers = loss.explain(clips, clips, logit_scale=scale).diagnostics()
        assert numbers["temperature"] == pytest.approx(0.05)
        assert set(numbers) == {"loss", "pairs", "temperature", "logit_min", "logit_max"}


def test_numbers_say_how_much_took_part() -> None:
    batch = make_batch(ragged=True)
    numbers = NortonLoss().explain(*batch.sides).diagnostics()
    video, text = batch.sides
    counts = {
        "videos": (video.mask.any(-1) & text.mask.any(-1)).sum(),
        "clips": video.mask.sum(),
        "captions": text.mask.sum(),
        "frames": video.token_mask.sum(),
        "words": text.token_mask.sum(),
    }
    for name, count in counts.items():
        assert numbers[f"video_paragraph/{name}"] == count
    assert numbers["clip_caption/pairs"] == (video.mask & text.mask).sum()


def test_a_result_is_printed_in_one_line_and_names_where_its_parts_are() -> None:
    out = NortonLoss().explain(*make_batch().tokens)
    for shown in (out, out.video_paragraph, out.clip_caption):
        assert repr(shown) == f"{type(shown).__name__}(loss={shown.loss.item():.4f})"
    with pytest.raises(AttributeError, match=r"read \.video_paragraph\.plan or \.clip_caption\.pl"):
        out.plan  # noqa: B018
    with pytest.raises(AttributeError, match=r"read \.clip_caption\.targets$"):
        out.targets  # noqa: B018
    with pytest.raises(AttributeError, match="NortonOutput has no nothing$"):
        out.nothing  # noqa: B018
    assert copy.copy(out).loss is out.loss


def test_numbers_of_both_terms_are_plain_and_finite_even_of_nothing() -> None:
    batch = make_batch()
    nothing = torch.zeros_like(batch.clip_mask)
    for mask in (None, nothing):
        numbers = (
            NortonLoss()
            .explain(Segments(batch.video_tokens, mask=mask), batch.text_tokens)
            .diagnostics()
        )
        assert json.loads(json.dumps(numbers)) == numbers
        assert all(type(value) is float and abs(value) < 1e6 for value in numbers.values())
        assert "clip_caption/faulty_negative_mass" in numbers
        assert "video_paragraph/bucket_mass" in numbers


def test_parts_of_a_plan_are_its_plans() -> None:
    plan = TransportMeasure().explain(torch.rand(3, 3, 4, 5)).plan
    assert torch.equal(plan[1, 2].plan, plan.plan[1, 2])
    assert torch.equal(plan[1].marginal_error, plan.marginal_error[1])
    assert plan[1, 2].problem.has_bucket
    mask = torch.eye(3, dtype=torch.bool)
    assert torch.equal(plan[mask].plan, plan.plan[mask])
    assert torch.equal(plan[1:, 0].plan, plan.plan[1:, 0])
    assert len(list(plan)) == 3
    for wrong in (lambda: plan[1, 2][0], lambda: plan[..., 0], lambda: list(plan[0, 0])):
        with pytest.raises(TypeError, match="only the batch, all dimensions but the last two"):
            wrong()
    cloud = ClipCaptionOTLoss(chunk_rows=2).explain(torch.rand(4, 3), torch.rand(4, 3)).plan
    with pytest.raises(TypeError, match="the plan of a point cloud has no parts"):
        cloud[0]  # type: ignore[index]


def test_a_filtered_transport_is_explained_as_well() -> None:
    batch = make_batch(ragged=True, clips=6)
    measure = BackgroundFiltered(TransportMeasure(), 1.0)
    out = NortonVideoParagraphLoss(measure=measure).explain(*batch.sides)
    assert out.plan is not None
    assert (out.plan.log_u.isfinite().sum(-1) <= out.caption_mask.sum(-1) + 1).all()
    assert 0 <= out.diagnostics()["bucket_mass"] <= 1


def test_results_and_temperatures_without_a_value_are_printed() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        loss = NortonLoss()
        out = loss.explain(torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8))
    assert repr(out) == "NortonOutput(loss=no value)"
    assert "log_scale=no value" in repr(loss)


def test_extremes_and_counts_are_of_what_is_present() -> None:
    """All similarities are well above 0, which is what stands where something is absent."""
    video, text = (torch.rand(3, 2, t, 8) + 0.5 for t in (4, 5))
    present = torch.tensor([[True, True], [True, False], [False, False]])
    out = NortonLoss().explain(Segments(video, mask=present), text)
    assert out.video_paragraph.diagnostics()["videos"] == 2
    assert out.video_paragraph.diagnostics()["similarity_min"] > 0.5
    assert out.clip_caption.diagnostics()["logit_min"] > 0.5
    mirrored = NortonLoss().explain(Segments(-video, mask=present), text)
    assert mirrored.video_paragraph.diagnostics()["similarity_max"] < -0.5
    assert mirrored.clip_caption.diagnostics()["logit_max"] < -0.5


def test_what_explains_carries_no_gradient() -> None:
    leaves = [torch.randn(2, 3, 4, 8, requires_grad=True) for _ in range(2)]
    aligned = NortonVideoParagraphLoss(measure=DynamicTimeWarping(0.1)).explain(*leaves)
    assert aligned.alignment is not None
    assert not aligned.alignment.requires_grad
    bucket = PromptBucket(learnable=True)
    measure = TransportMeasure(bucket=bucket, objective="entropic")
    with_bucket = NortonVideoParagraphLoss(measure=measure).explain(*leaves)
    assert with_bucket.bucket_value is not None
    assert not with_bucket.bucket_value.requires_grad
