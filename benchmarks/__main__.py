"""``python -m benchmarks [suite ...]``, ``python -m benchmarks plot``, ``... compare BASE``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import SUITES, audit_study, compiling, distributed
from benchmarks.harness.compare import compare
from benchmarks.harness.figures import draw_all
from benchmarks.harness.results import COMMITTED, QUICK
from benchmarks.harness.suite import Settings, run_suite
from benchmarks.harness.tables import printed, rewrite_pages

DTYPES = ("float32", "float64", "float16", "bfloat16")


def run(arguments: Sequence[str]) -> int:
    """Measure suites, print a table of each, keep the rows; 1 if anything was wrong or failed."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=run.__doc__)
    _common(parser)
    parser.add_argument("--results", type=Path, help="folder for the rows")
    parser.add_argument("--fresh", action="store_true", help="forget the rows on file")
    options = parser.parse_args(arguments)
    settings = _prepare(options)
    wrong = 0
    with tempfile.TemporaryDirectory() as nowhere:
        places = {"smoke": Path(nowhere), "quick": QUICK, "full": COMMITTED}
        folder = options.results or places[settings.size]
        for suite in options.suites:
            record = run_suite(suite, settings, folder, fresh=options.fresh)
            print(f"\n{printed(record)}\n", flush=True)
            wrong += sum(row["status"] in ("wrong", "failed") for row in record["rows"])
        if settings.size != "smoke":
            _tell(draw_all(folder))
    if wrong:
        print(f"{wrong} rows are wrong or failed, and were not timed", file=sys.stderr)
    return int(wrong > 0)


def plot(arguments: Sequence[str]) -> int:
    """Rebuild every figure, and every table beside them and in the documentation."""
    argparse.ArgumentParser("python -m benchmarks plot", description=plot.__doc__).parse_args(
        arguments
    )
    from benchmarks.noise_study import pages as noise_study  # which needs scikit-learn

    of_their_own = (distributed, compiling, audit_study)
    pages = [*rewrite_pages(), *(page for one in of_their_own for page in one.rewrite_page())]
    _tell([*draw_all(COMMITTED), *pages, *noise_study.rebuild()])
    return 0


def compare_with(arguments: Sequence[str]) -> int:
    """Time our contenders of this tree and of another commit in turns, and print the ratios."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks compare", description=compare_with.__doc__
    )
    parser.add_argument("base", help="a commit, branch or tag")
    _common(parser)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    settings = _prepare(options)
    print(compare(options.base, options.suites, settings, options.rounds))
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suites", nargs="*", metavar="suite", help=", ".join(SUITES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="tiny shapes, nothing kept")
    size.add_argument("--full", action="store_true", help="the sizes of the committed results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: its own choice")


def _prepare(options: argparse.Namespace) -> Settings:
    unknown = [suite for suite in options.suites if suite not in SUITES]
    if unknown:
        sys.exit(f"no suite named {', '.join(unknown)}; there are {', '.join(SUITES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda needs a CUDA device, and torch sees none; leave it out for the CPU")
    options.suites = options.suites or list(SUITES)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of peers
    # A first call is to show what compiling takes, not what an earlier run left on the disk.
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    size = "smoke" if options.smoke else "full" if options.full else "quick"
    return Settings(size, options.device, options.dtype)


def _tell(written: Sequence[Path]) -> None:
    for path in written:
        print(f"wrote {path}")


COMMANDS = {"plot": plot, "compare": compare_with}

if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    sys.exit(COMMANDS[command](rest) if command in COMMANDS else run(sys.argv[1:]))
