"""What every ratio divides by computes what the library computes: values and gradients, float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import naive, works_of
from benchmarks.harness.work import Inputs, placed
from benchmarks.inputs import embeddings, ragged_similarity, similarity, tokens
from benchmarks.sequence_measures import retrievers
from conftest import HAS_POT
from norton_losses import (
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    NortonLoss,
    OrderedAlignment,
    Segments,
    TorchSinkhorn,
    TransportMeasure,
)
from norton_losses.functional import clip_caption_loss, soft_maximum, video_paragraph_loss
from tests.problems import random_problem

RAGGED = pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
needs_pot = pytest.mark.skipif(not HAS_POT, reason="POT is not installed")


def compare(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], made: Inputs, atol: float = 1e-12
) -> None:
    made = placed(made, "cpu", torch.float64)
    leaves = [tensor for tensor in made.values() if tensor.requires_grad]
    values = ours(**made), theirs(**made)
    torch.testing.assert_close(*values, atol=atol, rtol=atol)
    upstream = torch.randn_like(values[0])
    for a, b in zip(*(torch.autograd.grad(v, leaves, upstream) for v in values), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)


@RAGGED
@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("form", [naive.soft_maximum, naive.soft_maximum_by_blocks])
def test_soft_maximum(ragged: bool, alpha: float, form) -> None:
    def ours(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
        return soft_maximum(
            Segments(video[None], frame_mask[None]),
            Segments(text[None], word_mask[None]),
            alpha=alpha,
            exponential="sum",
            count_padding=True,
        )[0, 0]

    def theirs(**made: Tensor) -> Tensor:
        by_frame, by_word = form(**made, alpha=alpha)
        return (by_frame + by_word) / 2

    compare(ours, theirs, tokens(11, 6, 8, 4, ragged=ragged), atol=1e-10)


def test_the_token_tensor_is_whole() -> None:
    """The naive form must keep what users of such code pay for."""
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                seen.append(result.numel())
            return result

    made = {name: t.detach() for name, t in tokens(5, 3, 4, 2, ragged=True).items()}
    with Watch():
        naive.soft_maximum(**made)
    assert (
        sum(size == 5 * 3 * 5 * 4 for size in seen) >= 4
    )  # products, masked, scaled, exponentials


@RAGGED
@pytest.mark.parametrize("by_blocks", [False, True])
def test_released_loss(ragged: bool, by_blocks: bool) -> None:
    loss = NortonLoss.released().double()

    def ours(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
        return loss(Segments(video, frame_mask), Segments(text, word_mask))

    def theirs(**made: Tensor) -> Tensor:
        return naive.released_loss(**made, by_blocks=by_blocks)

    compare(ours, theirs, tokens(12, 5, 7, 8, ragged=ragged, length=4), atol=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_clip_caption(beta: float) -> None:
    def ours(clips: Tensor, captions: Tensor) -> Tensor:
        return clip_caption_loss(clips @ captions.mT, beta=beta)

    def theirs(clips: Tensor, captions: Tensor) -> Tensor:
        return naive.clip_caption(clips @ captions.mT, beta=beta)

    compare(ours, theirs, embeddings(10, 4), atol=1e-10)
    loss = ClipCaptionOTLoss(beta, normalize=False, temperature=None)
    compare(lambda clips, captions: loss(clips, captions), theirs, embeddings(10, 4), atol=1e-10)


MEASURES = {
    "detached": (TorchSinkhorn(50), lambda s: naive.transport_scores(s)),
    "unrolled": (
        TorchSinkhorn(50, plan_gradient="unrolled"),
        lambda s: naive.transport_scores(s, differentiate=True),
    ),
    "looped": (TorchSinkhorn(50), lambda s: naive.looped_transport_scores(s)),
}


@pytest.mark.parametrize("name", ["detached", "unrolled", pytest.param("looped", marks=needs_pot)])
def test_video_paragraph(name: str) -> None:
    solver, scores = MEASURES[name]
    measure = TransportMeasure(0.1, 0.3, solver)

    def ours(similarity: Tensor) -> Tensor:
        return video_paragraph_loss(
            similarity, measure=measure, temperature=0.07, scale_by_length=True
        )

    def theirs(similarity: Tensor) -> Tensor:
        return naive.video_paragraph(scores(similarity), similarity.shape[-1])

    compare(ours, theirs, similarity(5, 4), atol=1e-8)


@needs_pot
def test_looped_sinkhorn_takes_the_same_steps_in_the_same_order() -> None:
    problem = random_problem(3, n=4, m=6, epsilon=0.02)  # far from convergence after 50 steps
    plan = TorchSinkhorn(naive.STEPS).solve(problem)
    assert not plan.converged.all()
    found = naive.looped_sinkhorn(problem.scores, problem.log_mu, problem.log_nu, problem.epsilon)
    torch.testing.assert_close(found, plan.plan, atol=1e-10, rtol=1e-8)


def test_log_sinkhorn() -> None:
    problem = random_problem(3, n=4, m=6, epsilon=0.05)
    u, v = naive.log_sinkhorn(problem.scores, problem.log_mu, problem.log_nu, problem.epsilon, 7)
    found = naive.log_plan(problem.scores, u, v, problem.epsilon).exp()
    torch.testing.assert_close(found, TorchSinkhorn(7).solve(problem).plan)


@pytest.mark.parametrize("kind", [DynamicTimeWarping, OrderedAlignment])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_alignments_of_all_pairs(kind: type, smoothing: float) -> None:
    forms = {
        DynamicTimeWarping: naive.warping_of_all_pairs,
        OrderedAlignment: naive.ordering_of_all_pairs,
    }
    made = ragged_similarity(6, 7, 1)
    compare(kind(smoothing), partial(forms[kind], smoothing=smoothing), made)


@pytest.mark.parametrize("kind", [DynamicTimeWarping, OrderedAlignment])
def test_looped_alignments(kind: type) -> None:
    scores = {DynamicTimeWarping: naive.warping_score, OrderedAlignment: naive.ordered_score}
    made = ragged_similarity(6, 7, 1, differentiable=False)
    looped = naive.looped_alignment(**made, score=scores[kind])
    torch.testing.assert_close(looped, kind()(**made), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(retrievers()))
def test_retrieval_at_once(name: str) -> None:
    work = works_of("sequence_measures", "smoke")[-1]
    made = work.inputs()
    values = [work.of(c).prepare(made).call() for c in (name, f"{name}, all at once")]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)
