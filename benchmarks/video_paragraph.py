"""The video-paragraph loss from similarities, Eq. (4), (6) and (3): B x B problems of N x N.

The floor is one pass over the similarities: their sum; with the backward pass, a copy as well.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks import naive
from benchmarks.harness.work import (
    PASSES,
    Contender,
    Inputs,
    Mode,
    Prepared,
    Size,
    Work,
    compiled,
    function,
    prepared,
)
from benchmarks.inputs import similarity as similarities
from norton_losses import TorchSinkhorn, TransportMeasure
from norton_losses.functional import video_paragraph_loss

NAIVE, LOOP = "naive log loop", "loop over ot.sinkhorn"
OURS, COMPILED_STEP, COMPILED = (
    "video_paragraph_loss",
    "with a compiled step",
    "torch.compile of naive",
)


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [work(4, 4), differentiated(4, 4)]
    heaviest: tuple[Mode, ...] = ("forward+backward",)
    if size == "quick":
        by_length = [work(16, length, "N", heaviest) for length in (4, 8, 16, 32)]
        return [work(32, 8), differentiated(16, 8), *by_length]
    by_length = [work(32, length, "N", heaviest) for length in (4, 8, 16, 32, 64)]
    by_count = [work(videos, 8, "B", heaviest) for videos in (16, 32, 64, 128, 256)]
    return [work(128, 8), differentiated(64, 8), *by_length, *by_count]


def work(
    videos: int, length: int, sweep: str | None = None, modes: tuple[Mode, ...] = PASSES
) -> Work:
    """The plan carries no gradient, as in the paper."""
    name = f"{videos} videos of {length} clips"
    entries = float(videos * length) ** 2
    eager, compiled_step = TorchSinkhorn(naive.STEPS), TorchSinkhorn(naive.STEPS, compiled=True)
    contenders = [
        function(OURS, "ours", loss(eager)),
        function(NAIVE, "naive", unfused, bytes_needed=12 * 4 * entries),
    ]
    if sweep is None:
        contenders += [
            function(COMPILED_STEP, "ours", loss(compiled_step), compiles=True),
            compiled(COMPILED, unfused),
        ]
    if sweep is None and videos <= 32:  # the loop takes a millisecond and more a pair
        contenders += [function(LOOP, "naive", looped, needs="POT", modes=("forward+backward",))]
    contenders += floors()
    return Work(
        f"{name}, against {sweep}" if sweep else name,
        {"B": videos, "N": length, "problems": videos**2},
        lambda: similarities(videos, length),
        contenders,
        lambda made: prepared(unfused, made),
        modes=modes,
        sweep=sweep,
        value_tolerance=2e-5,
        gradient_tolerance=2e-4,
    )


def differentiated(videos: int, length: int) -> Work:
    """Autograd through everything, and what spares it."""
    return Work(
        f"{videos} videos of {length} clips, plan differentiated",
        {"B": videos, "N": length, "problems": videos**2},
        lambda: similarities(videos, length),
        (
            function(
                'plan_gradient="implicit"',
                "ours",
                loss(TorchSinkhorn(naive.STEPS, plan_gradient="implicit")),
                slack=10,  # the gradient at convergence, where fifty steps almost are
            ),
            function(
                'plan_gradient="unrolled"',
                "ours",
                loss(TorchSinkhorn(naive.STEPS, plan_gradient="unrolled")),
            ),
            function("naive, autograd through the loop", "naive", through_the_loop),
            *floors(),
        ),
        lambda made: prepared(through_the_loop, made),
        modes=("forward+backward",),
        value_tolerance=2e-5,
        gradient_tolerance=1e-3,
    )


def loss(solver: TorchSinkhorn) -> Callable[[Tensor], Tensor]:
    measure = TransportMeasure(0.1, 0.3, solver)
    return lambda similarity: video_paragraph_loss(
        similarity, measure=measure, temperature=0.07, scale_by_length=True
    )


def unfused(similarity: Tensor) -> Tensor:
    return naive.video_paragraph(naive.transport_scores(similarity), similarity.shape[-1])


def looped(similarity: Tensor) -> Tensor:
    return naive.video_paragraph(naive.looped_transport_scores(similarity), similarity.shape[-1])


def through_the_loop(similarity: Tensor) -> Tensor:
    scores = naive.transport_scores(similarity, differentiate=True)
    return naive.video_paragraph(scores, similarity.shape[-1])


def floors() -> list[Contender]:
    def once(made: Inputs) -> Prepared:
        entries = made["similarity"].detach()
        return Prepared(entries.sum)

    def twice(made: Inputs) -> Prepared:
        entries = made["similarity"].detach()
        return Prepared(lambda: (entries.sum(), entries.clone()))

    return [
        Contender("one pass", "floor", once, modes=("forward", "no-grad")),
        Contender("one pass and a copy", "floor", twice, modes=("forward+backward",)),
    ]
