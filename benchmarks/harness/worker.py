"""A contender in a process of its own that waits for its turns, so that two trees can compete.

``python -m benchmarks.harness.worker JOB`` prepares what JOB names and says so. Then it answers
each line on stdin by the seconds of one pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.clock import clock_for
from benchmarks.harness.job import Job, prepare

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
        raise RuntimeError("".join(said).strip() or f"it stopped: {self._process.wait()}")


def main(job: Job) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of peers
    run, _prepared = prepare(job)
    clock = clock_for(job.device)
    print(f"{_MARK}ready", flush=True)
    for _turn in sys.stdin:
        print(f"{_MARK}{clock(run)}", flush=True)


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
