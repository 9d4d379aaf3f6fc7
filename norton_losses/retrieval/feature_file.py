"""The .npz file of embeddings that ``python -m norton_losses.retrieval`` reads.

==========================  ==================  ================================================
key                         shape               what
==========================  ==================  ================================================
``clip_embeddings``         (all clips, D)      floating; the clips of video 0, of video 1, ...
``clips_per_video``         (videos,)           integer, their sum is the number of clips
``caption_embeddings``      (all captions, D)   floating
``captions_per_paragraph``  (paragraphs,)       integer, their sum is the number of captions
``truth``                   (videos,)           integer, the paragraph of each video; may be
                                                left out where video i is of paragraph i
``caption_texts``           (all captions,)     text, to be shown; may be left out
``clip_times``              (all clips,)        floating, in seconds, and with it
``caption_times``           (all captions,)     floating, in seconds; both may be left out
==========================  ==================  ================================================
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from norton_losses._arrays import as_numpy
from norton_losses._checks import check_entries

_SIDES = (
    ("clip_embeddings", "clips_per_video", "(all clips, D)", "(videos,)"),
    ("caption_embeddings", "captions_per_paragraph", "(all captions, D)", "(paragraphs,)"),
)
# What may be left out, beside the truth: whose entries it has, which kinds of numpy, their name.
_EXTRAS = {
    "caption_texts": ("caption_embeddings", "U", "text"),
    "clip_times": ("clip_embeddings", "f", "floating"),
    "caption_times": ("caption_embeddings", "f", "floating"),
}
_KEYS = ("truth", *_EXTRAS, *(key for side in _SIDES for key in side[:2]))
# A RuntimeError is that of an encrypted archive, and a base of NotImplementedError.
_UNREADABLE = zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, OSError, EOFError


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of videos and paragraphs, one array each.

    Attributes:
        videos: for each video its clips (n, D), floating.
        paragraphs: for each paragraph its captions (m, D), floating.
        truth: (videos,), the paragraph of each video; None means paragraph i for video i.
        texts: for each paragraph the texts of its captions (m,), or None.
        times: for each video the times of its clips (n,), and for each paragraph those of its
            captions (m,), in seconds; or None.
    """

    videos: list[NDArray[Any]]
    paragraphs: list[NDArray[Any]]
    truth: NDArray[np.int64] | None = None
    texts: list[NDArray[np.str_]] | None = None
    times: tuple[list[NDArray[Any]], list[NDArray[Any]]] | None = None


def save_features(
    path: str | Path,
    videos: Sequence[NDArray[Any] | Tensor],
    paragraphs: Sequence[NDArray[Any] | Tensor],
    truth: NDArray[Any] | Tensor | Sequence[int] | None = None,
    *,
    texts: Sequence[Sequence[str]] | None = None,
    times: tuple[Sequence[Any], Sequence[Any]] | None = None,
) -> None:
    """Write embeddings to a file that ``python -m norton_losses.retrieval`` reads.

    Args:
        path: of the file, ending in .npz.
        videos: for each video its clips (n, D), floating.
        paragraphs: for each paragraph its captions (m, D), floating.
        truth: (videos,), integer, the paragraph of each video; None means the one of its number.
        texts: for each paragraph the texts of its captions. In the file each has the room of the
            longest.
        times: for each video the times of its clips, and for each paragraph those of its captions,
            in seconds.

    Raises:
        ValueError: arrays of another shape, or of different widths; an unfit truth.
        TypeError: a padded tensor in place of a list.

    Source: the format is this library's own, see :mod:`norton_losses.retrieval.feature_file`.

    Example:
        >>> import tempfile, numpy as np
        >>> from norton_losses.retrieval import load_features, save_features
        >>> videos = [np.eye(4)[:3], np.eye(4)]                 # three clips, and four
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_features(f"{folder}/features.npz", videos, videos)
        ...     [len(video) for video in load_features(f"{folder}/features.npz").videos]
        [3, 4]
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    arrays: dict[str, NDArray[Any]] = {}
    if any(isinstance(sequences, (Tensor, np.ndarray)) for sequences in (videos, paragraphs)):
        raise TypeError(
            "videos and paragraphs must be lists with one array for each, got one array; take its "
            "valid rows, as in [tokens[mask] for tokens, mask in zip(videos, clip_mask)]"
        )
    for (name, counts, *_), sequences in zip(_SIDES, (videos, paragraphs), strict=True):
        parts = [as_numpy(part) for part in sequences]
        shapes = [part.shape for part in parts]
        if not parts or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            raise ValueError(
                f"{name} must be one array (n, D) for each, of one width D, got shapes {shapes[:9]}"
            )
        arrays[name] = np.concatenate(parts)
        arrays[counts] = np.array([len(part) for part in parts])
    if truth is not None:
        arrays["truth"] = as_numpy(truth)
    counted = [arrays[counts].tolist() for _, counts, *_ in _SIDES]
    beside = [
        ("texts", texts, counted[1]),
        *zip(("times[0]", "times[1]"), times or (None, None), counted, strict=True),
    ]
    for name, given, counts in beside:
        if given is not None:
            check_entries(name, given, counts)
    if texts is not None:
        flat = [text for part in texts for text in part]
        strange = [text for text in flat if not isinstance(text, str)]  # pyright: ignore
        if strange:
            raise ValueError(f"texts must be of str, got {strange[0]!r}; leave a missing one empty")
        arrays["caption_texts"] = np.array(flat, dtype=np.str_)
    if times is not None:
        for name, parts in zip(("clip_times", "caption_times"), times, strict=True):
            arrays[name] = np.concatenate([as_numpy(part).astype(np.float64) for part in parts])
    _check(arrays, path)
    np.savez(path, **arrays)  # pyright: ignore


def load_features(path: str | Path) -> Features:
    """Read embeddings, checked, from a file of the format above.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no file there.
        ValueError: not an .npz file, a key that is missing or has another shape or dtype; the text
            names it, what it should be, and which keys there are.

    Source: the format is this library's own, see :mod:`norton_losses.retrieval.feature_file`.

    Example:
        >>> from norton_losses.retrieval import load_features
        >>> load_features("absent.npz")
        Traceback (most recent call last):
        FileNotFoundError: there is no file absent.npz
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it holds one bare array")
            arrays = {name: archive[name] for name in archive.files if name in _KEYS}
            others = [name for name in archive.files if name not in _KEYS]
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is not an .npz file that numpy can read without pickle ({error}); write it "
            "with norton_losses.retrieval.save_features"
        ) from error
    _check(arrays, path, others)
    clip_ends, caption_ends = (np.cumsum(arrays[counts])[:-1] for _, counts, *_ in _SIDES)
    videos = np.split(arrays["clip_embeddings"], clip_ends)
    paragraphs = np.split(arrays["caption_embeddings"], caption_ends)
    truth, texts, times = arrays.get("truth"), arrays.get("caption_texts"), None
    if "clip_times" in arrays:
        of_captions = np.split(arrays["caption_times"], caption_ends)
        times = np.split(arrays["clip_times"], clip_ends), of_captions
    return Features(
        videos,
        paragraphs,
        None if truth is None else truth.astype(np.int64),
        None if texts is None else np.split(texts, caption_ends),
        times,
    )


def _check(arrays: dict[str, NDArray[Any]], path: Path, others: Sequence[str] = ()) -> None:
    for name, counts, shape, shape_of_counts in _SIDES:
        values = _entry(arrays, name, shape, "f", path, others)
        numbers = _entry(arrays, counts, shape_of_counts, "iu", path, others)
        if (numbers < 1).any():
            raise ValueError(
                f"{path}: {counts} must be 1 or above, got {numbers.min()} at "
                f"{int(numbers.argmin())}; leave out what is empty, and its truth"
            )
        if numbers.sum() != len(values):
            raise ValueError(
                f"{path}: {counts} must sum to the rows of {name}, got {numbers.sum()} and "
                f"{len(values)}"
            )
    widths = [arrays[name].shape[1] for name, *_ in _SIDES]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{path}: clip_embeddings and caption_embeddings must share their width D, got "
            f"{widths[0]} and {widths[1]}"
        )
    if ("clip_times" in arrays) != ("caption_times" in arrays):
        raise ValueError(f"{path}: clip_times and caption_times go together, and one is missing")
    for name, (of, kinds, kind) in _EXTRAS.items():
        if name in arrays and (
            arrays[name].shape != arrays[of].shape[:1] or arrays[name].dtype.kind not in kinds
        ):
            raise ValueError(
                f"{path}: {name} must be {kind} of shape {arrays[of].shape[:1]}, as many as {of}, "
                f"got {arrays[name].dtype} of shape {arrays[name].shape}"
            )
    videos, paragraphs = (len(arrays[counts]) for _, counts, *_ in _SIDES)
    if "truth" in arrays:
        truth = _entry(arrays, "truth", "(videos,)", "iu", path)
        if truth.shape != (videos,) or (truth < 0).any() or (truth >= paragraphs).any():
            raise ValueError(
                f"{path}: truth must be the paragraph, 0 .. {paragraphs - 1}, of each of the "
                f"{videos} videos, got shape {truth.shape} in {truth.min()} .. {truth.max()}"
            )
    elif videos != paragraphs:
        raise ValueError(
            f"{path}: without truth (videos,) there must be a paragraph for each video, got "
            f"{videos} videos and {paragraphs} paragraphs"
        )


def _entry(
    arrays: dict[str, NDArray[Any]],
    name: str,
    shape: str,
    kinds: str,
    path: Path,
    others: Sequence[str] = (),
) -> NDArray[Any]:
    kind, rank = ("floating", 2) if kinds == "f" else ("integer", 1)
    if name not in arrays:
        raise ValueError(
            f"{path} lacks the key {name}, {kind} of shape {shape}; it has "
            f"{', '.join(sorted([*arrays, *others])) or 'none'}"
        )
    values = np.asarray(arrays[name])  # numpy returns other members of the archive as bytes
    if values.ndim != rank or values.size == 0:
        raise ValueError(f"{path}: {name} must have shape {shape}, got {values.shape}")
    if values.dtype.kind not in kinds:
        raise ValueError(f"{path}: {name} must be {kind}, got {values.dtype}")
    return values
