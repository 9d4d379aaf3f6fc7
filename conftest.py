"""Doctests and tests that need what this machine lacks are skipped, with the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

# The first import of POT imports KeOps where that is installed, which reports on stdout that it
# found no CUDA: let it, before a doctest compares what was printed.
HAS_POT = importlib.util.find_spec("ot") is not None
if HAS_POT:
    import ot.batch  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="no CUDA device on this machine")
    no_pot = pytest.mark.skip(reason="POT is not installed")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if Path(item.path).name == "pot_sinkhorn.py" and not HAS_POT:
            item.add_marker(no_pot)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
