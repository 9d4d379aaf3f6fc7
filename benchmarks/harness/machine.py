"""Where and with what a figure was measured, and what is free there."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
_MEASURING = ("clock", "gate", "job", "machine", "memory", "passes", "suite", "work")
PEERS = (
    "numpy", "POT", "geomloss", "pykeops", "triton", "ott-jax", "jax", "ddtw", "tslearn", "numba",
)  # fmt: skip


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def describe(device: str) -> dict[str, Any]:
    """The machine and its software: rows of two descriptions are never mixed in a file."""
    described: dict[str, Any] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peers": {name: found for name in PEERS if (found := installed(name))},
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
        described["cuda"] = torch.version.cuda
        drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        described["driver"] = drivers.partition("\n")[0]  # a line for each GPU
    return described


def source_digest(suite: str) -> str:
    """Of the code that a suite's rows depend on: the package, what measures, the suite."""
    harness = ROOT / "benchmarks" / "harness"
    files = {
        *(ROOT / "norton_losses").rglob("*.py"),
        *(harness / f"{name}.py" for name in _MEASURING),
        *_with_its_helpers(suite),
    }
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _with_its_helpers(suite: str) -> set[Path]:
    """The module of a suite, and those beside it that it imports, and that they import."""
    path = ROOT / "benchmarks" / f"{suite}.py"
    found = {path}
    for name in re.findall(r"^from benchmarks\.(\w+) import", path.read_text(), re.MULTILINE):
        found |= _with_its_helpers(name)
    for names in re.findall(r"^from benchmarks import (.+)$", path.read_text(), re.MULTILINE):
        found |= {ROOT / "benchmarks" / f"{name.strip()}.py" for name in names.split(",")}
    return found


@functools.cache
def commit() -> str:
    """Of HEAD, marked where the tree differs from it."""
    head = _output("git", "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changed = _output("git", "status", "--porcelain", "--", "norton_losses", "benchmarks/*.py")
    return head + " with changes" * bool(changed)


def free_bytes(device: str) -> float:
    """What could still be allocated; infinite where nobody says."""
    if device == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by torch, for reuse
        return torch.cuda.mem_get_info()[0] + kept
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    line = next(s for s in meminfo.read_text().splitlines() if s.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def cpu_name() -> str:
    """As the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return ""
    return run.stdout.strip()
