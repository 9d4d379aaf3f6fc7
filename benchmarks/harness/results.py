"""Result files: rows of one suite on one device, validated, resumed row by row."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

import norton_losses
from benchmarks.harness.machine import ROOT
from benchmarks.harness.work import Mode, Role

RESULTS = ROOT / "benchmarks" / "results"
COMMITTED = RESULTS / norton_losses.__version__
QUICK = RESULTS / "quick"  # not in git
Record = dict[str, Any]


@dataclass
class Row:
    """One contender in one mode of one work. results/schema.json has the same fields."""

    work: str
    parameters: Mapping[str, int | float | str]
    sweep: str | None
    mode: Mode
    dtype: str
    contender: str
    role: Role
    version: str | None
    against: str | None
    commit: str
    date: str
    status: str = "timed"
    reason: str = ""
    value_error: float | None = None
    gradient_error: float | None = None
    first_call_s: float | None = None
    times_s: Sequence[float] = field(default_factory=list)
    peak_bytes: float | None = None

    def record(self) -> Record:
        """As JSON holds it, median and quantiles of the times beside them."""
        times = sorted(self.times_s)

        def at(share: float) -> float | None:
            return times[round(share * (len(times) - 1))] if times else None

        return {
            **asdict(self),
            "median_s": statistics.median(times) if times else None,
            "q20_s": at(0.2),
            "q80_s": at(0.8),
            "rounds": len(times),
        }


def new_record(suite: str, size: str, source: str, machine: Record) -> Record:
    return {
        "format": 2,
        "suite": suite,
        "size": size,
        "version": norton_losses.__version__,
        "source": source,
        "machine": machine,
        "rows": [],
        "claims": [],
    }


def validate(record: Record) -> None:
    """Raise ``jsonschema.ValidationError`` unless results/schema.json is kept."""
    jsonschema.validate(record, json.loads((RESULTS / "schema.json").read_text()))


def path_of(folder: Path, suite: str, device: str) -> Path:
    return folder / f"{suite}--{device}.json"


def load(path: Path) -> Record:
    record = json.loads(path.read_text())
    validate(record)
    return record


def save(path: Path, record: Record) -> None:
    """Whole or not at all, since a long run may be stopped at any time."""
    validate(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    written.write_text(json.dumps(record, indent=1) + "\n")
    written.replace(path)


def resumed(path: Path, fresh: Record) -> Record:
    """What is on file, if the same code on the same machine measured it; else the fresh record."""
    if not path.exists():
        return fresh
    found = json.loads(path.read_text())  # of another format perhaps, which no schema here knows
    same = ("format", "suite", "size", "version", "source", "machine")
    return load(path) if all(found.get(key) == fresh[key] for key in same) else fresh


def rows_of(record: Record, work: str, mode: str, dtype: str) -> list[Record]:
    return [
        row
        for row in record["rows"]
        if (row["work"], row["mode"], row["dtype"]) == (work, mode, dtype)
    ]
