"""The output of retrieval: scores, recalls and median ranks, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from norton_losses._arrays import Array, as_numpy, check_index
from norton_losses.metrics import invert_truth, retrieval_ranks

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
        seconds: what scoring took; 0 where the scores were there already.
    """

    scores: Tensor
    video_to_paragraph: RetrievalMetrics
    paragraph_to_video: RetrievalMetrics
    seconds: float = 0.0

    @classmethod
    def from_scores(
        cls, scores: Array, truth: Array | None = None, *, seconds: float = 0.0
    ) -> RetrievalOutput:
        """Of scores that are there already, such as those of :meth:`NortonLoss.score`.

        Args:
            scores: (Bv, Bt), of video v with paragraph t, the larger the better.
            truth: (Bv,), integer, the paragraph of each video; None means paragraph i for video i.
            seconds: what scoring took.

        Raises:
            ValueError: scores that are NaN or no numbers, a truth outside the paragraphs.
            TypeError: a truth that is not integer.

        Source: R@k and MedR of :mod:`norton_losses.metrics`.

        Example:
            >>> import torch
            >>> from norton_losses.retrieval import RetrievalOutput
            >>> print(RetrievalOutput.from_scores(torch.eye(20)))
            measure  direction               R@1    R@5   R@10   MedR
            scores   video -> paragraph    100.0  100.0  100.0    1.0
                     paragraph -> video    100.0  100.0  100.0    1.0
        """
        values = as_numpy(scores)
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise ValueError(
                f"scores must be numbers (Bv, Bt), got {values.dtype} of shape {values.shape}"
            )
        table = torch.tensor(np.array(values), device="cpu")
        return ranked(table, read_truth(truth, *table.shape), seconds)

    def table(self, name: str = "scores") -> str:
        """:func:`retrieval_table` of this output alone."""
        return retrieval_table({name: self})

    def __str__(self) -> str:
        return self.table()


def ranked(scores: Tensor, truth: NDArray[np.int64], seconds: float) -> RetrievalOutput:
    """The output of scores (Bv, Bt) on the CPU, which it holds, and of a checked truth (Bv,)."""
    videos = invert_truth(truth, scores.shape[1])
    return RetrievalOutput(scores, _metrics(scores, truth), _metrics(scores.T, videos), seconds)


def read_truth(truth: Array | None, videos: int, paragraphs: int) -> NDArray[np.int64]:
    """The paragraph of each video, checked."""
    if truth is None:
        if videos != paragraphs:
            raise ValueError(
                f"without truth there must be a paragraph for each video, got {videos} videos and "
                f"{paragraphs} paragraphs; pass the index of the paragraph of each video"
            )
        return np.arange(videos)
    return check_index("truth", truth, (videos,), paragraphs)


def _metrics(scores: Tensor, truth: NDArray[Any]) -> RetrievalMetrics:
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
