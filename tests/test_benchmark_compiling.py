"""The benchmark of compiling: its batches, its page, and that few graphs serve all shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("jsonschema", reason="jsonschema is not installed")

from benchmarks import compiling


def test_the_page_is_as_its_rows_have_it() -> None:
    text = compiling.PAGE.read_text()
    assert len(compiling.BLOCK.findall(text)) == 1
    assert compiling.rewritten(text) == text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loss_is_compiled_whole_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LOSSES", {"NortonLoss": compiling.LOSSES["NortonLoss"]})
    (row,) = compiling.measure(6, width=8, backend="aot_eager")["rows"]
    assert row["breaks"] == 0
    assert 1 <= row["graphs"] <= 3
