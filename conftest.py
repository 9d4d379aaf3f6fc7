"""Doctests and tests that need what this machine lacks are skipped, with the reason."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.process_pool import ProcessPool

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
HAS_POT = importlib.util.find_spec("ot") is not None
HAS_GEOMLOSS = importlib.util.find_spec("geomloss") is not None
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None
HAS_KEOPS = importlib.util.find_spec("pykeops") is not None and HAS_COMPILER
HAS_TRITON = False
if importlib.util.find_spec("triton") is not None:
    # An older one does not know the kernels' options.
    HAS_TRITON = tuple(map(int, version("triton").split(".")[:2])) >= (3, 2)
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

# The kernels import Triton, and doctests import the kernels.
collect_ignore_glob = [] if HAS_TRITON else ["norton_losses/kernels/*_triton.py"]

# The first import of POT imports KeOps where that is installed, which reports on stdout that it
# found no CUDA: let it, before a doctest compares what was printed.
if HAS_POT:
    with contextlib.redirect_stdout(io.StringIO()):
        import ot.batch  # noqa: F401

NEEDS = {
    "pot_sinkhorn.py": (HAS_POT, "POT is not installed"),
    "geomloss_sinkhorn.py": (HAS_GEOMLOSS, "GeomLoss is not installed"),
    "keops_sinkhorn.py": (HAS_KEOPS, "KeOps or a C++ compiler is not installed"),
    "triton_sinkhorn.py": (HAS_TRITON, "Triton is not installed"),
    "alignment_figure.py": (HAS_MATPLOTLIB, "matplotlib is not installed"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        installed, reason = NEEDS.get(Path(item.path).name, (True, ""))
        if not installed:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPool]:
    """Processes of torch.distributed, for the tests that need several."""
    made = ProcessPool(tmp_path_factory.mktemp("processes"))
    yield made
    made.close()
