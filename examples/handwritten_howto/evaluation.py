"""Retrieval on held-out videos, query by query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
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
    def draw(
        cls,
        videos: int,
        split: Split,
        *,
        noise: Noise | None = None,
        seed: int,
        lengths: tuple[int, int] = (12, 16),
    ) -> HeldOut:
        quiet = replace(Noise.none(), swapped_steps=Noise().swapped_steps)

        draw = partial(make_corpus, videos, split, lengths=lengths)

        def with_distractors(**options: Any) -> Candidates:
            shares = (0.0, _REPLACED_STEPS)
            made = (draw(noise=quiet, seed=seed, replaced_steps=s, **options) for s in shares)
            return Candidates(*made)

        noisy = draw(noise=noise, seed=seed + 1)
        return cls(with_distractors(), with_distractors(order="shuffled"), Candidates(noisy))


@torch.no_grad()
def evaluate(towers: Towers, held_out: HeldOut) -> dict[str, np.ndarray]:
    """Share of hits at rank 1 for each video (B,), under each name in `MEASURES`.

    Every objective is judged by the same thing, the cosine of mean embeddings. A clip finds its
    caption if the first caption of the clean paragraphs names exactly its digits; a video finds its
    paragraph if its rank is below 1, where ties share their mean rank.
    """
    hits = {}
    for kind, suffix in KINDS.items():
        corpus, near = getattr(held_out, kind)
        clips, captions = unit_embeddings(towers, corpus)
        if kind == "clean":
            hits[CLIPS] = clip_hits(clips, captions, corpus)
        almost = None if near is None else unit_captions(towers, near)
        ranks = paragraph_ranks(clips, captions, corpus.lengths, almost)
        hits |= {name + suffix: (r < 1).astype(np.float64) for name, r in ranks.items()}
    return hits


def unit_embeddings(towers: Towers, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Of clips (B, N, D) and captions (B, N, D)."""
    clips, captions = (normalize(side.embeddings, dim=-1) for side in towers(corpus))
    return clips, captions


def unit_captions(towers: Towers, corpus: Corpus) -> Tensor:
    """Of captions (B, N, D), without their footage."""
    return normalize(towers.read(corpus).embeddings, dim=-1)


def clip_hits(clips: Tensor, captions: Tensor, corpus: Corpus) -> np.ndarray:
    """Share of each video's clips (B,) whose nearest caption of all tells the step they show."""
    shown, told = corpus.clip_place != NOTHING, corpus.caption_place != NOTHING
    nearest = (clips[shown] @ captions[told].T).argmax(1)
    right = corpus.caption_step[told][nearest] == corpus.clip_step[shown]
    return per_video(right, shown)


def per_video(values: Tensor, where: Tensor) -> np.ndarray:
    """Mean of each video's values (B,), which are given in a row for the entries `where` (B, N)."""
    spread = torch.zeros(where.shape).masked_scatter(where, values.float())
    return (spread.sum(1) / where.sum(1).clamp(min=1)).numpy()


def paragraph_ranks(
    clips: Tensor,
    captions: Tensor,
    lengths: Tensor,
    near: Tensor | None = None,
    measures: Mapping[str, Callable[[Tensor], Tensor]] = SEQUENCE_MEASURES,
) -> dict[str, np.ndarray]:
    """Rank (B,) of each video's paragraph among those of its own length, by each measure.

    A length that tells the paragraph would be a leak. Arguments are unit embeddings (B, N, D), the
    valid entries first, of them (B,), and captions of paragraphs that almost fit, (B, N, D).
    """
    ranks = {name: np.empty(len(clips)) for name in measures}
    for n in lengths.unique().tolist():
        videos = (lengths == n).nonzero().flatten()
        told = torch.cat([side[videos, :n] for side in (captions, near) if side is not None])
        tiles = [
            torch.einsum("and,bmd->abnm", shown, told).contiguous()
            for shown in clips[videos, :n].split(_TILE)
        ]
        for name, measure in measures.items():
            scores = torch.cat([measure(tile) for tile in tiles])
            ranks[name][videos] = retrieval_ranks(scores, torch.arange(len(videos)))
    return ranks
