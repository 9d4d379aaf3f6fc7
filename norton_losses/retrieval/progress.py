"""A bar on stderr while pairs, or videos, are compared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, shown: bool, unit: str = "pair") -> Generator[Callable[[int], object]]:
    """A function to call with what was just done: shows a bar of tqdm, or one line at the end."""
    if not shown:
        yield lambda done: None
        return
    try:
        from tqdm import tqdm  # pyright: ignore
    except ImportError:
        start = time.perf_counter()
        yield lambda done: None
        seconds = time.perf_counter() - start
        said = f"scored {total} {unit}s in {seconds:.1f} s (for a bar: pip install tqdm)"
        print(said, file=sys.stderr)
        return
    with tqdm(total=total, unit=unit, unit_scale=True) as bar:
        yield bar.update
