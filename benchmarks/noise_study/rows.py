"""The rows of the study: a JSON line a run, validated, found again by the run's key."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.harness.results import COMMITTED, QUICK
from benchmarks.noise_study.run import Row, Run

FULL_ROWS, QUICK_ROWS = COMMITTED / "noise_study", QUICK / "noise_study"


class Rows:
    """Every row in a folder, whatever part of the study asked for it first.

    The last line of a file may be half a row, of a study that was killed, or that is writing it: it
    is left out, and taken away before the next row is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_key: dict[str, Row] = {}
        self._partial: set[Path] = set()
        for path in sorted(folder.glob("*.jsonl")):
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]
            self._partial |= {path} if whole != text else set()
            for line in whole.splitlines():
                row = json.loads(line)
                validate(row)
                self._by_key[row["key"]] = row

    def __contains__(self, run: Run) -> bool:
        return run.key in self._by_key

    def __getitem__(self, run: Run) -> Row:
        return self._by_key[run.key]

    def add(self, part: str, row: Row) -> None:
        """Keep a row, in the file of the part that asked for it, from now on."""
        validate(row)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{part}.jsonl"
        if path in self._partial:
            text = path.read_text()
            path.write_text(text[: text.rfind("\n") + 1])
            self._partial.remove(path)
        with path.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._by_key[row["key"]] = row


def validate(row: Row) -> None:
    """Raise ``jsonschema.ValidationError`` unless schema.json is kept."""
    _validator().validate(row)


@cache
def _validator() -> Any:
    schema = json.loads(Path(__file__).with_name("schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)
