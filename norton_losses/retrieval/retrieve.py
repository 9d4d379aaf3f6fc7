"""Scores all videos with all paragraphs, tile by tile, and computes the metrics.

``videos, paragraphs -> tiles of pairs -> similarity -> measure -> scores (Bv, Bt) -> metrics``
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from norton_losses._checks import check_choice, check_count
from norton_losses._numerics import full_precision, up_cast
from norton_losses._typing import Range
from norton_losses.distributed import ProcessGroup, Shard, check_group
from norton_losses.loss import AbstractLoss
from norton_losses.norton_similarity import NortonSimilarityLoss
from norton_losses.retrieval.output import RetrievalOutput, ranked, read_truth
from norton_losses.retrieval.progress import progress_bar
from norton_losses.retrieval.ragged import Sequences, read_ragged
from norton_losses.segments import Segments
from norton_losses.sequence_measures import (
    AbstractSequenceMeasure,
    CaptionAverage,
    DynamicTimeWarping,
    MeasureFunction,
    OrderedAlignment,
    TransportMeasure,
    as_measure,
)
from norton_losses.similarity_block import SimilarityBlock

MEASURES: dict[str, Callable[[], AbstractSequenceMeasure]] = {
    "transport": TransportMeasure,
    "dtw": DynamicTimeWarping,
    "otam": OrderedAlignment,
    "caption-average": CaptionAverage,
}
_ScoreOfTile: TypeAlias = Callable[[Segments, Segments], Tensor]


def retrieve(
    loss_or_measure: nn.Module | MeasureFunction | str,
    videos: Sequences,
    paragraphs: Sequences,
    *,
    truth: NDArray[Any] | Tensor | Sequence[int] | None = None,
    bucket_value: float | None = None,
    similarity_range: Range | None = None,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    progress: bool = True,
    process_group: ProcessGroup = None,
) -> RetrievalOutput:
    """Score every video with every paragraph, tile by tile, and rank them in both directions.

    A pair's score depends on that pair alone, so the tiling changes nothing but rounding: of equal
    pairs in different tiles the scores may differ in their last digit, and no longer count as a
    tie. Memory is that of one tile, some copies of 2048 clips with 2048 captions, or of one pair if
    that is larger, beside the inputs, their unit vectors and a few copies of the scores.

    Args:
        loss_or_measure: a loss with ``.score``, such as :class:`~norton_losses.NortonLoss`, which
            brings its own similarity; or a measure, such as
            :class:`~norton_losses.DynamicTimeWarping`, of the cosines of clips and captions; or the
            name of one: ``"transport"``, ``"dtw"``, ``"otam"``, ``"caption-average"``.
        videos: :class:`~norton_losses.Segments`; or what :meth:`Segments.from_list` takes, a list
            with one array (n, D) of clip embeddings, or (n, F, D) of frame tokens for a loss, for
            each video; or a tensor or array (Bv, N, D) or (Bv, N, F, D) that is all valid. A
            measure compares embeddings, of Segments those given or the mean of the tokens.
        paragraphs: the same of captions.
        truth: (Bv,), integer, the paragraph of each video; None means paragraph i for video i. A
            paragraph of no video is a candidate, and looks for nothing itself.
        bucket_value: a fixed prompt bucket for a transport, in units of similarity; None means no
            bucket, whatever the measure or the loss was built with, as in the losses' ``score``.
        similarity_range: ``(lo, hi)`` for a loss with ``rescale="minmax"``.
        batch_size: videos, and paragraphs, of a tile at most; fewer where they are long.
        device: where tiles are scored; None means where the videos are.
        progress: show a bar on stderr (``pip install 'norton-losses[progress]'``), or without tqdm
            a line at the end.
        process_group: the processes that share out the videos, ``"world"`` or a group of
            torch.distributed. Each is called with all videos and all paragraphs, and gets all
            scores.

    Returns:
        Scores, recalls and median ranks of both directions; printed, it is a table.

    Raises:
        ValueError: an empty video or paragraph, embeddings that are not finite, shapes or widths
            that do not fit, a truth outside the paragraphs, an unknown name, scores that are NaN.
        TypeError: neither a loss nor a measure; sequences that are neither tensor nor list.
        RuntimeError: another process of the group has failed.

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
    check_group(process_group)
    shard = Shard.of(process_group)
    with shard.failing_together():
        measure = _read_measure(loss_or_measure, bucket_value)
        if measure is not None and similarity_range is not None:
            raise ValueError(
                "similarity_range is for a loss that rescales its similarity, and here is a "
                "measure of cosines; leave it out"
            )
        ragged_videos = read_ragged("videos", "clip", videos)
        ragged_paragraphs = read_ragged("paragraphs", "caption", paragraphs)
        true_paragraphs = read_truth(truth, len(ragged_videos), len(ragged_paragraphs))
        if measure is not None:
            ragged_videos = ragged_videos.pooled("videos")
            ragged_paragraphs = ragged_paragraphs.pooled("paragraphs")
        widths = [side.tokens.shape[-1] for side in (ragged_videos, ragged_paragraphs)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"videos and paragraphs must share their width D, got {widths[0]} and {widths[1]}; "
                "project one of them first"
            )
        device = ragged_videos.tokens.device if device is None else check_device_here(device)
        dtype = torch.promote_types(ragged_videos.dtype, ragged_paragraphs.dtype)
        if measure is None:
            # A user's own loss may not take a range.
            known = {} if similarity_range is None else {"similarity_range": similarity_range}
            loss: Any = loss_or_measure
            score = partial(loss.score, bucket_value=bucket_value, **known)
        else:
            score = _by_cosines(measure, dtype)
        sizes = len(ragged_videos), len(ragged_paragraphs)
        scores = torch.zeros(sizes, dtype=dtype, device="cpu")
        start = time.perf_counter()
        row_groups = ragged_videos.groups(min(batch_size, -(-len(ragged_videos) // shard.size)))
        own_groups = row_groups[shard.rank :: shard.size]
        pairs = sum(len(rows) for rows in own_groups) * len(ragged_paragraphs)
        column_groups = ragged_paragraphs.groups(batch_size)
        shown = progress and shard.rank == 0
        with torch.no_grad(), progress_bar(pairs, shown) as advance:
            for rows in own_groups:
                video_batch = ragged_videos.batch(rows, device)
                for columns in column_groups:
                    tile = score(video_batch, ragged_paragraphs.batch(columns, device))
                    scores[rows[:, None], columns] = _checked(tile, rows, columns).to(scores)
                    advance(tile.numel())
        del ragged_videos, ragged_paragraphs  # the metrics need room
    scores = _of_all(scores, shard)
    seconds = time.perf_counter() - start
    return ranked(scores, true_paragraphs, seconds)


def check_device_here(device: object) -> torch.device:
    """A device to score on, by its name or number, which holds data and is there.

    Raises:
        ValueError: it is not there, or is ``meta``.
    """
    try:
        found: torch.device | None = torch.empty(0, device=cast(Any, device)).device
        reason = "it holds no data"
    except (RuntimeError, AssertionError, TypeError) as error:
        found, reason = None, str(error).partition("\n")[0]
    if found is None or found.type == "meta":
        raise ValueError(
            f"device must be one that torch can compute on here, got {device!r}: {reason}; leave "
            "it out to stay where the videos are"
        )
    return found


def _read_measure(given: Any, bucket_value: float | None) -> AbstractSequenceMeasure | None:
    """The measure to score with, or None for a loss, which scores by itself.

    A user's own loss is known by the arguments of its ``score``, as a measure may have one too.
    """
    if isinstance(given, type):
        raise TypeError(
            f"loss_or_measure must be an object, got the class {given.__name__}; call it"
        )
    if isinstance(given, str):
        given = measure_named(given)
    inner: Any = getattr(given, "_orig_mod", given)  # of torch.compile
    if isinstance(inner, NortonSimilarityLoss):
        raise TypeError(
            "loss_or_measure must score tokens, and this loss scores similarities; give its .score "
            "to RetrievalOutput.from_scores"
        )
    if not isinstance(inner, AbstractSequenceMeasure) and _scores_pairs(inner):
        return None
    if not callable(inner) or isinstance(inner, AbstractLoss):
        raise TypeError(
            "loss_or_measure must be a loss with .score(video, text, *, bucket_value=None), a "
            "measure that is called with (similarity, clip_mask, caption_mask), or the name of one "
            f"({', '.join(MEASURES)}), got {given.__class__.__name__}; after training by a loss "
            "without a score, pass a measure and embeddings"
        )
    return as_measure(inner).for_retrieval(bucket_value)


def measure_named(name: str) -> AbstractSequenceMeasure:
    """The measure of that name with its defaults."""
    check_choice("measure", name, list(MEASURES))
    return MEASURES[name]()


def _scores_pairs(given: Any) -> bool:
    """Whether it has a method ``score`` that takes two sides and a bucket value."""
    try:
        inspect.signature(given.score).bind(None, None, bucket_value=None)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _by_cosines(measure: AbstractSequenceMeasure, dtype: torch.dtype) -> _ScoreOfTile:
    def score(videos: Segments, paragraphs: Segments) -> Tensor:
        clips, captions = (up_cast(side.tokens[:, :, 0], dtype) for side in (videos, paragraphs))
        with full_precision(clips):
            cosines = torch.einsum("and,bmd->abnm", clips, captions)
            block = SimilarityBlock(cosines, videos.mask, paragraphs.mask, bounds=(-1.0, 1.0))
            return measure.evaluate_checked(block).score

    return score


def _of_all(scores: Tensor, shard: Shard) -> Tensor:
    """The scores of all processes, each of which has zeros where another one scored."""
    if shard.alone:
        return scores
    tables = shard.tell([*scores.shape, 8 * scores.element_size()])[:, :3]
    if (tables != tables[0]).any():
        raise ValueError(
            "every process must be called with all videos and all paragraphs, in the same "
            "precision, got (videos, paragraphs, bits) of "
            f"{[tuple(map(int, table)) for table in tables]}; the videos are shared out in here"
        )
    return shard.sum(scores.to(shard.device)).to(scores.device)


def _checked(tile: Any, rows: Tensor, columns: Tensor) -> Tensor:
    shape = len(rows), len(columns)
    if not isinstance(tile, Tensor) or tile.shape != shape:
        got = tuple(tile.shape) if isinstance(tile, Tensor) else type(tile).__name__
        raise ValueError(f"score must give a tensor (Bv, Bt), here {shape}, got {got}")
    return tile
