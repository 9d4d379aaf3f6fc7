from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from norton_losses.functional import symmetric_cross_entropy
from tests import naive


def test_hard_targets_are_torchs_cross_entropy_both_ways() -> None:
    logits, truth = torch.randn(6, 6), torch.arange(6)
    expected = cross_entropy(logits, truth) + cross_entropy(logits.T, truth)
    torch.testing.assert_close(symmetric_cross_entropy(logits), expected)


def test_soft_targets_are_the_naive_sum() -> None:
    logits, targets = torch.randn(5, 5).double(), torch.rand(5, 5).double()
    expected = naive.cross_entropy(logits.numpy(), targets.numpy())
    assert symmetric_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-12)


def test_identity_is_the_default_target() -> None:
    logits = torch.randn(5, 5)
    torch.testing.assert_close(
        symmetric_cross_entropy(logits, torch.eye(5)), symmetric_cross_entropy(logits)
    )


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(soft: bool) -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(4, 4, dtype=torch.float64) if soft else None
    anchors = torch.tensor([True, False, True, True])
    candidates = torch.eye(4).bool() | (torch.rand(4, 4) < 0.7)
    assert torch.autograd.gradcheck(
        lambda x: symmetric_cross_entropy(x, targets, anchors=anchors, candidates=candidates),
        logits,
    )


def test_absent_rows_and_columns_are_as_if_cut_off() -> None:
    logits, valid = torch.randn(5, 5).double(), torch.tensor([1, 0, 1, 1, 0]).bool()
    targets = torch.rand(5, 5).double()
    both = valid[:, None] & valid[None, :]
    for target in (None, targets):
        cut = None if target is None else target[valid][:, valid]
        actual = symmetric_cross_entropy(
            logits.masked_fill(~both, math.nan), target, anchors=valid, candidates=both
        )
        torch.testing.assert_close(actual, symmetric_cross_entropy(logits[valid][:, valid], cut))


def test_excluded_candidates_leave_the_softmax() -> None:
    logits = torch.randn(3, 3).double()
    candidates = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1]]).bool()
    expected = np.mean(
        [
            naive.log_sum_exp(logits[i][candidates[i]].numpy())
            + naive.log_sum_exp(logits[:, i][candidates[:, i]].numpy())
            - 2 * logits[i, i].item()
            for i in range(3)
        ]
    )
    actual = symmetric_cross_entropy(logits, candidates=candidates)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("left_out", ["anchors", "candidates"])
def test_targets_of_what_is_left_out_count_as_zero(left_out: str) -> None:
    logits, targets = torch.randn(2, 4, 4).double()
    targets, kept = targets.abs(), torch.tensor([True, False, True, True])
    if left_out == "anchors":  # row 1 and column 1 stay in the softmaxes of the others
        actual = symmetric_cross_entropy(logits, targets, anchors=kept)
        expected = symmetric_cross_entropy(logits, targets * (kept[:, None] & kept)) * 4 / 3
    else:
        candidates = torch.eye(4).bool() | kept
        actual = symmetric_cross_entropy(logits, targets, candidates=candidates)
        expected = symmetric_cross_entropy(logits, targets * candidates, candidates=candidates)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_an_empty_column_makes_no_nan_on_the_way_back(soft: bool) -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    candidates = torch.tensor([True, True, False]).expand(3, 3)
    targets = torch.rand(3, 3) if soft else None
    with torch.autograd.set_detect_anomaly(True):
        symmetric_cross_entropy(logits, targets, candidates=candidates).backward()
    assert logits.grad is not None
    assert not logits.grad[:, 2].any()


@pytest.mark.parametrize("rows", [[2], [0, 1, 3]])
def test_the_mean_runs_over_the_anchors_alone(rows: list[int]) -> None:
    logits, index = torch.randn(4, 4).double(), torch.tensor(rows)
    anchors = torch.zeros(4, dtype=torch.bool).index_fill(0, index, True)
    both = cross_entropy(logits[index], index) + cross_entropy(logits.T[index], index)
    torch.testing.assert_close(symmetric_cross_entropy(logits, anchors=anchors), both)


def test_no_anchor_gives_zero_on_the_graph() -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    loss = symmetric_cross_entropy(logits, anchors=none, candidates=torch.zeros(3, 3).bool())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_huge_logits_stay_finite() -> None:
    logits = (1e30 * torch.randn(4, 4)).requires_grad_()
    loss = symmetric_cross_entropy(logits)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 4).to(dtype)
    loss = symmetric_cross_entropy(logits)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, symmetric_cross_entropy(logits.float()))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"logits must be square \(K, K\).*got \(3, 4\)"):
        symmetric_cross_entropy(torch.randn(3, 4))
    with pytest.raises(TypeError, match="logits must be a floating tensor, got torch.int64"):
        symmetric_cross_entropy(torch.eye(3).long())
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 3\), got \(2, 2\)"):
        symmetric_cross_entropy(torch.randn(3, 3), torch.randn(2, 2))
    with pytest.raises(TypeError, match="anchors must be a bool tensor"):
        symmetric_cross_entropy(torch.randn(3, 3), anchors=torch.ones(3))
    with pytest.raises(TypeError, match="candidates must be a bool tensor"):
        symmetric_cross_entropy(torch.randn(3, 3), candidates=torch.ones(3, 3))
    with pytest.raises(TypeError, match="targets must be a floating tensor"):
        symmetric_cross_entropy(torch.randn(3, 3), torch.eye(3).long())
