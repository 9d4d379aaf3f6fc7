"""``python -m norton_losses.audit features.npz --report report.html``: an audit from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from norton_losses._checks import check_place
from norton_losses.audit.corpus_audit import audit
from norton_losses.audit.report import write_report
from norton_losses.retrieval import load_features, retrieval_table, retrieve
from norton_losses.retrieval.retrieve import check_device_here

_ENDINGS = {"report": ".html", "csv": ".csv", "json": ".json", "weights": ".npz"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell how noisy a corpus is: where each caption of a feature file belongs, by cosines."""
    options = _parse(arguments)
    try:
        places = {name: getattr(options, name) for name in _ENDINGS}
        _check_places(places, options.device, options.features)
        features = load_features(options.features)
        paragraphs, texts, times = features.paragraphs, features.texts, features.times
        if features.truth is not None:
            order: list[int] = features.truth.tolist()
            paragraphs = [paragraphs[i] for i in order]
            texts = None if texts is None else [texts[i] for i in order]
            times = None if times is None else (times[0], [times[1][i] for i in order])
        output = audit(
            "transport",
            features.videos,
            paragraphs,
            captions=None if texts is None else [list(part) for part in texts],
            times=times,
            batch_size=options.batch_size,
            device=options.device,
            progress=options.progress,
        )
        print(output)
        if options.retrieval:
            out = retrieve(
                "transport",
                features.videos,
                features.paragraphs,
                truth=features.truth,
                device=options.device,
                progress=options.progress,
            )
            print(retrieval_table({"transport": out}))
        if options.report is not None:
            write_report(output, options.report, title=f"Alignment of {options.features.name}")
        for name, write in (
            ("csv", output.to_csv),
            ("json", output.to_json),
            ("weights", output.save_weights),
        ):
            if places[name] is not None:
                write(places[name])
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _check_places(places: dict[str, Path | None], device: str | None, features: Path) -> None:
    """Raise before the work on what would fail after it."""
    if device is not None:
        check_device_here(device)
    for name, place in places.items():
        if place is None:
            continue
        if place.suffix != _ENDINGS[name] or place.resolve() == features.resolve():
            raise ValueError(
                f"--{name} must name a file that ends in {_ENDINGS[name]}, other than the "
                f"features, got {place}"
            )
        check_place(f"--{name}", place)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m norton_losses.audit",
        description=main.__doc__,
        epilog="norton_losses.retrieval.save_features writes such a file, with texts and times of "
        "the captions if they are to be shown",
    )
    parser.add_argument("features", type=Path, help="an .npz file of embeddings")
    parser.add_argument("--report", type=Path, help="a page to look at, FILE.html")
    parser.add_argument("--csv", type=Path, help="a row for each caption, FILE.csv")
    parser.add_argument("--json", type=Path, help="rates, videos and captions, FILE.json")
    parser.add_argument("--weights", type=Path, help="a weight for each caption, FILE.npz")
    parser.add_argument("--retrieval", action="store_true", help="print a retrieval table as well")
    parser.add_argument("--batch-size", type=int, default=64, help="videos of a batch at most")
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
