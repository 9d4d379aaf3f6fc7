"""Sinkhorn's iteration, Eq. (3): one loop for every domain and every backend that takes steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from norton_losses.distributed import ONE_PROCESS, Shard

State: TypeAlias = tuple[Tensor, ...]
"""Scalings between two steps, u and v first, in whatever form a domain keeps them."""


class Scalings(NamedTuple):
    """The result of an iteration: log_u (..., n), log_v (..., m), and the steps taken (...).

    One number stands for the steps where all problems took as many.
    """

    log_u: Tensor
    log_v: Tensor
    steps: Tensor | int


class AbstractSteps(ABC):
    """A domain in which the steps of a batch of problems are carried out.

    States are (log_u, log_v) unless a domain says otherwise.
    """

    log_mu: Tensor  # (..., n)
    log_nu: Tensor  # (..., m)
    shard: Shard = ONE_PROCESS  # the processes that hold the rows

    def start(self) -> State:
        """The state before the first step: v is 1 at present columns and 0 at absent ones."""
        return self.log_mu, log_start(self.log_nu)

    @abstractmethod
    def __call__(self, state: State) -> State:
        """One step: u = mu / (K v), then v = nu / (K' u)."""

    def row_error(self, before: State, after: State) -> Tensor:
        """L1 distance of the rows from mu before a step, (..., 1) or what else a state broadcasts.

        The rows sum to mu times the u before the step over the u after it.
        """
        ratio = (before[0] - after[0]).masked_fill(self.log_mu == -torch.inf, 0)
        return self.shard.sum((self.log_mu.exp() * ratio.expm1().abs()).sum(-1, keepdim=True))


def log_start(log_nu: Tensor) -> Tensor:
    """Log v before the first step. Absent columns begin at -inf: padding then changes nothing."""
    return torch.zeros_like(log_nu).masked_fill(log_nu == -torch.inf, -torch.inf)


def iterate(
    step: AbstractSteps, start: State, iterations: int, tolerance: float | None = None
) -> tuple[State, Tensor]:
    """Take ``iterations`` steps, and return the last state and the steps of each problem (...).

    With a ``tolerance`` a problem stays as it is once its rows are within this L1 distance of mu
    (columns are exact after every step), and the loop ends when all are. Looking makes the host
    wait for the GPU.
    """
    state = step(start)
    if tolerance is None:
        for _ in range(iterations - 1):
            state = step(state)
        return state, torch.full_like(step.log_mu[..., 0], iterations, dtype=torch.int64)
    frozen = state
    active = torch.ones_like(step.row_error(state, state), dtype=torch.bool)
    steps = active.long()
    for _ in range(iterations - 1):
        after = step(state)
        active = active & (step.row_error(state, after) > tolerance)
        if not active.any():
            break
        # Finished problems go on and only their results are frozen: a step may hold a kernel that
        # fits the newest state.
        state = after
        frozen = tuple(torch.where(active, a, f) for a, f in zip(after, frozen, strict=True))
        steps = steps + active
    return frozen, steps.view(step.log_mu.shape[:-1])
