"""Transport problems whose answers are known from the mathematics, for every solver.

The Triton kernels meet them in ``tests/test_triton_sinkhorn.py``, by comparison with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from conftest import HAS_GEOMLOSS, HAS_KEOPS, HAS_POT
from norton_losses import (
    AbstractSinkhorn,
    AutoSinkhorn,
    GeomLossSinkhorn,
    KeOpsSinkhorn,
    PointCloudProblem,
    POTSinkhorn,
    TorchSinkhorn,
    TransportPlan,
    TransportProblem,
)

geomloss = pytest.mark.skipif(not HAS_GEOMLOSS, reason="GeomLoss is not installed")
keops = pytest.mark.skipif(not HAS_KEOPS, reason="KeOps or a C++ compiler is not installed")
pot = pytest.mark.skipif(not HAS_POT, reason="POT is not installed")
STEPS = 3000
EXPLICIT = {
    "torch": partial(TorchSinkhorn, STEPS),
    "logarithms": partial(TorchSinkhorn, STEPS, domain="log"),
    "stabilized": partial(TorchSinkhorn, STEPS, domain="stabilized"),
    "tolerance": partial(TorchSinkhorn, STEPS, tolerance=1e-9),
    "unrolled": partial(TorchSinkhorn, STEPS, plan_gradient="unrolled"),
    "auto": partial(AutoSinkhorn, STEPS),
    "pot": partial(POTSinkhorn, STEPS),
    "geomloss": partial(GeomLossSinkhorn, polish=STEPS),
}
CLOUDS = {
    "torch": partial(TorchSinkhorn, STEPS),
    "keops": partial(KeOpsSinkhorn, STEPS),
    "geomloss": partial(GeomLossSinkhorn, polish=STEPS),
}
NEEDS = {"pot": pot, "geomloss": geomloss, "keops": [keops, pytest.mark.slow]}
explicit, clouds = (
    pytest.mark.parametrize(
        "solver", [pytest.param(s, id=n, marks=NEEDS.get(n, ())) for n, s in solvers.items()]
    )
    for solvers in (EXPLICIT, CLOUDS)
)
Solver = Callable[[], AbstractSinkhorn]


def even(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64).log()


def solved(solver: Solver, scores: Tensor, epsilon: float) -> TransportPlan:
    n, m = scores.shape
    return solver().solve(TransportProblem(scores, even(n), even(m), epsilon))


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@explicit
def test_equal_scores_move_mass_independently(solver: Solver) -> None:
    scores = torch.full((5, 7), 0.3, dtype=torch.float64)
    plan = solved(solver, scores, 0.1)
    close(plan.plan, torch.full_like(scores, 1 / 35), 1e-9)
    assert plan.score == pytest.approx(0.3)
    assert plan.entropy == pytest.approx(torch.tensor(35.0).log().item())


@explicit
def test_two_by_two_has_a_closed_form(solver: Solver) -> None:
    # Of equal marginals the odds of the diagonal are exp((a + d - b - c) / 2 epsilon).
    scores = torch.tensor([[0.9, 0.2], [0.1, 0.4]], dtype=torch.float64)
    odds = torch.tensor((0.9 + 0.4 - 0.2 - 0.1) / (2 * 0.25)).double().exp()
    diagonal = 0.5 * odds / (1 + odds)
    expected = torch.stack([diagonal, 0.5 - diagonal, 0.5 - diagonal, diagonal]).view(2, 2)
    close(solved(solver, scores, 0.25).plan, expected, 1e-6)


@explicit
def test_terms_of_rows_and_columns_alone_change_nothing(solver: Solver) -> None:
    torch.manual_seed(0)
    scores, rows, columns = torch.rand(6, 8), torch.randn(6, 1), torch.randn(1, 8)
    plans = [solved(solver, s.double(), 0.3).plan for s in (scores, scores + rows + columns)]
    close(plans[0], plans[1], 1e-6)


@explicit
def test_blocks_that_do_not_meet_keep_their_mass(solver: Solver) -> None:
    torch.manual_seed(0)
    scores = torch.full((7, 7), -4.0, dtype=torch.float64)
    first, second = torch.rand(3, 3).double(), torch.rand(4, 4).double()
    scores[:3, :3], scores[3:, 3:] = first, second
    plan = solved(solver, scores, 0.1).plan
    close(plan[:3, :3] * 7 / 3, solved(solver, first, 0.1).plan, 1e-6)
    close(plan[3:, 3:] * 7 / 4, solved(solver, second, 0.1).plan, 1e-6)
    assert plan[:3, 3:].sum() + plan[3:, :3].sum() < 1e-12


@explicit
def test_towards_zero_epsilon_it_is_the_best_assignment(solver: Solver) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    for seed in range(3):
        torch.manual_seed(seed)
        scores = torch.rand(9, 9, dtype=torch.float64)
        rows, columns = optimize.linear_sum_assignment(scores.numpy(), maximize=True)
        best = scores[rows, columns].mean().item()
        found = [solved(solver, scores, epsilon).score.item() for epsilon in (0.1, 0.02)]
        # The entropy of a plan lies in [log n, 2 log n]: so far below the best it may score.
        slack = torch.tensor(9.0).log().item()
        assert best - 0.1 * slack <= found[0] <= found[1] <= best + 1e-6
        assert found[1] >= best - 0.02 * slack


@explicit
def test_a_permutation_is_found(solver: Solver) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    scores = torch.nn.functional.one_hot(order, 5).double()
    close(solved(solver, scores, 0.05).plan, scores / 5, 1e-6)


def gaussians(count: int = 160) -> tuple[Tensor, Tensor, Tensor]:
    """A grid, and the logarithms of two normal densities on it, of variances 0.7 and 1.6."""
    x = torch.linspace(-6, 6, count, dtype=torch.float64)
    logs = [-(x**2) / (2 * variance) for variance in (0.7, 1.6)]
    return x, *(log - log.logsumexp(0) for log in logs)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
@clouds
def test_normal_distributions_have_a_normal_plan(solver: Solver, epsilon: float) -> None:
    # Of products x y: its covariance is sqrt(a b + epsilon^2 / 4) - epsilon / 2 (Janati et al.,
    # Entropic Optimal Transport between Unbalanced Gaussian Measures has a Closed Form, 2020).
    x, log_mu, log_nu = gaussians()
    problem = PointCloudProblem(x[:, None], x[:, None], log_mu, log_nu, epsilon)
    covariance = (0.7 * 1.6 + epsilon**2 / 4) ** 0.5 - epsilon / 2
    assert solver().solve(problem).score.item() == pytest.approx(covariance, abs=2e-4)


@clouds
def test_the_map_of_a_convex_gradient_is_found(solver: Solver) -> None:
    # By Brenier's theorem y = f'(x) of a convex f is the best map, and so it keeps the order.
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)
    y = x.exp() + x**3  # the derivative of a convex function
    shuffled = y[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    problem = PointCloudProblem(x[:, None], shuffled[:, None], even(24), even(24), 2e-3)
    plan = solver().solve(problem).plan
    close(24 * plan @ shuffled, y, 0.03)
