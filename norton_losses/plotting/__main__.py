"""``python -m norton_losses.plotting features.npz --video 3``: a picture of one alignment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from norton_losses._checks import check_fraction, check_place
from norton_losses._numerics import unit
from norton_losses.plotting.alignment_figure import plot_alignment
from norton_losses.retrieval import Features, load_features
from norton_losses.sequence_measures import (
    AbstractSequenceMeasure,
    DynamicTimeWarping,
    OrderedAlignment,
    TransportMeasure,
)

_ENDINGS = (".png", ".svg", ".pdf", ".jpg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw which clips of a video the captions of its paragraph go to, by cosines."""
    options = _parse(arguments)
    try:
        _check_place(options.output)
        check_fraction("--bucket", options.bucket)
        features = load_features(options.features)
        paragraph = _paragraph(features, options.video, options.paragraph)
        clips, captions = (
            unit(torch.as_tensor(side[number].astype("f8")))
            for side, number in (
                (features.videos, options.video),
                (features.paragraphs, paragraph),
            )
        )
        similarity = clips @ captions.T
        out = _measure(options.measure, options.bucket).explain(similarity[None, None])
        title = f"video {options.video}, paragraph {paragraph}: {out.score.item():.3f}"
        found = cast(Any, out.alignment if out.plan is None else out.plan)[0, 0]
        beside = similarity if out.plan is None else None  # a plan knows its own
        figure = plot_alignment(found, beside, title=title)
        figure.savefig(options.output)  # pyright: ignore[reportUnknownMemberType]
        print(f"wrote {options.output}")
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _measure(name: str, bucket: float) -> AbstractSequenceMeasure:
    if name == "transport":
        return TransportMeasure(bucket=bucket or None)
    return DynamicTimeWarping() if name == "dtw" else OrderedAlignment()


def _paragraph(features: Features, video: int, wanted: int | None) -> int:
    """The paragraph asked for, or that of the video."""
    videos, paragraphs = len(features.videos), len(features.paragraphs)
    if not 0 <= video < videos:
        raise ValueError(f"--video must be one of 0 .. {videos - 1}, got {video}")
    if wanted is None:
        return video if features.truth is None else int(features.truth[video])
    if not 0 <= wanted < paragraphs:
        raise ValueError(f"--paragraph must be one of 0 .. {paragraphs - 1}, got {wanted}")
    return wanted


def _check_place(output: Path) -> None:
    if output.suffix not in _ENDINGS:
        raise ValueError(f"--output must end in one of {', '.join(_ENDINGS)}, got {output}")
    check_place("--output", output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m norton_losses.plotting",
        description=main.__doc__,
        epilog="norton_losses.retrieval.save_features writes such a file",
    )
    parser.add_argument("features", type=Path, help="an .npz file of embeddings")
    parser.add_argument("--video", type=int, default=0, help="its number (default: 0)")
    parser.add_argument("--paragraph", type=int, help="its number; default: the video's own")
    parser.add_argument("--measure", choices=("transport", "dtw", "otam"), default="transport")
    parser.add_argument(
        "--bucket",
        type=float,
        default=0.3,
        metavar="RATIO",
        help="of the prompt bucket, which takes what matches nothing; 0 is none (default: 0.3)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("alignment.png"), help="default: alignment.png"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
