from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_losses import PromptBucket, SimilarityBlock, TorchSinkhorn, TransportMeasure
from norton_losses.functional import bucket_problem, bucket_threshold
from tests import naive


def full(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def aligned(values: list[list[float]]) -> Tensor:
    """(B, B, N, N) with the given similarities (B, N) of aligned pairs, and 100 elsewhere."""
    own = torch.tensor(values, dtype=torch.float64)
    batch, length = own.shape
    similarity = torch.full((batch, batch, length, length), 100.0, dtype=torch.float64)
    for b in range(batch):
        similarity[b, b].fill_diagonal_(0).add_(own[b].diag())
    return similarity


class TestThreshold:
    VALUES = ((0.5, 0.1, 0.9, 0.3, 0.7), (0.6, 0.2, 1.0, 0.4, 0.8))

    @pytest.mark.parametrize(
        ("ratio", "expected"),
        [(0.0, 0.1), (0.05, 0.1), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.59, 0.5), (1.0, 1.0)],
    )
    def test_is_the_kth_smallest_of_the_aligned_pairs(self, ratio: float, expected: float) -> None:
        similarity = aligned([list(row) for row in self.VALUES])
        p = bucket_threshold(similarity, full(2, 5), full(2, 5), ratio)
        assert p.item() == expected

    @pytest.mark.parametrize("count", [1, 3, 10, 29, 50, 70, 100, 1000])
    @pytest.mark.parametrize("ratio", [0.07, 0.29, 0.3, 0.57, 0.7])
    def test_floors_as_python_does(self, count: int, ratio: float) -> None:
        similarity = aligned([list(range(1, count + 1))]).float()
        p = bucket_threshold(similarity, full(1, count), full(1, count), ratio)
        assert p.item() == max(1, int(ratio * count))

    def test_counts_valid_pairs_only(self) -> None:
        clips, captions = full(2, 5), full(2, 5)
        clips[0, 1], captions[1, 1] = False, False  # 0.1 and 0.2 leave
        similarity = aligned([list(row) for row in self.VALUES])
        assert bucket_threshold(similarity, clips, captions, 0.3).item() == 0.4  # 2nd of 8

    def test_more_clips_than_captions(self) -> None:
        similarity = torch.rand(2, 2, 5, 3)
        pairs = torch.cat([similarity[b, b].diagonal() for b in range(2)])
        p = bucket_threshold(similarity, full(2, 5), full(2, 3), 0.5)
        assert p == pairs.sort().values[2]

    def test_nothing_valid_is_zero(self) -> None:
        p = bucket_threshold(torch.rand(2, 2, 3, 3), ~full(2, 3), full(2, 3), 0.3)
        assert p.item() == 0

    def test_carries_no_gradient(self) -> None:
        similarity = torch.rand(2, 2, 3, 3, requires_grad=True)
        p = bucket_threshold(similarity, full(2, 3), full(2, 3), 0.3)
        assert not p.requires_grad
        out = TransportMeasure().explain(similarity)
        assert out.bucket_value == p
        assert out.bucket_value is not None
        assert not out.bucket_value.requires_grad

    @pytest.mark.parametrize("ratio", [-0.1, 1.1])
    def test_ratio_range(self, ratio: float) -> None:
        with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got"):
            bucket_threshold(torch.rand(2, 2, 3, 3), full(2, 3), full(2, 3), ratio)

    def test_needs_as_many_videos_as_paragraphs(self) -> None:
        with pytest.raises(
            ValueError, match=r"got 2 videos and 3 paragraphs; use PromptBucket\(val"
        ):
            bucket_threshold(torch.rand(2, 3, 4, 4), full(2, 4), full(3, 4), 0.3)


class TestProblem:
    @pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 1), (1, 1)])
    def test_is_the_naive_one(self, shape: tuple[int, int]) -> None:
        similarity = torch.rand(1, 1, *shape, dtype=torch.float64)
        problem = bucket_problem(similarity, 0.3, full(1, shape[0]), full(1, shape[1]), 0.1)
        scores, mu, nu = naive.with_bucket(similarity[0, 0].numpy(), 0.3)
        np.testing.assert_allclose(problem.scores[0, 0], scores)
        np.testing.assert_allclose(problem.log_mu.exp()[0, 0], mu)
        np.testing.assert_allclose(problem.log_nu.exp()[0, 0], nu)
        assert problem.has_bucket

    def test_padding_is_as_if_cut_off(self) -> None:
        similarity = torch.rand(2, 3, 5, 6, dtype=torch.float64)
        clips, captions = full(2, 5), full(3, 6)
        clips[:, 1], captions[:, 2:4] = False, False
        padded = TorchSinkhorn(7).solve(bucket_problem(similarity, 0.3, clips, captions, 0.1))
        rows, columns = clips[0], captions[0]
        cut = bucket_problem(similarity[:, :, rows][..., columns], 0.3, full(2, 4), full(3, 4), 0.1)
        torch.testing.assert_close(
            padded.core[:, :, rows][..., columns],
            TorchSinkhorn(7).solve(cut).core,
            rtol=0,
            atol=1e-15,
        )

    @pytest.mark.parametrize("absent", ["clips", "captions", "both"])
    def test_an_absent_side_moves_nothing(self, absent: str) -> None:
        clips, captions = full(2, 3), full(2, 3)
        if absent != "captions":
            clips[0] = False
        if absent != "clips":
            captions[0] = False
        plan = TorchSinkhorn().solve(
            bucket_problem(torch.rand(2, 2, 3, 3), 0.3, clips, captions, 0.1)
        )
        assert not plan.plan[0, 0].any()
        assert plan.marginal_error.max() < 1e-3
        torch.testing.assert_close(plan.plan[1, 1].sum(), torch.tensor(1.0))

    @pytest.mark.parametrize(("value", "share"), [(-5.0, 1.0), (5.0, 0.0)])
    def test_low_buckets_stay_empty_and_high_ones_take_all(
        self, value: float, share: float
    ) -> None:
        similarity = torch.rand(1, 1, 4, 4)
        problem = PromptBucket(value=value)(SimilarityBlock(similarity), 0.05)
        core = TorchSinkhorn(200).solve(problem).core
        torch.testing.assert_close(2 * core.sum(), torch.tensor(share), rtol=0, atol=1e-2)

    def test_gradient_reaches_the_similarity(self) -> None:
        similarity = torch.rand(1, 1, 2, 2, requires_grad=True)
        problem = bucket_problem(similarity, 0.3, full(1, 2), full(1, 2), 0.1)
        problem.scores.sum().backward()
        assert similarity.grad is not None
        assert torch.equal(similarity.grad, torch.ones_like(similarity))


def test_module_is_the_functions() -> None:
    similarity, valid = torch.rand(2, 2, 3, 3), full(2, 3)
    valid[1, 2] = False
    p = bucket_threshold(similarity, valid, valid, 0.5)
    expected = bucket_problem(similarity, p, valid, valid, 0.1)
    problem = PromptBucket(0.5)(SimilarityBlock(similarity, valid, valid), 0.1)
    assert torch.equal(problem.scores, expected.scores)
    assert torch.equal(problem.log_mu, expected.log_mu)
    assert problem.bucket_value == p


@pytest.mark.parametrize(
    ("bucket", "expected"),
    [
        (PromptBucket(value=0.5), (0.2, 0.9)),
        (PromptBucket(value=3.0), (0.2, 3.0)),
        (PromptBucket(value=-2.0), (-2.0, 0.9)),
        (PromptBucket(0.5), (0.0, 0.9)),  # 0 where no aligned pair is valid
        (PromptBucket(value=0.5, learnable=True), None),  # nobody knows where it goes
    ],
    ids=repr,
)
def test_scores_have_the_range_of_similarity_and_bucket(
    bucket: PromptBucket, expected: tuple[float, float] | None
) -> None:
    block = SimilarityBlock(torch.full((2, 2, 3, 3), 0.6), bounds=(0.2, 0.9))
    assert bucket(block, 0.1).score_range == expected


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratio_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got"):
        PromptBucket(ratio)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="value must be a finite similarity, got"):
        PromptBucket(value=value)
    with pytest.raises(ValueError, match="p must be a finite similarity, got"):
        bucket_problem(torch.rand(1, 1, 2, 2), value, full(1, 2), full(1, 2), 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_masses(dtype: torch.dtype) -> None:
    problem = bucket_problem(torch.rand(1, 1, 7, 11).to(dtype), 0.3, full(1, 7), full(1, 11), 0.1)
    for log_marginal in (problem.log_mu, problem.log_nu):
        torch.testing.assert_close(log_marginal.exp().sum(-1), torch.ones(1, 1))


def test_garbage_in_absent_cells_has_no_effect() -> None:
    similarity, clips = torch.rand(1, 1, 3, 3), torch.tensor([[True, True, False]])
    dirty = similarity.clone()
    dirty[..., 2, :] = float("nan")
    plans = [
        TorchSinkhorn().solve(bucket_problem(s, 0.3, clips, full(1, 3), 0.1)).plan
        for s in (similarity, dirty)
    ]
    assert torch.equal(*plans)
