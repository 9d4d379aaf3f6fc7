"""Figures of a folder of results: time and memory against a size, and the roofline."""

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
    records = [load(path) for path in sorted(folder.glob("*--*.json"))]
    drawn = []
    for record in records:
        sweeps = dict.fromkeys(row["sweep"] for row in record["rows"] if row["sweep"])
        drawn += [
            _save(scaling(record, sweep), folder, record, f"against-{sweep}") for sweep in sweeps
        ]
    for device in dict.fromkeys(record["machine"]["device"] for record in records):
        of_device = [record for record in records if record["machine"]["device"] == device]
        figure = roofline(of_device)
        if figure is not None:
            path = folder / f"roofline--{device}.svg"
            _write(figure, path)
            drawn.append(path)
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


def roofline(records: list[Record]) -> Any:
    """Least work over time taken, against arithmetic intensity, as a share of the roof there."""
    from matplotlib import pyplot as plt

    rows = [
        (record, row)
        for record in records
        for row in record["rows"]
        if row["flops"] and row["bytes"] and row["status"] == "timed"
        if not row["sweep"] and row["role"] != "floor" and row["dtype"] == "float32"
    ]
    if not rows:
        return None
    figure, (axes, multiples) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    above_the_floor(multiples, records)
    axes.axhline(1.0, color=COLOURS["floor"], label="roof, of the same run")
    suites = list(dict.fromkeys(record["suite"] for record in records))
    shown: set[tuple[str, str]] = set()
    for record, row in rows:
        kind = (record["suite"], row["role"])
        axes.plot(
            row["flops"] / row["bytes"],
            row["flops"] / row["median_s"] / roof(record, row),
            color=COLOURS[row["role"]],
            marker=MARKERS[suites.index(record["suite"])],
            linestyle="",
            alpha=0.7,
            label=None if kind in shown else f"{record['suite']}, {row['role']}",
        )
        shown.add(kind)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="least arithmetic over least traffic, FLOP per byte",
        ylabel="arithmetic of the work over time taken, as a share of the roof",
        title="against the best products and copies of the same run",
    )
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.suptitle("; ".join(dict.fromkeys(map(_where, records))), fontsize=9)
    return figure


def roof(record: Record, row: Record) -> float:
    """FLOP/s that the machine can do at best, in the run of the row, at the row's intensity."""
    compute, stream = (record["ceilings"][name] for name in ("flops_per_s", "bytes_per_s"))
    return min(compute, row["flops"] / row["bytes"] * stream)


def above_the_floor(axes: Any, records: list[Record]) -> None:
    """Time of every contender as a multiple of its floor's, a line for each work."""
    names: list[str] = []
    for record in records:
        rows = [row for row in record["rows"] if row["status"] == "timed" and not row["sweep"]]
        floors = {
            (row["work"], row["mode"], row["dtype"]): row["median_s"]
            for row in rows
            if row["role"] == "floor"
        }
        for row in rows:
            found = floors.get((row["work"], row["mode"], row["dtype"]))
            if found is None or row["flops"] is None or row["role"] == "floor":
                continue
            if row["work"] not in names:
                names.append(row["work"])
            axes.plot(
                row["median_s"] / found,
                names.index(row["work"]),
                color=COLOURS[row["role"]],
                marker="o",
                linestyle="",
                alpha=0.7,
            )
    axes.axvline(1.0, color=COLOURS["floor"])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(
        xscale="log", xlabel="time over the floor's", title="against the floor of the same run"
    )
    axes.grid(alpha=0.3)


def _where(record: Record) -> str:
    machine = record["machine"]
    name = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{name}, torch {machine['torch']}"


def _save(figure: Any, folder: Path, record: Record, what: str) -> Path:
    path = folder / f"{record['suite']}--{record['machine']['device']}--{what}.svg"
    _write(figure, path)
    return path


def _write(figure: Any, path: Path) -> None:
    """Byte for byte the same from the same rows."""
    from matplotlib import pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
