"""The parts of the study: lists of runs, each of which answers a question of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from benchmarks.noise_study.objectives import ABLATION, CEILING, RIVALS, SCALES, VARIANTS
from benchmarks.noise_study.run import Run
from benchmarks.noise_study.search import Chosen, start_of

SEEDS = range(5)
MORE_SEEDS = range(10)  # where objectives are compared, and corrected for many comparisons
HEADLINE = (
    "InfoNCE",
    "MIL-NCE",
    "caption average for transport",
    "NortonVideoParagraphLoss",
    "NortonLoss",
)
# What is searched for, and at which noise.
SEARCHES = (
    *((name, "default") for name in RIVALS),
    *((name, "none") for name in HEADLINE),
)
LEVELS = (0.2, 0.4, 0.6, 0.8)
# Every second level of the kinds that a pilot found to matter less.
NOISES = (
    ("none", 0.0),
    *((kind, level) for kind in ("all", "asynchrony") for level in LEVELS),
    *(
        (kind, level)
        for kind in ("off-topic captions", "background clips", "frames and words")
        for level in LEVELS[1::2]
    ),
)
# Of these the study set out to claim something, at these noises.
CLAIMED = ("InfoNCE", "MIL-NCE", "NortonLoss")
TARGETS = [
    ("none", 0.0),
    *((kind, level) for kind in ("all", "asynchrony") for level in LEVELS if level >= 0.3),
]
LENGTHS = ((4, 4), (8, 8), (16, 16), (32, 32))
BATCHES = (4, 16)
OFF_TOPIC = (("none", 0.0), ("off-topic captions", 0.6), ("background clips", 0.6))

# From the name of an objective, and a noise other than the default one to search at.
Choose = Callable[..., Chosen]
Part = Callable[[Choose], list[Run]]


def at_default(names: Iterable[str], seeds: Iterable[int] = SEEDS) -> Part:
    """Objectives at the default noise."""

    def part(choose: Choose) -> list[Run]:
        return [Run(name, choose(name), seed=seed) for seed in seeds for name in names]

    return part


def objectives(choose: Choose) -> list[Run]:
    """Every rival at the default noise, between what chance and what perfect towers reach."""
    untrained = [Run("InfoNCE", choose("InfoNCE"), seed=seed, steps=0) for seed in SEEDS]
    ceiling = Run(CEILING, start_of(CEILING), steps=0)
    return [*untrained, ceiling, *at_default(RIVALS, MORE_SEEDS)(choose)]


def defaults(choose: Choose) -> list[Run]:
    """Whether tuned settings would be better defaults: of little noise and much, cold and warm."""
    cold = [("none", 0.0), ("default", 0.0), ("asynchrony", 0.6), ("all", 0.6)]
    return [
        Run(name, choose(name), kind, level, seed, steps=500 - 250 * warm, warm_steps=500 * warm)
        for seed in SEEDS
        for warm in (False, True)
        for kind, level in cold[: 2 if warm else None]
        for name in ("NortonLoss", "NortonLoss, tuned")
    ]


def noise(choose: Choose) -> list[Run]:
    """The headline objectives at every kind and level of noise.

    Without noise with the settings found there as well, which suit an objective that is misled by
    noise better than those found at the default noise.
    """
    settings = [(kind, level, name, choose(name)) for kind, level in NOISES for name in HEADLINE]
    settings += [("none", 0.0, name, choose(name, "none")) for name in HEADLINE]
    runs = [Run(name, chosen, kind, level) for kind, level, name, chosen in settings]
    claimed = [
        run for run in runs if run.objective in CLAIMED and (run.noise, run.level) in TARGETS
    ]
    return [
        replace(run, seed=seed)
        for seed in MORE_SEEDS
        for run in (runs if seed in SEEDS else claimed)
    ]


def warm(choose: Choose) -> list[Run]:
    """250 steps more after 500 of InfoNCE, as the paper goes on from a trained model."""
    names = (
        *HEADLINE,
        "NortonLoss, tuned",
        "NortonLoss.released",
        "NortonLoss.paper",
        "ClipCaptionOTLoss",
        "clip-caption temperature 0.4",
        "weight 3",
        "raw dot products",
        "InfoNCE of raw dot products",
    )
    return [
        Run(name, choose(name), seed=seed, steps=250, warm_steps=500)
        for seed in SEEDS
        for name in names
    ]


def bucket(choose: Choose) -> list[Run]:
    """The bucket and faulty negatives with and without anything for them to find.

    The more videos a batch has, the more captions in it tell the step of a clip that is not theirs.
    """
    with_bucket = (
        "E soft maximum, alpha 0.1",
        "NortonLoss",
        "J bucket 50 %",
        "learnable bucket",
        "entropic",
    )
    faulty = ("NortonLoss", "beta 0", "B + faulty negatives", "A no video-paragraph term")
    runs = [
        Run(name, choose(name), kind, level, seed)
        for seed in SEEDS
        for kind, level in OFF_TOPIC
        for name in dict.fromkeys((*with_bucket, *faulty))
    ]
    return runs + [
        Run(name, choose(name), seed=seed, batch_videos=videos)
        for seed in SEEDS
        for videos in BATCHES
        for name in faulty
    ]


def curves(choose: Choose) -> list[Run]:
    """Four times the steps, examined on the way, on fewer videos."""
    names = (
        *HEADLINE,
        "learned video-paragraph temperature",
        "learned, floor 0.07",
        "fixed clip-caption temperature",
        "pooled cosine alone",
    )
    return [
        Run(name, choose(name), seed=seed, steps=2000, every=250, videos=300)
        for seed in SEEDS[:3]
        for name in names
    ]


def scales(choose: Choose) -> list[Run]:
    """The scale of the video-paragraph logits for lengths, batches and widths."""
    names = (*SCALES, "scale by length", "InfoNCE")
    make = partial(Run, videos=300)
    runs: Iterable[Run] = (make(name, choose(name), seed=s) for s in SEEDS[:3] for name in names)
    changes = (
        *({"lengths": lengths} for lengths in LENGTHS),
        *({"batch_videos": videos} for videos in BATCHES),
        *({"width": width} for width in (32, 128)),
    )
    return [replace(run, **change) for run in runs for change in changes]  # type: ignore[arg-type]


def quick(choose: Choose) -> list[Run]:
    """Three objectives, two noises, two seeds, a short training: does all of it work?"""
    return [
        Run(name, choose(name), kind, 0.0, seed, steps=200, videos=300)
        for seed in (0, 1)
        for kind in ("none", "default")
        for name in ("InfoNCE", "MIL-NCE", "NortonLoss")
    ]


PARTS: dict[str, Part] = {
    "objectives": objectives,
    "defaults": defaults,
    "variants": at_default(VARIANTS),
    "warm": warm,
    "noise": noise,
    "ablation": at_default(ABLATION),
    "bucket": bucket,
    "curves": curves,
    "scales": scales,
}
