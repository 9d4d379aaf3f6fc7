"""The figures of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.noise_study import parts
from benchmarks.noise_study.objectives import ABLATION, LADDERS, SCALES
from benchmarks.noise_study.run import Run
from benchmarks.noise_study.tables import BOTH, Study, of_noise
from benchmarks.noise_study.tasks import CLIPS

COLOURS = {
    "InfoNCE": "tab:red",
    "MIL-NCE": "tab:orange",
    "caption average for transport": "tab:green",
    "NortonVideoParagraphLoss": "tab:cyan",
    "NortonLoss": "tab:blue",
}


def against_noise(study: Study) -> Any:
    """Clip -> caption and transport against the level of noise, by objective, with bands."""
    figure, rows = _subplots(2, 2)
    for axes, task in zip(rows, BOTH, strict=True):
        for axis, kind in zip(axes, ("all", "asynchrony"), strict=True):
            found = {0.0: of_noise(study, "none", 0.0)}
            found |= {level: of_noise(study, kind, level) for level in parts.LEVELS}
            for name, colour in COLOURS.items():
                points = [
                    (level, samples[name].of(task))
                    for level, samples in found.items()
                    if name in samples
                ]
                levels = [100 * level for level, _ in points]
                axis.plot(levels, [e.mean for _, e in points], "o-", color=colour, label=name)
                low, high = ([getattr(e, end) for _, e in points] for end in ("low", "high"))
                axis.fill_between(levels, low, high, color=colour, alpha=0.15)
            axis.set(xlabel=f"noise: {kind}, %", ylabel=f"{task}, R@1 %")
            axis.grid(alpha=0.3)
    rows[0][0].legend(fontsize=7)
    return figure


def ablation(study: Study) -> Any:
    """The rows of the ablation, with intervals."""
    figure, ((left, right),) = _subplots(1, 2)
    found = study.by_objective("ablation")
    names = [name for name in ABLATION if name in found]
    for axis, task in ((left, CLIPS), (right, "transport")):
        estimates = [found[name].of(task) for name in names]
        spread = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).reshape(-1, 2).T
        axis.barh(names, [e.mean for e in estimates], xerr=spread, color="tab:blue", alpha=0.7)
        axis.invert_yaxis()
        axis.set(xlabel=f"{task}, R@1 %")
        axis.grid(alpha=0.3, axis="x")
    right.set_yticklabels([])
    return figure


def curves(study: Study) -> Any:
    """Against steps and against the time of training."""
    figure, rows = _subplots(2, 2)
    found = study.by_objective("curves")
    for axes, task in zip(rows, BOTH, strict=True):
        for name, colour in {**COLOURS, "pooled cosine alone": "tab:gray"}.items():
            if name not in found:
                continue
            curve = [row["curve"] for row in found[name].rows.values()]
            values = 100 * np.mean([[point["tasks"][task] for point in c] for c in curve], axis=0)
            for axis, key in zip(axes, ("step", "seconds"), strict=True):
                places = np.mean([[point[key] for point in c] for c in curve], axis=0)
                axis.plot(places, values, ".-", color=colour, label=name)
                axis.set(xlabel=key, ylabel=f"{task}, R@1 %")
                axis.grid(alpha=0.3)
    rows[0][0].legend(fontsize=7)
    return figure


def scales(study: Study) -> Any:
    """Accuracy against the scale of the video-paragraph logits, by length."""
    figure, (axes,) = _subplots(1, 2)
    found = study.samples("scales")
    for axis, task in zip(axes, BOTH, strict=True):
        for length, _ in parts.LENGTHS:
            points = [
                (scale, sample.of(task).mean)
                for scale, name in zip(LADDERS["scale"], SCALES, strict=True)
                for run, sample in found.items()
                if run.objective == name
                and run.lengths == (length, length)
                and (run.batch_videos, run.width) == (Run.batch_videos, Run.width)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=f"{length} steps a video")
        axis.set(xscale="log", xlabel="scale, 1 / temperature", ylabel=f"{task}, R@1 %")
        axis.set_xticks(LADDERS["scale"], [f"{scale:g}" for scale in LADDERS["scale"]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


FIGURES: dict[str, Callable[[Study], Any]] = {
    "noise": against_noise, "ablation": ablation, "curves": curves, "scales": scales,
}  # fmt: skip


def draw_all(study: Study, folder: Path) -> list[Path]:
    """Every figure that has rows, byte for byte the same from the same rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "norton_losses", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    drawn = []
    for name, draw in FIGURES.items():
        if study.samples(name):
            figure = draw(study)
            drawn.append(folder / f"{name}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None})
            plt.close(figure)
    return drawn


def _subplots(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(9, 3.4 * rows), layout="constrained", squeeze=False)
