"""The examples of other frameworks run, and several processes train as one does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROOT = Path(__file__).parents[1]
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
