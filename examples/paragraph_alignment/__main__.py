"""Train on two annotators' paragraphs of the same videos, and print retrieval and alignment."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from examples.intervals import estimate
from examples.paragraph_alignment.annotations import Paragraph, load_annotations
from examples.paragraph_alignment.encoder import SentenceEncoder
from examples.paragraph_alignment.evaluation import MEASURES, evaluate
from examples.paragraph_alignment.training import (
    OBJECTIVES,
    Features,
    LinearTowers,
    pooled,
    train,
)
from norton_losses import __version__
from norton_losses.audit import audit, write_report

SAMPLE = Path(__file__).with_name("sample")
ENCODER, DIFFERENCE = "encoder alone", "NortonLoss − InfoNCE"


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    annotators = [load_annotations(path) for path in options.annotations]
    videos = sorted(annotators[0].keys() & annotators[1].keys())
    held_out = round(options.held_out * len(videos))
    if held_out < 2 or len(videos) - held_out < 2:
        raise SystemExit(
            f"two videos at least must be trained on and two held out, and the files share "
            f"{len(videos)}, of which {held_out} are held out; look at their names, or --held-out"
        )
    np.random.default_rng(0).shuffle(videos)
    print(f"{len(videos)} videos, {held_out} of them held out. Encoding their sentences ...")
    encoder = SentenceEncoder()
    first, second = (_encode(encoder, [side[video] for video in videos]) for side in annotators)
    if options.report:
        clips, captions = ([side[video] for video in videos] for side in annotators)
        found = audit(
            "transport",
            pooled(first),
            pooled(second),
            captions=[paragraph.sentences for paragraph in captions],
            times=([p.times.mean(1) for p in clips], [p.times.mean(1) for p in captions]),
            progress=False,
        )
        write_report(found, options.report, title="The second annotator's sentences at the first's")
        print(found)
    asked = [pooled(side[:held_out]) for side in (first, second)]
    paragraphs = [(annotators[0][video], annotators[1][video]) for video in videos[:held_out]]

    hits: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in OBJECTIVES}
    alone = evaluate(asked[0], asked[1], paragraphs)
    total = options.seeds * len(OBJECTIVES) * options.steps
    with tqdm(total=total, unit="step", mininterval=0.5) as bar:
        for seed in range(options.seeds):
            for name, build in OBJECTIVES.items():
                torch.manual_seed(seed)
                towers, loss = LinearTowers(), build()
                train(
                    towers,
                    loss,
                    first[held_out:],
                    second[held_out:],
                    seed=seed,
                    steps=options.steps,
                    on_step=bar.update,
                )
                found = [towers.embed(side, number) for number, side in enumerate(asked)]
                hits[name].append(evaluate(found[0], found[1], paragraphs))

    columns = [ENCODER, *OBJECTIVES, DIFFERENCE]
    table: list[list[str]] = []
    for measure in MEASURES:
        values = {name: np.stack([run[measure] for run in runs]) for name, runs in hits.items()}
        values = {ENCODER: alone[measure][None], **values}
        cells = [_cell(v) for v in values.values()]
        cells.append(_cell(values["NortonLoss"] - values["InfoNCE"], signed=True))
        table.append([measure, *cells])
    print(
        f"\nIn % of {held_out} held-out videos, {options.seeds} seeds, {options.steps} steps each; "
        "95 % interval over seeds and videos.\n"
    )
    for name, *cells in [["measure", *columns], *table]:
        print("  ".join([f"{name:24}", *(f"{cell:21}" for cell in cells)]).rstrip())
    if options.results:
        record = {
            "annotations": [path.name for path in options.annotations],
            "videos": len(videos),
            "settings": {k: getattr(options, k) for k in ("held_out", "seeds", "steps")},
            "columns": columns,
            "table": table,
            "machine": f"{platform.machine()}, torch {torch.__version__}",
            "norton_losses": __version__,
        }
        options.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _encode(encoder: SentenceEncoder, paragraphs: list[Paragraph]) -> list[Features]:
    return [encoder(p.sentences) for p in tqdm(paragraphs, unit="video", mininterval=0.5)]


def _cell(values: np.ndarray, *, signed: bool = False) -> str:
    """Of the videos that were asked, see :func:`evaluate`."""
    values = values[:, ~np.isnan(values).any(0)]
    if values.shape[1] < 2:
        return "-"
    found = estimate(values)
    return found.signed if signed else str(found)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m examples.paragraph_alignment", description=__doc__)
    parser.add_argument(
        "annotations",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="one of each annotator, in the format of ActivityNet Captions; a sample without",
    )
    parser.add_argument("--held-out", type=float, default=0.5, help="share of the videos")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--results", type=Path, help="also write the table as JSON")
    parser.add_argument(
        "--report", type=Path, help="also write a page that shows which sentences belong together"
    )
    options = parser.parse_args(arguments)
    options.annotations = options.annotations or [
        SAMPLE / f"annotator_{number}.json" for number in (1, 2)
    ]
    if len(options.annotations) != 2:
        parser.error(f"two files are needed, one of each annotator, got {len(options.annotations)}")
    return options


if __name__ == "__main__":
    main()
