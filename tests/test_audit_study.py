"""The study of the audit: its page, and one small row."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("jsonschema", reason="jsonschema is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from benchmarks import audit_study


def test_the_page_is_as_its_rows_have_it() -> None:
    text = audit_study.PAGE.read_text()
    assert {block[1] for block in audit_study.BLOCK.findall(text)} == set(audit_study.TABLES)
    assert audit_study.rewritten(text) == text


def test_rows_are_plain_json() -> None:
    def refused(name: str) -> None:
        raise AssertionError(name)

    for line in audit_study.RESULTS.read_text().splitlines():
        json.loads(line, parse_constant=refused)


@pytest.mark.slow
def test_a_row_finds_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_study, "STEPS", 40)
    row = audit_study.of_level("20 %", 0, videos=150, held_out=20)
    found = row["one-hot"]
    assert found["auc_nowhere"]["audit"] > 0.9
    assert found["shift_error"]["audit"] < 0.5 * found["shift_error"]["cosine"]
    assert found["estimated"]["own"] == pytest.approx(found["true"]["own"], abs=0.1)
