"""The output of retrieval: scores, recalls and median ranks, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from norton_losses.metrics import retrieval_ranks

KS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalMetrics:
    """How well one side finds the other.

    Attributes:
        recalls: share of queries whose truth is among the first k, for k = 1, 5 and 10.
        median_rank: of the truth, counted from 1.
    """

    recalls: Mapping[int, float]
    median_rank: float


@dataclass(frozen=True, eq=False)
class RetrievalOutput:
    """Scores of all videos with all paragraphs, and the metrics of both directions.

    Attributes:
        scores: (Bv, Bt), on the CPU.
        video_to_paragraph: a video looks for its paragraph.
        paragraph_to_video: a paragraph looks for its video, or for the best of them.
        seconds: what scoring took.
    """

    scores: Tensor
    video_to_paragraph: RetrievalMetrics
    paragraph_to_video: RetrievalMetrics
    seconds: float

    def table(self, name: str = "scores") -> str:
        """:func:`retrieval_table` of this output alone."""
        return retrieval_table({name: self})

    def __str__(self) -> str:
        return self.table()


def retrieval_metrics(scores: Tensor, truth: NDArray[Any]) -> RetrievalMetrics:
    """Of queries in rows; the truth as in :func:`~norton_losses.metrics.retrieval_ranks`."""
    ranks = retrieval_ranks(scores, truth)
    recalls = {k: float((ranks < k).mean()) for k in KS}
    return RetrievalMetrics(recalls, float(np.median(ranks) + 1))


def retrieval_table(outputs: Mapping[str, RetrievalOutput]) -> str:
    """A table of recalls in per cent and median ranks, a row for each output and direction.

    Args:
        outputs: by the name that the table shows.

    Source: R@k and MedR of :mod:`norton_losses.metrics`.

    Example:
        >>> import torch
        >>> from norton_losses.retrieval import retrieval_table, retrieve
        >>> clips = [torch.eye(6)[i : i + 3] for i in range(4)]
        >>> print(retrieval_table({"dtw": retrieve("dtw", clips, clips, progress=False)}))
        measure  direction               R@1    R@5   R@10   MedR
        dtw      video -> paragraph    100.0  100.0  100.0    1.0
                 paragraph -> video    100.0  100.0  100.0    1.0
    """
    head = "".join(f"{f'R@{k}':>7}" for k in KS)
    room = 2 + max(len(name) for name in ("measure", *outputs))
    lines = [f"{'measure':{room}}{'direction':20}{head}{'MedR':>7}"]
    for name, output in outputs.items():
        for direction in ("video_to_paragraph", "paragraph_to_video"):
            metrics: RetrievalMetrics = getattr(output, direction)
            cells = "".join(f"{100 * metrics.recalls[k]:7.1f}" for k in KS)
            title = direction.replace("_to_", " -> ")
            lines.append(f"{name:{room}}{title:20}{cells}{metrics.median_rank:7.1f}")
            name = ""
    return "\n".join(lines)
