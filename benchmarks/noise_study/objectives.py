"""The objectives of the study by name, and the ladders of settings that the search climbs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.noise_study.rivals import (
    MILNCE,
    Floored,
    RampedWeight,
    SequenceContrast,
    TokenMaxContrast,
)
from examples.handwritten_howto.towers import PerfectTowers, Towers
from examples.paragraph_alignment.evaluation import diagonal
from norton_losses import (
    AbstractSequenceMeasure,
    AbstractTokenSimilarity,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    SoftMaximumSimilarity,
    TransportMeasure,
)
from norton_losses.sequence_measures import MeasureFunction

# A search moves along a ladder while the validation score rises, from the start that is named here.
LADDERS: dict[str, tuple[float, ...]] = {
    "learning_rate": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "temperature": (0.05, 0.1, 0.2, 0.4, 0.8, 1.0),  # of the clip-caption contrast, learned
    "scale": (1.25, 2.5, 5.0, 10.0, 20.0, 40.0),  # of sequences, 1 / temperature, fixed
    "weight": (0.3, 1.0, 3.0),  # of the video-paragraph term
    "window": (0, 1, 2, 4, 16),  # of MIL-NCE, in captions to either side; 16 is the whole video
    "smoothing": (0.0, 0.01, 0.1, 1.0),  # of the minimum of an alignment
    "pooled_weight": (0.0, 0.5),  # of the mean embeddings, beside the best tokens
}
START: dict[str, float] = {
    "learning_rate": 1e-3,
    "temperature": 0.2,
    "scale": 10.0,
    "weight": 1.0,
    "window": 1,
    "smoothing": 0.1,
    "pooled_weight": 0.5,
}


@dataclass(frozen=True)
class Objective:
    """What builds a loss from the knobs that are searched, all but the learning rate."""

    build: Callable[..., nn.Module]
    knobs: tuple[str, ...] = ()  # beside the learning rate
    like: str | None = None  # no search: those of its knobs that were found for this objective
    towers: Callable[[int], Towers] = Towers  # from their width

    @property
    def all_knobs(self) -> tuple[str, ...]:
        """In the order of the search."""
        return (*self.knobs, "learning_rate")


def norton(
    similarity: AbstractTokenSimilarity | None = None,
    measure: AbstractSequenceMeasure | MeasureFunction | None = None,
    *,
    beta: float = 0.3,
    temperature: float = 0.2,
    scale: float = 10.0,
    weight: float = 1.0,
    normalize: bool = True,
    **of_videos: Any,
) -> NortonLoss:
    """`NortonLoss()`, with one thing replaced or another."""
    return NortonLoss(
        NortonVideoParagraphLoss(similarity, measure, temperature=1 / scale, **of_videos),
        ClipCaptionOTLoss(beta, temperature=temperature, normalize=normalize),
        weight=weight,
    )


def variant(build: Callable[..., nn.Module]) -> Objective:
    """Of `NortonLoss`, with its settings."""
    return Objective(build, like="NortonLoss")


def _bucket(ratio: float) -> TransportMeasure:
    return TransportMeasure(bucket=ratio)


def _without_bucket() -> TransportMeasure:
    return TransportMeasure(bucket=None)


def _floored() -> NortonLoss:
    loss = norton()
    loss.video_paragraph.temperature = Floored(0.1, 0.07)  # type: ignore[assignment]
    return loss


# By name: each with its own learning rate, temperature and scale.
RIVALS: dict[str, Objective] = {
    "InfoNCE": Objective(lambda **knobs: ClipCaptionOTLoss(beta=0.0, **knobs), ("temperature",)),
    "MIL-NCE": Objective(
        lambda temperature, window: MILNCE(temperature, int(window)), ("window", "temperature")
    ),
    "token max (FILIP)": Objective(TokenMaxContrast, ("temperature", "pooled_weight")),
    "DTW contrast (TempCLR)": Objective(
        lambda smoothing, **knobs: SequenceContrast(
            DynamicTimeWarping(smoothing), shuffled=8, **knobs
        ),
        ("scale", "weight", "temperature", "smoothing"),
    ),
    "OTAM contrast": Objective(
        lambda smoothing, **knobs: SequenceContrast(OrderedAlignment(smoothing), **knobs),
        ("scale", "weight", "temperature", "smoothing"),
    ),
    "diagonal for transport": Objective(
        lambda **knobs: norton(measure=diagonal, **knobs), ("scale", "weight", "temperature")
    ),
    "caption average for transport": Objective(
        lambda **knobs: norton(measure=CaptionAverage(), **knobs),
        ("scale", "weight", "temperature"),
    ),
    "ClipCaptionOTLoss": Objective(ClipCaptionOTLoss, ("temperature",)),
    "NortonVideoParagraphLoss": Objective(
        lambda scale: NortonVideoParagraphLoss(temperature=1 / scale), ("scale",)
    ),
    "NortonLoss": Objective(NortonLoss),
    "NortonLoss, tuned": Objective(norton, ("scale", "weight", "temperature")),
    "NortonLoss.released": Objective(NortonLoss.released),
    "NortonLoss.paper": Objective(NortonLoss.paper),
}

# The rows of the published ablation; A is InfoNCE and B ClipCaptionOTLoss.
ABLATION: dict[str, Objective] = {
    "A no video-paragraph term": Objective(
        lambda **knobs: ClipCaptionOTLoss(beta=0.0, **knobs), ("temperature",), like="InfoNCE"
    ),
    "B + faulty negatives": Objective(ClipCaptionOTLoss, ("temperature",), like="InfoNCE"),
    "C mean of tokens": variant(lambda: norton(MeanSimilarity(), _without_bucket())),
    "D maximum of tokens": variant(lambda: norton(MaxSimilarity(), _without_bucket())),
    "E soft maximum, alpha 0.1": variant(
        lambda: norton(SoftMaximumSimilarity(0.1), _without_bucket())
    ),
    "F soft maximum, alpha 0.2": variant(
        lambda: norton(SoftMaximumSimilarity(0.2), _without_bucket())
    ),
    "G soft maximum, alpha 1": variant(
        lambda: norton(SoftMaximumSimilarity(1.0), _without_bucket())
    ),
    "H bucket 10 %": variant(lambda: norton(measure=_bucket(0.1))),
    "I bucket 30 %": variant(norton),
    "J bucket 50 %": variant(lambda: norton(measure=_bucket(0.5))),
}

# What the hypotheses need beside those.
VARIANTS: dict[str, Objective] = {
    "learned video-paragraph temperature": variant(lambda: norton(learnable_temperature=True)),
    "learned, floor 0.07": variant(_floored),
    "fixed clip-caption temperature": variant(
        lambda: NortonLoss(
            clip_caption=ClipCaptionOTLoss(0.3, temperature=0.2, learnable_temperature=False)
        )
    ),
    "clip-caption temperature 0.4": variant(lambda: norton(temperature=0.4)),
    "clip-caption temperature 0.8": variant(lambda: norton(temperature=0.8)),
    "scale 5": variant(lambda: norton(scale=5.0)),
    "scale 20": variant(lambda: norton(scale=20.0)),
    "beta 0": variant(lambda: norton(beta=0.0)),
    "beta 0.6": variant(lambda: norton(beta=0.6)),
    "learnable bucket": variant(
        lambda: norton(
            measure=TransportMeasure(bucket=PromptBucket(learnable=True), objective="entropic")
        )
    ),
    "entropic": variant(lambda: norton(measure=TransportMeasure(objective="entropic"))),
    "raw dot products": variant(lambda: norton(normalize=False)),
    "InfoNCE of raw dot products": Objective(
        lambda **knobs: ClipCaptionOTLoss(beta=0.0, normalize=False, **knobs),
        ("temperature",),
        like="InfoNCE",
    ),
    "weight 0.3": variant(lambda: norton(weight=0.3)),
    "weight 3": variant(lambda: norton(weight=3.0)),
    "weight ramped": variant(lambda: RampedWeight(norton(), 250)),
    "min-max": variant(lambda: norton(SoftMaximumSimilarity(rescale="minmax"))),
    "sum of exponentials": variant(lambda: norton(SoftMaximumSimilarity(exponential="sum"))),
    "pooled cosine alone": variant(lambda: norton(SoftMaximumSimilarity(pooled_weight=1.0))),
    "scale by length": variant(lambda: norton(scale_by_length=True)),
}

# At every scale, for every length of video.
SCALES: dict[str, Objective] = {
    f"NortonLoss, scale {scale:g}": variant(lambda scale=scale: norton(scale=scale))
    for scale in LADDERS["scale"]
}

# What nothing is trained for: the most that a task leaves to reach.
CEILING = "perfect towers"

OBJECTIVES: dict[str, Objective] = {
    **RIVALS,
    **ABLATION,
    **VARIANTS,
    **SCALES,
    CEILING: Objective(ClipCaptionOTLoss, towers=lambda width: PerfectTowers()),
}
