"""Sinkhorn backends against what one would write, or take, instead: 50 steps of Eq. (3).

On the clock is the solve: torch's loop and ours end with log-scalings, the others with what their
call returns. The gate compares plans. The floor is one pass over the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness.work import (
    CannotTakePartError,
    Claim,
    Contender,
    Inputs,
    Prepared,
    Size,
    Work,
)
from norton_losses import (
    AbstractSinkhorn,
    GeomLossSinkhorn,
    KeOpsSinkhorn,
    PointCloudProblem,
    TorchSinkhorn,
    TransportProblem,
    TritonSinkhorn,
)

STEPS = naive.STEPS
EAGER, COMPILED, TRITON = "TorchSinkhorn", "TorchSinkhorn compiled", "TritonSinkhorn"
LOG_LOOP, COMPILED_LOOP = "torch log loop", "torch.compile of the log loop"
POT_EXP, POT_LOOP, OTT = "POT exp", "loop over ot.sinkhorn", "ott-jax dense"
KEOPS, GEOMLOSS = "KeOpsSinkhorn", "GeomLossSinkhorn"


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [small(6, 4), large(16), cloud(20), valued(6, 4), converged(6, 4)]
    if size == "quick":
        main = [small(4096, 9), small(256, 9, loop=True), large(512), valued(1024, 9)]
        return main + [small(count, 9, sweep="problems") for count in (256, 1024, 4096)]
    by_count = [small(4**power, 9, sweep="problems") for power in range(3, 9)]
    return [
        small(
            16384,
            9,
            claims=(
                Claim(EAGER, LOG_LOOP, at_least=5),
                Claim(COMPILED, LOG_LOOP, at_least=15),
                Claim(COMPILED, POT_EXP, at_least=4),
            ),
        ),
        small(
            4096,
            33,
            claims=(Claim(EAGER, LOG_LOOP, at_least=6), Claim(EAGER, POT_EXP, at_least=2)),
        ),
        large(2048, claims=(Claim(EAGER, LOG_LOOP, at_least=8), Claim(EAGER, OTT, at_least=2))),
        small(1024, 9, loop=True, claims=(Claim(EAGER, POT_LOOP, at_least=500),)),
        cloud(2048),
        valued(4096, 9),
        converged(1024, 9),
        *by_count,
    ]


def small(
    count: int,
    n: int,
    *,
    loop: bool = False,
    sweep: str | None = None,
    claims: tuple[Claim, ...] = (),
) -> Work:
    """Many problems of n x n, epsilon 0.1, scores known to lie in [0, 1]."""
    explicit = partial(uniform, epsilon=0.1, score_range=(0.0, 1.0))
    peers = [
        log_loop(LOG_LOOP, 0.1),
        Contender(POT_EXP, "peer", partial(pot_exp, explicit), needs="POT"),
    ]
    if loop:
        peers.append(Contender(POT_LOOP, "naive", partial(pot_loop, explicit), needs="POT"))
    if not sweep:
        peers.append(log_loop(COMPILED_LOOP, 0.1, compile=True))
    name = f"{count} problems {n}x{n}, eps 0.1"
    return Work(
        f"{name}, against {sweep}" if sweep else name,
        {"problems": count, "n": n, "epsilon": 0.1},
        partial(scores_between_0_and_1, count, n),
        (
            solver(EAGER, explicit, TorchSinkhorn),
            solver(COMPILED, explicit, partial(TorchSinkhorn, compiled=True), compiles=True),
            solver(TRITON, explicit, TritonSinkhorn, device="cuda", needs="triton", slack=30),
            *peers,
            floor(),
        ),
        lambda made: solved(TorchSinkhorn(STEPS, domain="log"), explicit(made["scores"])),
        modes=("no-grad",),
        sweep=sweep,
        value_tolerance=1e-4 / n,  # an entry of a plan is near 1 / n at most
        memory=sweep is not None,
        claims=claims,
    )


def large(n: int, claims: tuple[Claim, ...] = ()) -> Work:
    """One problem of logits of standard deviation 3, epsilon 1, range unknown."""
    explicit = partial(uniform, epsilon=1.0)
    return Work(
        f"one {n}x{n}, eps 1, logits of std 3",
        {"problems": 1, "n": n, "epsilon": 1.0},
        partial(logits, n, 512),
        (
            solver(EAGER, explicit, TorchSinkhorn),
            log_loop(LOG_LOOP, 1.0),
            Contender(OTT, "peer", partial(ott_dense, explicit), needs="ott-jax", device="cpu"),
            log_loop(COMPILED_LOOP, 1.0, compile=True),
            floor(),
        ),
        lambda made: solved(TorchSinkhorn(STEPS, domain="log"), explicit(made["scores"])),
        modes=("no-grad",),
        value_tolerance=1e-4 / n,
        claims=claims,
    )


def cloud(n: int, width: int = 8) -> Work:
    """One problem of points, whose scores two of the contenders never hold."""
    return Work(
        f"{n} and {n} points of D {width}, eps 0.3",
        {"problems": 1, "n": n, "D": width, "epsilon": 0.3},
        partial(points, n, width),
        (
            solver("TorchSinkhorn by blocks", of_points, TorchSinkhorn),
            solver(KEOPS, of_points, KeOpsSinkhorn, role="peer", needs="pykeops", compiles=True),
            log_loop(LOG_LOOP, 0.3),
            floor("x"),
        ),
        lambda made: solved(
            TorchSinkhorn(STEPS, domain="log"), uniform((made["x"] @ made["y"].mT)[None], 0.3)
        ),
        modes=("no-grad",),
        value_tolerance=1e-4 / n,
    )


def valued(count: int, n: int) -> Work:
    """The value and its gradient: at convergence the plan (Danskin), else autograd must find it."""
    explicit = partial(uniform, epsilon=0.3, score_range=(0.0, 1.0))

    def ours(made: Inputs) -> Prepared:
        torch_solver = TorchSinkhorn(STEPS)
        return Prepared(
            lambda: torch_solver.solve(explicit(made["scores"])).value.sum(), [made["scores"]]
        )

    def through_the_loop(made: Inputs) -> Prepared:
        return Prepared(lambda: value_by_loop(made["scores"], 0.3), [made["scores"]])

    def inputs() -> Inputs:
        return {"scores": scores_between_0_and_1(count, n)["scores"].requires_grad_()}

    return Work(
        f"value of {count} problems {n}x{n}, eps 0.3",
        {"problems": count, "n": n, "epsilon": 0.3},
        inputs,
        (
            Contender("TorchSinkhorn, plan.value", "ours", ours),
            Contender("torch log loop, autograd through it", "naive", through_the_loop),
            floor(),
        ),
        through_the_loop,
        modes=("forward+backward",),
        value_tolerance=1e-5 * count,  # a sum over the problems
        gradient_tolerance=1e-4,
    )


def converged(count: int, n: int) -> Work:
    """Where every problem is converged, a solver that takes other steps may be compared."""
    explicit = partial(uniform, epsilon=0.3, score_range=(0.0, 1.0))
    return Work(
        f"{count} problems {n}x{n}, eps 0.3, converged",
        {"problems": count, "n": n, "epsilon": 0.3},
        partial(scores_between_0_and_1, count, n),
        (
            solver(EAGER, explicit, TorchSinkhorn),
            log_loop(LOG_LOOP, 0.3),
            solver(GEOMLOSS, explicit, GeomLossSinkhorn, role="peer", needs="geomloss", slack=10),
            floor(),
        ),
        lambda made: solved(TorchSinkhorn(1000, domain="log"), explicit(made["scores"])),
        modes=("no-grad",),
        memory=False,
    )


def scores_between_0_and_1(count: int, n: int) -> Inputs:
    return {"scores": torch.rand(count, n, n, generator=torch.Generator().manual_seed(0))}


def logits(n: int, width: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, width, generator=g) / width**0.25 * 3**0.5 for _ in range(2))
    return {"scores": (x @ y.T)[None]}


def points(n: int, width: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, width, generator=g) / width**0.5 for name in ("x", "y")}


def uniform(scores: Tensor, epsilon: float, **known: Any) -> TransportProblem:
    rows = scores.new_ones(scores.shape[:-1], dtype=torch.bool)
    columns = scores.new_ones((*scores.shape[:-2], scores.shape[-1]), dtype=torch.bool)
    return TransportProblem.uniform(scores, rows, columns, epsilon, **known)


def of_points(made: Inputs) -> PointCloudProblem:
    x, y = made["x"], made["y"]
    even = x.new_full((len(x),), 1 / len(x)).log()
    return PointCloudProblem(x, y, even, even, 0.3)


def solved(found: AbstractSinkhorn, problem: TransportProblem) -> Prepared:
    return Prepared(lambda: found.solve(problem), read=lambda plan: plan.plan)


def solver(
    name: str,
    problem_of: Callable[..., Any],
    make: Callable[..., AbstractSinkhorn],
    *,
    role: Any = "ours",
    **settings: Any,
) -> Contender:
    def prepare(made: Inputs) -> Prepared:
        problem = problem_of(made["scores"]) if "scores" in made else problem_of(made)
        found = make(STEPS)
        support = found.supports(problem)
        if not support.ok:
            raise CannotTakePartError(support.reason)
        if isinstance(problem, TransportProblem):
            return solved(found, problem)
        return Prepared(lambda: found.solve(problem), read=plan_of_points(problem))

    return Contender(name, role, prepare, **settings)


def plan_of_points(problem: PointCloudProblem) -> Callable[[Any], Tensor]:
    def read(plan: Any) -> Tensor:
        scores = (problem.x @ problem.y.mT)[None]
        return naive.log_plan(scores, plan.log_u[None], plan.log_v[None], problem.epsilon).exp()

    return read


def log_loop(name: str, epsilon: float, compile: bool = False) -> Contender:
    def prepare(made: Inputs) -> Prepared:
        scores = made["scores"] if "scores" in made else (made["x"] @ made["y"].mT)[None]
        problem = uniform(scores, epsilon)
        loop = naive.log_sinkhorn
        if compile:
            loop = torch.compile(loop)

        def read(scalings: tuple[Tensor, Tensor]) -> Tensor:
            return naive.log_plan(scores, *scalings, epsilon).exp()

        return Prepared(lambda: loop(scores, problem.log_mu, problem.log_nu, epsilon), read=read)

    if compile:
        return Contender(name, "peer", prepare, needs="torch", compiles=True)
    return Contender(name, "naive", prepare)


def value_by_loop(scores: Tensor, epsilon: float) -> Tensor:
    """Sum of <Q, S> + eps H(Q) over the problems, every step kept for autograd."""
    problem = uniform(scores, epsilon)
    u, v = naive.log_sinkhorn(scores, problem.log_mu, problem.log_nu, epsilon)
    log_plan = naive.log_plan(scores, u, v, epsilon)
    plan = log_plan.exp()
    return (plan * (scores - epsilon * log_plan)).sum()


def pot_exp(problem_of: Callable[..., TransportProblem], made: Inputs) -> Prepared:
    import ot.batch

    problem = problem_of(made["scores"])
    a, b, cost = problem.log_mu.exp(), problem.log_nu.exp(), -problem.scores

    def solve() -> Any:
        return ot.batch.solve_batch(
            cost,
            reg=problem.epsilon,
            a=a,
            b=b,
            max_iter=STEPS,
            tol=0.0,
            method="sinkhorn",
            grad="detach",
        )

    return Prepared(solve, read=lambda result: result.plan)


def pot_loop(problem_of: Callable[..., TransportProblem], made: Inputs) -> Prepared:
    problem = problem_of(made["scores"])
    given = problem.scores, problem.log_mu, problem.log_nu, problem.epsilon
    return Prepared(lambda: naive.looped_sinkhorn(*given))


def ott_dense(problem_of: Callable[..., TransportProblem], made: Inputs) -> Prepared:
    """One jitted solve, with exactly STEPS updates of both potentials."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    problem = problem_of(made["scores"])
    cost = jnp.asarray(-problem.scores[0].numpy())
    a, b = (jnp.asarray(log[0].exp().numpy()) for log in (problem.log_mu, problem.log_nu))
    found = sinkhorn.Sinkhorn(
        threshold=-1.0, min_iterations=STEPS, max_iterations=STEPS, inner_iterations=STEPS
    )

    @jax.jit
    def solve(cost: Any) -> Any:
        geom = geometry.Geometry(cost_matrix=cost, epsilon=problem.epsilon)
        return found(linear_problem.LinearProblem(geom, a=a, b=b)).matrix

    return Prepared(
        lambda: jax.block_until_ready(solve(cost)),
        read=lambda plan: torch.from_numpy(np.array(plan))[None],
    )


def floor(name: str = "scores") -> Contender:
    def prepare(made: Inputs) -> Prepared:
        entries = made[name].detach()
        return Prepared(entries.sum)

    return Contender("one pass", "floor", prepare)
