from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from norton_losses.metrics import (
    alignability_auc,
    alignment_recall,
    average_windows,
    frame_accuracy,
    invert_truth,
    median_rank,
    multiple_choice_accuracy,
    recall_at,
    retrieval_ranks,
)

RNG = np.random.default_rng(0)


def test_ranks_are_those_of_a_plain_loop() -> None:
    scores = RNG.integers(0, 5, (20, 30)) / 4  # many ties
    truth = RNG.integers(0, 30, 20)
    expected = []
    for i, row in enumerate(scores):
        others = [s for j, s in enumerate(row) if j != truth[i]]
        expected.append(
            sum(s > row[truth[i]] for s in others) + sum(s == row[truth[i]] for s in others) / 2
        )
    ranks = retrieval_ranks(scores, truth)
    assert ranks.tolist() == expected
    assert recall_at(scores, 5, truth) == np.mean([rank < 5 for rank in expected])
    assert median_rank(scores, truth) == np.median(expected) + 1


def test_a_tie_counts_as_its_mean_over_all_orders() -> None:
    tied = np.array([3.0, 3.0, 3.0, 1.0])
    places = [order.index(0) for order in permutations(range(3))]
    assert retrieval_ranks(tied[None], [0])[0] == np.mean(places)


def test_a_constant_matrix_is_chance() -> None:
    scores = np.ones((101, 101))
    assert median_rank(scores) == 51
    assert recall_at(scores, 50) == 0.0  # the mean place counts, wholly or not at all
    assert recall_at(scores, 51) == 1.0
    assert multiple_choice_accuracy(np.ones((9, 2)), np.ones((9, 5, 2)), [0] * 9) == 0.2
    assert alignment_recall(np.ones((10, 1)), [2.0], [4.0]) == pytest.approx(0.3)
    assert alignability_auc(np.ones(6), np.arange(6) < 2) == 0.5


def test_arrays_of_every_kind_give_the_same_plain_float() -> None:
    scores = RNG.random((6, 6)).astype(np.float32)
    values = [
        recall_at(scores),
        recall_at(torch.tensor(scores)),
        recall_at(torch.tensor(scores, requires_grad=True)),
        recall_at(scores.tolist()),
        recall_at(torch.tensor(scores).double(), truth=torch.arange(6)),
    ]
    assert len(set(values)) == 1
    assert all(type(value) is float for value in values)
    assert type(median_rank(torch.rand(3, 3).bfloat16())) is float


def test_monotone_transformations_and_permutations_change_nothing() -> None:
    scores = RNG.random((12, 12))
    for other in (np.exp(3 * scores), scores - 7, scores**3):
        assert np.array_equal(retrieval_ranks(other), retrieval_ranks(scores))
    order = RNG.permutation(12)
    assert recall_at(scores[order][:, order], 3) == recall_at(scores, 3)
    back = np.argsort(order)
    assert np.array_equal(retrieval_ranks(scores[:, order], back), retrieval_ranks(scores))


def test_absent_candidates_rank_last() -> None:
    scores = np.array([[-math.inf, -0.5, -math.inf], [0.1, -2.0, -math.inf]])
    assert retrieval_ranks(scores, [1, 1]).tolist() == [0, 1]
    assert retrieval_ranks(scores[:1], [0]).tolist() == [1.5]


def test_the_other_direction_takes_the_best_of_several() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.3, 0.7]])  # videos 0 and 1 are of paragraph 0
    back = invert_truth([0, 0, 1], 3)
    assert back.tolist() == [[True, True, False], [False, False, True], [False] * 3]
    ranks = retrieval_ranks(scores.T, invert_truth([0, 0, 1], 2))
    assert ranks.tolist() == [0, 0]
    nobody = retrieval_ranks(np.c_[scores, scores[:, :1]].T, back)  # paragraph 2 asks nothing
    assert nobody.tolist() == [0, 0]


def test_multiple_choice_is_the_argmax() -> None:
    videos, candidates = RNG.standard_normal((50, 8)), RNG.standard_normal((50, 5, 8))
    answers = RNG.integers(0, 5, 50)
    best = [int(np.argmax(c @ v)) for v, c in zip(videos, candidates, strict=True)]
    accuracy = multiple_choice_accuracy(torch.tensor(videos), torch.tensor(candidates), answers)
    assert accuracy == np.mean(np.array(best) == answers)


def test_windows_average_to_what_every_frame_saw() -> None:
    logits, starts = RNG.standard_normal((4, 6, 3)), np.array([0, 4, 8, 12])
    averaged = average_windows(logits, starts, 16)
    for frame in range(16):
        seen = [logits[w, frame - s] for w, s in enumerate(starts) if 0 <= frame - s < 6]
        np.testing.assert_allclose(averaged[frame], np.mean(seen, 0))


def test_background_flatters_the_accuracy_of_all_frames() -> None:
    truth = np.array([0] * 59 + [1] * 21 + [2] * 20)
    nothing = np.zeros(100, dtype=int)
    assert frame_accuracy(nothing, truth) == 0.59
    assert frame_accuracy(nothing, truth, background=0) == 0.0
    assert frame_accuracy(torch.tensor(truth), truth, background=0) == 1.0


def test_alignment_recall_is_a_plain_loop() -> None:
    similarity = RNG.random((30, 12))
    start = RNG.random(12) * 25
    end = start + RNG.random(12) * 5
    alignable = RNG.random(12) < 0.6
    hits = [
        math.floor(start[j]) <= similarity[:, j].argmax() <= math.ceil(end[j])
        for j in range(12)
        if alignable[j]
    ]
    assert alignment_recall(similarity, start, end, alignable) == np.mean(hits)


def test_windows_of_captions_one_by_one() -> None:
    similarity = [[0.9, 0.1, 0.2], [0.2, 0.3, 0.2], [0.1, 0.8, 0.1]]
    assert alignment_recall(similarity, [0.0, 2.0, 0.0], [0.0, 2.0, 1.0]) == 1.0
    assert alignment_recall(similarity, [1.0, 0.0, 2.0], [2.0, 1.0, 2.0]) == 0.0
    for start, end in (([0.0, 2.0, 0.0], [0.0, 1.0, 1.0]), ([1.0, 2.0, 0.0], [1.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match=r"that of caption 1 is \[2.0, 1.0\]"):
            alignment_recall(similarity, start, end)


def test_each_window_starts_within_the_video() -> None:
    with pytest.raises(ValueError, match="0 or above, got -1"):
        average_windows(np.ones((2, 2, 3)), starts=[0, -1], length=2)


def test_equal_scores_count_half() -> None:
    assert alignability_auc([0.5, 0.5, 0.2], [True, False, False]) == 0.75
    for labels in ([True] * 3, [False] * 3):
        with pytest.raises(ValueError, match="some captions and not others"):
            alignability_auc([0.5, 0.5, 0.2], labels)


def test_auc_is_the_chance_of_the_right_order() -> None:
    scores, labels = RNG.integers(0, 6, 40) / 5, RNG.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert alignability_auc(torch.tensor(scores), torch.tensor(labels)) == pytest.approx(
        np.mean(pairs)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_at(np.ones(3)), r"scores must have 2 dimensions.*got shape \(3,\)"),
        (lambda: recall_at(np.ones((0, 0))), "none of them empty"),
        (lambda: recall_at([[1.0, math.nan]], 1, [0]), r"NaN, got 1 of 2, the first at \(0, 1\)"),
        (lambda: recall_at(np.ones((2, 3))), r"a candidate for each query.*\(2, 3\)"),
        (lambda: recall_at(np.ones((2, 3)), 1, [0, 3]), r"truth must lie in 0 \.\. 2, got 3"),
        (lambda: recall_at(np.ones((2, 3)), 1, [0]), r"truth must have shape \(2,\), got \(1,\)"),
        (lambda: recall_at(np.ones((2, 2)), 0), "k must be a whole number of at least 1, got 0"),
        (lambda: recall_at(np.ones((2, 2)), True), "k must be a whole number"),
        (
            lambda: median_rank(np.ones((2, 2)), np.zeros((2, 2), dtype=bool)),
            "a right candidate for one query at least",
        ),
        (
            lambda: multiple_choice_accuracy(np.ones((2, 3)), np.ones((2, 4, 5)), [0, 1]),
            r"candidates must have shape \(2, C, 3\)",
        ),
        (
            lambda: multiple_choice_accuracy(np.ones((1, 3)), np.ones((1, 4, 3)), [4]),
            r"answers must lie in 0 \.\. 3, got 4",
        ),
        (lambda: average_windows(np.ones((2, 2, 1)), [0, 3], 5), "frame 2 of 5 lies in none"),
        (lambda: average_windows(np.ones((1, 2, 1)), [-1], 1), "0 or above, got -1"),
        (lambda: average_windows([[[np.inf]], [[-np.inf]]], [0, 0], 1), "below infinity"),
        (lambda: average_windows(np.ones((1, 2, 1)), [0], 0), "length must be a whole number"),
        (lambda: invert_truth(3, 5), r"truth must have shape \(T,\), got \(\)"),  # type: ignore[arg-type]
        (
            lambda: multiple_choice_accuracy(np.full((1, 1), math.inf), np.zeros((1, 2, 1)), [0]),
            "dot products must not hold NaN",
        ),
        (lambda: frame_accuracy([0, 0], [0]), r"predicted must have shape \(1,\), got \(2,\)"),
        (lambda: frame_accuracy([[0]], [[0]]), r"truth must have shape \(T,\), got \(1, 1\)"),
        (lambda: frame_accuracy([1], [0], background=0), "of 1 none is left"),
        (lambda: alignment_recall(np.ones((3, 2)), [0.0], [1.0]), r"start must have shape \(2,\)"),
        (lambda: alignment_recall(np.ones((3, 1)), [2.0], [1.0]), r"caption 0 is \[2.0, 1.0\]"),
        (
            lambda: alignment_recall(np.ones((3, 1)), [0.0], [1.0], [False]),
            "alignable must mark one caption at least",
        ),
        (
            lambda: alignment_recall(np.ones((3, 1)), [0.0], [1.0], [1]),
            r"alignable must be bool of shape \(1,\), got int64",
        ),
        (lambda: alignability_auc([0.1, 0.2], [True, True]), "some captions and not others"),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_logits_are_not_classes() -> None:
    with pytest.raises(TypeError, match=r"predicted must hold integers.*argmax"):
        frame_accuracy([0.3], [1])
