"""The output of an audit: a row for each caption, a row for each video, rates of the corpus."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from norton_losses.audit.narration import Narration

_DRAWS = 1000  # of videos, for the intervals of rates
_BELIEVED = 0.5  # how surely a caption must tell some clip, to count in the profile of its video


class Rate(NamedTuple):
    """A share of the corpus, and its 95 % interval over draws of videos.

    Example:
        >>> from norton_losses.audit import Rate
        >>> print(Rate(0.25, 0.2, 0.3))
        25.0 % [20.0, 30.0]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, eq=False)
class CaptionAudits:
    """Columns of the captions of all paragraphs, one after another, each (K,).

    Attributes:
        video: number of the video.
        caption: number of the caption in its paragraph.
        put: the clip that it was put to, by its number or its time.
        clip: the clip that it tells, if it tells any: that of the largest share.
        share: P(it tells that clip | it tells one).
        margin: what the share is above that of the second clip.
        nowhere: P(it tells no clip of its video).
        own: P(it tells the clip that it was put to): a weight for training.
        late: how many clips after the one that it tells it comes, expected; below 0 it is early.
        spread: standard deviation of ``late``.
        late_seconds: the same in seconds; NaN without times.
    """

    video: Tensor
    caption: Tensor
    put: Tensor
    clip: Tensor
    share: Tensor
    margin: Tensor
    nowhere: Tensor
    own: Tensor
    late: Tensor
    spread: Tensor
    late_seconds: Tensor


@dataclass(frozen=True, eq=False)
class VideoAudits:
    """Columns of the videos, each (B,).

    Attributes:
        clips: how many it has.
        captions: how many its paragraph has.
        own: expected share of captions that tell the clip that they were put to.
        nowhere: expected share of captions that tell no clip.
        unmatched_clips: expected share of clips that no caption tells.
        lag: how late its captions come, in clips: a mean of those that tell one; NaN without any.
        drift: how much later each caption comes than the one before it, a least-squares slope.
        jumps: how often ``put - clip`` changes by two or more from one such caption to the next.
        in_order: the share of such captions that do not go back from the one before; 1 with one.
    """

    clips: Tensor
    captions: Tensor
    own: Tensor
    nowhere: Tensor
    unmatched_clips: Tensor
    lag: Tensor
    drift: Tensor
    jumps: Tensor
    in_order: Tensor


@dataclass(frozen=True, eq=False)
class AuditOutput:
    """What an audit found; printed, it is a summary.

    Attributes:
        captions: a row for each caption.
        videos: a row for each video.
        rates: of the corpus: ``own``, the share of captions that tell the clip that they were put
            to; ``misplaced``, that tell another clip; ``nowhere``, that tell none; and
            ``unmatched_clips``. Their intervals are over draws of videos, the model held fixed.
        tells: for each video (n, m), P(caption j tells clip i).
        narration: the model that was fitted.
        texts: for each video the texts of its captions, or None.
    """

    captions: CaptionAudits
    videos: VideoAudits
    rates: dict[str, Rate]
    tells: list[Tensor]
    narration: Narration
    texts: Sequence[Sequence[str]] | None

    @classmethod
    def of(
        cls,
        tells: list[Tensor],
        narration: Narration,
        texts: Sequence[Sequence[str]] | None,
        seconds: list[list[Tensor]] | None,
    ) -> AuditOutput:
        """From the shares (n, m) of each video."""
        rows: list[dict[str, Tensor]] = []
        for number, of_video in enumerate(tells):
            times = None if seconds is None else (seconds[0][number], seconds[1][number])
            rows.append(_captions(number, of_video, times))
        columns = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        profiles = [_profile(of, row) for of, row in zip(tells, rows, strict=True)]
        of_videos = {key: torch.tensor([p[key] for p in profiles]) for key in profiles[0]}
        videos = VideoAudits(**of_videos)
        return cls(CaptionAudits(**columns), videos, _rates(videos), tells, narration, texts)

    def worst(self, count: int = 10) -> Tensor:
        """Numbers of the videos whose captions tell their own clips least, the worst first."""
        return self.videos.own.argsort(stable=True)[:count]

    def __str__(self) -> str:
        names = {
            "own": "captions that tell the clip that they were put to",
            "misplaced": "captions that tell another clip",
            "nowhere": "captions that tell no clip of their video",
            "unmatched_clips": "clips that no caption tells",
        }
        lines = [f"{len(self.tells)} videos, {len(self.captions.clip)} captions; estimates, 95 %"]
        lines += [f"{names[name]:52}{rate}" for name, rate in self.rates.items()]
        worst = ", ".join(
            f"{v} ({100 * self.videos.own[v]:.0f} %)" for v in _numbers(self.worst(5))
        )
        return "\n".join(
            [*lines, f"{'videos with the fewest captions at their own clip':52}{worst}"]
        )

    def to_csv(self, path: str | Path) -> None:
        """Write a row for each caption, with its text if there is one."""
        table = _columns(self.captions)
        names, columns = list(table), list(table.values())
        if self.texts is not None:
            names.append("text")
            columns.append([text for of_video in self.texts for text in of_video])
        with _open(path, ".csv") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for row in zip(*columns, strict=True):
                writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in row)

    def to_json(self, path: str | Path) -> None:
        """Write rates, videos and captions; what is not a number is null."""
        table = {
            "rates": {name: rate._asdict() for name, rate in self.rates.items()},
            "videos": _plain(self.videos),
            "captions": _plain(self.captions),
            "texts": self.texts,
        }
        written = json.dumps(table, allow_nan=False)
        with _open(path, ".json") as file:
            file.write(written)

    def save_weights(self, path: str | Path) -> None:
        """Write ``weights`` (K,), the share ``own`` of each caption, and the captions of each."""
        path = _checked(path, ".npz")
        of_videos = self.videos.captions.numpy()
        np.savez(path, weights=self.captions.own.numpy(), captions_per_paragraph=of_videos)


def _captions(video: int, tells: Tensor, times: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Columns of one video's captions."""
    n, m = tells.shape
    told = tells.sum(0)
    shares = tells / told.clamp(min=torch.finfo(torch.double).tiny)
    best = shares.topk(min(n, 2), dim=0)
    second = best.values[1] if n > 1 else torch.zeros(m)
    numbers, places = torch.arange(m), torch.arange(n)[:, None]
    put = ((numbers + 0.5) * (n / m)).long()
    seconds = torch.full((m,), torch.nan, dtype=torch.double)
    if times is not None:
        apart = times[1] - times[0][:, None]  # (n, m)
        put = apart.abs().argmin(0)
        seconds = (shares * apart).sum(0)
    late = put - (shares * places).sum(0)
    return {
        "video": torch.full((m,), video),
        "caption": numbers,
        "put": put,
        "clip": best.indices[0],
        "share": best.values[0],
        "margin": best.values[0] - second,
        "nowhere": (1 - told).clamp(0, 1),
        "own": tells[put, numbers],
        "late": late,
        "spread": (shares * (put - places - late) ** 2).sum(0).sqrt(),
        "late_seconds": seconds,
    }


def _profile(tells: Tensor, row: dict[str, Tensor]) -> dict[str, float]:
    """One video's row."""
    n, m = tells.shape
    weight, late = 1 - row["nowhere"], row["late"]
    total = weight.sum().item()
    lag = (weight * late).sum().item() / total if total > 0 else math.nan
    numbers = torch.arange(m, dtype=torch.double)
    centred = numbers - (weight * numbers).sum() / max(total, 1e-12)
    variance = (weight * centred**2).sum().item()
    believed = weight > _BELIEVED
    found = row["clip"][believed]
    moved = (row["put"][believed] - found).diff()
    return {
        "clips": n,
        "captions": m,
        "own": row["own"].mean().item(),
        "nowhere": row["nowhere"].mean().item(),
        "unmatched_clips": (1 - tells.clamp(0, 1)).prod(1).mean().item(),
        "lag": lag,
        "drift": (weight * centred * late).sum().item() / variance if variance > 1e-9 else 0.0,
        "jumps": int((moved.abs() >= 2).sum()),
        "in_order": (found.diff() >= 0).double().mean().item() if len(found) > 1 else 1.0,
    }


def _rates(videos: VideoAudits) -> dict[str, Rate]:
    """Of all captions, or clips, and over draws of videos."""
    g = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(videos.own), (_DRAWS, len(videos.own)), generator=g)
    rates: dict[str, Rate] = {}
    for name, values, sizes in (
        ("own", videos.own, videos.captions),
        ("misplaced", (1 - videos.own - videos.nowhere).clamp(min=0), videos.captions),
        ("nowhere", videos.nowhere, videos.captions),
        ("unmatched_clips", videos.unmatched_clips, videos.clips),
    ):
        counted = values * sizes
        totals = torch.stack([counted[of].sum() / sizes[of].sum() for of in drawn])
        low, high = (totals.quantile(q).item() for q in (0.025, 0.975))
        rates[name] = Rate((counted.sum() / sizes.sum()).item(), low, high)
    return rates


def _numbers(index: Tensor) -> list[int]:
    return index.tolist()  # pyright: ignore


def _columns(table: CaptionAudits | VideoAudits) -> dict[str, list[Any]]:
    return {field.name: getattr(table, field.name).tolist() for field in fields(table)}


def _plain(table: CaptionAudits | VideoAudits) -> dict[str, list[Any]]:
    """Columns in which what is not a number is None."""
    return {
        name: [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]
        for name, values in _columns(table).items()
    }


def _checked(path: str | Path, ending: str) -> Path:
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"the file must end in {ending}, got {path}")
    return path


def _open(path: str | Path, ending: str) -> Any:
    return _checked(path, ending).open("w", newline="", encoding="utf-8")
