"""``python -m norton_losses.retrieval features.npz``: retrieval from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from norton_losses._checks import check_place
from norton_losses.retrieval.feature_file import load_features
from norton_losses.retrieval.output import RetrievalOutput, retrieval_table
from norton_losses.retrieval.retrieve import (
    MEASURES,
    check_device_here,
    measure_named,
    retrieve,
)
from norton_losses.sequence_measures import AbstractSequenceMeasure, BackgroundFiltered

FILTERED = ("dtw", "otam")  # they match every clip; the other measures may skip clips


def main(arguments: Sequence[str] | None = None) -> None:
    """Rank the videos and paragraphs of a feature file against each other."""
    options = _parse(arguments)
    try:
        _check_places(options.device, options.scores, options.features)
        measures = _measures(options.measures, options.clips_per_caption)
        features = load_features(options.features)
        outputs: dict[str, RetrievalOutput] = {}
        for name, measure in measures.items():
            outputs[name] = retrieve(
                measure,
                features.videos,
                features.paragraphs,
                truth=features.truth,
                batch_size=options.batch_size,
                device=options.device,
                progress=options.progress,
            )
        print(retrieval_table(outputs))
        if options.scores is not None:
            np.savez(options.scores, **{n: o.scores.numpy() for n, o in outputs.items()})  # pyright: ignore
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _measures(names: str, clips_per_caption: float | None) -> dict[str, AbstractSequenceMeasure]:
    measures = {name: measure_named(name) for name in map(str.strip, names.split(","))}
    if clips_per_caption is None:
        return measures
    if not set(measures) & set(FILTERED):
        raise ValueError(
            f"--clips-per-caption filters {' and '.join(FILTERED)}, and --measures names "
            f"{', '.join(measures)}; leave it out, or add one of them"
        )
    return {
        f"{name}, filtered" if name in FILTERED else name: (
            BackgroundFiltered(measure, clips_per_caption) if name in FILTERED else measure
        )
        for name, measure in measures.items()
    }


def _check_places(device: str | None, scores: Path | None, features: Path) -> None:
    """Raise before the work on what would fail after it."""
    if device is not None:
        check_device_here(device)
    if scores is None:
        return
    if scores.suffix != ".npz" or scores.resolve() == features.resolve():
        raise ValueError(f"--scores must name an .npz file other than the features, got {scores}")
    check_place("--scores", scores)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m norton_losses.retrieval",
        description=main.__doc__,
        epilog="norton_losses.retrieval.save_features writes such a file; the docstring of "
        "norton_losses.retrieval.feature_file tells its keys",
    )
    parser.add_argument("features", type=Path, help="an .npz file of embeddings")
    parser.add_argument(
        "--measures", default=",".join(MEASURES), help="names with commas (default: %(default)s)"
    )
    parser.add_argument(
        "--clips-per-caption",
        type=float,
        metavar="R",
        help="of dtw and otam keep the R clips for each caption that fit best, as YouCookII with "
        "background does (1.3); default: all",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="sequences of a tile at most")
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    parser.add_argument("--scores", type=Path, help="also write the scores to this .npz file")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
