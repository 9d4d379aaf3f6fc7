"""Brings the tables of the study in the documentation, and its figures, up to the rows on file."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.harness.machine import ROOT
from benchmarks.noise_study.figures import draw_all
from benchmarks.noise_study.rows import FULL_ROWS, Rows
from benchmarks.noise_study.tables import TABLES, Study

PAGES = (ROOT / "README.md", ROOT / "docs" / "evidence.md")
BLOCK = re.compile(r"(<!-- study: (?P<table>\w+) -->\n).*?(<!-- end of study -->)", flags=re.DOTALL)


def stale_pages() -> dict[Path, str]:
    """What to write where: the pages whose tables are not those of the committed rows."""
    study = Study(Rows(FULL_ROWS))
    stale = {}
    for page in PAGES:
        text = page.read_text()
        new = BLOCK.sub(
            lambda block: f"{block[1]}{TABLES[block['table']](study)}\n{block[3]}", text
        )
        if new != text:
            stale[page] = new
    return stale


def rebuild() -> list[Path]:
    """Write stale pages and every figure; returns what was written."""
    stale = stale_pages()
    for page, text in stale.items():
        page.write_text(text)
    return [*stale, *draw_all(Study(Rows(FULL_ROWS)), FULL_ROWS)]
