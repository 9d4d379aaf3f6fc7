"""Random transport problems, and problems whose answer is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from norton_losses import TransportPlan, TransportProblem


def random_problem(
    *batch: int,
    n: int = 5,
    m: int = 7,
    epsilon: float = 0.3,
    zero_rows: int = 0,
    zero_columns: int = 0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> TransportProblem:
    """Uneven marginals of mass 1; the last rows and columns may be absent."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(*batch, n, m, generator=g, dtype=torch.float64)
    mu = 0.2 + torch.rand(*batch, n, generator=g, dtype=torch.float64)
    nu = 0.2 + torch.rand(*batch, m, generator=g, dtype=torch.float64)
    mu[..., n - zero_rows :] = 0
    nu[..., m - zero_columns :] = 0
    mu, nu = mu / mu.sum(-1, keepdim=True), nu / nu.sum(-1, keepdim=True)
    return TransportProblem(scores.to(dtype), mu.log().to(dtype), nu.log().to(dtype), epsilon)


def two_by_two(epsilon: float, dtype: torch.dtype) -> tuple[TransportProblem, Tensor]:
    """The closed form: P11 = sqrt(r) / (2 (1 + sqrt(r))), r = exp((S11 + S22 - S12 - S21) / eps)."""
    scores = torch.tensor([[0.9, 0.2], [0.4, 0.5]], dtype=dtype)
    half = torch.tensor([0.5, 0.5], dtype=dtype).log()
    root = math.exp((0.9 + 0.5 - 0.2 - 0.4) / epsilon / 2)
    p = root / (2 * (1 + root))
    expected = torch.tensor([[p, 0.5 - p], [0.5 - p, p]], dtype=dtype)
    return TransportProblem(scores, half, half, epsilon), expected


def assert_same_plan(actual: TransportPlan, expected: TransportPlan, *, tolerance: float) -> None:
    """Same plan, whatever the gauge: u + c and v - c are one solution. Absent means absent."""
    for name in ("log_u", "log_v"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert torch.equal(ours == -torch.inf, theirs == -torch.inf), name
    torch.testing.assert_close(actual.plan, expected.plan, rtol=0, atol=tolerance)
    gauge = actual.log_u - expected.log_u
    gauge = gauge.masked_fill(gauge.isnan(), 0)  # -inf on both sides
    shift = gauge.amax(-1, keepdim=True)
    present = expected.log_u > -torch.inf
    spread = torch.where(present & (shift != 0), (gauge - shift).abs(), 0)
    assert spread.max() <= tolerance * 1e4, "log_u differs by more than a constant"
