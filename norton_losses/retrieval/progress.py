"""A bar on stderr while pairs are scored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(pairs: int, shown: bool) -> Generator[Callable[[int], object]]:
    """A function to call with the pairs just done: shows a bar of tqdm, or one line at the end."""
    if not shown:
        yield lambda done: None
        return
    try:
        from tqdm import tqdm  # pyright: ignore
    except ImportError:
        start = time.perf_counter()
        yield lambda done: None
        seconds = time.perf_counter() - start
        said = f"scored {pairs} pairs in {seconds:.1f} s (for a bar: pip install tqdm)"
        print(said, file=sys.stderr)
        return
    with tqdm(total=pairs, unit="pair", unit_scale=True) as bar:
        yield bar.update
