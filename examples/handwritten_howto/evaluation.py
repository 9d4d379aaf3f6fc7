"""Retrieval on held-out videos, query by query, and what the seeds and videos leave uncertain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from examples.handwritten_howto.corpus import NOTHING, Corpus, Noise, make_corpus
from examples.handwritten_howto.scans import Split
from examples.handwritten_howto.towers import Towers
from norton_losses import (
    AbstractSequenceMeasure,
    CaptionAverage,
    DynamicTimeWarping,
    OrderedAlignment,
    TransportMeasure,
)
from norton_losses.metrics import retrieval_ranks

CLIPS = "clip → caption"
SEQUENCE_MEASURES: dict[str, AbstractSequenceMeasure] = {
    "caption average": CaptionAverage(),
    "DTW": DynamicTimeWarping(),
    "OTAM": OrderedAlignment(),
    "transport": TransportMeasure().for_retrieval(),
}
KINDS = {"clean": "", "shuffled": ", shuffled", "noisy": ", noisy"}
MEASURES = (CLIPS, *(m + kind for kind in KINDS.values() for m in SEQUENCE_MEASURES))
_REPLACED_STEPS = 0.25  # of a paragraph that almost fits
_TILE = 32  # videos


class Candidates(NamedTuple):
    """Videos with their paragraphs, and perhaps paragraphs that almost fit, one for each."""

    corpus: Corpus
    distractors: Corpus | None = None


@dataclass(frozen=True)
class HeldOut:
    """As many videos of three kinds: without noise, told in random order, noisy as in training.

    The first two have the same footage. Paragraphs without noise tell their recipe nearly in order:
    neighbouring steps are swapped as in training. Beside each stands another that almost fits, with
    a quarter of its steps replaced. Among noise that would fit as well as the right one does.
    """

    clean: Candidates
    shuffled: Candidates
    noisy: Candidates

    @classmethod
    def draw(cls, videos: int, split: Split, *, noise: Noise | None = None, seed: int) -> HeldOut:
        noise = noise or Noise()
        quiet = replace(Noise.none(), swapped_steps=Noise().swapped_steps)

        def with_distractors(**options: Any) -> Candidates:
            made = (
                make_corpus(videos, split, noise=quiet, seed=seed, replaced_steps=share, **options)
                for share in (0.0, _REPLACED_STEPS)
            )
            return Candidates(*made)

        noisy = make_corpus(videos, split, noise=noise, seed=seed + 1)
        return cls(with_distractors(), with_distractors(order="shuffled"), Candidates(noisy))


@torch.no_grad()
def evaluate(towers: Towers, held_out: HeldOut) -> dict[str, np.ndarray]:
    """Share of hits at rank 1 for each video (B,), under each name in `MEASURES`.

    Every objective is judged by the same thing, the cosine of mean embeddings. A clip finds its
    caption if the first caption of the clean paragraphs names exactly its digits; a video finds its
    paragraph if that ranks first, ties counting as half a place.
    """
    hits = {CLIPS: clip_hits(towers, held_out.clean.corpus)}
    for kind, suffix in KINDS.items():
        for name, ranks in paragraph_ranks(towers, getattr(held_out, kind)).items():
            hits[name + suffix] = (ranks < 1).astype(np.float64)
    return hits


@torch.no_grad()
def clip_hits(towers: Towers, corpus: Corpus) -> np.ndarray:
    """Share of each video's clips (B,) whose nearest caption of all tells the step they show."""
    clips, captions = (normalize(side.embeddings, dim=-1) for side in towers(corpus))
    shown, told = corpus.clip_place != NOTHING, corpus.caption_place != NOTHING
    nearest = (clips[shown] @ captions[told].T).argmax(1)
    right = corpus.caption_step[told][nearest] == corpus.clip_step[shown]
    per_clip = torch.zeros(shown.shape).masked_scatter(shown, right.float())
    return (per_clip.sum(1) / shown.sum(1).clamp(min=1)).numpy()


@torch.no_grad()
def paragraph_ranks(
    towers: Towers, candidates: Candidates, measures: dict[str, Any] = SEQUENCE_MEASURES
) -> dict[str, np.ndarray]:
    """Rank (B,) of each video's paragraph among those of its own length, by each measure.

    A length that tells the paragraph would be a leak.
    """
    corpus, near = candidates
    clips, captions = (normalize(side.embeddings, dim=-1) for side in towers(corpus))
    if near is not None:
        captions = torch.cat([captions, normalize(towers.read(near).embeddings, dim=-1)])
    lengths = corpus.lengths
    ranks = {name: np.empty(len(corpus)) for name in measures}
    for n in lengths.unique().tolist():
        videos = (lengths == n).nonzero().flatten()
        paragraphs = videos if near is None else torch.cat([videos, len(corpus) + videos])
        told = captions[paragraphs, :n]
        tiles = [
            torch.einsum("and,bmd->abnm", shown, told).contiguous()
            for shown in clips[videos, :n].split(_TILE)
        ]
        for name, measure in measures.items():
            scores = torch.cat([measure(tile) for tile in tiles])
            ranks[name][videos] = retrieval_ranks(scores, torch.arange(len(videos)))
    return ranks


def interval(
    values: np.ndarray, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values (seeds, videos), resampling both."""
    seeds, videos = values.shape
    rows = rng.integers(seeds, size=(draws, seeds, 1))
    columns = rng.integers(videos, size=(draws, 1, videos))
    low, high = np.percentile(values[rows, columns].mean((1, 2)), [2.5, 97.5])
    return float(low), float(high)
