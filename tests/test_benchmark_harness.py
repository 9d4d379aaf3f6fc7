"""The contract of the benchmarks: the gate, the turns, the memory, the files, the pages."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

from benchmarks import SUITES, compiling, distributed, token_similarity, works_of  # noqa: E402
from benchmarks.harness import machine, memory, results, tables, worker  # noqa: E402
from benchmarks.harness.clock import CUDAClock, in_turns, time_in_turns  # noqa: E402
from benchmarks.harness.compare import compare, tree_of  # noqa: E402
from benchmarks.harness.job import Job, prepare  # noqa: E402
from benchmarks.harness.passes import one_pass  # noqa: E402
from benchmarks.harness.suite import Settings, measure, obstacle, run_suite  # noqa: E402
from benchmarks.harness.work import (  # noqa: E402
    CannotTakePartError,
    Claim,
    Contender,
    Inputs,
    Prepared,
    Work,
    function,
    placed,
    prepared,
)
from benchmarks.noise_study import pages as noise_study  # noqa: E402
from norton_losses.kernels import soft_maximum_chunked  # noqa: E402

ROOT = Path(__file__).parents[1]
SMOKE = Settings("smoke")


def squares(wrong: float = 0.0, **settings) -> Work:
    """A toy: the sum of squares, by three contenders, one of whom may be wrong."""

    def square(x: Tensor) -> Tensor:
        return (x * x).sum()

    def other(x: Tensor) -> Tensor:
        return (x**2).sum() + wrong

    contenders = (
        function("x * x", "naive", square),
        function("x ** 2", "ours", other),
        Contender("sum", "floor", lambda made: Prepared(made["x"].detach().sum)),
    )
    settings = {"contenders": contenders, **settings}
    return Work(
        "squares",
        {"n": 4},
        lambda: {"x": torch.arange(4.0).requires_grad_()},
        reference=lambda made: prepared(square, made),
        claims=[Claim("x ** 2", "x * x", at_least=0.001)],
        **settings,
    )


def row_of(work: Work, contender: str, mode="forward+backward", settings: Settings = SMOKE):
    rows = measure("toy", work, mode, settings, memory=False)
    return next(row for row in rows if row.contender == contender)


@pytest.mark.parametrize("mode", ["forward", "forward+backward", "no-grad"])
def test_what_is_right_is_timed(mode) -> None:
    row = row_of(squares(), "x ** 2", mode)
    assert (row.status, row.reason) == ("timed", "")
    assert len(row.times_s) == 3
    assert min(row.times_s) > 0
    assert row.value_error == 0.0
    assert (row.gradient_error is None) == (mode != "forward+backward")


def test_what_is_wrong_is_not_timed() -> None:
    row = row_of(squares(wrong=1e-3), "x ** 2")
    assert row.status == "wrong"
    assert not row.times_s
    assert row.value_error == pytest.approx(1e-3, rel=1e-3)
    assert "tolerance" in row.reason


def test_nan_is_wrong() -> None:
    assert row_of(squares(wrong=float("nan")), "x ** 2").status == "wrong"


def test_a_wrong_gradient_is_not_timed() -> None:
    detached = function("x ** 2", "ours", lambda x: (x.detach() * x).sum())
    row = row_of(squares(contenders=(detached,)), "x ** 2")
    assert row.status == "wrong"
    assert row.value_error == 0
    assert row.gradient_error == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_gradient_of_zeros_is_wrong_in_every_dtype(dtype: str) -> None:
    nothing = function("x ** 2", "ours", lambda x: (x.detach() ** 2).sum() + 0 * x.sum(), slack=1e9)
    row = row_of(squares(contenders=(nothing,)), "x ** 2", settings=Settings("smoke", dtype=dtype))
    assert row.status == "wrong"


def test_who_fails_says_why_and_ends_nobody_elses_run() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory\nmany lines")

    contenders = (function("broken", "ours", broken), *squares().contenders)
    rows = measure("toy", squares(contenders=contenders), "forward", SMOKE, memory=False)
    assert [row.status for row in rows] == ["failed", "timed", "timed", "timed"]
    assert rows[0].reason == "RuntimeError: out of memory"
    assert not rows[0].times_s


def test_who_cannot_be_prepared_is_skipped_with_its_reason() -> None:
    def prepare(made: Inputs) -> Prepared:
        raise CannotTakePartError("holds 32 rows, and the scores have 33")

    row = row_of(squares(contenders=(Contender("small", "ours", prepare),)), "small")
    assert (row.status, row.reason) == ("skipped", "holds 32 rows, and the scores have 33")


def test_a_peak_that_fails_leaves_the_times(monkeypatch) -> None:
    def killed(job: Job) -> float:
        raise OSError("the child was killed")

    monkeypatch.setattr("benchmarks.harness.suite.peak_bytes", killed)
    said: list[str] = []
    rows = measure("toy", squares(), "forward+backward", SMOKE, report=said.append)
    assert [row.peak_bytes for row in rows] == [None] * 3
    assert rows[0].status == "timed"
    assert "peak of x * x not measured: OSError: the child was killed" in said[0]


def test_each_dtype_is_judged_by_its_own_digits() -> None:
    for dtype, error in (("float64", "wrong"), ("float32", "wrong"), ("bfloat16", "timed")):
        row = row_of(squares(wrong=1e-3), "x ** 2", settings=Settings("smoke", dtype=dtype))
        assert row.status == error, dtype


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"needs": "no-such-package"}, "no-such-package is not installed"),
        ({"bytes_needed": 1e18}, "more than 50% of the"),
        ({"role": "ours", "bytes_needed": 1e18}, "more than 75% of the"),
        ({"device": "cuda"}, "only on cuda: not measured"),
        ({"compiles": True}, "only with --full"),
    ],
)
def test_who_cannot_take_part_says_why(change, reason: str) -> None:
    work = squares()
    contender = replace(work.of("x * x"), **change)
    row = row_of(replace(work, contenders=(contender,)), "x * x")
    assert row.status == "skipped"
    assert reason in row.reason
    assert not row.times_s


def test_half_of_the_bytes_are_needed_in_half_precision(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.harness.suite.free_bytes", lambda device: 100.0)
    work = squares()
    contender = replace(work.of("x * x"), bytes_needed=80.0)
    assert obstacle(work, contender, SMOKE)
    assert not obstacle(work, contender, Settings("smoke", dtype="bfloat16"))


def test_turns_alternate() -> None:
    calls: list[str] = []

    def turn(name: str) -> Callable[[], float]:
        def play() -> float:
            calls.append(name)
            return float(len(calls))

        return play

    times = in_turns({"a": turn("a"), "b": turn("b")}, 20)
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(rounds) == 20
    assert all(sorted(each) == ["a", "b"] for each in rounds)
    assert {tuple(each) for each in rounds} == {("a", "b"), ("b", "a")}  # no one always follows
    assert sorted(times["a"] + times["b"]) == list(range(1, 41))


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 3), (20.0, 10), (1e9, 31)])
def test_the_budget_buys_rounds(budget: float, rounds: int) -> None:
    times = time_in_turns({"a": int, "b": int}, lambda run: 1.0, budget)
    assert [len(each) for each in times.values()] == [rounds, rounds]


def test_a_training_step_moves_the_weights_and_a_floor_does_as_well() -> None:
    weight = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    made = Prepared(lambda: weight**2, [weight], step=optimizer.step)
    for role in ("ours", "floor"):
        before = weight.item()
        one_pass(Contender("x", role, lambda _: made), made, "training step")()
        assert weight.item() != before
        weight.grad = None


def test_inputs_are_leaves_of_their_own() -> None:
    inputs: Inputs = {"x": torch.ones(2, requires_grad=True), "mask": torch.ones(2).bool()}
    copies = placed(inputs, "cpu", torch.float64)
    assert copies["x"].is_leaf
    assert copies["x"].requires_grad
    assert copies["x"].dtype == torch.float64
    assert copies["mask"].dtype == torch.bool
    assert copies["x"].data_ptr() != inputs["x"].data_ptr()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts on Linux alone")
def test_peak_memory_is_that_of_the_token_tensor() -> None:
    """32 clips of 18 frames with 32 captions of 32 words are 2.25 MiB a copy of the token tensor."""
    work = works_of("token_similarity", "quick")[2]
    clips = work.parameters["K"]
    copy = 4 * clips * 18 * clips * 32
    job = Job(
        "token_similarity", "quick", work.name, "naive", "forward+backward", "cpu", "float32", 2
    )
    peak = memory.peak_bytes(job)
    assert peak is not None
    assert 2 * copy < peak < 5 * copy


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", ["smoke", "quick", "full"])
def test_suites_declare_what_the_harness_needs(suite: str, size) -> None:
    works = works_of(suite, size)
    assert len({work.name for work in works}) == len(works)
    for work in works:
        names = [contender.name for contender in work.contenders]
        assert len(set(names)) == len(names)
        assert {"ours", "naive"} <= {contender.role for contender in work.contenders}
        assert work.sweep is None or work.sweep in work.parameters
        for claim in work.claims:
            assert {claim.ours, claim.against} - {None} <= set(names)
            assert (claim.against is None) == (claim.quantity == "peak memory")
        for contender in work.contenders:
            assert contender.against is None or contender.against in names


def test_the_floor_has_the_tiles_of_the_fused_form() -> None:
    tile = token_similarity.TILE
    assert (tile, tile) == (soft_maximum_chunked.ROW_TOKENS, soft_maximum_chunked.COLUMN_TOKENS)


def test_the_suite_of_the_readme_runs() -> None:
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "benchmarks" / "README.md").read_text(), flags=re.DOTALL
    )
    names: dict = {}
    exec(compile(block, "benchmarks/README.md", "exec"), names)
    (work,) = names["works"]("smoke")
    rows = measure("mine", work, "forward+backward", SMOKE, memory=False)
    assert [row.status for row in rows] == ["timed", "timed"]


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="suite must be one of token_similarity"):
        works_of("no_such_suite", "smoke")


@pytest.fixture
def toy(monkeypatch, tmp_path: Path) -> Callable[..., results.Record]:
    """Runs the toy suite as a real one is run, in a folder of its own."""
    monkeypatch.setattr("benchmarks.harness.suite.works_of", lambda suite, size: [squares()])
    monkeypatch.setattr("benchmarks.harness.suite.peak_bytes", lambda job: 1024.0)
    monkeypatch.setattr("benchmarks.harness.suite.source_digest", lambda suite: "1" * 16)

    def run(**options) -> results.Record:
        return run_suite("toy", SMOKE, tmp_path, report=lambda line: None, **options)

    return run


def test_records_keep_the_schema_and_come_back(toy, tmp_path: Path) -> None:
    record = toy()
    assert results.load(tmp_path / "toy--cpu.json") == record
    assert len(record["rows"]) == 9  # three contenders, three passes
    assert [row["peak_bytes"] for row in record["rows"][:1]] == [None]  # the heaviest pass alone


def test_rows_on_file_are_not_measured_again(toy) -> None:
    assert toy() == toy()
    first = toy()["rows"][0]["times_s"]
    assert toy(fresh=True)["rows"][0]["times_s"] != first


def test_rows_of_other_code_are_measured_again(toy, monkeypatch) -> None:
    first = toy()["rows"][0]["times_s"]
    monkeypatch.setattr("benchmarks.harness.suite.source_digest", lambda suite: "0" * 16)
    assert toy()["rows"][0]["times_s"] != first


def test_rows_of_another_format_are_measured_again(toy, tmp_path: Path) -> None:
    toy()
    path = tmp_path / "toy--cpu.json"
    path.write_text(json.dumps({"format": 0, "rows": "none of today's"}))
    assert len(toy()["rows"]) == 9


def test_the_digest_follows_the_code(monkeypatch, tmp_path: Path) -> None:
    before = machine.source_digest("clip_caption")
    assert before == machine.source_digest("clip_caption")
    assert before != machine.source_digest("video_paragraph")
    for part in ("benchmarks", "norton_losses"):
        shutil.copytree(ROOT / part, tmp_path / part)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.source_digest("clip_caption") == before
    (tmp_path / "norton_losses" / "_numerics.py").write_text("# changed")
    assert machine.source_digest("clip_caption") != before
    helpers = {path.stem for path in machine._with_its_helpers("norton_step")}
    assert helpers >= {"norton_step", "naive", "inputs", "towers", "token_similarity"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record["rows"][0].update(times_s=[]),
        lambda record: record["rows"][0].update(status="wrong"),
        lambda record: record["rows"][0].update(value_error=None),
        lambda record: record["rows"][0].pop("commit"),
        lambda record: record.update(more=1),
        lambda record: record["machine"].pop("threads"),
        lambda record: record["claims"][0].update(quantity="prettier"),
    ],
)
def test_the_schema_refuses(toy, spoil) -> None:
    record = json.loads(json.dumps(toy()))
    spoil(record)
    with pytest.raises(jsonschema.ValidationError):
        results.validate(record)


def test_tables_show_ratio_floor_and_accuracy(toy) -> None:
    record = json.loads(json.dumps(toy()))
    for row in record["rows"]:
        seconds = {"x * x": 4.0, "x ** 2": 2.0, "sum": 0.5}[row["contender"]]
        row.update(times_s=[seconds] * 3, median_s=seconds, q20_s=seconds, q80_s=seconds)
    lines = [re.sub(r" +", " ", line) for line in tables.rows_table(record).splitlines()]
    ours = next(line for line in lines if "x ** 2" in line)
    assert ours.startswith("| | | x ** 2 | 2 s | 2 s - 2 s | 3 | 2.0 (2.0-2.0) | 4.0 (4.0-4.0) |")
    assert "0e+00" in ours
    assert any("floor: sum | 500 ms" in line for line in lines)
    claims = tables.claims_table(record)
    assert "at least 0.00x" in claims
    assert "2.0x" in claims
    assert "yes" in claims


def test_what_was_not_measured_says_so(toy) -> None:
    record = json.loads(json.dumps(toy()))
    record["claims"][0]["ours"] = "nobody"
    assert "not measured" in tables.claims_table(record)
    page = "<!-- results: token_similarity--tpu claims -->\nold\n<!-- end of results -->"
    assert "not measured.\n<!-- end" in tables.rewritten(page)


def test_a_work_left_out_whole_takes_one_line(toy) -> None:
    record = json.loads(json.dumps(toy()))
    for row in record["rows"]:
        row.update(status="skipped", reason="only on cuda: not measured")
    assert tables.rows_table(record).count("only on cuda: not measured") == 3  # passes
    assert tables.claims_table(record).count("not measured") == 1


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("faster", 4.0),
        ("times the floor", 0.25),
        ("less memory", 8.0),
        ("peak memory", 10.0),
        ("added time", -75.0),
    ],
)
def test_claims_are_computed_from_rows(toy, quantity: str, expected: float) -> None:
    record = json.loads(json.dumps(toy()))
    for row in record["rows"]:
        times, peak = ([1.0, 1.0, 1.0], 10) if row["role"] == "ours" else ([4.0, 4.0, 4.0], 80)
        row["times_s"], row["peak_bytes"] = times, peak
    found = tables.achieved(record, {**record["claims"][0], "quantity": quantity})
    assert found == pytest.approx((expected,) * 3)


def test_every_page_has_the_committed_results() -> None:
    """The documentation, and the table of every row beside each file."""
    stale = [page.name for page in tables.stale_pages()]
    assert not stale, "python -m benchmarks plot"
    stems = [{path.stem for path in results.COMMITTED.glob(kind)} for kind in ("*.md", "*.json")]
    assert stems[0] == stems[1]


def test_what_was_changed_by_hand_is_stale(toy, monkeypatch, tmp_path: Path) -> None:
    toy()
    page = tmp_path / "page.md"
    page.write_text("<!-- results: toy--cpu claims -->\nold\n<!-- end of results -->\n")
    monkeypatch.setattr(tables, "COMMITTED", tmp_path)
    monkeypatch.setattr(tables, "PAGES", (page,))
    assert tables.rewrite_pages() == [page, tmp_path / "toy--cpu.md"]
    assert "x ** 2" in page.read_text()
    assert all(mode in (tmp_path / "toy--cpu.md").read_text() for mode in ("no-grad", "at least"))
    assert not tables.rewrite_pages()
    (tmp_path / "toy--cpu.md").write_text("by hand")
    assert list(tables.stale_pages()) == [tmp_path / "toy--cpu.md"]


def test_committed_results_keep_the_schema() -> None:
    files = sorted(results.COMMITTED.glob("*.json"))
    assert {path.name for path in files} >= {f"{suite}--cpu.json" for suite in SUITES}
    for path in files:
        assert results.load(path)["size"] == "full"


@pytest.mark.parametrize("suite", SUITES)
def test_committed_results_are_of_todays_works(suite: str) -> None:
    works = {work.name: work for work in works_of(suite, "full")}
    for row in results.load(results.path_of(results.COMMITTED, suite, "cpu"))["rows"]:
        assert row["contender"] in [c.name for c in works[row["work"]].contenders]


SPEEDS = re.compile(
    r"\b\d+(\.\d+)?(x|×| times (faster|slower)| ?(ms|us|s)| (GFLOP/s|[GMk]B/s|[KMG]i?B))(?![\w-])"
)


@pytest.mark.parametrize(
    "figure",
    ["3.8x", "3.8× faster", "12 ms", "2.5 s", "300 MB", "2 GiB", "4 times faster", "9 GB/s"],
)
def test_a_figure_is_known_as_one(figure: str) -> None:
    assert SPEEDS.search(f"It takes {figure}.")
    assert not SPEEDS.search("2.13 tests, 3 suites, 5 sizes, 20-80 %, sm_80, 50 steps, x 3")


def test_no_figure_of_speed_or_memory_stands_outside_the_results() -> None:
    for page in tables.PAGES:
        prose = page.read_text()
        blocks = tables.BLOCK, distributed.BLOCK, compiling.BLOCK, noise_study.BLOCK
        for block in blocks:  # which rows fill
            prose = block.sub("", prose)
        found = [match[0] for match in SPEEDS.finditer(prose)]
        assert not found, f"{page.name}: {found}"


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.slow
def test_the_smoke_run_measures_every_suite() -> None:
    run = run_module("--smoke")
    assert run.returncode == 0, run.stderr
    for suite in SUITES:
        assert f"# {suite}, smoke" in run.stdout
    assert "wrong" not in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_two_trees_compete_in_turns() -> None:
    run = run_module("compare", "HEAD", "video_paragraph", "--smoke", "--rounds", "3")
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if re.match(r"\| (4 videos| )", line)]
    found = [re.search(r"\| (\d+\.\d\d) +\| \d+\.\d\d - \d+\.\d\d", line) for line in lines]
    assert len(found) == 3
    assert all(found), lines
    smallest = min(match[1] for match in found if match)
    assert run.stdout.splitlines()[-1].startswith(f"smallest ratio: {smallest}, of 4 videos")


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_what_the_other_tree_does_not_have_says_so(monkeypatch) -> None:
    (known, *_) = works_of("video_paragraph", "smoke")
    stranger = replace(known.contenders[0], name="newcomer")
    works = [squares(), replace(known, contenders=[stranger])]
    monkeypatch.setattr("benchmarks.harness.compare.works_of", lambda *_: works)
    lines = compare("HEAD", ["video_paragraph"], SMOKE, 3).splitlines()
    assert [line.split("|")[4].strip() for line in lines[2:4]] == ["not in HEAD"] * 2
    assert lines[-1] == "no ratio"
    monkeypatch.setattr("benchmarks.harness.compare.works_of", lambda *_: [squares()])
    assert "not in HEAD" in compare("HEAD", ["no_such_suite"], SMOKE, 3)


def test_a_worker_times_nothing_wrong(monkeypatch) -> None:
    job = Job(
        "toy",
        "smoke",
        "squares",
        "x ** 2",
        "forward+backward",
        "cpu",
        "float32",
        torch.get_num_threads(),
    )
    for wrong in (0.0, 1.0):
        monkeypatch.setattr("benchmarks.harness.job.works_of", lambda *_, w=wrong: [squares(w)])
        refused = pytest.raises(SystemExit, match="wrong") if wrong else contextlib.nullcontext()
        with refused:
            worker.check(prepare(job), job)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_other_tree_brings_its_own_package_and_suites() -> None:
    def said(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, cwd=tree, check=True).stdout

    with tree_of("HEAD") as tree:
        for package in ("norton_losses", "benchmarks"):
            where = f"import {package}; print({package}.__file__)"
            assert Path(said(sys.executable, "-c", where).strip()).is_relative_to(tree)
        assert not said("git", "status", "--porcelain")  # the commit's own files, all of them
    assert not tree.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_suite"], "no suite named no_such_suite"),
        (["--device", "cuda"], "needs a CUDA device"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    run = run_module(*arguments)
    assert run.returncode != 0
    assert message in run.stderr


@pytest.mark.gpu
def test_the_cuda_clock_sees_the_device() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    clock = CUDAClock()
    clock(lambda: x @ x)
    assert clock(lambda: x @ x) < clock(lambda: [x @ x for _ in range(20)])


@pytest.mark.gpu
def test_the_smoke_run_passes_on_cuda() -> None:
    run = run_module("--smoke", "--device", "cuda")
    assert run.returncode == 0, run.stderr
