"""Timed paragraphs in the format of ActivityNet Captions.

A file is a JSON object: the name of each video, and for it `timestamps`, a list of [start, end] in
seconds, and as many `sentences`. What else an entry has, such as `duration`, is left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Paragraph:
    """The sentences of one annotator about one video, in their order, and when each holds."""

    sentences: list[str]
    times: np.ndarray  # (n, 2), seconds


def load_annotations(path: Path) -> dict[str, Paragraph]:
    """The paragraphs of a file, by video.

    Raises:
        ValueError: not of this format; the message names the video.
    """
    entries = json.loads(path.read_text())
    if not isinstance(entries, dict):
        raise ValueError(
            f"{path} must hold an object of videos, got a {type(entries).__name__}; the format is "
            '{"video": {"timestamps": [[start, end], ...], "sentences": ["...", ...]}, ...}'
        )
    return {name: _paragraph(f"{path}: {name}", entry) for name, entry in entries.items()}


def _paragraph(where: str, entry: object) -> Paragraph:
    if not isinstance(entry, dict) or not {"timestamps", "sentences"} <= entry.keys():
        raise ValueError(f'{where} must be an object with "timestamps" and "sentences"')
    sentences = [str(sentence).strip() for sentence in entry["sentences"]]
    times = np.asarray(entry["timestamps"], dtype=np.float64)
    if not sentences or not all(sentences):
        raise ValueError(f"{where} must have a sentence at least, and none that is empty")
    if times.shape != (len(sentences), 2):
        raise ValueError(
            f"{where} must have a [start, end] for each of its {len(sentences)} sentences, got "
            f"timestamps of shape {times.shape}"
        )
    # Annotators now and then set the end before the start.
    return Paragraph(sentences, np.sort(times, axis=1))


def overlap(first: Paragraph, second: Paragraph) -> np.ndarray:
    """Seconds (n, m) that each sentence of the first shares with each of the second."""
    start = np.maximum(first.times[:, None, 0], second.times[None, :, 0])
    end = np.minimum(first.times[:, None, 1], second.times[None, :, 1])
    return (end - start).clip(min=0)
