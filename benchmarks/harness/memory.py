"""Peak memory of one pass, in a process of its own: of CUDA's allocator, or resident on the CPU.

``multiprocessing``'s fork server imports once and forks for every contender, so that nobody counts
what others left behind. A fork must come before torch's threads: they start in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.harness.job import Job, prepare


def peak_bytes(job: Job) -> float | None:
    """What a pass adds at its peak to what was there before, less the gradients it returns.

    None where nobody counts: on the CPU that takes Linux.
    """
    if job.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, job).result()


def give_back(device: str) -> None:
    """What nobody holds any more, so that a child finds it free."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _measured(job: Job) -> float:
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of peers
    if job.device == "cpu":
        give_back_at_once()
    with contextlib.redirect_stdout(io.StringIO()):
        ready = prepare(job)
        ready.run()  # loads what stays for good: threads, libraries, an optimiser's moments
    before = held(job.device)
    ready.run()
    differentiated = job.mode == "forward+backward"
    gradients = sum(t.nbytes for t in ready.prepared.leaves) if differentiated else 0
    return max(highest(job.device) - before - gradients, 0.0)


def give_back_at_once() -> None:
    """Make the CPU's allocator do so, or what an earlier call freed would hide a later peak."""
    m_mmap_threshold, small = -3, 1 << 16
    ctypes.CDLL(None).mallopt(m_mmap_threshold, small)


def held(device: str) -> float:
    """What is held now, the peak so far forgotten."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def highest(device: str) -> float:
    """The most that was held since."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    """VmRSS is what the process holds now, VmHWM the most it has held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) * 1024.0
