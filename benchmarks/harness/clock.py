"""Rivals timed in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

Run = Callable[[], Any]
MOST = 31  # rounds


class CPUClock:
    """Wall time of one call."""

    def __call__(self, run: Run) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin


class CUDAClock:
    """Time between two events on the device, its L2 cache swept before."""

    def __init__(self) -> None:
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self._sweep = torch.empty(max(size, 1 << 26), dtype=torch.uint8, device="cuda")

    def __call__(self, run: Run) -> float:
        self._sweep.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000


def clock_for(device: str) -> Callable[[Run], float]:
    return CUDAClock() if device == "cuda" else CPUClock()


def time_in_turns(
    runs: Mapping[str, Run], clock: Callable[[Run], float], budget_s: float, fewest: int = 3
) -> dict[str, list[float]]:
    """Seconds of each run in as many rounds as the budget buys, at most 31.

    A round before them warms up, and tells how long one takes.
    """
    turns = {name: partial(clock, run) for name, run in runs.items()}
    one_round = sum(turn() for turn in turns.values())
    return in_turns(turns, min(max(round(budget_s / max(one_round, 1e-9)), fewest), MOST))


def in_turns(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each says in each round.

    Who follows whom changes from round to round, since what one leaves in the caches is paid by
    the next.
    """
    names = list(turns)
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            times[name].append(turns[name]())
    return times
