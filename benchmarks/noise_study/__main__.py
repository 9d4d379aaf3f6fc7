"""``python -m benchmarks.noise_study [part ...]``, ``... --quick``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context

from tqdm import tqdm

from benchmarks.noise_study.parts import PARTS, SEARCHES, quick
from benchmarks.noise_study.rows import FULL_ROWS, QUICK_ROWS, Rows
from benchmarks.noise_study.run import Row, Run, execute
from benchmarks.noise_study.search import Chosen, MissingRunsError, choose, start_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that have no row yet; a study that was stopped goes on where it was."""
    parser = argparse.ArgumentParser("python -m benchmarks.noise_study", description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"search, {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small one, at settings unsearched")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - {"search", *PARTS}
    if unknown:
        parser.error(f"no part named {', '.join(sorted(unknown))}")
    deadline = time.monotonic() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which import torch anew
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as executor:
        rows = Rows(QUICK_ROWS if options.quick else FULL_ROWS)
        runner = Runner(rows, executor, options.workers, deadline)
        if options.quick:
            runner.do("quick", quick(start_of))
            return 0
        for part in options.parts or ["search", *PARTS]:
            if part == "search":
                runner.search()
                continue
            try:
                runs = PARTS[part](runner.chosen)
            except MissingRunsError as error:
                print(f"{part} waits for {error} of the search", file=sys.stderr)
                return 1
            runner.do(part, runs)
    return 0


@dataclass
class Runner:
    """Rows on file, and workers for those that are missing."""

    rows: Rows
    executor: ProcessPoolExecutor
    workers: int
    deadline: float  # of time.monotonic

    def search(self) -> None:
        """All objectives climb side by side, so that no worker waits."""
        while wanted := [run for search in SEARCHES for run in self._next(*search)]:
            if time.monotonic() > self.deadline:
                return
            self.do("search", wanted)

    def chosen(self, objective: str, noise: str = "default") -> Chosen:
        return choose(objective, self.rows, noise)[0]

    def do(self, part: str, runs: list[Run]) -> None:
        missing = list(dict.fromkeys(run for run in runs if run not in self.rows))
        with tqdm(total=len(missing), unit="run", desc=part, smoothing=0.05) as bar:
            for row in self._rows_of(missing):
                self.rows.add(part, row)
                bar.update()

    def _next(self, objective: str, noise: str) -> list[Run]:
        try:
            self.chosen(objective, noise)
        except MissingRunsError as error:
            return error.runs
        return []

    def _rows_of(self, runs: list[Run]) -> Iterator[Row]:
        """Rows as they come; one run waits for a worker, and the others for the deadline."""
        under_way: set[Future[Row]] = set()
        for run in runs:
            if time.monotonic() > self.deadline:
                break
            under_way.add(self.executor.submit(execute, run))
            while len(under_way) > self.workers:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in under_way)


if __name__ == "__main__":
    sys.exit(main())
