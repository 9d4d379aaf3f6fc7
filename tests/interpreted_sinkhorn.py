"""The small Sinkhorn kernel on CPU tensors, in Triton's interpreter, beside float64.

Run as a module with TRITON_INTERPRET=1, which has to be set before Triton is first imported. Prints
the largest error of every case, as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Random problems of which no number is special."""

    n: int
    m: int
    batch: int = 5
    has_bucket: bool = False
    log_domain: bool = False
    iterations: int = 10
    epsilon: float = 0.1
    score_range: float = 1.0
    """Scores lie in a stretch this long."""
    score_offset: float = 0.0
    two_valued: bool = False
    """Scores lie only at the ends of that stretch."""
    absent: bool = False
    """Some rows and columns of each problem are absent, and their cells hold garbage."""
    empty: bool = False
    """One problem has no row, one no column, one neither."""
    log_mass: float = 0.0
    mass_ratio: float = 5.0
    """Largest over smallest mass of the entries present."""
    dtype: torch.dtype = torch.float32
    transposed: bool = False
    tolerance: float = 1e-5

    def make(self) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=g, dtype=torch.float64)

        scores = rand(self.batch, self.n, self.m)
        scores = scores.round() if self.two_valued else scores
        scores = (scores * self.score_range + self.score_offset).float()
        rows, columns = rand(self.batch, self.n) > 0.3, rand(self.batch, self.m) > 0.3
        if self.absent:
            rows[:, 0] = columns[:, 0] = True
            garbage = (rand(self.batch, self.n, self.m) - 0.3) * 1e30
            scores = torch.where(rows[:, :, None] & columns[:, None, :], scores, garbage.float())
        else:
            rows, columns = torch.ones_like(rows), torch.ones_like(columns)
        if self.empty:
            rows[0] = rows[2] = False
            columns[1] = columns[2] = False
        log_mu = log_marginal(rand(self.batch, self.n), rows, self.log_mass, self.mass_ratio)
        log_nu = log_marginal(rand(self.batch, self.m), columns, self.log_mass, self.mass_ratio)
        if self.transposed:
            return scores.mT.contiguous().mT, log_mu.mT.contiguous().mT, log_nu
        return scores.to(self.dtype), log_mu, log_nu

    @property
    def settings(self) -> tuple[float, int, bool, bool]:
        return self.epsilon, self.iterations, self.has_bucket, self.log_domain


def log_marginal(uniform: Tensor, present: Tensor, log_mass: float, ratio: float) -> Tensor:
    log = (ratio**uniform).log().masked_fill(~present, -torch.inf)
    return (log.log_softmax(-1) + log_mass).float().masked_fill(~present, -torch.inf)


SHAPES = {
    "8 without bucket": (8, 8, False),
    "8 with bucket": (9, 9, True),
    "8 tall": (7, 3, False),
    "8 wide, with bucket": (2, 9, True),
    "16 without bucket": (16, 9, False),
    "16 with bucket": (12, 17, True),
    "32 without bucket": (32, 32, False),
    "32 with bucket": (33, 33, True),
    "32 tall, with bucket": (33, 5, True),
    "one cell": (1, 1, False),
    "bucket alone": (1, 1, True),
}


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for log_domain in (False, True):
        domain = "log" if log_domain else "linear"
        for name, (n, m, has_bucket) in SHAPES.items():
            case = Case(n, m, has_bucket=has_bucket, log_domain=log_domain)
            found[f"{domain}: {name}"] = case
        for has_bucket in (False, True):
            where = f"{domain}, {'bucket' if has_bucket else 'no bucket'}"

            def case(n: int = 7, m: int = 5, **settings) -> Case:
                return Case(n, m, has_bucket=has_bucket, log_domain=log_domain, **settings)  # noqa: B023

            found |= {
                f"{where}: absent": case(absent=True),
                f"{where}: empty": case(absent=True, empty=True),
                f"{where}: one step": case(absent=True, iterations=1),
                f"{where}: batch": case(batch=37),
                f"{where}: float16": case(dtype=torch.float16, absent=True),
                f"{where}: bfloat16": case(dtype=torch.bfloat16),
                f"{where}: strides": case(transposed=True, absent=True),
                f"{where}: range 60": case(epsilon=1 / 60, iterations=50),
                f"{where}: two scores 60 apart": case(
                    batch=64, epsilon=1 / 60, two_valued=True, mass_ratio=1e6
                ),
                f"{where}: offset": case(epsilon=1 / 60, score_offset=-3.0),
                f"{where}: uneven masses": case(epsilon=1 / 60, mass_ratio=1e12, iterations=50),
                f"{where}: little mass": case(log_mass=-150.0, absent=True),
                f"{where}: much mass": case(log_mass=90.0),
            }
            if log_domain:
                found[f"{where}: range 300"] = case(epsilon=1 / 300, iterations=50, absent=True)
                found[f"{where}: range 3000"] = case(epsilon=1 / 3000, tolerance=3e-4)
    return found


def reference(
    log_kernel: Tensor, log_mu: Tensor, log_nu: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """The iteration on logarithms, in the precision it is given."""
    no_row, no_column = log_mu == -torch.inf, log_nu == -torch.inf
    empty = no_row.all(-1, keepdim=True) | no_column.all(-1, keepdim=True)
    log_u = log_mu
    log_v = torch.where(no_column, -torch.inf, 0.0)
    for _ in range(iterations):
        log_u = log_mu - (log_kernel + log_v[:, None, :]).logsumexp(2)
        log_v = log_nu - (log_kernel + log_u[:, :, None]).logsumexp(1)
    return log_u.masked_fill(empty | no_row, -torch.inf), log_v.masked_fill(
        empty | no_column, -torch.inf
    )


def compare(
    case: Case, scores: Tensor, log_mu: Tensor, log_nu: Tensor, log_u: Tensor, log_v: Tensor
) -> float:
    """Largest error of the plan as a share of the mass; infinite where what is absent differs."""
    absent = ~((log_mu > -torch.inf)[:, :, None] & (log_nu > -torch.inf)[:, None, :])
    log_kernel = scores.double().masked_fill(absent, 0) / case.epsilon
    expected = reference(log_kernel, log_mu.double(), log_nu.double(), case.iterations)
    for ours, theirs in zip((log_u, log_v), expected, strict=True):
        if not torch.equal(ours == -torch.inf, theirs == -torch.inf) or ours.isnan().any():
            return float("inf")
        # The same constant as well: u + c and v - c would be the same plan.
        close = ours.double().sub(theirs).nan_to_num().abs() <= 1e-3 + 1e-6 * theirs.abs()
        if not (close | (theirs == -torch.inf)).all():
            return float("inf")

    def plan(u: Tensor, v: Tensor) -> Tensor:
        return (log_kernel + u.double()[:, :, None] + v.double()[:, None, :] - case.log_mass).exp()

    return (plan(log_u, log_v) - plan(*expected)).abs().amax().item()


def largest_error(case: Case, device: str = "cpu") -> float:
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn

    problem = case.make()
    solution = small_sinkhorn(*(tensor.to(device) for tensor in problem), *case.settings)
    return compare(case, *problem, *(tensor.cpu() for tensor in solution))


def opcheck() -> None:
    """What torch asks of an operator: it keeps its schema, and knows its shapes without data."""
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn

    case = Case(5, 4, has_bucket=True)
    torch.library.opcheck(small_sinkhorn, (*case.make(), *case.settings))


def main() -> None:
    opcheck()
    print(json.dumps({name: largest_error(case) for name, case in cases().items()}, indent=1))


if __name__ == "__main__":
    main()
