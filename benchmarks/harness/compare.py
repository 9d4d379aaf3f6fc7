"""This tree against another commit: our contenders of both, in turns.

Each tree brings its own suites, and so calls its own package in its own way. Works and contenders
are matched by name. What the two share is :class:`~benchmarks.harness.job.Job` and what a worker
says.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import works_of
from benchmarks.harness.clock import in_turns
from benchmarks.harness.job import Job
from benchmarks.harness.machine import ROOT
from benchmarks.harness.suite import Settings, job_of, obstacle
from benchmarks.harness.tables import markdown, ratio_of_rounds
from benchmarks.harness.worker import Worker

# How a worker ends whose tree has no such work or contender, and one that has no such suite.
_UNKNOWN = ("StopIteration", "ValueError: suite must be one of")


def compare(base: str, suites: Sequence[str], settings: Settings, rounds: int) -> str:
    """A table of base's time over this tree's, and a last line that says the smallest ratio.

    Beside each ratio stand the 20 and 80 % quantiles of those of the rounds.
    """
    jobs = [
        job_of(suite, work, contender, work.heaviest, settings)
        for suite in suites
        for work in works_of(suite, settings.size)
        for contender in work.contenders
        if contender.role == "ours" and not obstacle(work, contender, settings)
    ]
    lines: list[list[str]] = []
    ratios: list[tuple[float, str]] = []
    with tree_of(base) as tree:
        for job in jobs:
            what = [job.work, job.contender, job.mode]
            try:
                ratio, low, high = _ratio(job, tree, rounds)
            except (RuntimeError, OSError) as error:  # the other tree may know less than is asked
                said = str(error).splitlines()[-1]
                lines.append([*what, f"not in {base}" if said.startswith(_UNKNOWN) else said, ""])
            else:
                lines.append([*what, f"{ratio:.2f}", f"{low:.2f} - {high:.2f}"])
                ratios.append((ratio, ", ".join(what)))
            print(" | ".join(lines[-1]), flush=True)
    table = markdown(["work", "contender", "pass", f"{base} / this tree", "20-80 %"], lines)
    last = "smallest ratio: {:.2f}, of {}".format(*min(ratios)) if ratios else "no ratio"
    return f"{table}\n\n{last}"


def _ratio(job: Job, tree: Path, rounds: int) -> tuple[float, float, float]:
    with Worker(job, tree) as theirs, Worker(job, ROOT) as ours:
        turns = {"theirs": theirs.seconds_of_one_pass, "ours": ours.seconds_of_one_pass}
        in_turns(turns, 1)  # warms up
        seconds = in_turns(turns, rounds)
    return ratio_of_rounds(seconds["ours"], seconds["theirs"])


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """That commit's files, its own benchmarks among them, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"git {' '.join(arguments)}: {run.stderr.strip()}")
