"""What README and guide show runs as written, and the figures printed are those on file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(
        r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL
    )
    for page in PAGES
}
HOWTO = ROOT / "examples" / "handwritten_howto"


def test_there_is_code_in_the_first_screen() -> None:
    assert "```python" in "\n".join(README.splitlines()[:40])


@pytest.mark.parametrize(
    ("page", "number"), [(page, n) for page, blocks in BLOCKS.items() for n in range(len(blocks))]
)
def test_code_blocks_run_in_order(
    page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block may use what the blocks above it defined."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[page][: number + 1]:
        if "plotting" in block:
            pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        exec(compile(block, f"{page} block {number}", "exec"), names)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *PAGES, *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_tables_of_the_demo_are_the_committed_results() -> None:
    record = json.loads((HOWTO / "results.json").read_text())
    page = (HOWTO / "README.md").read_text()
    for row in [{"measure": "measure", "cells": record["columns"]}, *record["table"]]:
        assert " | ".join([row["measure"], *row["cells"]]) in page
