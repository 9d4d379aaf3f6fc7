from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_losses import (
    AbstractAlignment,
    AbstractProblem,
    AbstractSinkhorn,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    OrderedAlignment,
    PromptBucket,
    SimilarityBlock,
    Support,
    TorchSinkhorn,
    TransportMeasure,
    TransportProblem,
)
from norton_losses.functional import entropic_score, transport_score
from norton_losses.sequence_measures import as_measure
from norton_losses.sinkhorn import Scalings
from tests import naive

MEASURES = [
    TransportMeasure(bucket=PromptBucket(value=0.4)),
    TransportMeasure(bucket=None),
    TransportMeasure(bucket=PromptBucket(value=0.4), conserve_mass=False),
    TransportMeasure(bucket=PromptBucket(value=0.4), objective="entropic"),
    CaptionAverage(),
    DynamicTimeWarping(),
    DynamicTimeWarping(smoothing=0.1),
    OrderedAlignment(),
    OrderedAlignment(smoothing=0.1),
]
every_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: repr(m).split()[0])


def ragged(bv: int = 2, bt: int = 3, n: int = 4, m: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    clips, captions = torch.rand(bv, n) < 0.7, torch.rand(bt, m) < 0.7
    clips[:, 0], captions[:, 0] = True, True
    clips[0, -1], captions[0, 1] = False, False
    return torch.rand(bv, bt, n, m, dtype=torch.float64), clips, captions


@pytest.mark.parametrize("bucket", [None, 0.4])
@pytest.mark.parametrize("conserve_mass", [True, False])
@pytest.mark.parametrize("steps", [1, 50])
def test_transport_is_the_naive_one(bucket: float | None, conserve_mass: bool, steps: int) -> None:
    similarity, clips, captions = ragged()
    measure = TransportMeasure(
        0.1,
        None if bucket is None else PromptBucket(value=bucket),
        TorchSinkhorn(steps),
        conserve_mass=conserve_mass,
    )
    actual = measure(similarity, clips, captions)
    for a, b in np.ndindex(2, 3):
        block = similarity[a, b][clips[a]][:, captions[b]].numpy()
        expected = naive.transport_measure(block, bucket, 0.1, steps, conserve_mass)
        assert actual[a, b].item() == pytest.approx(expected, abs=1e-12)


def test_caption_average_is_the_mean_of_the_best() -> None:
    similarity, clips, captions = ragged()
    actual = CaptionAverage()(similarity, clips, captions)
    for a, b in np.ndindex(2, 3):
        block = similarity[a, b][clips[a]][:, captions[b]]
        assert actual[a, b].item() == pytest.approx(block.amax(0).mean().item(), abs=1e-15)


@every_measure
def test_absent_pairs_score_zero_without_gradient(measure: torch.nn.Module) -> None:
    similarity, clips, captions = ragged(3, 3)
    clips[1], captions[2] = False, False
    similarity.requires_grad_()
    score = measure(similarity, clips, captions)
    assert not score[1].any()
    assert not score[:, 2].any()
    assert (score[[0, 0, 2, 2], [0, 1, 0, 1]] != 0).all()
    score.sum().backward()
    assert similarity.grad is not None
    assert not similarity.grad[1].any()
    assert not similarity.grad[:, 2].any()


@every_measure
def test_what_is_masked_has_no_effect(measure: torch.nn.Module) -> None:
    similarity, clips, captions = ragged()
    absent = ~(clips[:, None, :, None] & captions[None, :, None])

    def run(garbage: float) -> list[Tensor]:
        leaf = similarity.masked_fill(absent, garbage).requires_grad_()
        score = measure(leaf, clips, captions)
        return [score.detach(), *torch.autograd.grad(score.sum(), leaf)]

    for clean, dirty in zip(run(0.0), run(math.nan), strict=True):
        assert torch.equal(clean, dirty)


@every_measure
def test_a_pair_does_not_depend_on_the_others(measure: torch.nn.Module) -> None:
    similarity, clips, captions = ragged()
    together = measure(similarity, clips, captions)
    alone = measure(similarity[1:, 2:], clips[1:], captions[2:])
    torch.testing.assert_close(together[1:, 2:], alone, rtol=0, atol=1e-15)


@every_measure
def test_a_constant_similarity_scores_itself_per_match(measure: torch.nn.Module) -> None:
    if isinstance(measure, AbstractAlignment):
        costs = 0.3 * torch.tensor([4 if isinstance(measure, DynamicTimeWarping) else 7]) / 7
        score = measure(torch.full((2, 2, 3, 4), 0.7))
        if measure.smoothing == 0:  # the longer side's matches; or those of both directions
            torch.testing.assert_close(score, -costs.expand(2, 2))
        else:  # many paths cost the same, and the smooth minimum counts them
            assert (score > -costs).all()
    elif (
        getattr(measure, "conserve_mass", True) and getattr(measure, "objective", "") != "entropic"
    ):
        score = measure(torch.full((2, 2, 3, 4), 0.7))
        torch.testing.assert_close(score, torch.full((2, 2), 0.7))
    else:  # mass in the bucket counts 0, or the bucket's own value
        assert (measure(torch.full((2, 2, 3, 4), 0.7)) < 0.7).all()


def test_gradient_is_the_plan_over_its_mass() -> None:
    similarity, clips, captions = ragged()
    similarity.requires_grad_()
    out = MEASURES[0].explain(similarity, clips, captions)
    (gradient,) = torch.autograd.grad(out.score.sum(), similarity)
    core = out.plan.core
    torch.testing.assert_close(gradient, core / core.sum((-2, -1), keepdim=True))


@pytest.mark.slow
def test_entropic_gradient_is_exact() -> None:
    similarity, clips, captions = ragged()
    measure = TransportMeasure(
        0.2, PromptBucket(value=0.4), TorchSinkhorn(500), objective="entropic"
    )
    # Differencing goes through the plan as well: only an exact gradient agrees with it.
    assert torch.autograd.gradcheck(
        lambda s: measure(s, clips, captions), similarity.requires_grad_()
    )
    out = measure.explain(similarity, clips, captions)
    (gradient,) = torch.autograd.grad(out.score.sum(), similarity)
    torch.testing.assert_close(gradient, out.plan.core)


@pytest.mark.parametrize("plan_gradient", ["implicit", "unrolled"])
def test_entropic_gradient_through_the_plan_is_finite_beside_absent_rows(
    plan_gradient: Any,
) -> None:
    similarity, clips, captions = ragged(3, 3)
    clips[1] = False
    solver = TorchSinkhorn(plan_gradient=plan_gradient)
    measure = TransportMeasure(sinkhorn=solver, objective="entropic")
    score = measure(similarity.requires_grad_(), clips, captions)
    (gradient,) = torch.autograd.grad(score.sum(), similarity)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


@pytest.mark.parametrize("conserve_mass", [True, False])
def test_score_of_a_plan_of_any_batch(conserve_mass: bool) -> None:
    plan = MEASURES[0].explain(ragged()[0]).plan
    scores = transport_score(plan, conserve_mass=conserve_mass)
    one = transport_score(plan[1, 2], conserve_mass=conserve_mass)
    assert torch.equal(one, scores[1, 2])


@pytest.mark.parametrize("conserve_mass", [True, False])
def test_an_empty_problem_scores_zero_without_a_gradient(conserve_mass: bool) -> None:
    scores = torch.randn(2, 3, 4, requires_grad=True)
    log_mu, log_nu = (torch.full((2, k), 1 / k).log() for k in (3, 4))
    log_mu[1], log_nu[1] = -math.inf, -math.inf
    plan = TorchSinkhorn(5, plan_gradient="unrolled").solve(
        TransportProblem(scores, log_mu, log_nu, epsilon=0.5)
    )
    score = transport_score(plan, conserve_mass=conserve_mass)
    assert score[1] == 0
    assert score[0] != 0
    score.sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].all()
    assert not scores.grad[1].any()


@pytest.mark.parametrize("learnable", [False, True])  # an offset has no known range
@pytest.mark.parametrize("value", [None, 0.4, 3.0])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_known_bounds_change_nothing(
    learnable: bool, value: float | None, bounds: tuple[float, float]
) -> None:
    bucket = PromptBucket(**({} if value is None else {"value": value}), learnable=learnable)
    measure = TransportMeasure(bucket=bucket, epsilon=1 / 300, objective="entropic")
    similarity = torch.empty(3, 3, 5, 4).uniform_(*bounds)
    found, expected = (
        measure.evaluate_checked(SimilarityBlock(similarity, bounds=known))
        for known in (bounds, None)
    )
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.plan.plan, expected.plan.plan)  # by as many digits


def test_entropic_score_is_the_value_up_to_the_marginals_entropy() -> None:
    similarity, clips, captions = ragged()
    plan = MEASURES[3].explain(similarity, clips, captions).plan
    mu, nu = plan.problem.log_mu.exp(), plan.problem.log_nu.exp()
    marginals = (torch.xlogy(mu, mu).sum(-1) + torch.xlogy(nu, nu).sum(-1)) * plan.problem.epsilon
    # With converged marginals, KL(Q | mu x nu) = -H(Q) - sum mu log mu - sum nu log nu.
    torch.testing.assert_close(entropic_score(plan), plan.value + marginals, atol=1e-4, rtol=0)


def test_a_core_lighter_than_the_smallest_number_keeps_a_proper_plan() -> None:
    similarity = torch.rand(1, 1, 3, 3)
    measure = TransportMeasure(0.01, PromptBucket(value=3.0))
    out = measure.explain(similarity)
    assert not out.plan.core.any()  # exp(-200) is no float32
    torch.testing.assert_close(out.score[0, 0], similarity.max(), rtol=0, atol=1e-3)


def test_an_own_measure_gives_float32_and_nothing_for_an_absent_side() -> None:
    def first(similarity: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
        present = clips.any(-1)[:, None] & captions.any(-1)
        return similarity[..., 0, 0].half().masked_fill(~present, math.nan)

    similarity, clips, captions = ragged(3, 3)
    clips[1], captions[2] = False, False
    out = as_measure(first).explain(similarity, clips, captions)
    assert out.score.dtype == torch.float32
    expected = similarity[..., 0, 0].half().float()
    expected[1], expected[:, 2] = 0, 0
    assert torch.equal(out.score, expected)
    assert out.alignment is None


def test_captions_are_updated_first() -> None:
    out = TransportMeasure(0.02, bucket=None, sinkhorn=TorchSinkhorn(2)).explain(
        torch.rand(1, 1, 4, 4, dtype=torch.float64)
    )
    quarter = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(out.plan.plan.sum(-1)[0, 0], quarter)
    assert (out.plan.plan.sum(-2)[0, 0] - quarter).abs().max() > 1e-4


def test_bucket_slots() -> None:
    assert TransportMeasure(bucket=0.25).bucket.ratio == 0.25  # type: ignore[union-attr]
    bucket = PromptBucket(value=0.1)
    assert TransportMeasure(bucket=bucket).bucket is bucket
    assert TransportMeasure(bucket=None).bucket is None


@pytest.mark.parametrize("bucket", [None, 0.3, PromptBucket(value=0.4)])
def test_the_bucket_has_its_value_without_a_solution(bucket: float | PromptBucket | None) -> None:
    measure, block = TransportMeasure(bucket=bucket), SimilarityBlock(ragged(3, 3)[0])
    assert measure.bucket_value(block) == measure.evaluate(block).bucket_value


def test_for_retrieval_keeps_every_other_setting() -> None:
    measure = TransportMeasure(
        0.2, 0.5, TorchSinkhorn(7), conserve_mass=False, objective="entropic"
    )
    fixed = measure.for_retrieval(0.4)
    assert fixed.bucket is not None
    assert fixed.bucket.value == 0.4
    assert fixed.extra_repr() == measure.extra_repr()
    assert measure.for_retrieval().bucket is None


def test_explain_holds_what_forward_used() -> None:
    similarity = torch.rand(2, 2, 3, 3)
    measure = TransportMeasure()
    out = measure.explain(similarity)
    assert torch.equal(measure(similarity), out.score)
    assert torch.equal(transport_score(out.plan), out.score)
    assert out.bucket_value is not None
    assert torch.equal(out.plan.problem.scores[0, 0, -1], out.bucket_value.expand(4))


def test_half_precision_gives_float32() -> None:
    similarity = torch.rand(2, 2, 3, 3).bfloat16()
    for measure in MEASURES:
        assert measure(similarity).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0, got 0.0"),
        ({"bucket": 1.5}, r"ratio must lie in \[0, 1\], got 1.5"),
        ({"sinkhorn": "gpu"}, "sinkhorn must be one of"),
        (
            {"objective": "value"},
            r"objective must be one of \['similarity', 'entropic'\], got 'value'",
        ),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportMeasure(**options)


@every_measure
def test_shapes_are_checked(measure: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="similarity must have 4 dimensions"):
        measure(torch.rand(3, 3))
    with pytest.raises(ValueError, match=r"clip_mask must have shape \(2, 4\), got \(2, 5\)"):
        measure(torch.rand(2, 3, 4, 5), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="caption_mask must be a bool tensor"):
        measure(torch.rand(2, 3, 4, 5), None, torch.ones(3, 5))


@pytest.mark.parametrize("wrong", ["0.3", True])
def test_bucket_must_be_a_bucket_or_a_ratio(wrong: object) -> None:
    with pytest.raises(TypeError, match="bucket must be a PromptBucket, a ratio in"):
        TransportMeasure(bucket=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("objective", ["similarity", "entropic"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_large_similarities_keep_their_digits(scale: float, objective: Any, share: Any) -> None:
    torch.manual_seed(0)
    similarity = (scale * torch.rand(3, 3, 9, 7)).requires_grad_()
    wide = similarity.detach().double().requires_grad_()
    measure = TransportMeasure(bucket=share, objective=objective)
    found, expected = measure(similarity), measure(wide)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-5 * scale
    (gradient,) = torch.autograd.grad(found.sum(), similarity)
    assert (gradient - torch.autograd.grad(expected.sum(), wide)[0]).abs().max() < 1e-3


def test_a_learned_bucket_far_away_keeps_its_digits() -> None:
    torch.manual_seed(0)
    similarity = torch.rand(2, 2, 4, 5)
    for value in (30.0, 1e4):
        bucket = PromptBucket(value=value, learnable=True)
        measure = TransportMeasure(0.05, bucket, TorchSinkhorn(plan_gradient="implicit"))
        blocks = (SimilarityBlock(s, bounds=(-1.0, 1.0)) for s in (similarity, similarity.double()))
        found, expected = (measure.evaluate(block).score for block in blocks)
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


def test_a_solver_that_has_float32_alone_is_served() -> None:
    @dataclass(frozen=True)
    class Narrow(AbstractSinkhorn):
        def supports(self, problem: AbstractProblem) -> Support:
            return Support(problem.log_mu.dtype == torch.float32, "it has float32 alone")

        def _solve(self, problem: AbstractProblem) -> Scalings:
            return TorchSinkhorn()._solve(problem)

    measure = TransportMeasure(bucket=None, sinkhorn=Narrow())
    assert measure(1e3 * torch.rand(2, 2, 3, 3)).isfinite().all()
    loss = ClipCaptionOTLoss(epsilon=0.1, sinkhorn=Narrow())
    assert loss(torch.randn(4, 3), torch.randn(4, 3)).isfinite()
