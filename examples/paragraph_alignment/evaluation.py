"""Retrieval of paragraphs and alignment of sentences, always beside the plain diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from examples.paragraph_alignment.annotations import Paragraph, overlap
from norton_losses import (
    AbstractSequenceMeasure,
    CaptionAverage,
    DynamicTimeWarping,
    OrderedAlignment,
    TransportMeasure,
)
from norton_losses.metrics import retrieval_ranks
from norton_losses.retrieval import retrieve


def diagonal(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
    """Mean similarity of sentence i with sentence i."""
    values = similarity.diagonal(dim1=-2, dim2=-1)
    n = values.shape[-1]
    both = clip_mask[:, None, :n] & caption_mask[None, :, :n]
    return values.masked_fill(~both, 0).sum(-1) / both.sum(-1).clamp(min=1)


RETRIEVAL = {
    "diagonal": diagonal,
    "caption average": CaptionAverage(),
    "DTW": DynamicTimeWarping(),
    "OTAM": OrderedAlignment(),
    "transport": TransportMeasure(),
}
ALIGNMENT: dict[str, AbstractSequenceMeasure | None] = {
    "aligned by number": None,
    "aligned by best cosine": None,
    "aligned by DTW": DynamicTimeWarping(),
    "aligned by transport": TransportMeasure(bucket=None),
}
MEASURES = (*RETRIEVAL, *ALIGNMENT)


def evaluate(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    paragraphs: Sequence[tuple[Paragraph, Paragraph]],
) -> dict[str, np.ndarray]:
    """Hits of each video (B,) under each name in `MEASURES`, from embeddings (n, D) of sentences.

    Retrieval: whether the second annotator's paragraph ranks first for the first one's. Alignment:
    the share of the second's sentences that find the sentence of the first with which they share
    the most time. Sentences that share time with none are not asked; a video without others has
    NaN.
    """
    hits = {}
    for name, measure in RETRIEVAL.items():
        scores = retrieve(measure, list(first), list(second), progress=False).scores
        hits[name] = (retrieval_ranks(scores) < 1).astype(np.float64)
    for name in ALIGNMENT:
        hits[name] = np.array(
            [
                _share_found(name, normalize(one, dim=-1) @ normalize(other, dim=-1).T, both)
                for one, other, both in zip(first, second, paragraphs, strict=True)
            ]
        )
    return hits


def _share_found(name: str, cosines: Tensor, paragraphs: tuple[Paragraph, Paragraph]) -> float:
    shared = overlap(*paragraphs)  # (n, m) seconds
    asked = shared.any(0)
    if not asked.any():
        return float("nan")
    found = _partners(name, cosines)
    right = np.take_along_axis(shared, found[None], axis=0)[0] == shared.max(0)
    return float(right[asked].mean())


def _partners(name: str, cosines: Tensor) -> np.ndarray:
    """For each sentence of the second annotator (m,) the number of one of the first."""
    n, m = cosines.shape
    measure = ALIGNMENT[name]
    if name == "aligned by number":
        return np.arange(m).clip(max=n - 1)
    if measure is None:
        return cosines.argmax(0).numpy()
    out = measure.explain(cosines[None, None])
    if out.plan is not None:
        return out.plan.core[0, 0].argmax(0).numpy()
    assert out.alignment is not None
    # Of several sentences that the path visits beside this one the most similar.
    on_path = out.alignment[0, 0] > 0
    return cosines.masked_fill(~on_path, -torch.inf).argmax(0).numpy()
