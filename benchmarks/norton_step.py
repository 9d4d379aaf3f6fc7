"""The whole training step, and what each part of the method adds to it.

A step is towers, loss, backward pass and Adam. The objective grows as in the efficiency table of
Lin et al., ICLR 2024, who published the added time of a step on one A100: faulty negatives +5.7 %,
with the video-paragraph term +63 %, with the soft maximum +68 %. The naive form of each objective
stands beside ours. The floor of a step is the towers' own: a trivial loss, backward pass and Adam.

A second kind of work is the objective alone, from tokens, at the paper's batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness.work import (
    Claim,
    Contender,
    Inputs,
    Prepared,
    Size,
    Work,
    function,
    prepared,
)
from benchmarks.inputs import tokens
from benchmarks.token_similarity import FRAMES, WORDS
from benchmarks.towers import FEATURES, VOCABULARY, TowerSizes, build
from norton_losses import (
    ClipCaptionOTLoss,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    Segments,
    TorchSinkhorn,
    TransportMeasure,
)

LENGTH = 8  # clips a video
RELEASED, COMPILED = "NortonLoss.released", "NortonLoss.released, compiled"
RUNGS = ("InfoNCE", "+ faulty negatives", "+ video-paragraph", "+ soft-maximum")
PUBLISHED = {RUNGS[1]: 5.7, RUNGS[2]: 63.0, RUNGS[3]: 68.0}  # per cent over InfoNCE, one A100

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # tokens (B, N, T, D) and masks


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [
            step(2, TowerSizes(16, 1, 1), frames=3, words=4),
            objective(2, 16, frames=3, words=4),
        ]
    small = TowerSizes(256, 2, 2)
    if size == "quick":
        return [step(16, small), objective(4, 64, frames=6, words=10), objective(16, 256)]
    return [
        step(32, small, rounds=11),
        step(128, small, device="cuda"),
        step(128, TowerSizes(768, 6, 12), device="cuda"),
        objective(4, 64, frames=6, words=10),
        objective(32, 768),
        objective(
            128,
            768,
            claims=(
                Claim(RELEASED, "naive", "faster", at_least=3.5),
                Claim(RELEASED, "naive", "less memory", at_least=8.0),
            ),
        ),
    ]


def step(
    videos: int,
    sizes: TowerSizes,
    *,
    frames: int = FRAMES,
    words: int = WORDS,
    rounds: int = 3,
    device: str | None = None,
) -> Work:
    clips = videos * LENGTH
    token_tensor = 4.0 * clips**2 * frames * words

    def inputs() -> Inputs:
        g = torch.Generator().manual_seed(0)
        made = tokens(clips, frames, words, 1, ragged=True)
        return {
            "features": torch.randn(clips, frames, FEATURES, generator=g),
            "words": torch.randint(VOCABULARY, (clips, words), generator=g),
            "frame_mask": made["frame_mask"],
            "word_mask": made["word_mask"],
        }

    def trained(objective: Objective) -> Callable[[Inputs], Prepared]:
        return lambda made: training(sizes, objective, made)

    contenders: list[Contender] = []
    for name, our, their, definition in zip(
        RUNGS, our_objectives(), NAIVE.values(), DEFINITIONS.values(), strict=True
    ):
        reference, against = trained(definition), f"naive {name}"
        materialised = 3 * token_tensor if name == RUNGS[3] else 0.0
        contenders += [
            Contender(name, "ours", trained(our), against=against, reference=reference),
            Contender(
                against, "naive", trained(their), reference=reference, bytes_needed=materialised
            ),
        ]
    return Work(
        f"step of {videos} videos of {LENGTH} clips, D {sizes.width}, {sizes.video_layers} + "
        f"{sizes.text_layers} layers, ragged",
        {"B": videos, "N": LENGTH, "K": clips, "F": frames, "W": words, "D": sizes.width},
        inputs,
        (*contenders, Contender("the towers alone", "floor", trained(nothing))),
        trained(NAIVE[RUNGS[0]]),
        modes=("training step",),
        value_tolerance=1e-4,
        gradient_tolerance=1e-3,
        fewest_rounds=rounds,
        device=device,
        claims=[
            Claim(prefix + name, prefix + RUNGS[0], "added time", published=PUBLISHED[name])
            for prefix in ("", "naive ")
            for name in RUNGS[1:]
        ],
    )


def objective(
    videos: int,
    width: int,
    *,
    frames: int = FRAMES,
    words: int = WORDS,
    claims: tuple[Claim, ...] = (),
) -> Work:
    """``NortonLoss.released`` alone, from tokens, both terms."""
    clips = videos * LENGTH

    def inputs() -> Inputs:
        return tokens(clips, frames, words, width, ragged=True, length=LENGTH)

    of_products = 4.0 * clips**2 * frames * words
    return Work(
        f"NortonLoss.released of {clips} clips, D {width}, ragged",
        {"B": videos, "N": LENGTH, "K": clips, "F": frames, "W": words, "D": width},
        inputs,
        (
            Contender(RELEASED, "ours", released),
            Contender(COMPILED, "ours", released_compiled, compiles=True),
            function("naive", "naive", naive.released_loss, bytes_needed=3 * of_products),
        ),
        lambda made: prepared(DEFINITIONS[RUNGS[3]], made),
        modes=("forward+backward",),
        value_tolerance=2e-5,
        gradient_tolerance=1e-3,
        claims=claims,
    )


def released(made: Inputs) -> Prepared:
    return prepared(of_tokens(NortonLoss.released()), made)


def released_compiled(made: Inputs) -> Prepared:
    return prepared(of_tokens(torch.compile(NortonLoss.released())), made)  # pyright: ignore


def training(sizes: TowerSizes, objective: Objective, made: Inputs) -> Prepared:
    """Towers of the same weights for everyone, and their optimiser."""
    features, words = made["features"], made["words"]
    frame_mask, word_mask = made["frame_mask"], made["word_mask"]
    towers = build(sizes, features)
    optimizer = torch.optim.Adam(towers.parameters(), lr=1e-5)

    def loss() -> Tensor:
        optimizer.zero_grad()
        video, text = towers(features, words, frame_mask, word_mask)
        sequences = (t.unflatten(0, (-1, LENGTH)) for t in (video, text, frame_mask, word_mask))
        return objective(*sequences)

    return Prepared(loss, list(towers.parameters()), step=optimizer.step)


def our_objectives() -> list[Objective]:
    solver = TorchSinkhorn(naive.STEPS)
    measure = TransportMeasure(0.1, 0.3, solver)
    by_means = NortonVideoParagraphLoss(
        MeanSimilarity(rescale="minmax"), measure, temperature=0.07, scale_by_length=True
    )
    rectified = ClipCaptionOTLoss(0.3, sinkhorn=solver, normalize=False, temperature=None)
    infonce = ClipCaptionOTLoss(0.0, normalize=False, temperature=None)
    both = NortonLoss(by_means, rectified, weight=0.1), NortonLoss.released()
    return [of_embeddings(infonce), of_embeddings(rectified), *map(of_tokens, both)]


def of_embeddings(loss: ClipCaptionOTLoss) -> Objective:
    return lambda video, text, frame_mask, word_mask: loss(
        naive.masked_mean(video, frame_mask), naive.masked_mean(text, word_mask)
    )


def of_tokens(loss: NortonLoss) -> Objective:
    return lambda video, text, frame_mask, word_mask: loss.to(video.device)(
        Segments(video, frame_mask), Segments(text, word_mask)
    )


def naive_clip_caption(beta: float) -> Objective:
    def compute(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
        clips = naive.masked_mean(video, frame_mask).flatten(0, 1)
        captions = naive.masked_mean(text, word_mask).flatten(0, 1)
        return naive.clip_caption(clips @ captions.mT, beta)

    return compute


def nothing(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    return (video * frame_mask[..., None]).mean() + (text * word_mask[..., None]).mean()


NAIVE: dict[str, Objective] = {
    RUNGS[0]: naive_clip_caption(0.0),
    RUNGS[1]: naive_clip_caption(0.3),
    RUNGS[2]: naive.mean_pooled_loss,
    RUNGS[3]: naive.released_loss,
}
DEFINITIONS: dict[str, Objective] = {
    **NAIVE,
    RUNGS[3]: partial(naive.released_loss, by_blocks=True),
}
