"""A pool of gloo processes, spawned once a session: a rank for every worker."""

from __future__ import annotations

import faulthandler
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 4
PATIENCE = 60  # seconds that a rank waits for the others
GROUPS: dict[int, Any] = {}  # in a worker, the group of the first ranks by its size


class ProcessPool:
    """WORLD ranks; the first `size` of them share a group for each size up to that."""

    def __init__(self, folder: Path) -> None:
        context = get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, str(folder / "store"), there), daemon=True
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results of ``function(group, *arguments[rank])``, a rank each; errors as exceptions."""
        pipes = self.pipes[: len(arguments)]
        for pipe, of_rank in zip(pipes, arguments, strict=True):
            pipe.send((function, len(arguments), of_rank))
        results = []
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(2 * PATIENCE):
                self.close()
                raise TimeoutError(f"rank {rank} of {len(pipes)} gives no answer")
            results.append(pipe.recv())
        return results

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # which ends a worker that waits for a job
        for process in self.processes:
            process.join(5)
            process.kill()


def _serve(rank: int, store: str, pipe: Connection) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    timeout = timedelta(seconds=PATIENCE)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timeout
    )
    for size in range(1, WORLD):
        GROUPS[size] = dist.new_group(list(range(size)), timeout)
    GROUPS[WORLD] = dist.group.WORLD
    while True:
        try:
            function, size, arguments = pipe.recv()
        except EOFError:
            break
        try:
            torch.manual_seed(rank)
            pipe.send(function(GROUPS[size], *arguments))
        except Exception as error:
            traceback.print_exc()
            pipe.send(error)
    dist.destroy_process_group()
