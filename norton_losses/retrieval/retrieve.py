"""Scores of all videos with all paragraphs, tile by tile.

``videos, paragraphs -> tiles of pairs -> similarity -> measure -> scores (Bv, Bt) -> metrics``
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from norton_losses._arrays import check_index
from norton_losses._checks import check_count
from norton_losses._numerics import full_precision, up_cast, working_dtype
from norton_losses._typing import Range, SequenceMeasure
from norton_losses.metrics import truth_of_candidates
from norton_losses.retrieval.output import RetrievalOutput, retrieval_metrics
from norton_losses.retrieval.ragged import Batch, read_ragged
from norton_losses.sequence_measures import (
    MEASURES,
    TransportMeasure,
    judging_alone,
    measure_named,
)

Sequences: TypeAlias = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]]
_ScoreOfTile: TypeAlias = Callable[[Batch, Batch], Tensor]


def retrieve(
    loss_or_measure: nn.Module | SequenceMeasure | str,
    videos: Sequences,
    paragraphs: Sequences,
    *,
    truth: NDArray[Any] | Tensor | Sequence[int] | None = None,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    bucket_value: float | None = None,
    similarity_range: Range | None = None,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> RetrievalOutput:
    """Score every video with every paragraph, tile by tile, and say how well they find each other.

    A pair's score depends on that pair alone, so the tiling changes nothing but rounding: of equal
    pairs in different tiles the scores may differ in their last digit, and no longer count as a
    tie. Memory is that of one tile, some copies of 2048 clips with 2048 captions, or of one pair if
    that is larger, beside the inputs, their unit vectors and a few copies of the scores.

    Args:
        loss_or_measure: a loss with ``.score``, such as :class:`~norton_losses.NortonLoss`, which
            brings its own similarity; or a measure, such as
            :class:`~norton_losses.DynamicTimeWarping`, of the cosines of clips and captions; or the
            name of one: ``"transport"``, ``"dtw"``, ``"otam"``, ``"caption-average"``.
        videos: a list with one array (n, D) of clip embeddings for each video, or (n, F, D) of
            frame tokens for a loss; or a padded tensor or array (Bv, N, D) or (Bv, N, F, D).
        paragraphs: the same of captions, (m, D) or (m, W, D); or (Bt, M, D) or (Bt, M, W, D).
        truth: (Bv,), integer, the paragraph of each video; None means paragraph i for video i. A
            paragraph of no video is a candidate, and looks for nothing itself.
        clip_mask: (Bv, N), bool, True where valid, of padded videos.
        caption_mask: (Bt, M), bool, of padded paragraphs.
        frame_mask: (Bv, N, F), bool, of padded 4-d videos.
        word_mask: (Bt, M, W), bool, of padded 4-d paragraphs.
        bucket_value: a fixed prompt bucket for a transport, in units of similarity; None means no
            bucket, whatever the measure or the loss was built with, as in the losses' ``score``.
        similarity_range: ``(lo, hi)`` for a loss with ``rescale="minmax"``.
        batch_size: videos, and paragraphs, of a tile at most; fewer where they are long.
        device: where tiles are scored; None means where the videos are.
        progress: show a bar on stderr.

    Returns:
        Scores, recalls and median ranks of both directions; printed, it is a table.

    Raises:
        ValueError: an empty video or paragraph, embeddings that are not finite, shapes or widths
            that do not fit, a truth outside the paragraphs, an unknown name, scores that are NaN.
        TypeError: neither a loss nor a measure; sequences that are neither tensor nor list.

    Source: retrieval of whole videos as in Lin et al., ICLR 2024, over any measure.

    Example:
        >>> import torch
        >>> from norton_losses.retrieval import retrieve
        >>> videos = [torch.randn(n, 16) for n in (8, 5, 12)]    # ragged: clips of each video
        >>> out = retrieve("dtw", videos, videos, progress=False)
        >>> out.scores.shape, out.video_to_paragraph.recalls[1]
        (torch.Size([3, 3]), 1.0)
    """
    check_count("batch_size", batch_size)
    ragged_videos = read_ragged("videos", "clip", videos, clip_mask, frame_mask)
    ragged_paragraphs = read_ragged("paragraphs", "caption", paragraphs, caption_mask, word_mask)
    widths = [side.tokens[0].shape[-1] for side in (ragged_videos, ragged_paragraphs)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"videos and paragraphs must share their width D, got {widths[0]} and {widths[1]}; "
            "project one of them first"
        )
    right = _index(truth, len(ragged_videos), len(ragged_paragraphs))
    if isinstance(loss_or_measure, type):
        raise TypeError(
            f"loss_or_measure must be an object, got the class {loss_or_measure.__name__}; call it"
        )
    if callable(getattr(loss_or_measure, "score", None)):
        score = _by_loss(loss_or_measure, bucket_value, similarity_range)
    else:
        measure = judging_alone(_read_measure(loss_or_measure), bucket_value)
        if similarity_range is not None:
            raise ValueError(
                "similarity_range is for a loss that rescales its similarity, and here is a "
                "measure of cosines; leave it out"
            )
        for name, side in (("videos", ragged_videos), ("paragraphs", ragged_paragraphs)):
            if side.token_masks is not None:
                raise ValueError(
                    f"a measure compares one embedding for each clip and caption, and {name} have "
                    "several tokens; pass a loss, which brings a token similarity, or pool them"
                )
        ragged_videos, ragged_paragraphs = ragged_videos.units(), ragged_paragraphs.units()
        score = _by_measure(measure)

    place = torch.device(device) if device is not None else ragged_videos.tokens[0].device
    dtype = working_dtype(ragged_videos.tokens[0], ragged_paragraphs.tokens[0])
    scores = torch.empty(len(ragged_videos), len(ragged_paragraphs), dtype=dtype)
    start = time.perf_counter()
    column_groups = ragged_paragraphs.groups(batch_size)
    with torch.no_grad(), _bar(scores.numel(), progress) as bar:
        for rows in ragged_videos.groups(batch_size):
            video_batch = ragged_videos.batch(rows, place)
            for columns in column_groups:
                tile = score(video_batch, ragged_paragraphs.batch(columns, place))
                _check_tile(tile, (len(rows), len(columns)))
                scores[rows[:, None], columns] = tile.to(scores)
                bar.update(tile.numel())
    seconds = time.perf_counter() - start
    return RetrievalOutput(
        scores,
        retrieval_metrics(scores, right),
        retrieval_metrics(scores.T, truth_of_candidates(right, len(ragged_paragraphs))),
        seconds,
    )


def _by_loss(loss: Any, bucket_value: float | None, similarity_range: Range | None) -> _ScoreOfTile:
    def score(videos: Batch, paragraphs: Batch) -> Tensor:
        return loss.score(
            videos.tokens,
            paragraphs.tokens,
            clip_mask=videos.mask,
            caption_mask=paragraphs.mask,
            frame_mask=videos.token_mask,
            word_mask=paragraphs.token_mask,
            bucket_value=bucket_value,
            similarity_range=similarity_range,
        )

    return score


def _by_measure(measure: SequenceMeasure) -> _ScoreOfTile:
    cosines = {"similarity_range": (-1.0, 1.0)} if isinstance(measure, TransportMeasure) else {}

    def score(videos: Batch, paragraphs: Batch) -> Tensor:
        dtype = working_dtype(videos.tokens, paragraphs.tokens)
        clips, captions = up_cast(videos.tokens, dtype), up_cast(paragraphs.tokens, dtype)
        with full_precision(clips):
            similarity = torch.einsum("and,bmd->abnm", clips, captions)
            return measure(similarity, videos.mask, paragraphs.mask, **cosines)

    return score


def _read_measure(given: object) -> SequenceMeasure:
    if isinstance(given, str):
        return measure_named(given)
    called = given.forward if isinstance(given, nn.Module) else given
    try:
        inspect.signature(called).bind(None, None, None)  # pyright: ignore
    except TypeError as error:
        raise TypeError(
            "loss_or_measure must be a loss with .score(...), a measure that is called with "
            "(similarity, clip_mask, caption_mask), or the name of one "
            f"({', '.join(MEASURES)}), got {type(given).__name__}"
        ) from error
    return given  # pyright: ignore


def _check_tile(tile: object, shape: tuple[int, int]) -> None:
    if not isinstance(tile, Tensor):
        raise TypeError(f"a measure must give a torch.Tensor, got {type(tile).__name__}")
    if tile.shape != shape:
        raise ValueError(
            f"a measure must give a score for each video with each paragraph, here {shape}, got "
            f"shape {tuple(tile.shape)}"
        )


def _index(truth: Any, videos: int, paragraphs: int) -> NDArray[np.int64]:
    if truth is None:
        if videos != paragraphs:
            raise ValueError(
                f"without truth there must be a paragraph for each video, got {videos} videos and "
                f"{paragraphs} paragraphs; pass the index of the paragraph of each video"
            )
        return np.arange(videos)
    return check_index("truth", truth, (videos,), paragraphs)


def _bar(pairs: int, progress: bool) -> Any:
    from tqdm import tqdm  # pyright: ignore

    return tqdm(total=pairs, unit="pair", unit_scale=True, disable=not progress)
