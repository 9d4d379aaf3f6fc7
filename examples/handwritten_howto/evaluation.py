"""Retrieval on held-out videos, query by query, and what the seeds and videos leave uncertain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from examples.handwritten_howto.corpus import NOTHING, Corpus
from examples.handwritten_howto.towers import Towers
from norton_losses import (
    BackgroundFiltered,
    CaptionAverage,
    DynamicTimeWarping,
    OrderedAlignment,
    Segments,
    TransportMeasure,
)
from norton_losses.metrics import retrieval_ranks
from norton_losses.retrieval import retrieve

CLIPS = "clip → caption"
# Videos without their background clips, then with them: warping and ordered alignment have to
# match every clip, so they leave out what fits no caption, as the YouCookII protocol does.
BARE = {
    "caption average": CaptionAverage(),
    "DTW": DynamicTimeWarping(),
    "OTAM": OrderedAlignment(),
    "transport": TransportMeasure(),
}
WITH_BACKGROUND = {
    "caption average, background": CaptionAverage(),
    "DTW, background": BackgroundFiltered(DynamicTimeWarping()),
    "OTAM, background": BackgroundFiltered(OrderedAlignment()),
    "transport, background": TransportMeasure(),
}
MEASURES = (CLIPS, *BARE, *WITH_BACKGROUND)


@torch.no_grad()
def evaluate(towers: Towers, held_out: Corpus) -> dict[str, np.ndarray]:
    """Share of hits at rank 1 for each video (B,), under each name in `MEASURES`.

    Every objective is judged by the same thing, the cosine of mean embeddings. A clip finds its
    caption if the first caption names exactly its digits; a video finds its paragraph if that
    ranks first, ties counting as half a place. Background clips have no caption.
    """
    clips, captions = (side.embeddings for side in towers(held_out))
    content = held_out.clip_step != NOTHING
    hits = {CLIPS: _clip_hits(clips, captions, content, held_out.recipe)}
    for measures, clip_mask in ((BARE, content), (WITH_BACKGROUND, torch.ones_like(content))):
        for name, measure in measures.items():
            found = retrieve(
                measure,
                Segments(clips, mask=clip_mask),
                Segments(captions, mask=content),
                progress=False,
            )
            hits[name] = (retrieval_ranks(found.scores) < 1).astype(np.float64)
    return hits


def interval(hits: np.ndarray, rng: np.random.Generator, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of hits (seeds, videos), resampling both."""
    seeds, videos = hits.shape
    rows = rng.integers(seeds, size=(draws, seeds, 1))
    columns = rng.integers(videos, size=(draws, 1, videos))
    low, high = np.percentile(hits[rows, columns].mean((1, 2)), [2.5, 97.5])
    return float(low), float(high)


def _clip_hits(clips: Tensor, captions: Tensor, content: Tensor, recipe: Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize
    scores = unit(clips[content], dim=-1) @ unit(captions[content], dim=-1).T
    steps = recipe[content]
    right = (steps[scores.argmax(1)] == steps).all(-1).float()
    per_clip = torch.zeros(content.shape).masked_scatter(content, right)
    return (per_clip.sum(1) / content.sum(1).clamp(min=1)).numpy()
