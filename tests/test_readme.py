"""What the README shows runs as written, and the figures that it prints are those on file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
RESULTS = ROOT / "examples" / "handwritten_howto" / "results.json"


def test_there_is_code_in_the_first_screen() -> None:
    assert "```python" in "\n".join(README.splitlines()[:40])


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run_in_order(number: int) -> None:
    """A block may use what the blocks above it defined."""
    names: dict[str, object] = {}
    for block in BLOCKS[: number + 1]:
        exec(compile(block, f"README block {number}", "exec"), names)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_table_of_the_demo_is_the_committed_result() -> None:
    for row in json.loads(RESULTS.read_text())["table"]:
        cells = " | ".join([row["objective"], *row["cells"]])
        assert cells in README, cells
