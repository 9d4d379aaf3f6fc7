"""One contender, named so that another process can prepare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import works_of
from benchmarks.harness.passes import one_pass
from benchmarks.harness.work import Contender, Inputs, Mode, Prepared, Size, Work, placed


@dataclass(frozen=True)
class Job:
    """What another process is to prepare, in this tree or in that of another commit.

    A tree knows the fields of its own day alone, so they stay as they are.
    """

    suite: str
    size: Size
    work: str
    contender: str
    mode: Mode
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Ready:
    """One pass, and what it was made of."""

    run: Callable[[], Any]
    prepared: Prepared
    work: Work
    contender: Contender
    inputs: Inputs


def prepare(job: Job) -> Ready:
    """What a job names, from the suites of the tree that this process runs in.

    StopIteration where they have no such work or contender, and :mod:`compare` relies on it.
    """
    torch.set_num_threads(job.threads)
    work = next(w for w in works_of(job.suite, job.size) if w.name == job.work)
    contender = work.of(job.contender)
    inputs = placed(work.inputs(), job.device, getattr(torch, job.dtype))
    prepared = contender.prepare(inputs)
    return Ready(one_pass(contender, prepared, job.mode), prepared, work, contender, inputs)
