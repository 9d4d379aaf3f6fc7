"""What both kernels' tests need: Triton's interpreter in a process, and a binary's resources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path


def interpreted(module: str) -> dict[str, float]:
    """What a module of the tests prints as JSON when run with Triton's interpreter.

    Triton decides between compiler and interpreter when it is imported: hence a process.
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", module],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def resources(cubin: bytes, directory: Path) -> dict[str, int]:
    """Registers, and bytes of stack and of local memory, of each thread."""
    import triton

    path = directory / "kernel.cubin"
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    report = subprocess.run(
        [tool, "-res-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(number) for name, number in re.findall(r"([A-Z]+):(\d+)", report)}
