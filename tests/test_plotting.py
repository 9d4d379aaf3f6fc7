"""The pictures hold what they say, with the labels they were given."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import norton_losses.plotting.__main__ as shell
from norton_losses import (
    DynamicTimeWarping,
    NortonVideoParagraphLoss,
    PromptBucket,
    TransportMeasure,
    TransportPlan,
)
from norton_losses.plotting import plot_alignment
from norton_losses.plotting.__main__ import main
from norton_losses.retrieval import save_features

CAPTIONS = ["wash", "heat $oil$ in a pan", "thanks for watching, and do not forget to subscribe!"]


def transported(n: int = 4, m: int = 3, bucket: bool = True) -> TransportPlan:
    similarity = torch.rand(2, 2, n, m, generator=torch.Generator().manual_seed(0))
    clips, captions = torch.ones(2, n, dtype=torch.bool), torch.ones(2, m, dtype=torch.bool)
    clips[0, 1] = captions[1, 0] = False
    measure = TransportMeasure(bucket=PromptBucket(value=0.5) if bucket else None)
    return measure.explain(similarity, clips, captions).plan


def shown(figure, number: int) -> np.ndarray:
    return np.ma.getdata(figure.axes[number].images[0].get_array())


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def test_panels_hold_similarity_and_shares_of_mass() -> None:
    plan = transported()[0, 0]  # clip 1 is absent
    figure = plot_alignment(plan, captions=CAPTIONS)
    kept = [0, 2, 3]
    similarity = plan.problem.scores[:-1, :-1].numpy()[kept].T
    np.testing.assert_array_equal(shown(figure, 0)[:-1], similarity)
    assert np.isnan(shown(figure, 0)[-1]).all()
    mass = shown(figure, 1)
    assert mass.shape == (4, 4)
    assert math.isnan(mass[-1, -1])
    np.testing.assert_allclose(mass[:-1].sum(1), 1, atol=1e-2)  # where each caption goes
    np.testing.assert_allclose(mass[:, :-1].sum(0), 1, atol=1e-6)  # exact, updated last
    percent = {text.get_text() for text in figure.axes[1].texts}
    assert f"{100 * mass[-1, 0]:.0f}" in percent
    assert len(figure.axes[1].texts) == 6
    assert figure.axes[1].get_title() == "transport plan, bucket at 0.50"


def test_labels_are_readable() -> None:
    figure = plot_alignment(transported()[0, 0], captions=CAPTIONS, clips=list("abcd"))
    figure.savefig(io.BytesIO())
    similarity, plan = figure.axes[:2]
    captions = labels(similarity.yaxis)
    assert captions[:2] == CAPTIONS[:2]  # a dollar is no mathematics
    assert captions[2].endswith("…")
    assert len(captions[2]) == 44
    assert labels(similarity.xaxis) == ["a", "c", "d"]
    assert labels(plan.xaxis) == ["a", "c", "d", "bucket"]
    assert captions[-1] == "bucket"
    numbers = plot_alignment(np.zeros((300, 40)))
    assert labels(numbers.axes[0].xaxis)[:3] == ["0", "13", "26"]
    assert len(labels(numbers.axes[0].yaxis)) == 20


def test_without_bucket_rows_are_captions_alone() -> None:
    plan = transported(bucket=False)[1, 1]  # caption 0 is absent
    figure = plot_alignment(plan)
    assert shown(figure, 0).shape == shown(figure, 1).shape == (2, 4)
    np.testing.assert_allclose(shown(figure, 1).sum(1), 1, atol=1e-2)
    assert labels(figure.axes[0].yaxis) == ["1", "2"]


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
def test_an_alignment_is_drawn_as_it_is(convert) -> None:
    similarity = torch.rand(1, 1, 5, 3)
    path = DynamicTimeWarping().explain(similarity).alignment[0, 0]
    alone = plot_alignment(convert(path))
    np.testing.assert_array_equal(shown(alone, 0), path.T)
    beside = plot_alignment(convert(path), convert(similarity[0, 0]), title="one of many")
    np.testing.assert_array_equal(shown(beside, 0), similarity[0, 0].T)
    np.testing.assert_array_equal(shown(beside, 1), path.T)
    assert beside.get_suptitle() == "one of many"


def test_true_pairs_are_framed_where_they_are() -> None:
    truth = torch.zeros(4, 3, dtype=torch.bool)
    truth[2, 0] = truth[3, 2] = truth[1, 1] = True  # clip 1 is absent
    figure = plot_alignment(transported()[0, 0], truth=truth)
    for axis in figure.axes[:2]:
        places = sorted((p.get_x() + 0.5, p.get_y() + 0.5) for p in axis.patches)
        assert places == [(1, 0), (2, 2)]  # clip 2 has moved to place 1
    assert figure.legends[0].get_texts()[0].get_text() == "true pair"


def test_masks_leave_out_what_they_mark() -> None:
    clips, captions = torch.tensor([True, False, True, True]), np.array([True, True, False])
    figure = plot_alignment(np.eye(4, 3), clip_mask=clips, caption_mask=captions)
    np.testing.assert_array_equal(shown(figure, 0), np.eye(4, 3)[[0, 2, 3]][:, :2].T)


def test_what_is_not_drawn_may_hold_anything() -> None:
    similarity = np.eye(4, 3)
    similarity[1] = np.nan
    clips = np.array([True, False, True, True])
    figure = plot_alignment(np.eye(4, 3, dtype=int), similarity, clip_mask=clips)
    np.testing.assert_array_equal(shown(figure, 0), np.eye(4, 3)[clips].T)


def test_what_training_explains_can_be_drawn() -> None:
    tokens = torch.randn(2, 4, 3, 8, requires_grad=True)
    out = NortonVideoParagraphLoss().explain(tokens, tokens)
    assert out.plan is not None
    figure = plot_alignment(out.plan[0, 0])
    file = io.BytesIO()
    figure.savefig(file)
    assert file.tell() > 5000


def test_nothing_is_shown_and_pyplot_is_left_alone() -> None:
    code = (
        "import sys, numpy as np\n"
        "from norton_losses.plotting import plot_alignment\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_alignment(np.eye(3)).savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'norton-losses\[plot\]'"):
        plot_alignment(np.eye(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_alignment(transported()), r"of one pair, got a batch of shape \(2, 2\)"),
        (
            lambda: plot_alignment(torch.rand(2, 3, 3)),
            r"plan must have shape \(N, M\) for one pair",
        ),
        (lambda: plot_alignment(torch.eye(3).bool()), "plan must be number, got bool"),
        (lambda: plot_alignment(np.eye(3), np.eye(4)), r"similarity must have shape \(3, 3\)"),
        (lambda: plot_alignment(np.full((2, 2), np.nan)), "plan must be finite"),
        (lambda: plot_alignment(np.eye(3), captions=["a"]), "captions must be 3 labels.*got 1"),
        (lambda: plot_alignment(np.eye(3), truth=np.eye(3)), "truth must be bool, got float64"),
        (
            lambda: plot_alignment(np.eye(2), clip_mask=np.zeros(2, dtype=bool)),
            "a clip and a caption to draw, got 0 of 2 clips",
        ),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_plan_is_told() -> None:
    for wrong in (None, TransportMeasure().explain(torch.rand(1, 1, 3, 3))):
        with pytest.raises(
            TypeError, match=r"out.plan\[video, paragraph\], got (None|MeasureOutput)"
        ):
            plot_alignment(wrong)  # type: ignore[arg-type]


def test_many_cells_have_no_numbers() -> None:
    out = TransportMeasure().explain(torch.rand(1, 1, 40, 20))
    assert not plot_alignment(out.plan[0, 0]).axes[1].texts


def test_a_plan_of_half_precision_inputs() -> None:
    out = TransportMeasure().explain(torch.rand(1, 1, 3, 3).bfloat16())
    assert plot_alignment(out.plan[0, 0]).axes


class TestShell:
    @staticmethod
    def features(folder: Path) -> Path:
        g = np.random.default_rng(0)
        videos = [g.normal(size=(n, 8)) for n in (4, 6, 5)]
        path = folder / "features.npz"
        save_features(path, videos, [video[:, ::-1] for video in videos[::-1]], truth=[2, 1, 0])
        return path

    @pytest.mark.parametrize("measure", ["transport", "dtw", "otam"])
    def test_draws_a_video_with_its_own_paragraph(
        self, measure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture = tmp_path / "one.svg"
        main(
            [str(self.features(tmp_path)), "--video", "2", "--measure", measure, "-o", str(picture)]
        )
        assert capsys.readouterr().out == f"wrote {picture}\n"
        assert "</svg>" in picture.read_text()

    def test_is_the_picture_of_the_cosines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[Any] = []

        def spy(plan: TransportPlan, *others: Any, title: str) -> Any:
            drawn.append((plan, title))
            return plot_alignment(plan, *others, title=title)

        monkeypatch.setattr(shell, "plot_alignment", spy)
        place = ["-o", str(tmp_path / "one.png")]
        main([str(self.features(tmp_path)), "--video", "0", "--bucket", "0", *place])
        main([str(self.features(tmp_path)), "--video", "0", "--paragraph", "1", *place])
        (own, title), (other, _) = drawn
        assert title.startswith("video 0, paragraph 2: ")
        assert not own.problem.has_bucket
        assert other.problem.has_bucket
        assert other.problem.scores.shape == (5, 7)  # 4 clips, 6 captions, a bucket
        assert own.problem.scores.abs().max() <= 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--video", "3"], r"--video must be one of 0 \.\. 2, got 3"),
            (["--paragraph", "-1"], r"--paragraph must be one of 0 \.\. 2, got -1"),
            (["--bucket", "2"], r"--bucket must lie in \[0, 1\], got 2"),
            (["-o", "alignment.npz"], r"--output must end in one of \.png"),
            (["-o", "nowhere/one.png"], r"--output must be in a folder that may be written to"),
        ],
    )
    def test_mistakes(self, arguments: list[str], message: str, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            main([str(self.features(tmp_path)), *arguments])

    def test_runs_as_a_module(self, tmp_path: Path) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "norton_losses.plotting", "nothing.npz"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert run.returncode == 1
        assert run.stderr == "error: there is no file nothing.npz\n"
