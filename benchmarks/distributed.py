"""Work and memory of one process of several, as shares of one that has the whole batch.

``python -m benchmarks.distributed`` spawns 1, 2 and 4 processes of one thread that share out 512
clips of width 256. Work is counted: the floating-point operations of all matrix products of a step,
those of the fused soft maximum by its shapes. Memory is what a second step adds at its peak.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its functions would keep for ever
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.machine import ROOT, commit, cpu_name
from benchmarks.harness.memory import give_back_at_once, held, highest
from benchmarks.harness.results import COMMITTED
from benchmarks.harness.tables import markdown
from benchmarks.inputs import tokens
from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments, TorchSinkhorn
from norton_losses._typing import Gather

LENGTH, FRAMES, WORDS = 16, 8, 16
SIZES = (1, 2, 4)
PAGE = ROOT / "docs" / "how_to" / "distributed.md"
BLOCK = re.compile(
    r"(<!-- distributed: (?P<what>\w+) -->\n).*?(<!-- end of distributed -->)", flags=re.DOTALL
)
RESULTS = COMMITTED / "distributed" / "cpu.json"
ALONE = ("NortonLoss", "ClipCaptionOTLoss")  # those of one process too
# On logarithms, as several processes carry out the transport of pairs: one alone would take matrix
# products for it, which are counted.
SOLVER = TorchSinkhorn(domain="log")
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "NortonLoss": lambda: norton("all"),
    "NortonLoss, chunked": lambda: norton("chunked"),
    "ClipCaptionOTLoss": lambda: ClipCaptionOTLoss(sinkhorn=SOLVER, process_group="world"),
}


def norton(gather: Gather) -> NortonLoss:
    term = ClipCaptionOTLoss(sinkhorn=SOLVER)
    return NortonLoss(clip_caption=term, process_group="world", gather=gather)


def measure(clips: int, width: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Rows for each loss and number of processes, the largest of the processes each."""
    rows: list[dict[str, Any]] = []
    for name in LOSSES:
        for size in sizes if name in ALONE else sizes[1:]:
            with tempfile.TemporaryDirectory() as folder:
                job = name, clips, width, size, folder
                multiprocessing.spawn(_measured, job, nprocs=size)  # pyright: ignore
                found = [json.loads(path.read_text()) for path in Path(folder).glob("rank*")]
            rows.append(
                {
                    "loss": name,
                    "processes": size,
                    "flops": max(of_rank["flops"] for of_rank in found),
                    "peak_bytes": max(of_rank["peak_bytes"] for of_rank in found),
                }
            )
    return {
        "clips": clips,
        "width": width,
        "rows": rows,
        "commit": commit(),
        "date": date.today().isoformat(),
        "machine": f"{cpu_name()}, 1 thread a process, torch {torch.__version__}",
    }


def table(record: dict[str, Any]) -> str:
    """Of each process, and times their number as shares of one: 100 % is an even share."""
    rows = record["rows"]
    alone = {row["loss"]: row for row in rows if row["processes"] == 1}
    lines = []
    for row in rows:
        base, size = alone[row["loss"].partition(",")[0]], row["processes"]
        cells = [f"{100 * size * row[key] / base[key]:.0f} %" for key in ("flops", "peak_bytes")]
        peak = f"{row['peak_bytes'] / 2**20:.0f} MiB"
        lines.append([row["loss"], str(size), f"{row['flops'] / 1e9:.1f} G", peak, *cells])
    head = ["loss", "processes", "operations of each", "peak of each"]
    return markdown([*head, "operations × processes", "peak × processes"], lines)


def computed() -> str:
    """What the formulas of the page come to on many GPUs, 128 clips each; nobody measured it."""
    words, width, wire, iterations = 32, 768, 2, 50
    lines = []
    for gpus, note in ((8, " (the paper's batch)"), (64, "")):
        k = 128 * gpus
        gathered = k * words * width * wire + k * words + 4 * k * width
        returned = 4 * k * words * width + 4 * k * width
        # Tokens, their unit vectors, and the gradient of each.
        held = 4 * (4 * k * words * width)
        sizes = (gathered, returned, 8 * k * iterations, held)
        lines.append([f"{gpus}{note}", f"{k:,}", *(f"{n / 1e6:,.1f} MB" for n in sizes)])
    head = ["GPUs", "clips in the batch", "gathered", "returned", "transport"]
    return markdown([*head, "text held, with unit vectors and gradients"], lines)


def rewritten(page: str) -> str:
    """A page with its blocks as rows and formulas have them."""
    tables = {"measured": lambda: table(json.loads(RESULTS.read_text())), "computed": computed}
    return BLOCK.sub(lambda block: f"{block[1]}{tables[block['what']]()}\n{block[3]}", page)


def rewrite_page() -> list[Path]:
    """Bring the page up to date; returns it if it was not."""
    text = PAGE.read_text()
    PAGE.write_text(rewritten(text))
    return [PAGE] if rewritten(text) != text else []


def _measured(rank: int, name: str, clips: int, width: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    give_back_at_once()
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    made = tokens(clips, FRAMES, WORDS, width, ragged=False, length=LENGTH)
    own = slice(rank * len(made["video"]) // size, (rank + 1) * len(made["video"]) // size)
    video, text = (made[side].detach()[own].clone().requires_grad_() for side in ("video", "text"))
    del made
    loss = LOSSES[name]()

    def step() -> None:
        loss(Segments(video), Segments(text)).backward()
        video.grad = text.grad = None

    step()
    before = held("cpu")
    step()
    peak = highest("cpu") - before
    fused = {
        torch.ops.norton_losses.soft_maximum: _products,
        torch.ops.norton_losses.soft_maximum_backward: _products_back,
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    found = {"flops": counter.get_total_flops(), "peak_bytes": peak}
    Path(folder, f"rank{rank}").write_text(json.dumps(found))
    dist.barrier()  # a process that leaves early may take the connections of others with it
    dist.destroy_process_group()


def _products(clips: Any, captions: Any, *_: Any, **__: Any) -> int:
    """Of every frame with every word."""
    (k, f, d), (j, w, _) = clips, captions
    return 2 * k * f * j * w * d


def _products_back(*shapes: Any, **_: Any) -> int:
    """Of the scores' gradients with words and with frames; the scores were kept."""
    return 2 * _products(*shapes[2:4])


def main() -> int:
    record = measure(clips=512, width=256)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
