"""The intervals of the examples and of the study hold the truth as often as they say, not oftener."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed")

from examples.intervals import Estimate, estimate


@pytest.mark.parametrize(
    ("of_seeds", "of_videos"), [(0.03, 0.05), (0.03, 0.0), (0.0, 0.05), (0.01, 0.05)]
)
@pytest.mark.parametrize(("seeds", "videos"), [(5, 20), (3, 100)])
def test_they_hold_the_truth(of_seeds: float, of_videos: float, seeds: int, videos: int) -> None:
    rng = np.random.default_rng(0)
    held, draws = 0, 500
    for _ in range(draws):
        both = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_videos, (1, videos))
        found = estimate(0.5 + both + rng.normal(0, 0.03, (seeds, videos)))
        held += found.low <= 50 <= found.high
    assert 0.91 <= held / draws <= 0.985


def test_one_seed_tells_of_videos() -> None:
    videos = np.random.default_rng(0).random((1, 50))
    found = estimate(videos)
    reach = 2.0096 * 100 * videos.std(ddof=1) / np.sqrt(50)  # of Student with 49 degrees of freedom
    assert found.mean == pytest.approx(100 * videos.mean())
    assert found.high - found.mean == pytest.approx(reach, rel=1e-4)


def test_what_never_varies_is_certain() -> None:
    for seeds in (1, 3):
        found = estimate(np.full((seeds, 20), 0.5))
        assert found == Estimate(50.0, 50.0, 50.0)


def test_more_videos_narrow_it_where_seeds_agree() -> None:
    rng = np.random.default_rng(0)
    few, many = (estimate((rng.random((3, n)) < 0.4).astype(float)) for n in (50, 5000))
    assert many.high - many.low < (few.high - few.low) / 3


def test_a_difference_has_a_sign() -> None:
    assert Estimate(1.25, -0.5, 3.0).signed == "+1.2 [-0.5, +3.0]"
    assert str(Estimate(1.25, -0.5, 3.0)) == "1.2 [-0.5, 3.0]"
