"""What ``torch.compile`` of a loss costs on ragged data, where every batch has a new shape.

``python -m benchmarks.compiling`` takes training steps of each loss, first of batches that it never
saw, then of the same once more, beside the loss as it is. A graph is what the compiler makes at a
time; it is made again for a shape that no graph serves.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.harness.machine import ROOT, commit, cpu_name
from benchmarks.harness.results import COMMITTED
from benchmarks.harness.tables import duration, markdown
from norton_losses import (
    DynamicTimeWarping,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    Segments,
)

WIDTH = 256
PAGE = ROOT / "docs" / "speed.md"
BLOCK = re.compile(r"(<!-- compiling -->\n).*?(<!-- end of compiling -->)", flags=re.DOTALL)
RESULTS = COMMITTED / "compiling" / "cpu.json"
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "NortonLoss": NortonLoss,
    "NortonLoss.released": NortonLoss.released,
    "NortonLoss.paper": NortonLoss.paper,
    "video-paragraph by DTW": partial(NortonVideoParagraphLoss, measure=DynamicTimeWarping()),
    "video-paragraph by OTAM": partial(NortonVideoParagraphLoss, measure=OrderedAlignment()),
}


def ragged_batches(count: int, width: int) -> Iterator[tuple[Segments, Segments]]:
    """Every dimension but the width changes, and the masks have gaps."""
    g = torch.Generator().manual_seed(0)

    def between(lo: int, hi: int) -> int:
        return int(torch.randint(lo, hi + 1, (), generator=g))

    def side(b: int, n: int, tokens: int) -> Segments:
        made = torch.randn(b, n, tokens, width, generator=g).requires_grad_()
        return Segments(made, torch.rand(b, n, tokens, generator=g) < 0.8)

    for _ in range(count):
        b, n = between(8, 16), between(4, 10)
        yield side(b, n, between(4, 12)), side(b, n, between(8, 24))


def measure(count: int, width: int = WIDTH, backend: str = "inductor") -> dict[str, Any]:
    """A row for each loss."""
    batches = list(ragged_batches(count, width))
    rows: list[dict[str, Any]] = []
    for name, make in LOSSES.items():
        torch.compiler.reset()
        counters.clear()
        loss = make()
        compiled: Any = torch.compile(loss, backend=backend)  # pyright: ignore[reportUnknownMemberType]
        compiling, graphs = 0.0, 0
        for batch in batches:
            seconds = _step(compiled, batch)
            if counters["stats"]["unique_graphs"] > graphs:
                compiling, graphs = compiling + seconds, counters["stats"]["unique_graphs"]
        known = [(_step(compiled, batch), _step(loss, batch)) for batch in batches]
        rows.append(
            {
                "loss": name,
                "graphs": graphs,
                "breaks": sum(counters["graph_break"].values()),
                "compiling_s": compiling,
                "compiled_s": median(ours for ours, _ in known),
                "eager_s": median(eager for _, eager in known),
            }
        )
    return {
        "batches": count,
        "width": width,
        "rows": rows,
        "commit": commit(),
        "date": date.today().isoformat(),
        "machine": f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def table(record: dict[str, Any]) -> str:
    lines = [
        [
            row["loss"],
            str(row["graphs"]),
            str(row["breaks"]),
            *(duration(row[key]) for key in ("compiling_s", "compiled_s", "eager_s")),
        ]
        for row in record["rows"]
    ]
    head = ["loss", "graphs", "breaks", "steps that compiled", "step, compiled", "step, eager"]
    said = f"{record['batches']} batches, width {record['width']}: {record['machine']}; commit "
    return f"{markdown(head, lines)}\n\n{said}{record['commit']}, {record['date']}."


def rewritten(page: str) -> str:
    """The page with its block as the rows have it."""
    found = table(json.loads(RESULTS.read_text()))
    return BLOCK.sub(lambda block: f"{block[1]}{found}\n{block[2]}", page)


def rewrite_page() -> list[Path]:
    """Bring the page up to date; returns it if it was not."""
    text = PAGE.read_text()
    PAGE.write_text(rewritten(text))
    return [PAGE] if rewritten(text) != text else []


def _step(loss: Any, batch: tuple[Segments, Segments]) -> float:
    start = time.perf_counter()
    value: Tensor = loss(*batch)
    value.backward()  # pyright: ignore[reportUnknownMemberType]
    return time.perf_counter() - start


def main() -> int:
    record = measure(count=40)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
