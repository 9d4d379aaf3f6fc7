"""Steps on scalings: every way of taking one, and which batch goes which way."""

from __future__ import annotations

import pytest
import torch

from norton_losses import TorchSinkhorn, TransportProblem
from norton_losses.sinkhorn import scaling_step
from norton_losses.sinkhorn.scaling_step import step_of

WAYS = ("_multiplied", "_accumulated", "_summed")
# (B, n, m): one, few, many small, many larger, and long ones of few columns.
SHAPES = [(1, 3, 5), (1, 40, 30), (7, 3, 5), (2000, 4, 6), (700, 1, 60), (40, 30, 40), (90, 2, 300)]


def problem(b: int, n: int, m: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(b + n + m)
    sizes = (b, n, m), (n, b), (m, b), (m, b)
    return tuple(torch.rand(size, generator=g, dtype=dtype) + 0.1 for size in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_the_same_step(
    way: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    kernel, mu, nu, v = problem(*shape, dtype)
    step = getattr(scaling_step, way)(kernel, mu, nu)
    for _ in range(2):  # also from what the step itself gave
        u, after = step(v)
        expected = mu / torch.einsum("bnm,mb->nb", kernel, v)
        torch.testing.assert_close(u, expected)
        v_expected = nu / torch.einsum("bnm,nb->mb", kernel, expected)
        torch.testing.assert_close(after, v_expected)
        v = after


def test_a_step_leaves_what_came_before_it() -> None:
    kernel, mu, nu, v = problem(2000, 4, 6, torch.float32)
    for way in WAYS:
        step = getattr(scaling_step, way)(kernel, mu, nu)
        first = step(v)
        kept = [part.clone() for part in first]
        step(first[1])
        for part, copy in zip(first, kept, strict=True):
            assert part.equal(copy)


def way_of(b: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> str:
    kernel, mu, nu, _ = problem(b, n, m, dtype)
    return step_of(kernel, mu, nu).__qualname__.partition(".")[0]


def test_large_problems_are_multiplied_many_small_ones_accumulated_and_few_summed() -> None:
    ways = [way_of(*shape) for shape in SHAPES]
    assert ways == [
        "_summed", "_multiplied", "_summed", "_accumulated", "_accumulated", "_multiplied",
        "_multiplied",
    ]  # fmt: skip


def test_products_of_fewer_digits_are_not_used() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert way_of(2, 30, 30) == "_summed"
        assert way_of(100, 30, 30) == "_summed"
        assert way_of(2000, 4, 6) == "_accumulated"
        assert way_of(2, 30, 30, torch.float64) == "_multiplied"
    finally:
        torch.set_float32_matmul_precision(before)


def test_torchs_newer_settings_of_precision_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert way_of(2, 30, 30) == "_summed"
    even = torch.full((30,), 1 / 30).log()
    plan = TorchSinkhorn(200).solve(TransportProblem(torch.rand(30, 30), even, even, 0.5))
    assert plan.converged
