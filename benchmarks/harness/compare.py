"""This tree against another commit: our contenders of both, in turns, under this tree's harness."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import works_of
from benchmarks.harness.clock import in_turns
from benchmarks.harness.machine import ROOT
from benchmarks.harness.suite import Settings, job_of, obstacle
from benchmarks.harness.tables import markdown, ratio_of_rounds
from benchmarks.harness.work import Contender, Mode, Work
from benchmarks.harness.worker import Worker


def compare(base: str, suites: Sequence[str], settings: Settings, rounds: int) -> str:
    """A table of base's time over this tree's, with 20 and 80 % quantiles of the rounds' ratios."""
    lines: list[list[str]] = []
    with tree_of(base) as tree:
        for suite in suites:
            for work in works_of(suite, settings.size):
                for contender in work.contenders:
                    if contender.role == "ours" and not obstacle(work, contender, settings):
                        lines.append(
                            _line(tree, suite, work, contender, work.heaviest, settings, rounds)
                        )
                        print(" | ".join(lines[-1]), flush=True)
    return markdown(["work", "contender", "pass", f"{base} / this tree", "20-80 %"], lines)


def _line(
    tree: Path,
    suite: str,
    work: Work,
    contender: Contender,
    mode: Mode,
    settings: Settings,
    rounds: int,
) -> list[str]:
    job = job_of(suite, work, contender, mode, settings)
    what = [work.name, contender.name, mode]
    try:
        with Worker(job, tree) as theirs, Worker(job, ROOT) as ours:
            turns = {"theirs": theirs.seconds_of_one_pass, "ours": ours.seconds_of_one_pass}
            in_turns(turns, 1)  # warms up
            seconds = in_turns(turns, rounds)
    except (RuntimeError, OSError) as error:  # the other tree may know less than is asked of it
        return [*what, str(error).splitlines()[-1], ""]
    ratio, low, high = ratio_of_rounds(seconds["ours"], seconds["theirs"])
    return [*what, f"{ratio:.2f}", f"{low:.2f} - {high:.2f}"]


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """That commit's files in a folder of their own, with this tree's benchmarks among them."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            shutil.rmtree(tree / "benchmarks", ignore_errors=True)
            shutil.copytree(ROOT / "benchmarks", tree / "benchmarks")
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"git {' '.join(arguments)}: {run.stderr.strip()}")
