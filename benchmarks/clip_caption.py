"""The clip-caption loss from embeddings, Eq. (7) and (8), at a temperature of 0.07.

The floor is the matrix products alone: one for the logits, two more with the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
from benchmarks.inputs import embeddings
from norton_losses import AbstractSinkhorn, ClipCaptionOTLoss, POTSinkhorn, TorchSinkhorn

TEMPERATURE = 0.07
OURS, CHUNKED, NAIVE = "ClipCaptionOTLoss", "ClipCaptionOTLoss by 512 rows", "naive log loop"
POT, COMPILED = "its plan by POT", "torch.compile of naive"


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [work(12, 8)]
    heaviest: tuple[Mode, ...] = ("forward+backward",)
    most = 1024 if size == "quick" else 4096
    counts = [pairs for pairs in (128, 256, 512, 1024, 2048, 4096) if pairs <= most]
    main = work(512, 256) if size == "quick" else work(1024, 768)
    return [main, *(work(pairs, 256, "K", heaviest) for pairs in counts)]


def work(
    pairs: int, width: int, sweep: str | None = None, modes: tuple[Mode, ...] = PASSES
) -> Work:
    name = f"{pairs} pairs, D {width}"
    matrix = 4.0 * pairs**2
    contenders = [
        Contender(OURS, "ours", partial(module, TorchSinkhorn, None)),
        Contender(CHUNKED, "ours", partial(module, TorchSinkhorn, 512)),
        function(NAIVE, "naive", unfused, bytes_needed=10 * matrix),
    ]
    if sweep is None:
        contenders += [
            Contender(POT, "peer", partial(module, POTSinkhorn, None), needs="POT"),
            compiled(COMPILED, unfused, bytes_needed=10 * matrix),
        ]
    contenders += [
        Contender("1 matrix product", "floor", product(1), modes=("forward", "no-grad")),
        Contender("3 matrix products", "floor", product(3), modes=("forward+backward",)),
    ]
    return Work(
        f"{name}, against {sweep}" if sweep else name,
        {"K": pairs, "D": width},
        lambda: embeddings(pairs, width),
        contenders,
        lambda made: prepared(unfused, made),
        modes=modes,
        sweep=sweep,
        value_tolerance=2e-5,
        gradient_tolerance=2e-4,
    )


def unfused(clips: Tensor, captions: Tensor) -> Tensor:
    cosines = normalize(clips, dim=-1) @ normalize(captions, dim=-1).mT
    return naive.clip_caption(cosines / TEMPERATURE)


def module(
    solver: Callable[[int], AbstractSinkhorn], chunk_rows: int | None, made: Inputs
) -> Prepared:
    clips = made["clips"]
    loss = ClipCaptionOTLoss(
        sinkhorn=solver(naive.STEPS),
        temperature=TEMPERATURE,
        learnable_temperature=False,
        chunk_rows=chunk_rows,
    ).to(clips.device)
    return prepared(lambda clips, captions: loss(clips, captions), made)


def product(count: int) -> Callable[[Inputs], Prepared]:
    def prepare(made: Inputs) -> Prepared:
        clips, captions = made["clips"].detach(), made["captions"].detach()
        logits = clips @ captions.mT
        gradient = torch.empty_like(clips)

        def multiply() -> None:
            torch.mm(clips, captions.mT, out=logits)
            if count == 3:
                torch.mm(logits, captions, out=gradient)
                torch.mm(logits.mT, clips, out=gradient)

        return Prepared(multiply)

    return prepare
