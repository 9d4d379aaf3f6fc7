"""The example of distributed training: one loss for any number of processes, and after a crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROOT = Path(__file__).parents[1]
SIZES = ["--steps", "6", "--videos", "60", "--batch-videos", "6", "--save-every", "2"]


def torchrun(
    processes: int, module: str, *arguments: str, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, "-m", module, *SIZES, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def losses(run: subprocess.CompletedProcess[str]) -> dict[int, float]:
    assert run.returncode == 0, run.stderr
    found = re.findall(r"^step (\d+)  loss ([\d.]+)$", run.stdout, flags=re.MULTILINE)
    return {int(step): float(loss) for step, loss in found}


@pytest.fixture(scope="module")
def of_two() -> dict[int, float]:
    return losses(torchrun(2, "examples.distributed_train"))


@pytest.mark.slow
def test_the_loss_is_that_of_one_process(of_two: dict[int, float]) -> None:
    of_one = losses(torchrun(1, "examples.distributed_train"))
    assert list(of_one) == list(range(6))
    assert of_two == pytest.approx(of_one, rel=1e-5)


@pytest.mark.slow
def test_a_rank_that_dies_stops_the_others(tmp_path: Path) -> None:
    run = torchrun(2, "tests.dying_rank")
    assert run.returncode != 0
    assert "Connection closed by peer" in run.stderr or "SIGKILL" in run.stderr
    assert "step 3" not in run.stdout


@pytest.mark.slow
def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path, of_two: dict[int, float]) -> None:
    saved = str(tmp_path / "checkpoint.pt")
    run = torchrun(2, "tests.dying_rank", "--checkpoint", saved, restarts=1)
    assert losses(run) == pytest.approx(of_two, rel=1e-6)
    assert run.stdout.count("step 2  ") == 2  # the step after the checkpoint, before and after
