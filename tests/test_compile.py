"""A compiled loss on ragged data: a few graphs serve every shape, and give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from norton_losses import (
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    Segments,
)

# torch's own tracer instantiates autograd functions, which torch deprecates.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Counting:
    """A backend that counts the graphs it is handed."""

    def __init__(self) -> None:
        self.graphs = 0
        self._inner = lookup_backend("aot_eager")

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self._inner(graph, inputs)


def ragged_batches(count: int):
    """Every dimension but the width changes from batch to batch, and the masks have gaps."""
    g = torch.Generator().manual_seed(0)

    def between(lo: int, hi: int) -> int:
        return int(torch.randint(lo, hi + 1, (), generator=g))

    for _ in range(count):
        b, n = between(2, 6), between(2, 9)
        yield [
            (
                torch.randn(b, n, tokens, 16, generator=g).requires_grad_(),
                torch.rand(b, n, tokens, generator=g) < 0.8,
            )
            for tokens in (between(2, 6), between(2, 12))
        ]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (NortonLoss, 200),
        (NortonLoss.released, 20),
        (NortonLoss.paper, 20),
        (lambda: NortonVideoParagraphLoss(measure=DynamicTimeWarping(0.1)), 20),
        (lambda: NortonVideoParagraphLoss(measure=OrderedAlignment()), 20),
    ],
)
def test_ragged_batches_compile_a_few_times_without_a_break(make, count: int) -> None:
    torch.compiler.reset()
    backend = Counting()
    loss = make()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for sides in ragged_batches(count):
        video, text = (Segments(tokens, mask) for tokens, mask in sides)
        leaves = [tokens for tokens, _ in sides]
        value, expected = compiled(video, text), loss(video, text)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(
            torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert backend.graphs <= 3


@pytest.mark.parametrize("make", [NortonVideoParagraphLoss, ClipCaptionOTLoss])
def test_tensors_compile_whole_as_well(make) -> None:
    torch.compiler.reset()
    loss = make()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for n in (3, 5, 4):
        tokens = torch.randn(4, n, 2, 8), torch.randn(4, n, 3, 8)
        torch.testing.assert_close(compiled(*tokens), loss(*tokens))


def test_the_operators_keep_their_promises() -> None:
    from norton_losses.sequence_measures import alignment_operator
    from norton_losses.sinkhorn import operator

    scores, even = torch.randn(3, 4, 5), torch.full((3, 4), 0.25).log()
    arguments = scores, even, torch.full((3, 5), 0.2).log(), 0.5, None, 7, None, "auto", False
    torch.library.opcheck(operator.explicit_operator, arguments)
    turned = scores.mT, arguments[2].mT.contiguous().mT, even, *arguments[3:]
    torch.library.opcheck(operator.explicit_operator, turned)
    aligned = torch.rand(2, 3, 4, 5, requires_grad=True)
    masks = torch.rand(2, 3, 4) < 0.8, torch.rand(2, 3, 5) < 0.8
    for measure in ("DynamicTimeWarping", "OrderedAlignment"):
        torch.library.opcheck(alignment_operator.alignment, (aligned, *masks, measure, 0.1))
    points = torch.randn(4, 2), torch.randn(5, 2), even[0], torch.full((5,), 0.2).log()
    torch.library.opcheck(operator.cloud_operator, (*points, 0.5, 2, 7, 1e-3))
