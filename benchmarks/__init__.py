"""Speed, memory and accuracy beside what one would write, or take, instead.

A suite is a module of this package with one function, ``works(size)``; ``harness`` runs them all
alike, under the contract of README.md.
"""

from __future__ import annotations

import importlib

from benchmarks.harness.work import Size, Work

SUITES = (
    "token_similarity",
    "sinkhorn_backends",
    "clip_caption",
    "video_paragraph",
    "sequence_measures",
    "norton_step",
)


def works_of(suite: str, size: Size) -> list[Work]:
    """What a suite measures at one size."""
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    return importlib.import_module(f"benchmarks.{suite}").works(size)
