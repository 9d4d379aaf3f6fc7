"""Dynamic time warping, ordered alignment, and the background filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import norton_losses.sequence_measures.alignment_tiles as alignment_module
from norton_losses import (
    AbstractAlignment,
    BackgroundFiltered,
    CaptionAverage,
    DynamicTimeWarping,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    SimilarityBlock,
    TransportMeasure,
)
from norton_losses.functional import (
    bucket_threshold,
    dynamic_time_warping,
    kept_clips,
    ordered_alignment,
)
from tests import naive
from tests.batches import make_batch
from tests.test_sequence_measures import ragged

BOTH = [DynamicTimeWarping, OrderedAlignment]
both = pytest.mark.parametrize("kind", BOTH)
hard_and_soft = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def naive_score(kind: type, block: np.ndarray, smoothing: float) -> float:
    if kind is DynamicTimeWarping:
        distance = naive.dynamic_time_warping(1 - block, smoothing)
    else:
        distance = sum(naive.ordered_alignment(c, smoothing) for c in (1 - block, 1 - block.T))
    return -distance / sum(block.shape)


@both
@hard_and_soft
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2), (5, 3), (3, 7), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_lengths_are_the_plain_loop(
    kind: type, smoothing: float, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    similarity = torch.rand(2, 3, *shape, dtype=dtype) * 2 - 1
    actual = kind(smoothing)(similarity)
    assert actual.dtype == dtype
    for a, b in np.ndindex(2, 3):
        expected = naive_score(kind, similarity[a, b].double().numpy(), smoothing)
        assert actual[a, b].item() == pytest.approx(expected, abs=1e-6)


@both
@hard_and_soft
@pytest.mark.parametrize("cells", [1, 60, 1 << 21])  # tiles of one pair, of some, of all
@pytest.mark.parametrize("gaps", ["none", "clips", "captions", "both"])
def test_ragged_pairs_are_the_plain_loop(
    kind: type, smoothing: float, cells: int, gaps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment_module, "_CELLS_ON_CPU", cells)
    similarity, clips, captions = ragged(4, 5, 6, 7)
    if gaps not in ("clips", "both"):
        clips = clips.sort(dim=-1, descending=True).values
    if gaps not in ("captions", "both"):
        captions = captions.sort(dim=-1, descending=True).values
    actual = kind(smoothing)(similarity, clips, captions)
    for a, b in np.ndindex(4, 5):
        block = similarity[a, b][clips[a]][:, captions[b]].numpy()
        assert actual[a, b].item() == pytest.approx(naive_score(kind, block, smoothing), abs=1e-12)


@both
@hard_and_soft
def test_lengths_may_differ_from_pair_to_pair(kind: type, smoothing: float) -> None:
    similarity = torch.rand(3, 4, 5, 6, dtype=torch.float64)
    n, m = torch.randint(1, 6, (3, 4, 1)), torch.randint(1, 7, (3, 4, 1))
    actual = kind(smoothing)(similarity, torch.arange(5) < n, torch.arange(6) < m)
    for a, b in np.ndindex(3, 4):
        block = similarity[a, b, : n[a, b], : m[a, b]].numpy()
        assert actual[a, b].item() == pytest.approx(naive_score(kind, block, smoothing), abs=1e-12)


@both
@hard_and_soft
def test_without_a_look_at_the_masks_all_is_the_same(
    kind: type, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of every other device than the CPU."""
    similarity, clips, captions = ragged(3, 4, 5, 6)
    looking = kind(smoothing)(similarity, clips, captions)
    init = alignment_module.Tiles.__init__

    def blind(self, *arguments) -> None:
        init(self, *arguments)
        self.on_cpu, self.gaps = False, True

    monkeypatch.setattr(alignment_module.Tiles, "__init__", blind)
    torch.testing.assert_close(kind(smoothing)(similarity, clips, captions), looking)


def test_warping_is_the_least_over_all_paths() -> None:
    """Independent of any recursion."""
    similarity = torch.rand(1, 1, 4, 3, dtype=torch.float64)
    costs = 1 - similarity[0, 0].numpy()
    sums = {tuple(p): sum(costs[c] for c in p) for p in map(tuple, naive.warping_paths(4, 3))}
    best = min(sums, key=lambda path: sums[path])
    out = DynamicTimeWarping().explain(similarity)
    assert out.score.item() == pytest.approx(-sums[best] / 7)
    assert [tuple(cell) for cell in out.alignment[0, 0].nonzero().tolist()] == list(best)
    soft = DynamicTimeWarping(0.2)(similarity)
    expected = 0.2 * np.log(np.exp(-np.array(list(sums.values())) / 0.2).sum()) / 7
    assert soft.item() == pytest.approx(expected)


@both
@hard_and_soft
def test_gradients(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged(2, 3, 4, 5)
    assert torch.autograd.gradcheck(
        lambda s: kind(smoothing)(s, clips, captions), similarity.requires_grad_()
    )


@both
def test_soft_becomes_hard(kind: type) -> None:
    similarity, clips, captions = ragged()
    hard = kind()(similarity, clips, captions)
    gaps = [
        (kind(smoothing)(similarity, clips, captions) - hard).abs().max().item()
        for smoothing in (0.1, 0.01, 0.001)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3
    hard_path = kind().explain(similarity, clips, captions).alignment
    soft_path = kind(1e-4).explain(similarity, clips, captions).alignment
    torch.testing.assert_close(soft_path, hard_path, rtol=0, atol=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [DynamicTimeWarping, OrderedAlignment])
def test_infinite_costs_have_no_part_in_gradients(kind: type, smoothing: float) -> None:
    similarity = torch.rand(2, 2, 3, 4, dtype=torch.float64)
    similarity[..., 0, 0] = -torch.inf
    leaf = similarity.requires_grad_()
    assert torch.autograd.grad(kind(smoothing)(leaf).sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("smoothing", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("kind", [DynamicTimeWarping, OrderedAlignment])
def test_gradients_keep_their_digits_along_a_path(kind: type, smoothing: float) -> None:
    """In float32 a cell's rounding must not multiply over the hundred cells behind it."""
    g = torch.Generator().manual_seed(9)
    similarity = torch.rand(2, 2, 60, 60, dtype=torch.float64, generator=g)
    exact, rounded = (
        torch.autograd.grad(kind(smoothing)(leaf).sum(), leaf)[0]
        for leaf in (
            similarity.to(dtype).requires_grad_() for dtype in (torch.float64, torch.float32)
        )
    )
    torch.testing.assert_close(rounded.sum((2, 3)).double(), exact.sum((2, 3)), rtol=1e-5, atol=0)
    assert (rounded - exact).abs().sum() < 2e-3 * exact.abs().sum() * max(1, 1e-3 / smoothing)


@both
@hard_and_soft
def test_the_path_explains_the_score(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged(3, 3)
    out = kind(smoothing).explain(similarity, clips, captions)
    assert torch.equal(out.score, kind(smoothing)(similarity, clips, captions))
    assert not out.alignment.requires_grad
    absent = ~(clips[:, None, :, None] & captions[None, :, None])
    assert not out.alignment[absent.expand_as(out.alignment)].any()
    if smoothing == 0:
        lengths = clips.sum(-1)[:, None] + captions.sum(-1)
        costs = (out.alignment * (1 - similarity)).sum((-2, -1))
        torch.testing.assert_close(-costs / lengths, out.score)
        assert set(out.alignment.unique().tolist()) <= {0.0, 1.0, 2.0}


@both
@hard_and_soft
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("filtered", [False, True])
def test_the_path_is_found_where_no_gradient_is_recorded(
    kind: type, smoothing: float, mode, filtered: bool
) -> None:
    similarity, clips, captions = ragged()
    measure = kind(smoothing)
    expected = measure.explain(similarity, clips, captions)
    with mode():
        inside = [tensor.clone() for tensor in (similarity, clips, captions)]
        out = (BackgroundFiltered(measure, 9.0) if filtered else measure).explain(*inside)
    assert torch.equal(out.score, expected.score)
    assert torch.equal(out.alignment, expected.alignment)


@both
def test_a_tie_has_one_path(kind: type) -> None:
    alignment = kind().explain(torch.ones(1, 1, 3, 4)).alignment[0, 0]  # all ways cost nothing
    paths = {
        DynamicTimeWarping: [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        OrderedAlignment: [[2, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]],
    }
    assert alignment.tolist() == paths[kind]


@both
@hard_and_soft
def test_more_similarity_never_scores_less(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged()
    more = similarity + 0.1 * torch.rand_like(similarity)
    measure = kind(smoothing)
    assert (measure(more, clips, captions) >= measure(similarity, clips, captions)).all()


@both
@hard_and_soft
def test_videos_and_paragraphs_may_change_places(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged()
    measure = kind(smoothing)
    turned = measure(similarity.permute(1, 0, 3, 2), captions, clips)
    torch.testing.assert_close(turned.T, measure(similarity, clips, captions))


@hard_and_soft
def test_warping_is_the_same_backwards_in_time(smoothing: float) -> None:
    similarity, clips, captions = ragged()
    measure = DynamicTimeWarping(smoothing)
    backwards = measure(similarity.flip(-2, -1), clips.flip(-1), captions.flip(-1))
    torch.testing.assert_close(backwards, measure(similarity, clips, captions))


@both
def test_order_matters_to_an_alignment_alone(kind: type) -> None:
    similarity = torch.eye(6).expand(1, 1, 6, 6)
    shuffled = similarity[:, :, [3, 0, 5, 1, 4, 2]]
    assert kind()(shuffled) < kind()(similarity) - 0.2
    assert torch.equal(CaptionAverage()(shuffled), CaptionAverage()(similarity))


@both
@hard_and_soft
def test_permuted_pairs_have_permuted_scores(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged(4, 5)
    rows, columns = torch.randperm(4), torch.randperm(5)
    permuted = kind(smoothing)(similarity[rows][:, columns], clips[rows], captions[columns])
    straight = kind(smoothing)(similarity, clips, captions)
    assert torch.equal(permuted, straight[rows][:, columns])


def test_clips_before_and_after_are_free_to_ordered_alignment() -> None:
    costs = 1 - torch.eye(3)
    late = torch.cat([torch.ones(2, 3), costs, torch.ones(4, 3)])  # told along clips 2 to 4 of 9
    assert naive.ordered_alignment(late.numpy(), 0.0) == 0
    both_ways = naive.ordered_alignment(late.T.numpy(), 0.0)
    score = ordered_alignment(1 - late[None, None])
    assert score.item() == pytest.approx(-both_ways / 12)


@pytest.mark.parametrize("function", [dynamic_time_warping, ordered_alignment])
def test_functions_are_the_modules(function) -> None:
    similarity, clips, captions = ragged()
    kind = BOTH[function is ordered_alignment]
    for smoothing in (0.0, 0.3):
        expected = kind(smoothing)(similarity, clips, captions)
        assert torch.equal(function(similarity, clips, captions, smoothing=smoothing), expected)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_half_gradients(kind: type, dtype: torch.dtype) -> None:
    similarity = torch.rand(2, 2, 3, 4).to(dtype).requires_grad_()
    score = kind(0.1)(similarity)
    assert score.dtype == torch.float32
    score.sum().backward()
    assert similarity.grad is not None
    assert similarity.grad.dtype == dtype
    assert similarity.grad.isfinite().all()
    assert kind().explain(similarity).alignment.dtype == torch.float32


@both
@hard_and_soft
def test_extreme_similarities_stay_finite(kind: type, smoothing: float) -> None:
    similarity = torch.randn(2, 2, 5, 5) * 1e4
    similarity.requires_grad_()
    score = kind(smoothing)(similarity)
    score.sum().backward()
    assert score.isfinite().all()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()


@both
@hard_and_soft
def test_every_measure_trains_in_the_loss(kind: type, smoothing: float) -> None:
    batch = make_batch(ragged=True).leaves()
    loss = NortonVideoParagraphLoss(measure=kind(smoothing))
    loss(*batch.sides).backward()
    for tokens in batch.tokens:
        assert tokens.grad is not None
        assert tokens.grad.isfinite().all()
        assert tokens.grad.any()
    scores = loss.score(*batch.sides)
    assert scores.shape == (3, 3)


@both
@pytest.mark.parametrize("n", [3, 5])
def test_second_derivatives(kind: type, n: int) -> None:
    similarity, clips, captions = ragged(2, 2, n, 3)
    assert torch.autograd.gradgradcheck(
        lambda s: kind(0.2)(s, clips, captions), similarity.requires_grad_()
    )


@both
@hard_and_soft
def test_a_gradient_to_be_differentiated_is_the_gradient(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged(3, 2)
    measure = kind(smoothing)

    def total(s: Tensor) -> Tensor:
        return measure(s, clips, captions).sum()

    expected = torch.func.grad(total)(similarity)
    similarity.requires_grad_()
    for twice in (False, True):
        (gradient,) = torch.autograd.grad(total(similarity), similarity, create_graph=twice)
        torch.testing.assert_close(gradient, expected)


@both
@hard_and_soft
def test_the_least_distances_may_be_mapped(kind: type, smoothing: float) -> None:
    costs = torch.rand(2, 3, 4, 5)
    clips, captions = torch.tensor([3, 2, 1, 3, 3]), torch.tensor([4, 1, 4, 2, 3])
    distance = kind(smoothing).distance
    mapped = torch.func.vmap(lambda c: distance(c, clips, captions))(costs)
    torch.testing.assert_close(mapped, torch.stack([distance(c, clips, captions) for c in costs]))


@both
@hard_and_soft
@pytest.mark.parametrize("filtered", [False, True])
def test_an_absent_side_scores_zero_before_it_is_checked(
    kind: type, smoothing: float, filtered: bool
) -> None:
    measure = BackgroundFiltered(kind(smoothing)) if filtered else kind(smoothing)
    there = torch.tensor([[True] * 3, [False] * 3])
    score = measure.evaluate(SimilarityBlock(torch.rand(2, 2, 3, 3), there, there)).score
    assert score[0, 0] != 0
    assert not score[1].any()
    assert not score[:, 1].any()


@both
@hard_and_soft
def test_the_layout_of_a_similarity_changes_nothing(kind: type, smoothing: float) -> None:
    similarity, clips, captions = ragged(3, 3)
    turned = similarity.transpose(0, 3).contiguous().transpose(0, 3)
    widened = similarity[:, :1].expand_as(similarity)
    for given in (turned, widened):
        assert not given.is_contiguous()
        plain = given.contiguous()
        found = []
        for values in (given, plain):
            leaf = values.detach().requires_grad_()
            score = kind(smoothing)(leaf, clips, captions)
            found.append((score, *torch.autograd.grad(score.sum(), leaf)))
        torch.testing.assert_close(*found)


def test_an_alignment_of_ones_own() -> None:
    class Diagonal(AbstractAlignment):
        """Clip i with caption i, and nothing else."""

        def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
            assert clips.min() >= 1  # so that one may look at a pair's last cell
            assert captions.min() >= 1
            return costs.diagonal().sum(-1)

    similarity = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    score = Diagonal()(similarity)
    torch.testing.assert_close(score, -(1 - similarity.diagonal(dim1=2, dim2=3)).sum(-1) / 8)
    assert torch.equal(Diagonal().explain(similarity).alignment[0, 0], torch.eye(4).double())
    counts = torch.tensor([[[2], [4]], [[3], [1]]])
    clips, captions = torch.arange(4) < counts, torch.arange(4) < counts.flip(0)
    ragged_score = Diagonal()(similarity, clips, captions)  # costs are 0 beyond a pair's own
    for a, b in np.ndindex(2, 2):
        n, m = int(clips[a, b].sum()), int(captions[a, b].sum())
        expected = -(1 - similarity[a, b].diagonal()[: min(n, m)]).sum() / (n + m)
        torch.testing.assert_close(ragged_score[a, b], expected)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert not Diagonal()(similarity, nothing, nothing).any()


def test_an_alignment_may_learn() -> None:
    class Weighted(AbstractAlignment):
        """Warping along the diagonal at a price of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
            return self.weight * costs.diagonal().sum(-1)

    measure = Weighted()
    similarity = torch.rand(2, 2, 3, 3, requires_grad=True)
    measure(similarity).sum().backward()
    costs = (1 - similarity.diagonal(dim1=2, dim2=3)).sum()
    torch.testing.assert_close(measure.weight.grad, -costs.detach() / 6)
    assert similarity.grad is not None
    torch.testing.assert_close(similarity.grad[0, 1], torch.eye(3) * 2 / 6)


def test_masks_changed_before_the_backward_pass_are_refused() -> None:
    similarity, clips, captions = ragged()
    score = DynamicTimeWarping()(similarity.requires_grad_(), clips, captions)
    clips[0, 1] = ~clips[0, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.sum().backward()


@both
@pytest.mark.parametrize(
    ("smoothing", "error"),
    [
        (-0.1, ValueError),
        (math.nan, ValueError),
        (1e-40, ValueError),
        (1e13, ValueError),
        ("soft", TypeError),
    ],
)
def test_smoothing_is_checked(kind: type, smoothing: object, error: type) -> None:
    with pytest.raises(error, match="smoothing must be "):
        kind(smoothing)


@both
@pytest.mark.parametrize("smoothing", [1e-12, 1e12])
def test_smoothing_at_its_limits_is_finite(kind: type, smoothing: float) -> None:
    similarity = (torch.randn(2, 2, 4, 5) * 1e4).requires_grad_()
    score = kind(smoothing)(similarity)
    score.sum().backward()
    assert score.isfinite().all()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()
    if smoothing < 1:
        torch.testing.assert_close(score, kind()(similarity), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        score.double(), kind(smoothing)(similarity.double()), rtol=1e-4, atol=0
    )


def test_background_is_what_fits_no_caption() -> None:
    similarity, clips, captions = ragged(3, 4, 9, 4)
    kept = kept_clips(similarity, clips, captions)
    assert kept.shape == (3, 4, 9)
    for a, b in np.ndindex(3, 4):
        block = similarity[a, b][clips[a]][:, captions[b]].numpy()
        assert kept[a, b][clips[a]].tolist() == naive.kept_clips(block, 1.3).tolist()
        assert not kept[a, b][~clips[a]].any()


def test_background_of_a_tie_is_later_and_ten_captions_keep_thirteen() -> None:
    kept = kept_clips(torch.zeros(1, 1, 20, 10))
    assert kept[0, 0].tolist() == [True] * 13 + [False] * 7
    assert kept_clips(torch.zeros(1, 1, 5, 1), clips_per_caption=0.5).sum() == 1


@pytest.mark.parametrize(("share", "captions"), [(0.29, 100), (0.57, 200), (1.3, 10)])
def test_background_floors_as_python_does(share: float, captions: int) -> None:
    kept = kept_clips(torch.zeros(1, 1, 150, captions), clips_per_caption=share)
    assert kept.sum() == int(share * captions)


@pytest.mark.parametrize("share", [0.0, -1.0, math.inf])
def test_share_of_clips_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match="clips_per_caption must be a finite number above 0"):
        BackgroundFiltered(CaptionAverage(), share)
    with pytest.raises(ValueError, match="clips_per_caption must be a finite number above 0"):
        kept_clips(torch.zeros(1, 1, 2, 2), clips_per_caption=share)


@pytest.mark.parametrize("garbage", [-math.inf, math.nan, 9.0])
def test_background_keeps_no_absent_clip(garbage: float) -> None:
    similarity = torch.full((1, 1, 4, 1), garbage)
    similarity[0, 0, 2] = -5.0
    clips = torch.tensor([[False, False, True, False]])
    assert kept_clips(similarity, clips)[0, 0].tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "measure",
    [
        DynamicTimeWarping(),
        OrderedAlignment(0.1),
        CaptionAverage(),
        TransportMeasure(bucket=None),
        TransportMeasure(bucket=PromptBucket(value=0.4)),
    ],
    ids=repr,
)
def test_filtered_measure_is_the_measure_of_what_is_kept(measure: torch.nn.Module) -> None:
    similarity, clips, captions = ragged(3, 4, 9, 4)
    actual = BackgroundFiltered(measure)(similarity, clips, captions)
    kept = kept_clips(similarity, clips, captions)
    for a, b in np.ndindex(3, 4):
        block = similarity[a : a + 1, b : b + 1, kept[a, b]][..., captions[b]]
        torch.testing.assert_close(actual[a, b], measure(block)[0, 0])


def test_filtered_bucket_takes_its_ratio_from_own_pairs() -> None:
    similarity, clips, captions = ragged(3, 3, 9, 4)
    kept = kept_clips(similarity, clips, captions)
    own = torch.stack([kept[b, b] for b in range(3)])
    p = bucket_threshold(similarity, own, captions, 0.3)
    assert torch.equal(bucket_threshold(similarity, kept, captions, 0.3), p)
    filtered = BackgroundFiltered(TransportMeasure())
    out = filtered.explain(similarity, clips, captions)
    assert out.bucket_value == p
    assert torch.equal(filtered(similarity, clips, captions), out.score)


def test_filtered_measures_serve_the_loss() -> None:
    batch = make_batch(ragged=True, clips=6).leaves()
    loss = NortonVideoParagraphLoss(measure=BackgroundFiltered(TransportMeasure()))
    loss(*batch.sides).backward()
    alone = loss.score(*batch.sides)
    bare = NortonVideoParagraphLoss(measure=BackgroundFiltered(TransportMeasure(bucket=None)))
    torch.testing.assert_close(alone, bare.score(*batch.sides))
    with pytest.raises(ValueError, match="bucket_value is for a TransportMeasure, and here is a D"):
        NortonVideoParagraphLoss(measure=BackgroundFiltered(DynamicTimeWarping())).score(
            *batch.sides, bucket_value=0.1
        )


@pytest.mark.parametrize("measure", [*(k() for k in BOTH), TransportMeasure(), CaptionAverage()])
def test_masks_for_each_pair_are_those_of_the_sequences(measure: torch.nn.Module) -> None:
    similarity, clips, captions = ragged(3, 3)
    pairs = clips[:, None].expand(3, 3, -1), captions[None].expand(3, 3, -1)
    assert torch.equal(measure(similarity, *pairs), measure(similarity, clips, captions))
    with pytest.raises(ValueError, match=r"clip_mask must have shape \(3, 3, 4\), got \(3, 2, 4\)"):
        measure(similarity, pairs[0][:, :2], captions)
