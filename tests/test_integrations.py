"""The examples of other frameworks run, and several processes train as one does."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROOT = Path(__file__).parents[1]
SHARED = ("__init__", "made_up", "howto_batches")
EXAMPLES = [p for p in (ROOT / "examples/integrations").glob("*.py") if p.stem not in SHARED]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node"]


def losses(*command: str) -> list[float]:
    """That an example printed, which ends with a table."""
    # Without the exit status: gloo may abort a process at its end, when all is done.
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.stdout.count("paragraph -> video") == 1, run.stderr
    found = re.findall(r"^step (\d+)  loss ([\d.]+)$", run.stdout, flags=re.MULTILINE)
    assert [int(step) for step, _ in found] == [0, 10, 20]
    return [float(loss) for _, loss in found]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_marks_what_matters(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert "# <-" in path.read_text()
    assert any(line.startswith("| ---") for line in lines)


@pytest.mark.slow
def test_lightning_trains_on_two_processes_as_on_one() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    one, two = (losses("examples.integrations.lightning_ddp", n, "240", "10") for n in "12")
    assert two == pytest.approx(one, rel=1e-5)
    assert two[-1] < two[0]


@pytest.mark.slow
def test_accelerate_trains_on_two_processes_as_on_one() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    module = "examples.integrations.accelerate_two_processes"
    one, two = (losses(*TORCHRUN, n, "-m", module, "240", "10") for n in "12")
    assert two == pytest.approx(one, rel=1e-5)
    assert two[-1] < two[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plain_loop", {}),
        ("mmpt_criterion", {}),
        ("gradcache", {"videos": 400}),
    ],
)
def test_the_loss_falls_and_videos_are_retrieved(
    name: str, arguments: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(f"examples.integrations.{name}").main(**arguments)
    check(capsys.readouterr().out)


@pytest.mark.slow
def test_features_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from examples.integrations.precomputed_features import main, windows_of

    main(tmp_path, videos=200)
    check(capsys.readouterr().out)
    offsets = np.load(tmp_path / "offsets.npy")
    lengths = [end - start for start, end, _ in windows_of(tmp_path)]
    assert len(lengths) == sum(-(-(end - at) // 8) for at, end in itertools.pairwise(offsets))
    assert sum(lengths) == offsets[-1]
    assert max(lengths) == 8


def check(printed: str) -> None:
    """The losses that an example prints fall, and it ends in a table."""
    found = [
        float(loss) for loss in re.findall(r"^step \d+  loss ([\d.]+)$", printed, re.MULTILINE)
    ]
    assert len(found) > 2
    assert found[-1] < found[0]
    assert printed.count("paragraph -> video") == 1


@pytest.mark.slow
def test_an_evaluation_ends_in_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from examples.integrations.evaluate_and_plot import main

    picture = tmp_path / "alignment.png"
    main(str(picture), steps=3)
    assert picture.stat().st_size > 10_000
    assert capsys.readouterr().out.count("paragraph -> video") == 3


def test_the_criterion_of_mmpt_has_the_released_numbers() -> None:
    from examples.integrations.mmpt_criterion import NortonCriterion
    from tests.test_released_parity import FIXTURES, LEAVES, Case

    for case in map(Case, FIXTURES):
        criterion = NortonCriterion(case.length, case.loss())
        names = {"video_tokens": "video_outputs", "text_tokens": "text_outputs"}
        masks = {"video_mask_outputs": "frame_mask", "text_mask_outputs": "word_mask"}
        outputs = {names.get(name, name): case.arrays[name] for name in LEAVES}
        outputs |= {name: case.arrays[mask] for name, mask in masks.items()}
        torch.testing.assert_close(criterion(**outputs), case.explain().loss)


def test_the_lines_that_matter_are_marked_and_files_are_short() -> None:
    for path in sorted((ROOT / "examples" / "integrations").glob("[a-z]*.py")):
        text = path.read_text()
        if "def main(" in text:
            assert "# <- " in text, path.name
            assert "in ``Segments" in text or "of ``NortonLoss.from_similarity" in text, path.name
            assert len(text.splitlines()) <= 72, path.name
