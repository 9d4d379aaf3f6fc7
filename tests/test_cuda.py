"""What only a CUDA device can show."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from norton_losses import (
    DynamicTimeWarping,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
)
from tests.batches import Batch, make_batch

pytestmark = pytest.mark.gpu

PRESETS = [NortonLoss, NortonLoss.released, NortonLoss.paper]
ALIGNMENTS = [
    partial(NortonVideoParagraphLoss, measure=kind(smoothing))
    for kind in (DynamicTimeWarping, OrderedAlignment)
    for smoothing in (0.0, 0.1)
]


def on_cuda(batch: Batch) -> Batch:
    return Batch(*(getattr(batch, name).cuda() for name in Batch.__dataclass_fields__))


@pytest.fixture
def no_sync() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("make", PRESETS)
def test_values_and_gradients_are_those_of_the_cpu(make) -> None:
    batch = make_batch(ragged=True)
    here, there = batch.leaves(), on_cuda(batch).leaves()
    loss = make()
    value = loss(*here.sides)
    expected = torch.autograd.grad(value, here.tokens)
    moved = loss.cuda()(*there.sides)
    torch.testing.assert_close(moved.cpu(), value)
    for ours, theirs in zip(torch.autograd.grad(moved, there.tokens), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.parametrize("make", [*PRESETS, *ALIGNMENTS])
def test_a_training_step_never_waits_for_the_gpu(make, no_sync: None) -> None:
    batch = on_cuda(make_batch(ragged=True, dtype=torch.float32)).leaves()
    make().cuda()(*batch.sides).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_rounds_nothing(dtype: torch.dtype) -> None:
    batch = on_cuda(make_batch(ragged=True, dtype=torch.float32))
    loss = NortonLoss().cuda()
    outside = loss(*batch.sides)
    with torch.autocast("cuda", dtype=dtype):
        assert torch.equal(loss(*batch.sides), outside)
