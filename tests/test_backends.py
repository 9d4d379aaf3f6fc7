"""What each backend promises beyond the iteration: points, approximation, selection, gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import norton_losses.__main__ as table
from conftest import HAS_COMPILER, HAS_GEOMLOSS, HAS_KEOPS, HAS_POT, HAS_TRITON
from norton_losses import (
    AbstractSinkhorn,
    AutoSinkhorn,
    ClipCaptionOTLoss,
    GeomLossSinkhorn,
    KeOpsSinkhorn,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    PointCloudProblem,
    POTSinkhorn,
    PromptBucket,
    Segments,
    SimilarityBlock,
    SoftMaximumSimilarity,
    TorchSinkhorn,
    TransportMeasure,
    TransportPlan,
    TransportProblem,
    TritonSinkhorn,
)
from norton_losses.functional import entropic_score, transport_score, video_paragraph_loss
from norton_losses.sinkhorn import scaling_domain, select
from tests.batches import make_batch
from tests.problems import assert_same_plan, random_problem

Solver = Callable[..., AbstractSinkhorn]

geomloss = pytest.mark.skipif(not HAS_GEOMLOSS, reason="GeomLoss is not installed")
keops = pytest.mark.skipif(not HAS_KEOPS, reason="KeOps or a C++ compiler is not installed")
pot = pytest.mark.skipif(not HAS_POT, reason="POT is not installed")
online = partial(GeomLossSinkhorn, points="online")
POINT_SOLVERS = [
    pytest.param(TorchSinkhorn, 1e-12, id="torch"),
    pytest.param(KeOpsSinkhorn, 1e-12, id="keops", marks=[keops, pytest.mark.slow]),
    pytest.param(GeomLossSinkhorn, 1e-4, id="geomloss", marks=geomloss),
    pytest.param(online, 1e-4, id="geomloss-online", marks=[geomloss, keops, pytest.mark.slow]),
]


def random_points(
    n: int = 12, m: int = 9, *, absent: int = 0, chunk_rows: int | None = 5
) -> PointCloudProblem:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 3, generator=g, dtype=torch.float64) for k in (n, m))
    mu, nu = (0.2 + torch.rand(k, generator=g, dtype=torch.float64) for k in (n, m))
    mu[n - absent :], nu[m - absent :] = 0, 0
    logs = (mu / mu.sum()).log(), (nu / nu.sum()).log()
    return PointCloudProblem(x, y, *logs, epsilon=2.0, chunk_rows=chunk_rows)


class TestPointClouds:
    @pytest.mark.parametrize(("solver", "tolerance"), POINT_SOLVERS)
    @pytest.mark.parametrize("absent", [0, 2])
    def test_plan_is_that_of_the_explicit_problem(
        self, solver: Solver, tolerance: float, absent: int
    ) -> None:
        problem = random_points(absent=absent)
        plan, exact = solver().solve(problem), TorchSinkhorn(500).solve(problem.explicit())
        if tolerance < 1e-6:
            exact = TorchSinkhorn(50, domain="log").solve(problem.explicit())
        torch.testing.assert_close(plan.plan, exact.plan, rtol=0, atol=tolerance)
        for name in ("score", "value", "entropy", "marginal_error"):
            ours, theirs = getattr(plan, name), getattr(exact, name)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=30 * tolerance)
        if absent:
            assert not plan.plan[-absent:].any()
            assert not plan.plan[:, -absent:].any()

    @pytest.mark.parametrize(("solver", "tolerance"), POINT_SOLVERS)
    def test_nothing_to_move(self, solver: Solver, tolerance: float) -> None:
        problem = random_points()
        nothing = (
            torch.full_like(problem.log_mu, -torch.inf),
            torch.full_like(problem.log_nu, -torch.inf),
        )
        plan = solver().solve(PointCloudProblem(problem.x, problem.y, *nothing, 2.0))
        assert not plan.plan.any()
        assert plan.value == 0

    @pytest.mark.parametrize("chunk_rows", [1, 5, 12, 100, None])
    def test_blocks_change_nothing(self, chunk_rows: int | None) -> None:
        plans = [TorchSinkhorn().solve(random_points(chunk_rows=rows)) for rows in (chunk_rows, 7)]
        torch.testing.assert_close(plans[0].plan, plans[1].plan, rtol=0, atol=1e-14)

    def test_a_column_that_underflows_is_taken_on_logarithms(self) -> None:
        # Its share of each row is e^-300, which float32 does not have.
        x, y = torch.ones(4, 1), torch.tensor([[0.0], [0.5], [-300.0]])
        even = [torch.full((n,), 1 / n).log() for n in (4, 3)]
        problem = PointCloudProblem(x, y, *even, 1.0, chunk_rows=2)
        plan = TorchSinkhorn(5).solve(problem).plan
        torch.testing.assert_close(plan, torch.full((4, 3), 1 / 12), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("absent", [0, 2])
    def test_steps_on_logarithms_are_those_of_the_explicit_problem(self, absent: int) -> None:
        cloud = random_points(absent=absent)
        y = cloud.y.clone()
        y[0] = torch.tensor([-2000.0, 0.0, 0.0])
        x = 1 + cloud.x.abs()  # e^-1000 is no float64
        problem = PointCloudProblem(x, y, cloud.log_mu, cloud.log_nu, 0.5, chunk_rows=5)
        plan = TorchSinkhorn(3).solve(problem)
        exact = TorchSinkhorn(3, domain="log").solve(problem.explicit())
        assert_same_plan(plan, exact, tolerance=1e-10)

    def test_tolerance_stops_early(self) -> None:
        plan = TorchSinkhorn(1000, tolerance=1e-6).solve(random_points())
        assert plan.iterations < 1000
        assert plan.converged
        assert plan.marginal_error <= 1e-6

    def test_gradient_of_the_score_goes_through_the_blocks(self) -> None:
        problem = random_points()
        x = problem.x.clone().requires_grad_()
        moved = PointCloudProblem(x, problem.y, problem.log_mu, problem.log_nu, 2.0, chunk_rows=5)
        plan = TorchSinkhorn().solve(moved)
        (gradient,) = torch.autograd.grad(plan.score, x)
        torch.testing.assert_close(gradient, plan.plan.detach() @ problem.y)

    def test_transposed(self) -> None:
        problem = random_points()
        plans = TorchSinkhorn(500).solve(problem), TorchSinkhorn(500).solve(problem.T).T
        torch.testing.assert_close(plans[0].plan, plans[1].plan, rtol=0, atol=1e-12)

    def test_bad_input(self) -> None:
        even = torch.full((4,), 0.25).log()
        with pytest.raises(ValueError, match=r"y must have shape \(4, 3\), got \(4, 2\)"):
            PointCloudProblem(torch.zeros(4, 3), torch.zeros(4, 2), even, even, 1.0)
        with pytest.raises(ValueError, match="x and y must be finite"):
            PointCloudProblem(torch.full((4, 3), torch.nan), torch.zeros(4, 3), even, even, 1.0)
        with pytest.raises(ValueError, match="chunk_rows must be a whole number of at least 1"):
            PointCloudProblem(torch.zeros(4, 3), torch.zeros(4, 3), even, even, 1.0, chunk_rows=0)
        with pytest.raises(ValueError, match="same total mass"):
            PointCloudProblem(torch.zeros(4, 3), torch.zeros(4, 3), even, even + 0.1, 1.0)


class TestUnsupported:
    @pytest.mark.slow
    @keops
    def test_keops_cannot_read_a_matrix(self) -> None:
        with pytest.raises(ValueError, match=r"KeOps.*matrix.*PointCloudProblem.*TorchSinkhorn"):
            KeOpsSinkhorn().solve(random_problem())
        with pytest.raises(ValueError, match="plan_gradient must be one of"):
            KeOpsSinkhorn(plan_gradient="implicit")

    @pot
    def test_pot_holds_no_points(self) -> None:
        with pytest.raises(ValueError, match=r"explicit scores.*problem\.explicit\(\)"):
            POTSinkhorn().solve(random_points())

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_triton_says_what_it_lacks(self) -> None:
        with pytest.raises(ValueError, match=r"runs on CUDA and the scores are on cpu.*Torch"):
            TritonSinkhorn().solve(random_problem(dtype=torch.float32))
        with pytest.raises(ValueError, match="explicit scores, not points"):
            TritonSinkhorn().solve(random_points())

    def test_point_clouds_have_no_plan_gradient(self) -> None:
        with pytest.raises(ValueError, match=r"needs all of it; solve problem\.explicit\(\)"):
            TorchSinkhorn(plan_gradient="implicit").solve(random_points())

    @keops
    def test_keops_without_a_compiler_says_so_at_construction(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = sys.modules[KeOpsSinkhorn.__module__]
        monkeypatch.setattr(module, "_compilation_failure", lambda: "g++ is missing")
        with pytest.raises(RuntimeError, match=r"tiny one failed with: g\+\+ is missing; install"):
            KeOpsSinkhorn()

    @keops
    def test_the_probe_catches_what_keops_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = sys.modules[KeOpsSinkhorn.__module__]

        def fail(*_: object) -> Tensor:
            raise OSError("no compiler")

        monkeypatch.setattr(module, "_row_logsumexp", fail)
        assert module._compilation_failure.__wrapped__() == "OSError: no compiler"


@geomloss
class TestGeomLoss:
    @pytest.mark.parametrize("epsilon", [0.05, 0.3])
    @pytest.mark.parametrize(("zero_rows", "zero_columns"), [(0, 0), (1, 2)])
    def test_default_is_within_its_class(
        self, epsilon: float, zero_rows: int, zero_columns: int
    ) -> None:
        problem = random_problem(4, epsilon=epsilon, zero_rows=zero_rows, zero_columns=zero_columns)
        plan, exact = GeomLossSinkhorn().solve(problem), TorchSinkhorn(5000).solve(problem)
        torch.testing.assert_close(plan.plan, exact.plan, rtol=0, atol=1e-4)
        assert not plan.plan[:, 5 - zero_rows :].any()
        assert plan.converged.all()
        bare = GeomLossSinkhorn(polish=0).solve(problem)
        assert (bare.plan - exact.plan).abs().max() > 1e-4  # so that the polish is not idle

    def test_batch_is_the_loop_and_empty_is_empty(self) -> None:
        problem = random_problem(3)
        log_mu, log_nu = problem.log_mu.clone(), problem.log_nu.clone()
        log_mu[1], log_nu[1] = -torch.inf, -torch.inf
        emptied = TransportProblem(problem.scores, log_mu, log_nu, problem.epsilon)
        plan = GeomLossSinkhorn().solve(emptied)
        assert not plan.plan[1].any()
        alone = TransportProblem(problem.scores[2], log_mu[2], log_nu[2], problem.epsilon)
        torch.testing.assert_close(
            plan.plan[2], GeomLossSinkhorn().solve(alone).plan, rtol=0, atol=1e-4
        )

    def test_gradients_stay_on_when_geomloss_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import geomloss.ot

        def fail(*_: object, **__: object) -> None:
            torch.set_grad_enabled(False)
            raise RuntimeError("on purpose")

        monkeypatch.setattr(geomloss.ot, "solve_batch", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            GeomLossSinkhorn().solve(random_problem())
        assert torch.is_grad_enabled()

    def test_settings(self) -> None:
        for polish in (-1, 2.5):
            with pytest.raises(ValueError, match="polish must be a whole number of at least 0"):
                GeomLossSinkhorn(polish=polish)
        with pytest.raises(ValueError, match="points must be one of"):
            GeomLossSinkhorn(points="sparse")  # type: ignore[arg-type]


READINGS: dict[str, Callable[[TransportPlan], Tensor]] = {
    "plan": lambda plan: (plan.plan * torch.linspace(-1, 1, 35).double().view(5, 7)).sum((-2, -1)),
    "score": lambda plan: plan.score,
    "value": lambda plan: plan.value,
    "transport_score": transport_score,
    "entropic_score": entropic_score,
}
IMPLICIT = [
    pytest.param(partial(TorchSinkhorn, plan_gradient="implicit"), id="torch"),
    pytest.param(partial(TorchSinkhorn, plan_gradient="unrolled"), id="torch-unrolled"),
    pytest.param(partial(AutoSinkhorn, plan_gradient="implicit"), id="auto"),
    pytest.param(partial(POTSinkhorn, plan_gradient="implicit"), id="pot", marks=pot),
    pytest.param(
        partial(GeomLossSinkhorn, polish=100, plan_gradient="implicit"),
        id="geomloss",
        marks=geomloss,
    ),
]


class TestPlanGradient:
    @pytest.mark.slow
    @pytest.mark.parametrize("solver", IMPLICIT)
    @pytest.mark.parametrize("reading", READINGS)
    def test_matches_finite_differences(self, solver: Solver, reading: str) -> None:
        problem = random_problem(2, epsilon=0.6, zero_rows=1, zero_columns=1)
        log_mu, log_nu = problem.log_mu.clone(), problem.log_nu.clone()
        log_mu[1], log_nu[1] = -torch.inf, -torch.inf  # nothing to move, and no NaN
        scores = problem.scores.clone().requires_grad_()

        def read(scores: Tensor) -> Tensor:
            moved = TransportProblem(scores, log_mu, log_nu, problem.epsilon)
            return READINGS[reading](solver(100).solve(moved))

        assert torch.autograd.gradcheck(read, scores, atol=1e-6)

    @pytest.mark.parametrize("kind", ["implicit", "unrolled"])
    def test_marginals_have_their_gradient(self, kind) -> None:
        problem = random_problem()
        weights = torch.randn(5, 7, dtype=torch.float64)
        masses = [log.exp().requires_grad_() for log in (problem.log_mu, problem.log_nu)]

        def read(*masses: Tensor) -> Tensor:
            logs = ((mass / mass.sum()).log() for mass in masses)
            moved = TransportProblem(problem.scores, *logs, 0.3)
            return (TorchSinkhorn(400, plan_gradient=kind).solve(moved).plan * weights).sum()

        assert torch.autograd.gradcheck(read, masses)

    def test_float32_has_the_gradients_of_float64(self) -> None:
        problem = random_problem(3, epsilon=0.1)
        found = []
        for dtype in (torch.float32, torch.float64):
            tensors = (t.to(dtype) for t in (problem.scores, problem.log_mu, problem.log_nu))
            scores, log_mu, log_nu = leaves = [t.clone().requires_grad_() for t in tensors]
            moved = TransportProblem(scores, log_mu, log_nu, 0.1)
            plan = TorchSinkhorn(2000, plan_gradient="implicit").solve(moved)
            gradients = torch.autograd.grad(plan.plan.square().sum(), leaves)
            assert [gradient.dtype for gradient in gradients] == [dtype] * 3
            found.append([gradient.double() for gradient in gradients])
        for rounded, exact in zip(*found, strict=True):
            assert (rounded - exact).abs().max() < 1e-4 * exact.abs().max()

    @pytest.mark.parametrize("kind", ["implicit", "unrolled"])
    @pytest.mark.parametrize("reading", READINGS)
    def test_second_derivatives(self, kind, reading: str) -> None:
        problem = random_problem(2, epsilon=0.6, zero_rows=1, zero_columns=1)
        log_mu, log_nu = problem.log_mu.clone(), problem.log_nu.clone()
        log_mu[1], log_nu[1] = -torch.inf, -torch.inf
        scores = problem.scores.clone().requires_grad_()

        def read(scores: Tensor) -> Tensor:
            moved = TransportProblem(scores, log_mu, log_nu, problem.epsilon)
            return READINGS[reading](TorchSinkhorn(60, plan_gradient=kind).solve(moved))

        assert torch.autograd.gradgradcheck(read, scores, atol=1e-6)

    def test_unrolled_is_right_before_convergence_and_implicit_is_not(self) -> None:
        problem = random_problem(epsilon=0.05)
        weights = torch.randn(5, 7, dtype=torch.float64)
        scores = problem.scores.clone().requires_grad_()

        def read(scores: Tensor, kind) -> Tensor:
            moved = TransportProblem(scores, problem.log_mu, problem.log_nu, 0.05)
            return (TorchSinkhorn(2, plan_gradient=kind).solve(moved).plan * weights).sum()

        assert torch.autograd.gradcheck(lambda s: read(s, "unrolled"), scores)
        gradients = [
            torch.autograd.grad(read(scores, kind), scores)[0] for kind in ("unrolled", "implicit")
        ]
        assert (gradients[0] - gradients[1]).abs().max() > 1e-3

    def test_detached_by_default_and_float32_serves(self) -> None:
        problem = random_problem(3, dtype=torch.float32)
        scores = problem.scores.clone().requires_grad_()
        moved = TransportProblem(scores, problem.log_mu, problem.log_nu, 0.3)
        assert not TorchSinkhorn().solve(moved).plan.requires_grad
        plan = TorchSinkhorn(plan_gradient="implicit").solve(moved)
        (gradient,) = torch.autograd.grad(plan.plan.square().sum(), scores)
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        assert not plan.detach().plan.requires_grad

    def test_a_nearly_disjoint_plan_has_a_finite_gradient(self) -> None:
        even = torch.full((4,), 0.25, dtype=torch.float64).log()
        scores = torch.eye(4, dtype=torch.float64).requires_grad_()
        problem = TransportProblem(scores, even, even, 0.01)
        plan = TorchSinkhorn(plan_gradient="implicit").solve(problem)
        (gradient,) = torch.autograd.grad(plan.plan.square().sum(), scores)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e-6

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="plan_gradient must be one of"):
            TorchSinkhorn(plan_gradient="attached")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match='"unrolled" differentiates logarithms'):
            TorchSinkhorn(plan_gradient="unrolled", domain="scaling")


class TestLearnableBucket:
    def test_without_any_gradient_construction_raises(self) -> None:
        bucket = PromptBucket(value=0.1, learnable=True)
        with pytest.raises(ValueError, match=r'objective="entropic".*plan_gradient="implicit"'):
            TransportMeasure(bucket=bucket)

    @pytest.mark.parametrize(
        ("options", "ratio", "value", "way"),
        [
            ({"sinkhorn": TorchSinkhorn(plan_gradient="implicit")}, 0.0, None, 1),
            ({"sinkhorn": TorchSinkhorn(plan_gradient="implicit")}, 0.0, -0.5, 1),
            ({"objective": "entropic"}, 1.0, None, -1),
            ({"objective": "entropic"}, 1.0, 0.8, -1),
        ],
        ids=["implicit-ratio", "implicit-value", "entropic-ratio", "entropic-value"],
    )
    def test_it_moves_and_helps_on_a_planted_problem(
        self, options, ratio: float, value: float | None, way: int
    ) -> None:
        """Half of every paragraph tells nothing, and the bucket begins far from its best value.

        Too low to take that half, where it counts for nothing; too high to leave the rest, where
        what it takes counts at its own value.
        """

        def planted(seed: int) -> Tensor:
            g = torch.Generator().manual_seed(seed)
            similarity = 0.5 * torch.rand(8, 8, 6, 6, generator=g)
            for b in range(8):
                similarity[b, b, range(3), range(3)] = 0.8
            return similarity

        bucket = PromptBucket(ratio, value=value, learnable=True)
        measure = TransportMeasure(0.1, bucket, **options)
        optimizer = torch.optim.Adam(measure.parameters(), lr=0.02)

        def loss(seed: int) -> Tensor:
            return video_paragraph_loss(planted(seed), measure=measure, temperature=1 / 30)

        before = loss(1000).item()
        for step in range(60):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
        assert bucket.offset is not None
        assert way * bucket.offset > 0.1
        assert loss(1000).item() < 0.9 * before

    def test_it_is_saved_and_shown(self) -> None:
        loss = NortonVideoParagraphLoss(
            measure=TransportMeasure(bucket=PromptBucket(learnable=True), objective="entropic")
        )
        assert "measure.bucket.offset" in loss.state_dict()
        assert "offset=0.0000" in repr(loss)
        out = loss.explain(torch.randn(3, 4, 8), torch.randn(3, 4, 8))
        out.loss.backward()
        assert not out.bucket_value.requires_grad


class TestDomains:
    def test_a_known_range_decides_without_looking(self) -> None:
        problem = random_problem(dtype=torch.float32, epsilon=0.1)

        def known(*score_range: float) -> TransportProblem:
            return TransportProblem(
                problem.scores, problem.log_mu, problem.log_nu, 0.1, score_range=score_range
            )

        assert TorchSinkhorn().domain_of(known(0, 1)) == "scaling"
        assert TorchSinkhorn().domain_of(known(-50, 50)) == "stabilized"
        assert TorchSinkhorn().domain_of(problem) == "scaling"
        assert TorchSinkhorn(plan_gradient="unrolled").domain_of(problem) == "log"
        with pytest.raises(ValueError, match=r"scores must lie in their score_range \(0, 0.1\)"):
            known(0, 0.1)
        with pytest.raises(ValueError, match="score_range must be finite numbers"):
            known(1, 0)

    def test_a_range_far_from_the_bucket_is_widened_by_it(self) -> None:
        clips, captions = torch.tensor([[True, False]]), torch.tensor([[False, True]])
        similarity = torch.full((1, 1, 2, 2), 100.5)
        measure = TransportMeasure(0.05, 0.3, TorchSinkhorn())
        block = SimilarityBlock(similarity, clips, captions, bounds=(100.0, 101.0))
        score = measure.evaluate(block).score
        torch.testing.assert_close(score, torch.tensor([[100.5]]))

    @pytest.mark.parametrize(
        "similarity",
        [
            SoftMaximumSimilarity(0.1),
            SoftMaximumSimilarity(1.0, exponential="sum"),
            SoftMaximumSimilarity(1.0, exponential="sum", count_padding=True),
            SoftMaximumSimilarity(1.0, rescale="minmax"),
            MaxSimilarity(),
            MeanSimilarity(rescale="minmax"),
        ],
        ids=repr,
    )
    def test_similarities_stay_within_their_bounds(self, similarity) -> None:
        tokens = torch.nn.functional.one_hot(torch.arange(12) % 3, 4).float().view(2, 2, 3, 4)
        mask = torch.tensor([True, True, False]).expand(2, 2, 3)
        for sign in (1, -1):  # the same token everywhere is the extreme
            for video in (tokens, torch.ones(2, 2, 3, 4)):
                lo, hi = similarity.bounds(3, 3)
                values = similarity(Segments(video, mask), Segments(sign * video, mask))
                assert lo - 1e-5 <= values.min()
                assert values.max() <= hi + 1e-5

    @pytest.mark.parametrize("domain", ["scaling", "stabilized", "log"])
    @pytest.mark.parametrize("tolerance", [None, 1e-4])
    def test_chunks_are_solved_alike(self, domain, tolerance, monkeypatch) -> None:
        problem = random_problem(7, zero_columns=1, dtype=torch.float32, epsilon=0.05)
        solver = TorchSinkhorn(domain=domain, tolerance=tolerance)
        whole = solver.solve(problem)
        monkeypatch.setattr(scaling_domain, "_CHUNK", 2 * 35 * 4)
        parts = solver.solve(problem)
        torch.testing.assert_close(parts.plan, whole.plan, rtol=0, atol=1e-6)
        assert parts.iterations.tolist() == whole.iterations.tolist()

    def test_scalings_that_outgrow_the_dtype_are_absorbed(self) -> None:
        problem = random_problem(2, n=20, m=20, epsilon=0.3)
        wide = TransportProblem(300 * problem.scores, problem.log_mu, problem.log_nu, 1.0)
        exact = TorchSinkhorn(40, domain="log").solve(wide).plan
        assert TorchSinkhorn().domain_of(wide.to(torch.float32)) == "stabilized"
        plan = TorchSinkhorn(40).solve(wide.to(torch.float32)).plan
        torch.testing.assert_close(plan, exact.float(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("domain", ["scaling", "stabilized", "log"])
    @pytest.mark.parametrize("log_mass", [-150.0, 80.0])
    def test_any_mass_is_carried(self, domain, log_mass: float) -> None:
        problem = random_problem(3, dtype=torch.float32)
        heavy = TransportProblem(
            problem.scores,
            problem.log_mu + log_mass,
            problem.log_nu + log_mass,
            problem.epsilon,
            check_values=False,
        )
        plan = TorchSinkhorn(domain=domain).solve(heavy)
        exact = TorchSinkhorn().solve(problem)
        torch.testing.assert_close(plan.log_plan - log_mass, exact.log_plan, rtol=0, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
    def test_the_compiled_step_is_the_step(self) -> None:
        problem = random_problem(40, dtype=torch.float32, zero_rows=1)
        solver = TorchSinkhorn(domain="scaling", compiled=True)
        torch.testing.assert_close(
            solver.solve(problem).plan,
            TorchSinkhorn(domain="log").solve(problem).plan,
            rtol=0,
            atol=1e-6,
        )


class TestSelection:
    def test_reasons_on_the_cpu(self) -> None:
        assert select(random_problem()).solver is TorchSinkhorn
        assert "cpu" in select(random_problem()).reason
        assert "point cloud" in select(random_points()).reason

    def test_auto_gives_the_plan_of_what_it_selects(self) -> None:
        problem = random_problem(3)
        assert torch.equal(
            AutoSinkhorn(9).solve(problem).plan, TorchSinkhorn(9).solve(problem).plan
        )

    @pytest.mark.gpu
    def test_small_problems_go_to_triton_on_cuda(self) -> None:
        small = random_problem(64, dtype=torch.float32)
        on_cuda = TransportProblem(
            small.scores.cuda(), small.log_mu.cuda(), small.log_nu.cuda(), small.epsilon
        )
        assert select(on_cuda).solver is TritonSinkhorn
        torch.testing.assert_close(
            AutoSinkhorn().solve(on_cuda).plan.cpu(),
            TorchSinkhorn().solve(small).plan,
            rtol=0,
            atol=1e-5,
        )

    @pytest.mark.slow
    def test_the_table_says_what_works_and_what_auto_does(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ot", None)
        lines = table.report().splitlines()
        rows = {line.split()[0]: line for line in lines if line}
        assert " yes" in rows["torch"]
        assert "norton-losses[pot]" in rows["pot"]
        if not torch.cuda.is_available() and HAS_TRITON:
            assert "runs on CUDA" in rows["triton"]
        assert sum("Sinkhorn, since " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        pytest.param(partial(TorchSinkhorn, domain="log"), 1e-10, id="torch-log"),
        pytest.param(POTSinkhorn, 1e-10, id="pot", marks=pot),
        pytest.param(GeomLossSinkhorn, 1e-3, id="geomloss", marks=geomloss),
    ],
)
def test_the_loss_and_its_gradients_do_not_depend_on_the_backend(
    make: Solver, tolerance: float
) -> None:
    batch = make_batch(ragged=True)

    def loss_and_gradients(solver: AbstractSinkhorn) -> list[Tensor]:
        loss = NortonLoss(
            NortonVideoParagraphLoss(measure=TransportMeasure(0.2, sinkhorn=solver)),
            ClipCaptionOTLoss(temperature=0.5, sinkhorn=solver),
        ).double()
        leaves = batch.leaves()
        value = loss(*leaves.sides)
        return [value, *torch.autograd.grad(value, leaves.tokens)]

    exact = loss_and_gradients(TorchSinkhorn(50 if tolerance < 1e-6 else 1000))
    for ours, theirs in zip(loss_and_gradients(make(50)), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_no_backend_changes_global_state() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()
    makers: list[tuple[bool, Solver]] = [
        (True, TorchSinkhorn),
        (HAS_POT, POTSinkhorn),
        (HAS_GEOMLOSS, GeomLossSinkhorn),
        (HAS_KEOPS, KeOpsSinkhorn),
    ]
    for installed, make in makers:
        if installed:
            solver = make()
            for problem in (random_problem(2), random_points()):
                if solver.supports(problem).ok:
                    solver.solve(problem)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


@geomloss
@pytest.mark.parametrize("points", [1, 4])
def test_geomloss_takes_points_that_are_all_alike(points: int) -> None:
    even = torch.full((points,), 1 / points).log()
    cloud = PointCloudProblem(torch.ones(points, 3), torch.ones(points, 3), even, even, 0.5)
    plan = GeomLossSinkhorn().solve(cloud).plan
    torch.testing.assert_close(plan, torch.full((points, points), points**-2.0))


def test_what_is_no_problem() -> None:
    with pytest.raises(TypeError, match="problem must be a TransportProblem, got Tensor"):
        TorchSinkhorn().solve(torch.rand(3, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scores must be a torch.Tensor"):
        TransportProblem.uniform([[0.0]], [True], [True], 0.1)  # type: ignore[arg-type]


def test_numpy_integers_serve_as_numbers() -> None:
    assert type(TorchSinkhorn(np.int64(3)).iterations) is int
