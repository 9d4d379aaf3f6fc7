"""Runs a suite: for each work the gate, then the clock, then the memory, a file after each."""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import works_of
from benchmarks.harness.clock import clock_for, time_in_turns
from benchmarks.harness.gate import Answer, judge, reference_answer
from benchmarks.harness.job import Job
from benchmarks.harness.machine import commit, describe, free_bytes, installed, source_digest
from benchmarks.harness.memory import give_back, peak_bytes
from benchmarks.harness.passes import one_pass, upstream_of
from benchmarks.harness.results import Record, Row, new_record, path_of, resumed, rows_of, save
from benchmarks.harness.work import CannotTakePartError, Contender, Inputs, Mode, Size, Work, placed

BUDGET_S: dict[Size, float] = {"smoke": 0.0, "quick": 1.0, "full": 15.0}  # of one mode's rounds


@dataclass(frozen=True)
class Settings:
    """How a suite is run, whatever it measures."""

    size: Size
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def run_suite(
    suite: str,
    settings: Settings,
    folder: Path,
    *,
    fresh: bool = False,
    report: Callable[[str], None] = print,
) -> Record:
    """Measure what is not on file yet, and return the record with all of it."""
    path = path_of(folder, suite, settings.device)
    machine = describe(settings.device)
    record = new_record(suite, settings.size, source_digest(suite), machine)
    if not fresh:
        record = resumed(path, record)
    for number, work in enumerate(works_of(suite, settings.size)):
        for mode in work.modes:
            if rows_of(record, work.name, mode, settings.dtype):
                continue
            report(f"{suite}: {work.name}, {mode}")
            memory = work.memory and (settings.size != "smoke" or number == 0)
            rows = measure(suite, work, mode, settings, memory=memory, report=report)
            record["rows"] += [row.record() for row in rows]
            save(path, record)
        known = [claim["work"] for claim in record["claims"] if claim["dtype"] == settings.dtype]
        if work.name not in known:
            about = {"work": work.name, "mode": work.heaviest, "dtype": settings.dtype}
            record["claims"] += [{**about, **asdict(claim)} for claim in work.claims]
    save(path, record)
    return record


def measure(
    suite: str,
    work: Work,
    mode: Mode,
    settings: Settings,
    *,
    memory: bool = True,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """One row for each contender; what is wrong, missing, failed or too large has a reason."""
    inputs = placed(work.inputs(), settings.device, settings.torch_dtype)
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], Any]] = {}
    answers: dict[Any, Answer] = {}
    torch.compiler.reset()  # what was compiled for other shapes would make these dynamic
    for contender in work.contenders:
        if contender.modes is not None and mode not in contender.modes:
            continue
        row = rows[contender.name] = _row(work, contender, mode, settings)
        try:
            with quietly():
                runs[contender.name] = _judged(row, work, contender, inputs, answers, settings)
        except CannotTakePartError as obstacle_met:
            row.status, row.reason = "skipped", str(obstacle_met)
        except _RedGateError as verdict:
            row.status, row.reason = "wrong", str(verdict)
        except Exception as error:  # what a rival cannot do must not end everybody's run
            row.status, row.reason = "failed", _said(error)
    with quietly():
        clock, budget = clock_for(settings.device), BUDGET_S[settings.size]
        times = time_in_turns(runs, clock, budget, work.fewest_rounds)
    for name, of_name in times.items():
        rows[name].times_s = of_name
    if memory and mode == work.heaviest:
        runs.clear()  # what contenders hold is not free for the children
        answers.clear()
        give_back(settings.device)
        for name in list(rows)[: 1 if settings.size == "smoke" else None]:
            row, contender = rows[name], work.of(name)
            if row.status == "timed" and row.role != "floor" and not contender.compiles:
                try:
                    row.peak_bytes = peak_bytes(job_of(suite, work, contender, mode, settings))
                except Exception as error:  # its times are measured all the same
                    report(f"{suite}: {work.name}: peak of {name} not measured: {_said(error)}")
    return list(rows.values())


class _RedGateError(Exception):
    """The gate is red."""


def _judged(
    row: Row,
    work: Work,
    contender: Contender,
    inputs: Inputs,
    answers: dict[Any, Answer],
    settings: Settings,
) -> Callable[[], Any]:
    """One pass of a contender that passed the gate; its errors go into the row."""
    if reason := obstacle(work, contender, settings):
        raise CannotTakePartError(reason)
    prepared = contender.prepare(inputs)
    if contender.role == "floor":
        return one_pass(contender, prepared, row.mode)
    definition = contender.reference or work.reference
    if definition not in answers:
        answers[definition] = reference_answer(definition, inputs, row.mode)
    expected = answers[definition]
    verdict = judge(work, contender, prepared, expected, row.mode, settings.torch_dtype)
    row.value_error, row.gradient_error = verdict.value_error, verdict.gradient_error
    row.first_call_s = verdict.seconds
    if not verdict.passed:
        raise _RedGateError("further from the float64 reference than its tolerance")
    upstream = upstream_of(expected.value).to(settings.device, verdict.dtype)
    return one_pass(contender, prepared, row.mode, upstream)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _row(work: Work, contender: Contender, mode: Mode, settings: Settings) -> Row:
    found = contender.needs and installed(contender.needs)
    naive = [c.name for c in work.contenders if c.role == "naive"]
    return Row(
        work=work.name,
        parameters=work.parameters,
        sweep=work.sweep,
        mode=mode,
        dtype=settings.dtype,
        contender=contender.name,
        role=contender.role,
        version=f"{contender.needs} {found}" if found else None,
        against=contender.against or (naive[0] if naive else None),
        commit=commit(),
        date=datetime.date.today().isoformat(),
    )


def job_of(suite: str, work: Work, contender: Contender, mode: Mode, settings: Settings) -> Job:
    return Job(
        suite=suite,
        size=settings.size,
        work=work.name,
        contender=contender.name,
        mode=mode,
        device=settings.device,
        dtype=settings.dtype,
        threads=torch.get_num_threads(),
    )


def obstacle(work: Work, contender: Contender, settings: Settings) -> str:
    """Why a contender cannot take part; nothing if it can."""
    for only in (work.device, contender.device):
        if only is not None and only != settings.device:
            return f"only on {only}: not measured"
    if contender.needs is not None and installed(contender.needs) is None:
        return f"{contender.needs} is not installed; pip install '.[bench]'"
    if contender.compiles and settings.size != "full":
        return "compiles for long; only with --full"
    predicted, free = contender.bytes_needed, free_bytes(settings.device)
    predicted *= settings.torch_dtype.itemsize / 4
    share = 3 / 4 if contender.role == "ours" else 1 / 2
    if predicted > share * free:
        return (
            f"would need {predicted / 2**30:.1f} GiB, more than {share:.0%} of the "
            f"{free / 2**30:.1f} GiB that are free"
        )
    return ""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep from the tables what peers print while they are imported or compile."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
