from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments, TorchSinkhorn
from norton_losses.functional import clip_caption_loss, symmetric_cross_entropy
from tests import naive


def pairs(count: int = 6, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, width).double(), torch.randn(count, width).double()


def test_value_is_the_definition() -> None:
    clips, captions = pairs()
    loss = ClipCaptionOTLoss(0.3, epsilon=2.0)
    logits = naive.unit(clips.numpy()) @ naive.unit(captions.numpy()).T / 0.2
    uniform = np.full(6, 1 / 6)
    plan = naive.sinkhorn(logits, uniform, uniform, 2.0, 50)
    targets = 0.7 * np.eye(6) + 0.3 * 6 * plan
    assert loss(clips, captions).item() == pytest.approx(
        naive.cross_entropy(logits, targets), rel=1e-6
    )


def test_beta_zero_is_infonce_in_both_directions() -> None:
    clips, captions = pairs()
    loss = ClipCaptionOTLoss(beta=0.0)
    logits = normalize(clips, dim=-1) @ normalize(captions, dim=-1).T / loss.temperature()
    truth = torch.arange(6)
    out = loss.explain(clips, captions)
    torch.testing.assert_close(
        out.loss, cross_entropy(logits, truth) + cross_entropy(logits.T, truth)
    )
    assert out.plan is None
    assert torch.equal(out.targets, torch.eye(6).double())


def test_targets_mix_identity_and_plan() -> None:
    out = ClipCaptionOTLoss(0.4, sinkhorn=TorchSinkhorn(500), temperature=1.0).explain(*pairs())
    assert out.plan is not None
    expected = 0.6 * torch.eye(6).double() + 0.4 * 6 * out.plan.plan
    torch.testing.assert_close(out.targets, expected)
    torch.testing.assert_close(out.targets.sum(-1), torch.ones(6).double())
    assert not out.targets.requires_grad


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("normalized", [True, False])
def test_gradient_with_the_targets_held_fixed(beta: float, normalized: bool) -> None:
    clips, captions = (t.requires_grad_() for t in pairs(4, 3))
    loss = ClipCaptionOTLoss(beta, normalize=normalized).double()
    out = loss.explain(clips, captions)
    leaves = (clips, captions, loss.temperature.log_scale)

    def frozen(clips: torch.Tensor, captions: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if normalized:
            clips, captions = normalize(clips, dim=-1), normalize(captions, dim=-1)
        return symmetric_cross_entropy(clips @ captions.T / loss.temperature(), out.targets)

    assert torch.autograd.gradcheck(frozen, leaves)
    expected = torch.autograd.grad(frozen(*leaves), leaves)
    for ours, theirs in zip(torch.autograd.grad(out.loss, leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck_of_the_module_where_targets_do_not_move() -> None:
    clips, captions = (t.requires_grad_() for t in pairs(4, 3))
    loss = ClipCaptionOTLoss(beta=0.0).double()
    assert torch.autograd.gradcheck(
        lambda v, t, _: loss(v, t), (clips, captions, loss.temperature.log_scale)
    )


def test_raw_is_plain_dot_products() -> None:
    clips, captions = pairs()
    loss = ClipCaptionOTLoss(normalize=False, temperature=None)
    assert not list(loss.parameters())
    assert torch.equal(loss.explain(clips, captions).logits, clips @ captions.T)


def test_tokens_may_differ_in_width_from_embeddings_and_each_other() -> None:
    clips, captions = (side.view(2, 3, 8) for side in pairs())
    video = Segments(torch.randn(2, 3, 4, 16), embeddings=clips)
    text = Segments(torch.randn(2, 3, 5, 12), embeddings=captions)
    loss = ClipCaptionOTLoss()
    assert torch.equal(loss(video, text), loss(clips, captions))
    with pytest.raises(ValueError, match="share their width D, got 16 and 12"):
        NortonLoss()(video, text)


def test_leading_dimensions_are_flattened() -> None:
    clips, captions = pairs(6)
    mask, groups = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([0, 1, 2, 0, 3, 4])
    loss = ClipCaptionOTLoss()
    shaped = loss(
        Segments(clips.view(2, 3, 8), mask=mask.view(2, 3)),
        captions.view(2, 3, 8),
        group_ids=groups.view(2, 3),
    )
    flat = loss(Segments(clips[None], mask=mask[None]), captions, group_ids=groups)
    assert torch.equal(shaped, flat)
    assert torch.equal(loss(clips, captions), loss(clips.view(2, 3, 8), captions.view(2, 3, 8)))


@pytest.mark.parametrize("options", [{}, {"normalize": False, "temperature": None}])
def test_invalid_pairs_are_as_if_not_in_the_batch(options: dict) -> None:
    clips, captions = pairs()
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    loss = ClipCaptionOTLoss(**options)
    dirty = [t.masked_fill(~mask[:, None], math.nan).requires_grad_() for t in (clips, captions)]
    value = loss(*(Segments(tokens[None], mask=mask[None]) for tokens in dirty))
    torch.testing.assert_close(value, loss(clips[mask], captions[mask]))
    for gradient in torch.autograd.grad(value, dirty):
        assert not gradient[~mask].any()
        assert gradient[mask].isfinite().all()


def test_nothing_valid_gives_zero_on_the_graph() -> None:
    clips, captions = (t.requires_grad_() for t in pairs())
    value = ClipCaptionOTLoss()(Segments(clips[None], mask=torch.zeros(1, 6).bool()), captions)
    value.backward()
    assert value.item() == 0
    assert clips.grad is not None
    assert not clips.grad.any()


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_batches(count: int) -> None:
    clips, captions = (t.requires_grad_() for t in pairs(count))
    value = ClipCaptionOTLoss()(clips, captions)
    value.backward()
    assert (value == 0) == (count == 1)
    assert clips.grad is not None
    assert clips.grad.isfinite().all()


def test_one_pair_has_all_the_mass() -> None:
    out = ClipCaptionOTLoss().explain(*pairs(1))
    assert out.plan is not None
    torch.testing.assert_close(out.plan.plan, torch.ones(1, 1).double())
    torch.testing.assert_close(out.targets, torch.ones(1, 1).double())


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_all_equal_embeddings(fill: float) -> None:
    same = torch.full((5, 4), fill, requires_grad=True)
    value = ClipCaptionOTLoss()(same, same)
    value.backward()
    assert value.item() == pytest.approx(2 * math.log(5), rel=1e-5)
    assert same.grad is not None
    assert same.grad.isfinite().all()


class TestGroups:
    groups = torch.tensor([0, 0, 1, 2, 1, 3])

    def test_duplicates_leave_softmax_and_targets_and_rows_keep_their_sum(self) -> None:
        clips, captions = pairs()
        loss = ClipCaptionOTLoss(0.5)
        free = loss.explain(clips, captions)
        out = loss.explain(clips, captions, group_ids=self.groups)
        duplicates = (self.groups[:, None] == self.groups) & ~torch.eye(6).bool()
        assert not out.targets[duplicates].any()
        torch.testing.assert_close(out.targets.sum(-1), free.targets.sum(-1))
        assert out.plan is not None
        assert free.plan is not None
        assert torch.equal(out.plan.plan, free.plan.plan)  # solved with the duplicates
        seen = out.logits.masked_fill(duplicates, -torch.inf)
        log_p = seen.log_softmax(0) + seen.log_softmax(1)
        expected = -(out.targets * log_p.masked_fill(duplicates, 0)).sum() / 6
        torch.testing.assert_close(out.loss, expected)

    def test_groups_of_one_change_nothing(self) -> None:
        clips, captions = pairs()
        loss = ClipCaptionOTLoss()
        torch.testing.assert_close(
            loss(clips, captions, group_ids=torch.arange(6)), loss(clips, captions)
        )

    def test_groups_of_sequences_leave_their_own_pairs_negatives(self) -> None:
        video, text = (tokens.view(3, 2, 8) for tokens in pairs())
        loss = ClipCaptionOTLoss(0.5)
        out = loss.explain(video, text, group_ids=torch.tensor([4, 9, 4]))
        sequence = torch.tensor([0, 0, 1, 1, 2, 2])
        duplicates = (sequence[:, None] + sequence == 2) & (sequence[:, None] != sequence)
        assert not out.targets[duplicates].any()
        kept = out.logits.masked_fill(duplicates, -torch.inf)
        log_p = kept.log_softmax(0) + kept.log_softmax(1)
        expected = -(out.targets * log_p.masked_fill(duplicates, 0)).sum() / 6
        torch.testing.assert_close(out.loss, expected)
        chunked = ClipCaptionOTLoss(0.5, chunk_rows=4)
        torch.testing.assert_close(
            chunked(video, text, group_ids=torch.tensor([4, 9, 4])), out.loss
        )

    def test_a_batch_of_one_video_has_one_group_or_one_of_each_pair(self) -> None:
        clips, captions = pairs()
        video, text = clips[None], captions[None]
        loss = ClipCaptionOTLoss()
        free = loss(clips, captions)
        torch.testing.assert_close(loss(video, text, group_ids=torch.tensor([7])), free)
        expected = loss(clips, captions, group_ids=self.groups)
        for groups in (self.groups, self.groups[None]):
            torch.testing.assert_close(loss(video, text, group_ids=groups), expected)
        assert (expected - free).abs() > 1e-3

    def test_groups_of_pairs_have_either_shape(self) -> None:
        clips, captions = pairs()
        loss = ClipCaptionOTLoss()
        expected = loss(clips, captions, group_ids=self.groups)
        video, text = clips.view(3, 2, 8), captions.view(3, 2, 8)
        for groups in (self.groups, self.groups.view(3, 2)):
            torch.testing.assert_close(loss(video, text, group_ids=groups), expected)

    def test_other_shapes_of_groups_are_told(self) -> None:
        clips, captions = (side.view(3, 2, 8) for side in pairs())
        message = r"shape \(3,\), \(3, 2\) or \(6,\), got \(5,\); give one for each sequence"
        with pytest.raises(ValueError, match=message):
            ClipCaptionOTLoss()(clips, captions, group_ids=torch.arange(5))

    def test_one_group_of_all_leaves_nothing_to_contrast(self) -> None:
        clips, captions = pairs()
        value = ClipCaptionOTLoss()(clips, captions, group_ids=torch.zeros(6).long())
        assert value.item() == 0

    def test_a_row_that_loses_all_its_mass_returns_to_its_pair(self) -> None:
        logits = torch.full((3, 3), -1e4)
        logits[0, 1] = logits[1, 0] = logits[2, 2] = 0.0
        value = clip_caption_loss(logits, beta=1.0, group_ids=torch.tensor([0, 0, 1]))
        assert value.isfinite()


class TestLogitScale:
    def test_multiplies_in_place_of_the_temperature(self) -> None:
        clips, captions = pairs()
        own = ClipCaptionOTLoss(temperature=0.05)
        outside = ClipCaptionOTLoss(temperature=None)
        scale = torch.tensor(20.0, requires_grad=True)
        value = outside(clips, captions, logit_scale=scale)
        torch.testing.assert_close(value, own(clips, captions))
        torch.testing.assert_close(value, outside(clips, captions, logit_scale=20.0))
        value.backward()
        assert scale.grad is not None

    def test_beside_a_temperature(self) -> None:
        with pytest.raises(ValueError, match=r"build it with ClipCaptionOTLoss\(temperature=None"):
            ClipCaptionOTLoss()(*pairs(), logit_scale=20.0)

    def test_single_number(self) -> None:
        with pytest.raises(ValueError, match=r"logit_scale must be a single number.*got shape \(2"):
            ClipCaptionOTLoss(temperature=None)(*pairs(), logit_scale=torch.ones(2))

    @pytest.mark.parametrize("wrong", [0.0, -3.0, math.nan])
    def test_positive(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="logit_scale must be a finite number above 0"):
            ClipCaptionOTLoss(temperature=None)(*pairs(), logit_scale=wrong)


def test_wide_raw_logits_are_transported_in_float64() -> None:
    clips, captions = (1e4 * t.float() for t in pairs())
    raw = ClipCaptionOTLoss(normalize=False, temperature=None)
    out = raw.explain(clips, captions)
    assert out.plan is not None
    assert out.plan.plan.dtype == torch.float64
    assert out.loss.dtype == out.targets.dtype == torch.float32
    columns = out.plan.plan.sum(0)
    torch.testing.assert_close(columns, torch.full((6,), 1 / 6).double(), rtol=1e-6, atol=0)
    cosine = ClipCaptionOTLoss().explain(clips, captions)
    assert cosine.plan is not None
    assert cosine.plan.plan.dtype == torch.float32
    scaled = ClipCaptionOTLoss(temperature=None).explain(clips, captions, logit_scale=1e5)
    assert scaled.plan is not None
    assert scaled.plan.plan.dtype == torch.float64


def test_module_is_the_function_of_its_logits() -> None:
    loss = ClipCaptionOTLoss()
    out = loss.explain(*pairs())
    assert torch.equal(clip_caption_loss(out.logits), out.loss)


@pytest.mark.parametrize(
    "settings",
    [{"beta": 0.7}, {"epsilon": 0.4}, {"sinkhorn": TorchSinkhorn(1)}],
    ids=["beta", "epsilon", "sinkhorn"],
)
def test_the_function_has_every_setting_of_the_module(settings: dict[str, Any]) -> None:
    groups = torch.tensor([0, 1, 0, 2, 3, 1])
    loss = ClipCaptionOTLoss(**settings)
    out = loss.explain(*pairs(), group_ids=groups)
    value = clip_caption_loss(out.logits, group_ids=groups, **settings)
    torch.testing.assert_close(value, out.loss)
    for other in (
        clip_caption_loss(out.logits, group_ids=groups),
        clip_caption_loss(out.logits, **settings),
    ):
        assert abs(other.item() - value.item()) > 1e-4


def test_the_function_has_no_gradient_of_what_is_masked_and_takes_half_precision() -> None:
    logits, mask = torch.randn(5, 5), torch.tensor([True, False, True, True, False])
    absent = ~(mask[:, None] & mask)
    dirty = logits.masked_fill(absent, math.nan).requires_grad_()
    value = clip_caption_loss(dirty, mask=mask)
    assert torch.equal(value, clip_caption_loss(logits, mask=mask))
    value.backward()
    assert dirty.grad is not None
    assert not dirty.grad[absent].any()
    half = logits.bfloat16()
    assert torch.equal(clip_caption_loss(half), clip_caption_loss(half.float()))


@pytest.mark.parametrize(
    ("chunk_rows", "solver"),
    [
        (None, TorchSinkhorn()),
        (None, TorchSinkhorn(5, plan_gradient="unrolled")),
        (2, TorchSinkhorn()),
    ],
)
def test_only_the_loss_carries_gradient(chunk_rows: int | None, solver: TorchSinkhorn) -> None:
    loss = ClipCaptionOTLoss(temperature=0.3, chunk_rows=chunk_rows, sinkhorn=solver)
    out = loss.explain(*(side.requires_grad_() for side in pairs()))
    assert out.loss.requires_grad
    for number in (out.logits, out.targets, out.temperature, out.plan and out.plan.log_u):
        assert number is None or not number.requires_grad
    assert out.temperature.item() == pytest.approx(0.3)


def test_a_shared_caption_is_no_negative() -> None:
    clips = torch.eye(4)
    captions = clips.clone()
    captions[1] = clips[0]  # caption 1 tells what clip 0 shows, as caption 0 does
    targets = ClipCaptionOTLoss(0.5).explain(clips, captions).targets
    assert targets[0, 1] > 0.1
    assert targets[0, 2] < 0.01


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_garbage_in_absent_embeddings_has_no_effect_on_dot_products(chunk_rows: int | None) -> None:
    mask = torch.tensor([[True, False], [True, True]])
    captions = Segments(torch.randn(2, 2, 5, 8))
    loss = NortonLoss(clip_caption=ClipCaptionOTLoss(normalize=False, chunk_rows=chunk_rows))
    tokens, embeddings = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 8)
    found = []
    for garbage in (0.0, math.nan):
        given = embeddings.masked_fill(~mask[..., None], garbage).requires_grad_()
        value = loss(Segments(tokens, mask=mask, embeddings=given), captions)
        (gradient,) = torch.autograd.grad(value, given)
        assert not gradient[~mask].any()
        found.append((value, gradient))
    torch.testing.assert_close(*found)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"beta": 1.1}, r"beta must lie in \[0, 1\], got 1.1"),
            ({"beta": -0.1}, r"beta must lie in \[0, 1\], got -0.1"),
            ({"epsilon": 0.0}, "epsilon must be a finite number above 0, got 0.0"),
            ({"temperature": 2.0}, r"temperature must lie in \[0.01, 1.0\], got 2.0"),
            ({"sinkhorn": "best"}, "sinkhorn must be one of"),
        ],
    )
    def test_settings(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ClipCaptionOTLoss(**options)

    def test_inputs(self) -> None:
        loss, (clips, captions) = ClipCaptionOTLoss(), pairs()
        with pytest.raises(
            ValueError, match=r"as many of each, got N = 6 clips and M = 5 .*Segments\.from_flat"
        ):
            loss(clips, captions[:5])
        with pytest.raises(ValueError, match=r"video must have 4 dimensions.*got shape \(8,\)"):
            loss(clips[0], captions[0])
        with pytest.raises(TypeError, match="video must be a floating tensor"):
            loss(clips.long(), captions)
        with pytest.raises(TypeError, match="group_ids must be an integer torch.Tensor, got list"):
            loss(clips, captions, group_ids=[0, 1, 2, 3, 4, 5])
        with pytest.raises(ValueError, match=r"group_ids must have shape \(6,\), got \(5,\)"):
            loss(clips, captions, group_ids=torch.arange(5))
        with pytest.raises(TypeError, match="group_ids must be an integer tensor"):
            loss(clips, captions, group_ids=torch.ones(6))
        with pytest.raises(ValueError, match="no empty dimension"):
            loss(clips[:0], captions[:0])

    def test_inputs_of_the_function(self) -> None:
        logits = torch.randn(3, 3)
        with pytest.raises(ValueError, match=r"logits must be square.*got \(2, 3\)"):
            clip_caption_loss(logits[:2])
        with pytest.raises(ValueError, match=r"mask must .*got .*\(2,\)"):
            clip_caption_loss(logits, mask=torch.ones(2).bool())
        with pytest.raises(ValueError, match=r"group_ids must have shape \(3,\), got \(2,\)"):
            clip_caption_loss(logits, group_ids=torch.arange(2))

    def test_frames_in_the_place_of_clips(self) -> None:
        loss, text = ClipCaptionOTLoss(), torch.randn(2, 3, 4, 8)
        with pytest.raises(
            ValueError, match=r"N = 5 clips and M = 3 captions; .*transpose\(1, 2\)"
        ):
            loss(torch.randn(2, 5, 3, 8), text)
        for video, short in (
            (torch.randn(2, 5, 4, 8), text),
            (torch.randn(2, 5, 1, 8), text[:, :1]),
        ):
            with pytest.raises(ValueError, match=r"captions; group flat tokens"):
                loss(video, short)
