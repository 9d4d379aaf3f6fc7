"""Tables of a record: in the terminal, beside the committed rows, and in the documentation."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.machine import ROOT
from benchmarks.harness.results import COMMITTED, Record, load, path_of, rows_of

NOT_MEASURED = "not measured"
PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)


def rows_table(record: Record) -> str:
    """Every contender of every work: time, ratio to naive, multiple of the floor, peak, errors."""
    head = ["work", "pass", "contender", "median", "20-80 %", "rounds", "naive / it", "it / floor"]
    head += ["peak, MiB", "value error", "gradient error"]
    lines: list[list[str]] = []
    for row in record["rows"]:
        if (reason := _nobody(record, row["work"])) is not None:
            if row is rows_of(record, row["work"], row["mode"], row["dtype"])[0]:
                lines.append([row["work"], row["mode"], "all", reason, *[""] * 7])
            continue
        name = "floor: " * (row["role"] == "floor") + row["contender"]
        name += f" ({row['version']})" if row["version"] else ""
        dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
        line = [row["work"], row["mode"] + dtype, name]
        if row["status"] != "timed":
            lines.append([*line, f"{row['status']}: {row['reason']}", *[""] * 5, *_errors(row)])
            continue
        low, high = duration(row["q20_s"]), duration(row["q80_s"])
        naive = _beside(record, row, "contender", row["against"])
        bottom = _beside(record, row, "role", "floor")
        compared = row["role"] in ("ours", "peer")
        lines.append(
            [
                *line,
                duration(row["median_s"]),
                f"{low} - {high}",
                str(row["rounds"]),
                _times(_ratio(naive, row)) if naive and compared else "",
                _times(_ratio(row, bottom)) if bottom and row["role"] != "floor" else "",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
                *_errors(row),
            ]
        )
    return markdown(head, lines)


def claims_table(record: Record) -> str:
    """What was set out to be reached, or published, and what came out."""
    head = ["work", "ours", "against", "quantity", "target", "published", "achieved", "20-80 %"]
    head += ["met"]
    lines: list[list[str]] = []
    for claim in record["claims"]:
        if _nobody(record, claim["work"]) is not None:
            line = [claim["work"], "all", "", "", "", "", NOT_MEASURED, "", ""]
            if lines[-1:] != [line]:
                lines.append(line)
            continue
        found = achieved(record, claim)
        target = _target(claim)
        lines.append(
            [
                claim["work"],
                claim["ours"],
                claim["against"] or "",
                claim["quantity"],
                target,
                ""
                if claim["published"] is None
                else _figure(claim["published"], claim["quantity"]),
                NOT_MEASURED if found is None else _figure(found[0], claim["quantity"]),
                "" if found is None else _spread(found, claim["quantity"]),
                "" if found is None or not target else _met(claim, found[0]),
            ]
        )
    return markdown(head, lines)


def compile_table(record: Record) -> str:
    """First calls that took long, above all to compile; no median holds them."""
    lines = [
        [row["work"], row["mode"], row["contender"], duration(first), duration(row["median_s"])]
        for row in record["rows"]
        if row["status"] == "timed" and not row["sweep"]
        if (first := row["first_call_s"] or 0.0) > max(1.0, 5 * row["median_s"])
    ]
    return markdown(["work", "pass", "contender", "first call", "median"], lines)


def machine_line(record: Record) -> str:
    """Where, with what and when."""
    machine, rows = record["machine"], record["rows"]
    device = f"{machine['gpu']}, {machine['cpu']}" if "gpu" in machine else machine["cpu"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    dates = sorted({row["date"] for row in rows})
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    commits = sorted({row["commit"] for row in rows})
    return (
        f"{device}, {machine['threads']} threads, torch {machine['torch']}, {peers}; commit "
        f"{', '.join(commits)}, {span}."
    )


def achieved(record: Record, claim: Record) -> tuple[float, float, float] | None:
    """What a claim is about, of the medians, and at 20 and 80 % of the rounds; None: not measured.

    A peak is one figure.
    """
    rows = {
        r["contender"]: r for r in rows_of(record, claim["work"], claim["mode"], claim["dtype"])
    }
    ours, other = rows.get(claim["ours"]), rows.get(claim["against"])
    if not ours or ours["status"] != "timed":
        return None
    if claim["quantity"] == "peak memory":
        peak = ours["peak_bytes"]
        return (peak, peak, peak) if peak else None
    if not other or other["status"] != "timed":
        return None
    if claim["quantity"] == "less memory":
        if not ours["peak_bytes"] or not other["peak_bytes"]:
            return None
        ratio = other["peak_bytes"] / ours["peak_bytes"]
        return ratio, ratio, ratio
    if claim["quantity"] == "faster":
        return _ratio(other, ours)
    slower, low, high = _ratio(ours, other)
    if claim["quantity"] == "times the floor":
        return slower, low, high
    return 100 * (slower - 1), 100 * (low - 1), 100 * (high - 1)


def printed(record: Record) -> str:
    """All of a record: what a run shows at its end, and what lies beside committed rows."""
    parts = [f"# {record['suite']}, {record['size']}", machine_line(record), rows_table(record)]
    if record["claims"]:
        parts.append(claims_table(record))
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[Record], str]] = {
    "claims": claims_table,
    "compile": compile_table,
    "machine": machine_line,
}
BLOCK = re.compile(
    r"(<!-- results: (?P<suite>\w+)--(?P<device>\w+) (?P<what>\w+) -->\n)"
    r".*?(<!-- end of results -->)",
    flags=re.DOTALL,
)


def rewritten(page: str) -> str:
    """A page with each of its result blocks as the committed files have it."""

    def block(match: re.Match[str]) -> str:
        path = path_of(COMMITTED, match["suite"], match["device"])
        text = BLOCKS[match["what"]](load(path)) if path.exists() else NOT_MEASURED + "."
        return f"{match[1]}{text}\n{match[5]}"

    return BLOCK.sub(block, page)


def stale_pages() -> dict[Path, str]:
    """What to write where: the pages of PAGES, and a table beside each file, that differ."""
    pages = {page: rewritten(page.read_text()) for page in PAGES}
    for path in sorted(COMMITTED.glob("*--*.json")):
        pages[path.with_suffix(".md")] = printed(load(path)) + "\n"
    return {
        page: text for page, text in pages.items() if not page.exists() or page.read_text() != text
    }


def rewrite_pages() -> list[Path]:
    """Bring every page up to date; returns those that were not."""
    stale = stale_pages()
    for page, text in stale.items():
        page.write_text(text)
    return list(stale)


def ratio_of_rounds(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Time of the other over ours: of the medians, and 20 and 80 % quantiles over the rounds."""
    each = sorted(b / a for a, b in zip(ours, other, strict=True))
    low, high = (each[round(share * (len(each) - 1))] for share in (0.2, 0.8))
    return statistics.median(other) / statistics.median(ours), low, high


def _nobody(record: Record, work: str) -> str | None:
    """Why a work was left out whole, if it was."""
    reasons = {row["reason"] for row in record["rows"] if row["work"] == work}
    skipped = {row["status"] for row in record["rows"] if row["work"] == work} == {"skipped"}
    return reasons.pop() if skipped and len(reasons) == 1 else None


def _beside(record: Record, row: Record, field: str, value: str | None) -> Record | None:
    """The timed row of the same rounds that has this value in this field."""
    for other in rows_of(record, row["work"], row["mode"], row["dtype"]):
        if other[field] == value and other["status"] == "timed":
            return other
    return None


def _ratio(slow: Record, fast: Record) -> tuple[float, float, float]:
    return ratio_of_rounds(fast["times_s"], slow["times_s"])


def _times(ratio: tuple[float, float, float]) -> str:
    of_medians, low, high = ratio
    return f"{_short(of_medians)} ({_short(low)}-{_short(high)})"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 20 else f"{number:.1f}" if number >= 2 else f"{number:.2f}"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _errors(row: Record) -> list[str]:
    values = row["value_error"], row["gradient_error"]
    return ["" if value is None else f"{value:.0e}" for value in values]


def _target(claim: Record) -> str:
    if claim["at_least"] is not None:
        return "at least " + _figure(claim["at_least"], claim["quantity"])
    if claim["at_most"] is not None:
        return "at most " + _figure(claim["at_most"], claim["quantity"])
    return ""


def _figure(number: float, quantity: str) -> str:
    if quantity == "added time":
        return f"{number:+.1f} %"
    if quantity == "peak memory":
        return f"{number / 2**20:.0f} MiB"
    return (
        f"{number:.0f}x" if number >= 100 else f"{number:.2f}x" if number < 2 else f"{number:.1f}x"
    )


def _spread(found: tuple[float, float, float], quantity: str) -> str:
    _, low, high = found
    return "" if low == high else f"{_figure(low, quantity)} - {_figure(high, quantity)}"


def _met(claim: Record, found: float) -> str:
    enough = claim["at_least"] is None or found >= claim["at_least"]
    return "yes" if enough and (claim["at_most"] is None or found <= claim["at_most"]) else "no"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Aligned, so that it reads as well where nobody renders it; what repeats is left out."""
    shown = [head, *_without_repetition(lines)]
    widths = [max(len(line[column]) for line in shown) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in [shown[0], rule, *shown[1:]]
    )


def _without_repetition(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    above: Sequence[str] = []
    shown = []
    for line in lines:
        same = 0
        while same < min(2, len(above)) and line[same] == above[same]:
            same += 1
        shown.append(["" if column < same else cell for column, cell in enumerate(line)])
        above = line
    return shown
