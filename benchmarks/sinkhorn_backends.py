"""Sinkhorn backends against what one would write, or take, instead.

``python -m benchmarks.sinkhorn_backends`` prints the table; ``--write`` keeps it in
``benchmarks/results/``. Rivals run in turns in one process; a claim is a ratio of medians. Beside
every time stands the accuracy: the largest difference of a plan from the same number of steps in
float64. Warm-up and compilation are left out. What is timed is the solve: torch's loop and ours end
with log-scalings, the others with what their call returns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_losses import (
    AbstractSinkhorn,
    ClipCaptionOTLoss,
    POTSinkhorn,
    TorchSinkhorn,
    TransportProblem,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STEPS, THREADS, ROUNDS = 50, 2, 11
TORCH_LOG, POT_EXP, OTT, POT_LOOP = "torch log loop", "POT exp", "ott-jax dense", "POT loop"
EAGER, COMPILED = "TorchSinkhorn", "TorchSinkhorn compiled"

Run = tuple[Callable[[], Any], Callable[[Any], Tensor]]  # what is timed, and its plan


@dataclass(frozen=True)
class Work:
    """What is timed: a problem, ours, the rivals, and how many times faster we set out to be."""

    name: str
    problem: TransportProblem
    targets: dict[tuple[str, str], float]


def uniform(scores: Tensor, epsilon: float, **known: Any) -> TransportProblem:
    rows = torch.ones(scores.shape[:-1], dtype=torch.bool)
    columns = torch.ones(*scores.shape[:-2], scores.shape[-1], dtype=torch.bool)
    return TransportProblem.uniform(scores, rows, columns, epsilon, **known)


def works() -> list[Work]:
    torch.manual_seed(0)
    x, y = (torch.randn(2048, 512) / 512**0.25 * 3**0.5 for _ in range(2))  # logits of std 3
    return [
        Work(
            "16384 problems 9x9, eps 0.1",
            uniform(torch.rand(16384, 9, 9), 0.1, score_range=(0.0, 1.0)),
            {(EAGER, TORCH_LOG): 5, (COMPILED, TORCH_LOG): 15, (COMPILED, POT_EXP): 4},
        ),
        Work(
            "4096 problems 33x33, eps 0.1",
            uniform(torch.rand(4096, 33, 33), 0.1, score_range=(0.0, 1.0)),
            {(EAGER, TORCH_LOG): 6, (EAGER, POT_EXP): 2},
        ),
        Work(
            "one 2048x2048, eps 1, logits of std 3",
            uniform((x @ y.T)[None], 1.0),
            {(EAGER, TORCH_LOG): 8, (EAGER, OTT): 2},
        ),
        Work(
            "1024 problems 9x9, eps 0.1",
            uniform(torch.rand(1024, 9, 9), 0.1, score_range=(0.0, 1.0)),
            {(EAGER, POT_LOOP): 500},
        ),
    ]


def torch_log_loop(problem: TransportProblem) -> tuple[Tensor, Tensor]:
    """What one writes first: Eq. (3) on logarithms, batch first."""
    kernel = problem.scores / problem.epsilon
    u, v = torch.zeros_like(problem.log_mu), torch.zeros_like(problem.log_nu)
    for _ in range(STEPS):
        u = problem.log_mu - (kernel + v[..., None, :]).logsumexp(-1)
        v = problem.log_nu - (kernel + u[..., :, None]).logsumexp(-2)
    return u, v


def plan_of(problem: TransportProblem, log_u: Tensor, log_v: Tensor) -> Tensor:
    return (problem.scores / problem.epsilon + log_u[..., None] + log_v[..., None, :]).exp()


def pot_exp(problem: TransportProblem) -> Any:
    import ot.batch

    return ot.batch.solve_batch(
        -problem.scores,
        reg=problem.epsilon,
        a=problem.log_mu.exp(),
        b=problem.log_nu.exp(),
        max_iter=STEPS,
        tol=0.0,
        method="sinkhorn",
        grad="detach",
    )


def pot_loop(problem: TransportProblem) -> list[Any]:
    import ot

    a, b = problem.log_mu.exp().double().numpy(), problem.log_nu.exp().double().numpy()
    cost = -problem.scores.double().numpy()
    return [
        ot.sinkhorn(a[k], b[k], cost[k], problem.epsilon, numItermax=STEPS, stopThr=0.0, warn=False)
        for k in range(len(cost))
    ]


def ott_dense(problem: TransportProblem) -> Run:
    """One jitted solve of ott-jax, with exactly STEPS updates of both potentials."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    cost = jnp.asarray(-problem.scores[0].numpy())
    a, b = (jnp.asarray(log[0].exp().numpy()) for log in (problem.log_mu, problem.log_nu))
    solver = sinkhorn.Sinkhorn(
        threshold=-1.0, min_iterations=STEPS, max_iterations=STEPS, inner_iterations=STEPS
    )

    @jax.jit
    def solve(cost: Any) -> Any:
        geom = geometry.Geometry(cost_matrix=cost, epsilon=problem.epsilon)
        return solver(linear_problem.LinearProblem(geom, a=a, b=b)).matrix

    return (
        lambda: jax.block_until_ready(solve(cost)),
        lambda plan: torch.from_numpy(np.array(plan))[None],
    )


def runs_of(work: Work) -> dict[str, Run]:
    problem, wanted = work.problem, {name for pair in work.targets for name in pair}

    def ours(solver: AbstractSinkhorn) -> Run:
        return lambda: solver.solve(problem), lambda plan: plan.plan

    known: dict[str, Callable[[], Run]] = {
        TORCH_LOG: lambda: (lambda: torch_log_loop(problem), lambda uv: plan_of(problem, *uv)),
        EAGER: lambda: ours(TorchSinkhorn(STEPS)),
        COMPILED: lambda: ours(TorchSinkhorn(STEPS, compiled=True)),
        POT_EXP: lambda: (lambda: pot_exp(problem), lambda result: result.plan),
        POT_LOOP: lambda: (
            lambda: pot_loop(problem),
            lambda plans: torch.stack([torch.from_numpy(plan) for plan in plans]),
        ),
        OTT: lambda: ott_dense(problem),
    }
    return {name: make() for name, make in known.items() if name in wanted | {TORCH_LOG}}


def measure(work: Work) -> dict[str, Any]:
    """Times of all rivals in turns, and how far each plan is from float64."""
    exact = TorchSinkhorn(STEPS, domain="log").solve(work.problem.to(torch.float64)).plan
    runs = runs_of(work)
    rows: dict[str, dict[str, Any]] = {}
    for name, (run, plan) in runs.items():
        error = (plan(run()).double() - exact).abs().max().item()
        rows[name] = {"max_plan_error": error, "times": []}
    for _ in range(ROUNDS):
        for name, (run, _plan) in runs.items():
            begin = time.perf_counter()
            run()
            rows[name]["times"].append(time.perf_counter() - begin)
    for row in rows.values():
        times = sorted(row.pop("times"))
        row["median_s"] = statistics.median(times)
        row["q20_s"], row["q80_s"] = (
            times[round(0.2 * (len(times) - 1))],
            times[round(0.8 * (len(times) - 1))],
        )
    ratios = [
        {
            "ours": us,
            "against": them,
            "ratio": rows[them]["median_s"] / rows[us]["median_s"],
            "target": target,
        }
        for (us, them), target in work.targets.items()
    ]
    return {"work": work.name, "runs": rows, "ratios": ratios}


def peak_of_clip_caption(pairs: int, width: int, chunk_rows: int | None) -> dict[str, Any]:
    """Peak memory of one forward and backward pass, beyond that of the process before it."""
    torch.manual_seed(0)
    clips, captions = (torch.randn(pairs, width, requires_grad=True) for _ in range(2))
    ClipCaptionOTLoss(chunk_rows=chunk_rows)(clips[:64], captions[:64]).backward()
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    begin = time.perf_counter()
    ClipCaptionOTLoss(chunk_rows=chunk_rows)(clips, captions).backward()
    step = time.perf_counter() - begin
    return {
        "pairs": pairs,
        "width": width,
        "chunk_rows": chunk_rows,
        "peak_mib": resident_mib("VmHWM") - before,
        "matrix_mib": pairs**2 * 4 / 2**20,
        "step_s": step,
    }


def resident_mib(field: str) -> float:
    """VmRSS is what the process holds now, VmHWM the most it has held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) / 1024


def in_a_child(*arguments: int | None) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.sinkhorn_backends", "--peak", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(run.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), model)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    packages = ("torch", "POT", "ott-jax", "jax", "numpy")
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "gpu": "not measured",
    }


def table(record: dict[str, Any]) -> str:
    """The ratios and the memory, as the pages of documentation show them."""
    lines = ["| work, 50 steps | ours | against | ratio | target | max error of our plan |"]
    lines += ["|---|---|---|---|---|---|"]
    for work in record["works"]:
        for row in work["ratios"]:
            error = work["runs"][row["ours"]]["max_plan_error"]
            lines.append(
                f"| {work['work']} | {row['ours']} | {row['against']} | {row['ratio']:.1f}x "
                f"| {row['target']}x | {error:.0e} |"
            )
    lines += [
        "",
        "| K | chunk_rows | peak, MiB | K x K floats, MiB | step, s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['pairs']} | {row['chunk_rows']} | {row['peak_mib']:.0f} "
        f"| {row['matrix_mib']:.0f} | {row['step_s']:.1f} |"
        for row in record["memory"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the results")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.peak:
        pairs, width, chunk_rows = options.peak
        peak = peak_of_clip_caption(
            int(pairs), int(width), None if chunk_rows == "None" else int(chunk_rows)
        )
        print(json.dumps(peak))
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    POTSinkhorn()  # says what is missing before anything is timed
    record = {"machine": machine(), "works": [measure(work) for work in works()]}
    record["memory"] = [in_a_child(4096, 64, None), in_a_child(4096, 64, 512)]
    record["memory"].append(in_a_child(16384, 64, 512))
    print(table(record))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / "sinkhorn_backends-cpu.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
