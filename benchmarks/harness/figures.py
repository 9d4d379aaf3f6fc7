"""Figures of a folder of results: time and memory against a size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness.results import Record, load
from benchmarks.harness.work import heaviest

COLOURS = {"ours": "tab:blue", "naive": "tab:red", "peer": "tab:gray", "floor": "black"}
STYLES = {"ours": "-", "naive": "--", "peer": ":", "floor": "-."}
MARKERS = "osD^vP"
SIZES = {
    "K": "clips, K",
    "N": "clips in a sequence, N",
    "B": "videos in a batch, B",
    "D": "width, D",
    "problems": "transport problems",
}


def draw_all(folder: Path) -> list[Path]:
    """Every figure of the results in a folder, beside them."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "norton_losses", "svg.fonttype": "none", "font.size": 9})
    drawn = []
    for rows in sorted(folder.glob("*--*.json")):
        record = load(rows)
        for sweep in dict.fromkeys(row["sweep"] for row in record["rows"] if row["sweep"]):
            drawn.append(folder / f"{rows.stem}--against-{sweep}.svg")
            _write(scaling(record, sweep), drawn[-1])
    return drawn


def scaling(record: Record, sweep: str) -> Any:
    """Time and peak memory of each contender against one size, both axes logarithmic."""
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rows = [row for row in record["rows"] if row["sweep"] == sweep and row["status"] == "timed"]
    mode = heaviest({row["mode"] for row in rows})
    rows = [row for row in rows if row["mode"] == mode and row["dtype"] == "float32"]
    names = dict.fromkeys((row["contender"], row["role"]) for row in rows)
    for number, (name, role) in enumerate(names):
        of_name = [row for row in rows if row["contender"] == name]
        of_name.sort(key=lambda row: row["parameters"][sweep])
        style: dict[str, Any] = {
            "color": COLOURS[role],
            "linestyle": STYLES[role],
            "marker": MARKERS[number % len(MARKERS)],
            "label": name,
        }
        sizes = [row["parameters"][sweep] for row in of_name]
        time.plot(sizes, [row["median_s"] for row in of_name], **style)
        time.fill_between(
            sizes,
            [row["q20_s"] for row in of_name],
            [row["q80_s"] for row in of_name],
            color=COLOURS[role],
            alpha=0.15,
        )
        peaks = [(size, row["peak_bytes"]) for size, row in zip(sizes, of_name, strict=True)]
        peaks = [(size, peak / 2**20) for size, peak in peaks if peak]
        if peaks:
            memory.plot(*zip(*peaks, strict=True), **style)
    for axes, label in ((time, "seconds"), (memory, "peak memory added, MiB")):
        axes.set(xscale="log", yscale="log", xlabel=SIZES.get(sweep, sweep), ylabel=label)
        sizes = sorted({row["parameters"][sweep] for row in rows})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(fontsize=7)
    figure.suptitle(f"{record['suite']}, {mode}: {_where(record)}", fontsize=9)
    return figure


def _where(record: Record) -> str:
    machine = record["machine"]
    name = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{name}, torch {machine['torch']}"


def _write(figure: Any, path: Path) -> None:
    """Byte for byte the same from the same rows."""
    from matplotlib import pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
