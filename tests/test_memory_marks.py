"""Marks that the memory of a step may not pass, each in copies of its largest natural tensor."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonschema", reason="jsonschema is not installed")

from benchmarks.harness.memory import give_back_at_once, held, highest
from norton_losses import (
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    NortonLoss,
    OrderedAlignment,
    Segments,
)
from norton_losses.gradient_cache import cached_step
from norton_losses.retrieval import retrieve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="the system does not tell peaks"
    ),
]
FLOAT = 4
B, N, F, W, D = 32, 8, 8, 16, 64  # 256 clips; all products of frames with words are 32 MiB


def sides(videos: int = B) -> tuple[Segments, Segments]:
    made = (torch.randn(videos, N, t, D) for t in (F, W))
    return tuple(Segments(tokens.requires_grad_()) for tokens in made)  # pyright: ignore


def norton() -> Callable[[], object]:
    loss, batch = NortonLoss(), sides()
    return lambda: loss(*batch).backward()


def released() -> Callable[[], object]:
    loss, batch = NortonLoss.released(), sides()
    return lambda: loss(*batch).backward()


def cached() -> Callable[[], object]:
    loss, batches = NortonLoss(), [sides(4) for _ in range(8)]
    return lambda: cached_step(lambda batch: batch, loss, batches)


def clip_caption(chunk_rows: int | None) -> Callable[[], object]:
    loss = ClipCaptionOTLoss(chunk_rows=chunk_rows)
    clips, captions = (torch.randn(2048, 1, D).requires_grad_() for _ in range(2))
    return lambda: loss(clips, captions).backward()


def alignment(measure: torch.nn.Module) -> Callable[[], object]:
    similarity = torch.rand(96, 96, 16, 16, requires_grad=True)
    return lambda: measure(similarity).sum().backward()


def retrieval(measure: str) -> Callable[[], object]:
    videos, paragraphs = torch.randn(512, N, D), torch.randn(512, N, D)
    return lambda: retrieve(measure, videos, paragraphs, progress=False)


PRODUCTS = FLOAT * (B * N) ** 2 * F * W
PAIRS = FLOAT * 2048**2
CELLS = FLOAT * (96 * 16) ** 2
CORPUS = FLOAT * (512 * N) ** 2
# What takes a step, and its mark in copies of a tensor of so many bytes: a fourth above what was
# measured when it was set.
MARKS: dict[str, tuple[Callable[[], Callable[[], object]], int, float]] = {
    "NortonLoss": (norton, PRODUCTS, 1.7),
    "NortonLoss.released": (released, PRODUCTS, 1.7),
    "cached_step": (cached, PRODUCTS, 1.75),
    "clip-caption": (lambda: clip_caption(None), PAIRS, 14.0),
    "clip-caption by rows": (lambda: clip_caption(128), PAIRS, 0.85),
    "DTW": (lambda: alignment(DynamicTimeWarping()), CELLS, 6.9),
    "smooth DTW": (lambda: alignment(DynamicTimeWarping(0.1)), CELLS, 8.0),
    "OTAM": (lambda: alignment(OrderedAlignment()), CELLS, 5.2),
    "retrieval by transport": (lambda: retrieval("transport"), CORPUS, 0.75),
    "retrieval by DTW": (lambda: retrieval("dtw"), CORPUS, 0.53),
}


def peak_of(name: str) -> float:
    torch.set_num_threads(1)
    give_back_at_once()
    step = MARKS[name][0]()
    step()  # what stays for good: libraries, gradients
    before = held("cpu")
    step()
    return highest("cpu") - before


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, where nothing that other tests left behind is counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", MARKS)
def test_a_step_stays_under_its_mark(name: str, fresh: ProcessPoolExecutor) -> None:
    peak = fresh.submit(peak_of, name).result()
    _, unit, mark = MARKS[name]
    assert peak <= mark * unit, f"{peak / unit:.2f} copies of {unit / 2**20:.0f} MiB"
