"""The iteration on problems that nobody thought of: every exact solver, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_losses import TransportProblem
from tests import naive
from tests.test_sinkhorn import SOLVERS, Solver


@st.composite
def problems(draw: st.DrawFn) -> tuple[TransportProblem, int, int]:
    """A small batch, some of its rows and columns absent, and how many are not."""
    batch, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rows, columns = draw(st.integers(1, n)), draw(st.integers(1, m))
    spread = draw(st.floats(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masses = np.zeros((batch, n)), np.zeros((batch, m))
    masses[0][:, :rows] = rng.uniform(1e-3, 1, (batch, rows))
    masses[1][:, :columns] = rng.uniform(1e-3, 1, (batch, columns))
    with np.errstate(divide="ignore"):
        logs = [torch.tensor(np.log(mass / mass.sum(-1, keepdims=True))) for mass in masses]
    scores = torch.tensor(spread * rng.uniform(0, 1, (batch, n, m)))
    return TransportProblem(scores, *logs, epsilon=draw(st.floats(0.3, 3))), rows, columns


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@given(made=problems(), steps=st.integers(1, 12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plan_is_the_loop_of_equation_3(
    solver: Solver, made: tuple[TransportProblem, int, int], steps: int
) -> None:
    problem, rows, columns = made
    plan = solver(steps).solve(problem).plan.numpy()
    for k in range(len(plan)):
        expected = naive.sinkhorn(
            problem.scores[k, :rows, :columns].numpy(),
            problem.log_mu[k, :rows].exp().numpy(),
            problem.log_nu[k, :columns].exp().numpy(),
            problem.epsilon,
            steps,
        )
        np.testing.assert_allclose(plan[k, :rows, :columns], expected, rtol=0, atol=1e-12)
        assert not plan[k, rows:].any()
        assert not plan[k, :, columns:].any()
