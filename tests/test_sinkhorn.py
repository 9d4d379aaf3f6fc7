"""One table of solvers, one suite of conformance: every solver passes all of it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from conftest import HAS_POT
from norton_losses import (
    AbstractProblem,
    AbstractSinkhorn,
    POTSinkhorn,
    Support,
    TorchSinkhorn,
    TransportPlan,
    TransportProblem,
)
from norton_losses._typing import SinkhornDomain
from norton_losses.sinkhorn import Scalings, resolve
from tests import naive
from tests.problems import assert_same_plan, random_problem, two_by_two

DOMAINS: tuple[SinkhornDomain, ...] = ("scaling", "stabilized", "log")
SOLVERS = [
    pytest.param(TorchSinkhorn, id="torch"),
    *(
        pytest.param(partial(TorchSinkhorn, domain=domain), id=f"torch-{domain}")
        for domain in DOMAINS
    ),
    pytest.param(
        POTSinkhorn,
        id="pot",
        marks=pytest.mark.skipif(not HAS_POT, reason="POT is not installed"),
    ),
]
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}

every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Solver = Callable[..., AbstractSinkhorn]


def marginals(problem: TransportProblem) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.log_mu.exp(), problem.log_nu.exp()


@every_solver
@every_dtype
@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (6, 6), (1, 1), (1, 4), (4, 1)])
def test_plan_is_the_loop_of_equation_3(
    solver: Solver, dtype: torch.dtype, steps: int, n: int, m: int
) -> None:
    problem = random_problem(3, n=n, m=m, dtype=dtype)
    actual = solver(steps).solve(problem)
    for k in range(3):
        arrays = (t[k].double().numpy() for t in (problem.scores, *marginals(problem)))
        expected = naive.sinkhorn(*arrays, problem.epsilon, steps)
        np.testing.assert_allclose(actual.plan[k], expected, atol=DTYPES[dtype])
    assert actual.iterations.tolist() == [steps] * 3


@every_solver
@every_dtype
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_two_by_two_closed_form(solver: Solver, dtype: torch.dtype, epsilon: float) -> None:
    problem, expected = two_by_two(epsilon, dtype)
    torch.testing.assert_close(
        solver(500).solve(problem).plan, expected, rtol=0, atol=DTYPES[dtype]
    )


@every_solver
def test_constant_scores_give_the_independent_plan(solver: Solver) -> None:
    problem = random_problem(2)
    problem = TransportProblem(torch.full_like(problem.scores, 3.7), *_logs(problem), 0.1)
    mu, nu = marginals(problem)
    torch.testing.assert_close(solver(1).solve(problem).plan, mu[..., None] * nu[..., None, :])


@every_solver
def test_small_epsilon_gives_the_best_assignment(solver: Solver) -> None:
    scores = torch.rand(4, 4, dtype=torch.float64)
    uniform = torch.full((4,), 0.25, dtype=torch.float64).log()
    plan = solver(5000).solve(TransportProblem(scores, uniform, uniform, 0.005)).plan
    best = max(
        itertools.permutations(range(4)), key=lambda p: sum(scores[i, p[i]] for i in range(4))
    )
    torch.testing.assert_close(
        4 * plan, torch.eye(4, dtype=torch.float64)[list(best)], atol=1e-3, rtol=0
    )


@every_solver
def test_columns_are_exact_and_rows_converge(solver: Solver) -> None:
    problem = random_problem(4, epsilon=0.05)
    mu, nu = marginals(problem)
    errors = []
    for steps in (1, 5, 50, 500):
        plan = solver(steps).solve(problem)
        torch.testing.assert_close(plan.plan.sum(-2), nu, rtol=0, atol=1e-14)
        errors.append((plan.plan.sum(-1) - mu).abs().sum(-1).max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 < errors[0]


@every_solver
def test_transposed_problem_converges_to_the_transposed_plan(solver: Solver) -> None:
    problem = random_problem(3)
    assert_same_plan(solver(500).solve(problem.T).T, solver(500).solve(problem), tolerance=1e-12)


@every_solver
def test_permuting_rows_and_columns_permutes_the_plan(solver: Solver) -> None:
    problem = random_problem()
    rows, columns = torch.randperm(5), torch.randperm(7)
    permuted = TransportProblem(
        problem.scores[rows][:, columns],
        problem.log_mu[rows],
        problem.log_nu[columns],
        problem.epsilon,
    )
    expected = solver().solve(problem).plan[rows][:, columns]
    torch.testing.assert_close(solver().solve(permuted).plan, expected, rtol=0, atol=1e-14)


@every_solver
def test_what_only_shifts_rows_and_columns_changes_nothing(solver: Solver) -> None:
    problem = random_problem()
    shifted = problem.scores + torch.randn(5, 1).double() + torch.randn(1, 7).double()
    moved = TransportProblem(shifted, *_logs(problem), problem.epsilon)
    torch.testing.assert_close(
        solver(500).solve(moved).plan, solver(500).solve(problem).plan, rtol=0, atol=1e-12
    )


@every_solver
def test_only_scores_over_epsilon_matter(solver: Solver) -> None:
    problem = random_problem()
    scaled = TransportProblem(1000 * problem.scores, *_logs(problem), 1000 * problem.epsilon)
    torch.testing.assert_close(
        solver(7).solve(scaled).plan, solver(7).solve(problem).plan, rtol=0, atol=1e-13
    )


@every_solver
@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("absent_score", [0.0, 1.0, 30.0])
def test_absent_rows_and_columns_are_as_if_cut_off(
    solver: Solver, steps: int, absent_score: float
) -> None:
    padded = random_problem(3, zero_rows=2, zero_columns=3)
    scores = padded.scores.clone()
    scores[:, 3:], scores[:, :, 4:] = absent_score, absent_score
    padded = TransportProblem(scores, *_logs(padded), padded.epsilon)
    cut = TransportProblem(
        scores[:, :3, :4], padded.log_mu[:, :3], padded.log_nu[:, :4], padded.epsilon
    )
    plan = solver(steps).solve(padded)
    torch.testing.assert_close(
        plan.plan[:, :3, :4], solver(steps).solve(cut).plan, rtol=0, atol=1e-15
    )
    assert not plan.plan[:, 3:].any()
    assert not plan.plan[:, :, 4:].any()


@every_solver
def test_empty_problems_have_empty_plans_and_do_no_harm(solver: Solver) -> None:
    problem = random_problem(3)
    log_mu, log_nu = problem.log_mu.clone(), problem.log_nu.clone()
    log_mu[1], log_nu[1] = -torch.inf, -torch.inf
    emptied = solver().solve(TransportProblem(problem.scores, log_mu, log_nu, problem.epsilon))
    assert not emptied.plan[1].any()
    assert emptied.marginal_error[1] == 0
    assert emptied.score[1] == 0
    assert emptied.value[1] == 0
    whole = solver().solve(problem)
    for k in (0, 2):
        torch.testing.assert_close(emptied.plan[k], whole.plan[k], rtol=0, atol=1e-15)


@every_solver
def test_batch_is_the_loop_over_its_problems(solver: Solver) -> None:
    batch = random_problem(2, 3)
    plan = solver(9).solve(batch)
    assert plan.plan.shape == (2, 3, 5, 7)
    for index in np.ndindex(2, 3):
        alone = TransportProblem(
            batch.scores[index], batch.log_mu[index], batch.log_nu[index], batch.epsilon
        )
        torch.testing.assert_close(
            plan.plan[index], solver(9).solve(alone).plan, rtol=0, atol=1e-15
        )


@pytest.mark.slow
@every_solver
def test_gradient_of_the_value_is_the_plan(solver: Solver) -> None:
    problem = random_problem(2)
    scores = problem.scores.clone().requires_grad_()

    def value(scores: torch.Tensor) -> torch.Tensor:
        # With 500 steps the plan has converged, and differencing goes through it as well.
        logs = _logs(problem)
        return solver(500).solve(TransportProblem(scores, *logs, problem.epsilon)).value

    plan = solver(500).solve(problem).plan
    torch.testing.assert_close(torch.autograd.grad(value(scores).sum(), scores)[0], plan)
    assert torch.autograd.gradcheck(value, scores)


@every_solver
def test_the_plan_carries_no_gradient(solver: Solver) -> None:
    problem = random_problem()
    scores = problem.scores.clone().requires_grad_()
    plan = solver().solve(TransportProblem(scores, *_logs(problem), problem.epsilon))
    assert not plan.plan.requires_grad
    assert not plan.marginal_error.requires_grad
    assert plan.score.requires_grad
    assert not plan.detach().score.requires_grad


@every_solver
def test_extreme_scores_stay_finite(solver: Solver) -> None:
    if solver() == TorchSinkhorn(domain="scaling"):
        pytest.skip("the domain of plain numbers was forced, which is for small ranges")
    problem = random_problem(dtype=torch.float32)
    wild = TransportProblem(1e4 * problem.scores, *_logs(problem), 0.01)
    plan = solver(20).solve(wild)
    assert plan.plan.isfinite().all()
    # Logarithms of size 1e6 leave float32 one digit behind the point.
    torch.testing.assert_close(plan.plan.sum(), torch.tensor(1.0), rtol=0, atol=0.1)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(solver: Solver, dtype: torch.dtype) -> None:
    scores = random_problem().scores.to(dtype)
    log = torch.full((5,), 0.2).log(), torch.full((7,), 1 / 7).log()
    plan = solver().solve(TransportProblem(scores, *log, 0.3))
    assert plan.plan.dtype == torch.float32
    exact = solver().solve(TransportProblem(scores.float(), *log, 0.3))
    assert torch.equal(plan.plan, exact.plan)


@every_solver
def test_autocast_does_not_round_the_transport(solver: Solver) -> None:
    problem = random_problem(dtype=torch.float32)
    outside = solver().solve(problem).plan
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(solver().solve(problem).plan, outside)


@every_solver
def test_global_state_is_left_alone_even_by_an_error(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    problem = random_problem()
    state = torch.get_rng_state()
    solver().solve(problem)
    monkeypatch.setattr(type(solver()), "_solve", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        solver().solve(problem)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


@every_solver
def test_settings_are_checked_at_construction(solver: Solver) -> None:
    for wrong in (0, -1, 2.5, 50.0, float("inf")):
        with pytest.raises(ValueError, match=r"iterations must be a whole number .* got"):
            solver(wrong)  # type: ignore[arg-type]
    assert solver(3) == solver(3) != solver(4)


def test_domains_are_checked() -> None:
    with pytest.raises(ValueError, match="domain must be one of"):
        TorchSinkhorn(domain="logs")  # type: ignore[arg-type]


def test_which_solvers_serve_rows_of_several_processes() -> None:
    for solver in (TorchSinkhorn(), TorchSinkhorn(domain="log")):
        assert solver.supports_shards().ok
    for solver in (
        TorchSinkhorn(domain="scaling"),
        TorchSinkhorn(plan_gradient="implicit"),
        TorchSinkhorn(plan_gradient="implicit", domain="scaling"),
        _Ones(),
    ):
        assert not solver.supports_shards().ok


@dataclass(frozen=True)
class _Ones(AbstractSinkhorn):
    """A solver of one's own, whose scalings are 1 everywhere."""

    serves: bool = True

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(self.serves, "it serves nothing")

    def _solve(self, problem: AbstractProblem) -> Scalings:
        return Scalings(*(torch.zeros_like(log) for log in (problem.log_mu, problem.log_nu)), 1)


def test_scalings_of_what_is_absent_may_be_anything() -> None:
    problem = random_problem(3, zero_rows=2, zero_columns=1)
    log_mu, log_nu = problem.log_mu.clone(), problem.log_nu.clone()
    log_mu[1], log_nu[2] = -torch.inf, -torch.inf  # nothing on one side: nothing to move
    plan = _Ones().solve(problem.replace(log_mu=log_mu, log_nu=log_nu))
    assert torch.equal(
        plan.log_u[0], torch.tensor([0.0, 0.0, 0.0, -torch.inf, -torch.inf]).double()
    )
    assert torch.equal(plan.log_v[0, -2:], torch.tensor([0.0, -torch.inf]).double())
    assert plan.log_u[1:].isneginf().all()
    assert plan.log_v[1:].isneginf().all()


@pytest.mark.parametrize("plan_gradient", ["detached", "implicit"])
def test_what_is_not_served_is_refused_with_its_reason(plan_gradient: Any) -> None:
    with pytest.raises(ValueError, match="_Ones cannot solve this problem: it serves nothing"):
        _Ones(serves=False, plan_gradient=plan_gradient).solve(random_problem())


@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_plain_numbers_serve_their_whole_range(shift: float) -> None:
    bare = random_problem(3, epsilon=1.0, dtype=torch.float32)
    problem = bare.replace(scores=59 * bare.scores + shift)
    found, expected = (TorchSinkhorn(20, domain=d).solve(problem) for d in ("scaling", "log"))
    torch.testing.assert_close(found.plan, expected.plan, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("domain", ["stabilized", "log"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalings_may_grow_beyond_the_dtype(domain: SinkhornDomain, dtype: torch.dtype) -> None:
    """A tenth of the mass has to take a cell of e^-300, or e^-1000, so u and v become as large."""
    far = 300.0 if dtype == torch.float32 else 1000.0
    scores = torch.tensor([[0.0, 0.0], [-far, 0.0]], dtype=dtype)
    log_mu, log_nu = (torch.tensor(mass, dtype=dtype).log() for mass in ((0.5, 0.5), (0.6, 0.4)))
    plan = TorchSinkhorn(4000, domain=domain).solve(TransportProblem(scores, log_mu, log_nu, 1.0))
    expected = torch.tensor([[0.5, 0.0], [0.1, 0.4]], dtype=dtype)
    torch.testing.assert_close(plan.plan, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "beyond"), [(torch.float32, 89.5), (torch.float64, 740.0)])
def test_ranges_beyond_plain_numbers_keep_their_digits(dtype: torch.dtype, beyond: float) -> None:
    scores = torch.full((3, 3), -beyond, dtype=dtype)
    scores[0] = 0  # as far as a sum of them reaches, rows 1 and 2 have nothing nearer
    mu = torch.tensor([0.02, 0.49, 0.49], dtype=dtype)
    nu = torch.full((3,), 1 / 3, dtype=dtype)
    plan = TorchSinkhorn(50).solve(TransportProblem(scores, mu.log(), nu.log(), 1.0))
    torch.testing.assert_close(plan.plan, mu[:, None] * nu)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("log_mass", [-4.0, 4.0])
def test_a_plan_moves_the_mass_of_its_marginals(domain: SinkhornDomain, log_mass: float) -> None:
    bare = random_problem(3)
    heavy = bare.replace(log_mu=bare.log_mu + log_mass, log_nu=bare.log_nu + log_mass)
    of_one, of_mass = (TorchSinkhorn(20, domain=domain).solve(p).plan for p in (bare, heavy))
    torch.testing.assert_close(of_mass, of_one * torch.tensor(log_mass).double().exp())


def test_a_detached_plan_is_off_the_graph() -> None:
    problem = random_problem(3)
    problem.scores.requires_grad_()
    plan = TorchSinkhorn(plan_gradient="implicit").solve(problem)
    assert plan.log_u.requires_grad
    assert plan.T.plan.requires_grad
    alone = plan.detach()
    for held in (alone.log_u, alone.log_v, alone.plan, alone.score, alone.problem.scores):
        assert not held.requires_grad
    assert torch.equal(alone.plan, plan.plan)


@pytest.mark.parametrize(("score_range", "spread"), [((-1.0, 3.0), 4.0), ((2.0, 3.0), 1.0)])
def test_a_known_range_is_a_known_spread(score_range: tuple[float, float], spread: float) -> None:
    masks = torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    scores = torch.full((2, 3), 2.5)
    problem = TransportProblem.uniform(scores, *masks, 0.1, score_range=score_range)
    assert problem.spread == spread
    assert TransportProblem.uniform(scores, *masks, 0.1).spread is None


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_seen_spread_is_that_of_present_cells(rows: int, columns: int) -> None:
    problem = random_problem(3, zero_rows=rows, zero_columns=columns)
    present = problem.scores[:, : 5 - rows, : 7 - columns]
    expected = (present.amax((1, 2)) - present.amin((1, 2))).max().item()
    dirty = problem.scores.clone()
    dirty[0, 5 - rows :], dirty[1, :, 7 - columns :] = 1e3, -1e3
    assert problem.replace(scores=dirty).look_for_spread() == expected
    nothing = problem.log_mu.new_full(problem.log_mu.shape, -torch.inf)
    empty = problem.replace(log_mu=nothing, log_nu=torch.full_like(problem.log_nu, -torch.inf))
    assert empty.look_for_spread() == 0


def test_rounding_is_no_wrong_range_or_mass() -> None:
    third = torch.full((3,), 1 / 3).log()
    scores = torch.tensor([[1.0005, 0.0, -1.0005]]).T.expand(3, 3)
    for wrong in (1.002, -1.002):
        with pytest.raises(ValueError, match="scores must lie in their score_range"):
            TransportProblem(wrong * scores, third, third, 0.1, score_range=(-1.0, 1.0))
    TransportProblem(scores, third, third + 1e-4, 0.1, score_range=(-1.0, 1.0))
    TransportProblem(scores + 9.004, third, third, 0.1, score_range=(0.0, 10.0))
    with pytest.raises(ValueError, match="scores must lie in their score_range"):
        TransportProblem(scores + 9.0115, third, third, 0.1, score_range=(0.0, 10.0))
    absent = torch.tensor([0.5, 0.5, 0.0]).log()
    for there in (scores.flip(0) + 5 * torch.eye(3)[2], scores + 5 * torch.eye(3)[2][:, None]):
        masses = (third, absent) if there[0, 2] > 2 else (absent, third)
        TransportProblem(there, *masses, 0.1, score_range=(-1.0, 1.0))


def test_a_plan_of_hand_carries_no_gradient_and_a_detached_one_says_so() -> None:
    problem = random_problem(3)
    problem = problem.replace(scores=problem.scores.requires_grad_())
    plan = TorchSinkhorn(5, plan_gradient="implicit").solve(problem)
    assert plan.differentiable
    assert plan.plan.requires_grad
    by_hand = TransportPlan(problem, plan.log_u.detach(), plan.log_v.detach(), plan.iterations)
    for other in (plan.detach(), by_hand):
        assert not other.differentiable
        assert not other.plan.requires_grad


def test_any_index_of_the_batch_and_none_of_the_entries() -> None:
    problem = random_problem(3)
    places = torch.tensor([[0, 1], [2, 0]])
    assert torch.equal(problem[places].scores, problem.scores[places])
    plan = TorchSinkhorn(300, tolerance=1e-8).solve(problem.replace(epsilon=0.5))
    assert len(set(plan.iterations.tolist())) > 1
    assert torch.equal(plan[places].iterations, plan.iterations[places])
    assert torch.equal(plan[1].plan, plan.plan[1])
    assert problem[torch.tensor([True, False, True])].log_mu.shape == (2, 5)
    for index in (torch.ones(3, 5).bool(), (0, 1), None, ...):
        with pytest.raises(TypeError, match="only the batch"):
            problem[index]
    with pytest.raises(TypeError, match="only the batch"):
        problem[0][torch.ones(5).bool()]


@every_solver
def test_an_empty_problem_has_no_scalings(solver: Solver) -> None:
    rows = torch.tensor([[True, True], [False, False]])
    columns = torch.ones(2, 3, dtype=torch.bool)
    problem = TransportProblem.uniform(torch.rand(2, 2, 3), rows, columns, 0.1)
    plan = solver(5).solve(problem)
    for scalings in (plan.log_u, plan.log_v):
        assert scalings[0].isfinite().all()
        assert (scalings[1] == -torch.inf).all()


def test_even_marginals_need_masks_of_the_scores() -> None:
    scores, rows, columns = torch.rand(2, 3), torch.ones(2).bool(), torch.ones(3).bool()
    with pytest.raises(TypeError, match="scores must be a floating tensor"):
        TransportProblem.uniform(scores.long(), rows, columns, 0.1)
    with pytest.raises(ValueError, match=r"row_mask must have shape \(2,\), got \(3,\)"):
        TransportProblem.uniform(scores, columns, columns, 0.1)
    with pytest.raises(TypeError, match="column_mask must be a bool tensor"):
        TransportProblem.uniform(scores, rows, columns.float(), 0.1)


def test_a_turned_plan_is_as_far_from_its_marginals() -> None:
    plan = TorchSinkhorn(2).solve(random_problem(3, epsilon=0.05))
    assert (plan.marginal_error > 1e-3).all()
    torch.testing.assert_close(plan.T.marginal_error, plan.marginal_error)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1)])
def test_scores_of_one_absent_side_have_no_effect(
    domain: SinkhornDomain, rows: int, columns: int
) -> None:
    clean = random_problem(3, zero_rows=rows, zero_columns=columns)
    dirty = clean.scores.clone()
    dirty[:, 5 - rows :], dirty[..., 7 - columns :] = 1e5, 1e5
    solver = TorchSinkhorn(20, domain=domain)
    found, expected = (solver.solve(p) for p in (clean.replace(scores=dirty), clean))
    assert_same_plan(found, expected, tolerance=1e-12)


class TestTolerance:
    def test_stops_early_and_says_when(self) -> None:
        problem = random_problem(6, epsilon=0.1)
        plan = TorchSinkhorn(1000, tolerance=1e-6).solve(problem)
        assert plan.converged.all()
        assert (plan.marginal_error <= 1.01e-6).all()
        assert (plan.iterations < 1000).all()
        exact = TorchSinkhorn(1000).solve(problem)
        torch.testing.assert_close(plan.plan, exact.plan, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize("tolerance", [1e-5, 1e-6])
    def test_what_stopped_early_counts_as_converged(
        self, domain: SinkhornDomain, tolerance: float
    ) -> None:
        problem = random_problem(200, n=20, m=20, epsilon=0.5, dtype=torch.float32)
        plan = TorchSinkhorn(1000, tolerance=tolerance, domain=domain).solve(problem)
        assert (plan.iterations < 1000).all()
        assert plan.converged.all()

    def test_does_not_depend_on_batch_mates(self) -> None:
        easy, hard = random_problem(epsilon=1.0), random_problem(epsilon=1.0, seed=1)
        solver = TorchSinkhorn(300, tolerance=1e-8)
        both = TransportProblem(
            torch.stack([easy.scores, 20 * hard.scores]),
            torch.stack([easy.log_mu, hard.log_mu]),
            torch.stack([easy.log_nu, hard.log_nu]),
            1.0,
        )
        together, alone = solver.solve(both), solver.solve(easy)
        assert together.iterations[0] == alone.iterations < together.iterations[1]
        torch.testing.assert_close(together.plan[0], alone.plan, rtol=0, atol=1e-15)

    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize("tolerance", [None, 1e-6])
    def test_steps_have_the_shape_of_the_batch(
        self, domain: SinkhornDomain, tolerance: float | None
    ) -> None:
        solver, problem = (
            TorchSinkhorn(500, tolerance=tolerance, domain=domain),
            random_problem(2, 3),
        )
        steps = solver.solve(problem).iterations
        assert steps.shape == (2, 3)
        assert steps.dtype == torch.int64
        for place in itertools.product(range(2), range(3)):
            assert solver.solve(problem[place]).iterations == steps[place]

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_absent_rows_do_not_delay_the_stop(self, domain: SinkhornDomain) -> None:
        solver = TorchSinkhorn(1000, tolerance=1e-6, domain=domain)
        bare = random_problem(4, n=5, m=7, epsilon=0.3)
        none = bare.log_mu.new_full((4, 2), -torch.inf)
        padded = TransportProblem(
            torch.cat([bare.scores, torch.full((4, 2, 7), 9.0).double()], dim=1),
            torch.cat([bare.log_mu, none], dim=1),
            bare.log_nu,
            bare.epsilon,
        )
        steps = solver.solve(bare).iterations
        assert steps.min() > 1
        assert steps.max() < 1000
        assert solver.solve(padded).iterations.tolist() == steps.tolist()

    @pytest.mark.parametrize("log_mass", [-4.0, 0.0, 4.0])
    def test_the_error_is_that_of_the_mass(self, log_mass: float) -> None:
        bare = random_problem(4, n=5, m=7, epsilon=0.3)
        masses = bare.log_mu + log_mass, bare.log_nu + log_mass
        problem = TransportProblem(bare.scores, *masses, bare.epsilon)
        steps = [
            TorchSinkhorn(1000, tolerance=1e-6, domain=domain).solve(problem).iterations.tolist()
            for domain in DOMAINS
        ]
        assert steps[0] == steps[1] == steps[2]

    def test_not_converged_says_so(self) -> None:
        plan = TorchSinkhorn(2, tolerance=1e-9).solve(random_problem(epsilon=0.02))
        assert not plan.converged
        assert plan.iterations == 2

    def test_fixed_number_of_steps_is_judged_by_default(self) -> None:
        assert TorchSinkhorn(100).solve(random_problem()).converged
        assert not TorchSinkhorn(1).solve(random_problem(epsilon=0.02)).converged

    @pytest.mark.parametrize("wrong", [0.0, -1e-3])
    def test_must_be_positive(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="tolerance must be a finite number above 0"):
            TorchSinkhorn(tolerance=wrong)


class TestProblem:
    def test_mass_mismatch(self) -> None:
        logs = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.6]).log()
        with pytest.raises(ValueError, match="same total mass, got masses 0.1 apart; divide"):
            TransportProblem(torch.eye(2), *logs, 0.1)
        batches = (torch.stack([logs[0], log]) for log in logs)
        with pytest.raises(ValueError, match="same total mass, got masses 0.1 apart; divide"):
            TransportProblem(torch.eye(2).expand(2, 2, 2), *batches, 0.1)
        tiny = (torch.tensor([mass, mass]).log() for mass in (1e-9, 2e-9))
        with pytest.raises(ValueError, match="same total mass, got masses 2e-09 apart; divide"):
            TransportProblem(torch.eye(2), *tiny, 0.1)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
    def test_scores_must_be_finite(self, bad: float) -> None:
        scores = torch.eye(2)
        scores[0, 0] = bad
        half = torch.tensor([0.5, 0.5]).log()
        with pytest.raises(ValueError, match="scores must be finite"):
            TransportProblem(scores, half, half, 0.1)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_marginals_must_be_masses(self, bad: float) -> None:
        half = torch.tensor([0.5, 0.5]).log()
        with pytest.raises(ValueError, match="log_mu must be logarithms of finite masses"):
            TransportProblem(torch.eye(2), torch.tensor([0.0, bad]), half, 0.1)

    def test_shapes_must_fit(self) -> None:
        half, third = torch.zeros(2), torch.zeros(3)
        with pytest.raises(ValueError, match=r"log_nu must have shape \(2,\), got \(3,\)"):
            TransportProblem(torch.eye(2), half, third, 0.1)
        with pytest.raises(ValueError, match=r"log_mu must have shape \(2,\), got \(3,\)"):
            TransportProblem(torch.eye(2), third, half, 0.1)
        with pytest.raises(ValueError, match="scores must have at least 2 dimensions"):
            TransportProblem(torch.zeros(2), half, half, 0.1)
        with pytest.raises(TypeError, match=r"log_mu must be a torch\.Tensor"):
            TransportProblem(torch.eye(2), [0.0, 0.0], half, 0.1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="log_nu must be on cpu .*got meta"):
            TransportProblem(torch.eye(2), half, half.to("meta"), 0.1)

    @pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan"), float("inf")])
    def test_epsilon_must_be_positive(self, epsilon: float) -> None:
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got"):
            TransportProblem(torch.eye(2), torch.zeros(2), torch.zeros(2), epsilon)


class TestUniform:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_masses_agree(self, dtype: torch.dtype) -> None:
        rows, columns = torch.ones(3).bool(), torch.ones(300).bool()
        problem = TransportProblem.uniform(torch.zeros(3, 300, dtype=dtype), rows, columns, 1.0)
        for marginal in marginals(problem):
            torch.testing.assert_close(marginal.sum(), torch.tensor(1.0))

    def test_garbage_in_absent_cells_has_no_effect(self) -> None:
        scores, columns = torch.rand(2, 3), torch.tensor([True, False, True])
        dirty = scores.masked_fill(~columns, float("nan"))
        plans = [
            TorchSinkhorn()
            .solve(TransportProblem.uniform(s, torch.ones(2).bool(), columns, 0.1))
            .plan
            for s in (scores, dirty)
        ]
        assert torch.equal(*plans)

    def test_one_absent_side_leaves_nothing_to_move(self) -> None:
        rows, columns = torch.ones(2).bool(), torch.zeros(3).bool()
        plan = TorchSinkhorn().solve(TransportProblem.uniform(torch.rand(2, 3), rows, columns, 0.1))
        assert not plan.plan.any()
        assert plan.marginal_error == 0

    def test_masks_are_checked(self) -> None:
        with pytest.raises(TypeError, match="row_mask must be a bool tensor"):
            TransportProblem.uniform(torch.rand(2, 3), torch.ones(2), torch.ones(3).bool(), 0.1)


class TestResolve:
    def test_objects_pass_through(self) -> None:
        solver = TorchSinkhorn(7)
        assert resolve(solver) is solver

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"one of \['auto', 'torch', .*got 'cuda'"):
            resolve("cuda")
        with pytest.raises(TypeError, match="name or a solver object, got int"):
            resolve(50)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "module"),
        [
            ("pot", "ot"),
            ("geomloss", "geomloss"),
            ("keops", "pykeops.torch"),
            ("triton", "norton_losses.kernels.small_sinkhorn_triton"),
        ],
    )
    def test_missing_package_names_its_extra(
        self, name: str, module: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'norton-losses\[{name}\]'.*or use"):
            resolve(name)


def test_a_solver_that_does_not_serve_says_what_does() -> None:
    class Picky(AbstractSinkhorn):
        def supports(self, problem: TransportProblem) -> Support:
            return Support(False, "it is too large; use TorchSinkhorn")

        def _solve(self, problem: TransportProblem) -> TransportPlan:
            raise AssertionError("not asked")

    with pytest.raises(ValueError, match="Picky cannot solve this problem: it is too large; use"):
        Picky().solve(random_problem())


def _logs(problem: TransportProblem) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.log_mu, problem.log_nu
