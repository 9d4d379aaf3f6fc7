"""Train the three objectives, print the table, draw the picture.

``python -m examples.handwritten_howto --help`` lists seeds, steps and sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from examples.handwritten_howto.corpus import make_corpus
from examples.handwritten_howto.evaluation import MEASURES, HeldOut, evaluate
from examples.handwritten_howto.picture import draw_alignment, first_shifted
from examples.handwritten_howto.towers import Towers
from examples.handwritten_howto.training import OBJECTIVES, train
from examples.intervals import estimate
from norton_losses import NortonLoss, __version__

_SETTINGS = ("seeds", "steps", "videos", "held_out")
COLUMNS = (*OBJECTIVES, "NortonLoss − InfoNCE")


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    start = time.perf_counter()
    print("Making recipes from real scans ...", flush=True)
    corpus = make_corpus(options.videos, "train", seed=1)
    held_out = HeldOut.draw(options.held_out, "test", seed=1)
    noisy = make_corpus(32, "test", seed=3)

    hits: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in OBJECTIVES}
    picture = options.output / "alignment.png"
    total = len(OBJECTIVES) * options.seeds * options.steps
    with tqdm(total=total, unit="step", mininterval=0.5) as bar:
        for seed in range(options.seeds):
            for name in OBJECTIVES:
                bar.set_description(f"{name}, seed {seed}")
                torch.manual_seed(seed)  # the same weights for every objective
                towers, loss = Towers(), OBJECTIVES[name]()
                train(towers, loss, corpus, seed=seed, steps=options.steps, on_step=bar.update)
                hits[name].append(evaluate(towers, held_out))
                if isinstance(loss, NortonLoss) and seed == 0:
                    draw_alignment(towers, loss, noisy, first_shifted(noisy), picture)

    table = _table(hits)
    _print(table, options, time.perf_counter() - start)
    print(f"The alignment of one noisy held-out video: {picture}")
    if options.results:
        _write(options.results, table, options)


def _table(hits: dict[str, list[dict[str, np.ndarray]]]) -> list[dict[str, object]]:
    """A row for each measure, a cell for each objective, and NortonLoss minus InfoNCE.

    The difference is paired by seed and video.
    """
    rows: list[dict[str, object]] = []
    for measure in MEASURES:
        values = {name: np.stack([run[measure] for run in runs]) for name, runs in hits.items()}
        cells = [str(estimate(of_objective)) for of_objective in values.values()]
        cells.append(estimate(values["NortonLoss"] - values["InfoNCE"]).signed)
        rows.append({"measure": measure, "cells": cells})
    return rows


def _print(table: list[dict[str, object]], options: argparse.Namespace, seconds: float) -> None:
    print(
        f"\nR@1 in % on {options.held_out} held-out videos, {options.seeds} seeds, "
        f"{options.steps} steps each; 95 % interval over seeds and videos.\n"
        "Each video ranks all paragraphs of its length and as many that almost fit; 'shuffled': "
        "told in\nrandom order; 'noisy': with the noise of training.\n"
    )
    for name, cells in [("measure", COLUMNS), *((row["measure"], row["cells"]) for row in table)]:
        print("  ".join([f"{name:28}", *(f"{cell:21}" for cell in cells)]).rstrip())  # type: ignore[union-attr]
    print(f"\nDone in {seconds:.0f} s on {torch.get_num_threads()} threads.")


def _write(
    path: Path,
    table: list[dict[str, object]],
    options: argparse.Namespace,
) -> None:
    record = {
        "command": "python -m examples.handwritten_howto --results FILE",
        "settings": {key: getattr(options, key) for key in _SETTINGS},
        "columns": list(COLUMNS),
        "table": table,
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "norton_losses": __version__,
        },
    }
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.handwritten_howto",
        description="Train three objectives on handwritten recipes and compare them.",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--videos", type=int, default=2000, help="of the training corpus")
    parser.add_argument("--held-out", type=int, default=300, help="of the held-out corpus")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of alignment.png")
    parser.add_argument("--results", type=Path, help="also write the table as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
