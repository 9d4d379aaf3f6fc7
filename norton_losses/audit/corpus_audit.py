"""How noisy a corpus is: where each caption belongs, by what a trained model finds alike.

``videos, paragraphs -> similarities, own and foreign -> a model of narration -> AuditOutput``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from norton_losses._arrays import Array, as_numpy, check_integers
from norton_losses._checks import check_count, check_entries
from norton_losses.audit.narration import Narration
from norton_losses.audit.output import AuditOutput
from norton_losses.fusion import AbstractSimilarity
from norton_losses.norton import NortonLoss
from norton_losses.retrieval.progress import progress_bar
from norton_losses.retrieval.ragged import SEGMENTS, Ragged, Sequences, read_ragged
from norton_losses.retrieval.retrieve import check_device_here, measure_named
from norton_losses.segments import read_pair
from norton_losses.sequence_measures import AbstractSequenceMeasure
from norton_losses.token_similarity import MeanSimilarity
from norton_losses.video_paragraph import NortonVideoParagraphLoss

_FOREIGN = 1 << 20  # similarities of strange pairs to keep
Times = tuple[Sequence[Array], Sequence[Array]]


def audit(
    loss_or_measure: nn.Module | str,
    videos: Sequences,
    paragraphs: Sequences,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    times: Times | None = None,
    group_ids: Array | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> AuditOutput:
    """Estimate for each caption which clip it tells, how late it is, and whether it tells any.

    A model of narration is fitted to the similarities of each video with its own captions, against
    those of captions with clips of other videos: see :mod:`norton_losses.audit.narration`. Every
    number is an estimate, only as good as the model that made the similarities; videos that show
    the same steps as others look less certain than they are.

    Args:
        loss_or_measure: a trained :class:`~norton_losses.NortonLoss` or
            :class:`~norton_losses.NortonVideoParagraphLoss`, for its similarity of frames and
            words; or a measure, or its name such as ``"transport"``, for the cosines of
            embeddings.
        videos: as of :func:`~norton_losses.retrieval.retrieve`, two at least. Absent segments are
            left out and not counted, here and in what is given beside and found: where captions
            are absent, pass ``times``.
        paragraphs: the same of captions; paragraph i is that of video i.
        captions: for each paragraph the texts of its captions, to be shown.
        times: for each video the times of its clips (n,), and for each paragraph those of its
            captions (m,), in seconds; their middle is best, and those of clips rise. None means
            that caption j of m was put to the clip at its share of the video: of n = m to clip j.
        group_ids: (B,), integer, of videos that are not strange to each other, such as windows of
            one source video.
        batch_size: videos that are compared with each other; fewer where they are long.
        device: where they are compared; None means where the videos are.
        progress: show a bar on stderr.

    Raises:
        ValueError: fewer than two videos, other numbers of paragraphs, captions or times than
            videos, features or similarities that are not finite, times of clips that do not rise,
            widths that do not fit.
        TypeError: neither a loss with a similarity nor a measure.

    Source: this library's own; the algorithm is that of Baum and Welch.

    Example:
        >>> import torch
        >>> from norton_losses.audit import audit
        >>> g = torch.Generator().manual_seed(0)
        >>> videos = [torch.randn(9, 16, generator=g) for _ in range(40)]
        >>> late = [video.roll(2, 0) for video in videos]     # caption j tells clip j - 2
        >>> out = audit("transport", videos, late, progress=False)
        >>> out.captions.clip[:9].tolist()
        [7, 8, 0, 1, 2, 3, 4, 5, 6]
    """
    check_count("batch_size", batch_size, minimum=2)
    similarity, by_cosines = _read_similarity(loss_or_measure)
    sides = read_ragged("videos", "clip", videos), read_ragged("paragraphs", "caption", paragraphs)
    if by_cosines:
        sides = sides[0].pooled("videos"), sides[1].pooled("paragraphs")
    _check_sides(*sides)
    counts: list[list[int]] = [side.counts.tolist() for side in sides]  # pyright: ignore
    texts = None
    if captions is not None:
        check_entries("captions", captions, counts[1])
        texts = [[str(text) for text in part] for part in captions]
    seconds = None if times is None else _read_times(times, counts)
    groups = None if group_ids is None else check_integers("group_ids", group_ids, (len(sides[0]),))
    place = sides[0].tokens.device if device is None else check_device_here(device)
    own, foreign = _similarities(similarity, sides, groups, batch_size, place, progress)
    narration, tells = Narration.fit(own, foreign)
    return AuditOutput.of(tells, narration, texts, seconds)


def _similarities(
    similarity: AbstractSimilarity,
    sides: tuple[Ragged, Ragged],
    groups: NDArray[Any] | None,
    batch_size: int,
    device: torch.device | str,
    progress: bool,
) -> tuple[list[Tensor], Tensor]:
    """Similarities (n, m) of each video with its captions, and some of strange pairs (K,)."""
    own: list[Tensor] = [torch.empty(0)] * len(sides[0])
    strange: list[Tensor] = []
    batches = _batches(sides, batch_size)
    each = max(_FOREIGN // len(batches), 1)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad(), progress_bar(len(own), progress, "video") as advance:
        for places in batches:
            video, text = read_pair(*(side.batch(places, device) for side in sides))
            block = similarity.between(video, text)
            values, valid = block.values.cpu(), block.valid.cpu()
            apart = ~torch.eye(len(places), dtype=torch.bool)
            if groups is not None:
                of = torch.as_tensor(groups)[places]
                apart &= of[:, None] != of
            if not values[valid].isfinite().all():
                raise ValueError(
                    "similarities must be finite, got NaN or infinite ones of videos "
                    f"{places.tolist()}; look at what the similarity makes of them"  # pyright: ignore
                )
            found = values[valid & apart[:, :, None, None]]
            strange.append(found[torch.randperm(len(found), generator=g)[:each]])
            for row, place in enumerate(places.tolist()):  # pyright: ignore
                n, m = (int(side.counts[place]) for side in sides)
                own[place] = values[row, row, :n, :m].clone()
            advance(len(places))
    foreign = torch.cat(strange)
    if not len(foreign):
        raise ValueError(
            "no two videos of a batch are strange to each other; leave group_ids out, or take a "
            "larger batch_size"
        )
    return own, foreign


def _batches(sides: tuple[Ragged, Ragged], batch_size: int) -> list[Tensor]:
    """Videos drawn at random, so that those of one source are seldom together; none by itself."""
    order = torch.randperm(len(sides[0]), generator=torch.Generator().manual_seed(0))
    longest = max(int(side.counts.max()) for side in sides)
    size = max(min(batch_size, SEGMENTS // longest), 2)
    batches = list(order.split(size))  # pyright: ignore
    if len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _read_similarity(given: Any) -> tuple[AbstractSimilarity, bool]:
    """The similarity to go by, and whether it is that of single embeddings."""
    given = getattr(given, "_orig_mod", given)  # of torch.compile
    if isinstance(given, NortonLoss):
        given = given.video_paragraph
    if isinstance(given, NortonVideoParagraphLoss):
        return given.similarity, False
    if isinstance(given, str):
        given = measure_named(given)
    if isinstance(given, AbstractSequenceMeasure):
        return MeanSimilarity(), True
    raise TypeError(
        "loss_or_measure must be a NortonLoss or a NortonVideoParagraphLoss, whose similarity is "
        "taken, or a measure or its name, which stands for the cosines of embeddings, got "
        f"{type(given).__name__}"
    )


def _check_sides(videos: Ragged, paragraphs: Ragged) -> None:
    if len(videos) != len(paragraphs) or len(videos) < 2:
        raise ValueError(
            "there must be two videos at least, and a paragraph for each, got "
            f"{len(videos)} videos and {len(paragraphs)} paragraphs"
        )


def _read_times(times: Times, counts: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """The times of clips, and those of captions, of each video."""
    if len(times) != 2 or any(side is None for side in times):  # pyright: ignore
        raise ValueError(
            "times must be of clips and of captions, two lists, got "
            f"{[type(side).__name__ for side in times]}; put captions to clips by their number, "
            "without times, where only one is known"
        )
    for i, (side, of_side) in enumerate(zip(times, counts, strict=True)):
        check_entries(f"times[{i}]", side, of_side)
    of_clips, of_captions = ([_as_seconds(part) for part in side] for side in times)
    still = [i for i, part in enumerate(of_clips) if (part.diff() <= 0).any()]
    if still:
        raise ValueError(
            f"times of a video's clips must rise, got {of_clips[still[0]].tolist()} for video "  # pyright: ignore
            f"{still[0]}; sort its clips, or leave out one of two at the same time"
        )
    return [of_clips, of_captions]


def _as_seconds(given: Array) -> Tensor:
    seconds = torch.from_numpy(as_numpy(given).astype("f8"))  # pyright: ignore
    if seconds.dim() != 1 or not seconds.isfinite().all():
        raise ValueError(
            "times must be finite numbers (n,), in seconds, got an array of shape "
            f"{tuple(seconds.shape)}"
        )
    return seconds
