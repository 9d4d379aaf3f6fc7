"""A contender in a process of its own that waits for its turns, so that two trees can compete.

``python -m benchmarks.harness.worker JOB`` prepares what JOB names, lets the gate judge it, and
says that it is ready. Then it answers each line on stdin by the seconds of one pass. Workers of
other commits answer ``compare`` as well, so what is said here stays as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.harness.clock import clock_for
from benchmarks.harness.gate import judge, reference_answer
from benchmarks.harness.job import Job, Ready, prepare

_MARK = "worker: "  # libraries print what they like in between


class Worker:
    """The other end of the process; a context manager that ends it."""

    def __init__(self, job: Job, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.worker", json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tree,
        )

    def __enter__(self) -> Worker:
        self._answer()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate()

    def seconds_of_one_pass(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        said: list[str] = []
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return line.removeprefix(_MARK).strip()
            said.append(line)
        self._process.communicate()  # closes the pipes: no exit follows a failed entry
        raise RuntimeError("".join(said).strip() or f"it stopped: {self._process.returncode}")


def check(ready: Ready, job: Job) -> None:
    """What is wrong is not timed here either."""
    expected = reference_answer(
        ready.contender.reference or ready.work.reference, ready.inputs, job.mode
    )
    dtype = getattr(torch, job.dtype)
    verdict = judge(ready.work, ready.contender, ready.prepared, expected, job.mode, dtype)
    if not verdict.passed:
        sys.exit("wrong: further from the float64 reference than its tolerance")


def main(job: Job) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of peers
    ready = prepare(job)
    check(ready, job)
    clock = clock_for(job.device)
    print(f"{_MARK}ready", flush=True)
    for _turn in sys.stdin:
        print(f"{_MARK}{clock(ready.run)}", flush=True)


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
