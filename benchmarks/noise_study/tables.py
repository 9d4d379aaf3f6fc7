"""The tables of docs/evidence.md, each from the rows on file. What nobody ran says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from benchmarks.harness.tables import NOT_MEASURED, markdown
from benchmarks.noise_study import parts
from benchmarks.noise_study.objectives import ABLATION, CEILING, LADDERS, SCALES, VARIANTS
from benchmarks.noise_study.rows import Rows
from benchmarks.noise_study.run import Run
from benchmarks.noise_study.search import SEEDS, Chosen, MissingRunsError, choose
from benchmarks.noise_study.statistics import Sample, samples
from benchmarks.noise_study.tasks import CLIPS, SELECTION, TASKS
from examples.intervals import Estimate

# R@1 of clip -> caption, DTW without background and DTW with it, on YouCookII, one run each.
PUBLISHED = {
    "A no video-paragraph term": "22.8, 56.7, 56.4",
    "B + faulty negatives": "-, 63.3, 65.1",
    "C mean of tokens": "23.1, 84.2, 74.3",
    "D maximum of tokens": "23.5, 86.9, 74.1",
    "G soft maximum, alpha 1": "24.0, 88.4, 75.2",
    "I bucket 30 %": "24.2, 88.7, 76.1",
}
BOTH = (CLIPS, "transport")


class Study:
    """Rows, and the settings that the search found in them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.chosen = cache(self._chosen)
        self.samples = cache(self._samples)

    def _chosen(self, objective: str, noise: str = "default") -> Chosen:
        return choose(objective, self.rows, noise)[0]

    def _samples(self, part: str) -> dict[Run, Sample]:
        """Of a part of the study; none before the search is done."""
        try:
            return samples(parts.PARTS[part](self.chosen), self.rows)
        except MissingRunsError:
            return {}

    def by_objective(self, part: str, **where: object) -> dict[str, Sample]:
        """Samples of a part whose runs have these fields, by objective."""
        found = self.samples(part)
        return {
            run.objective: sample
            for run, sample in found.items()
            if all(getattr(run, name) == value for name, value in where.items())
        }


def settings(study: Study) -> str:
    """What the search found for each objective, and how many settings it tried."""
    lines = []
    for name, at in parts.SEARCHES:
        shown = name if at == "default" else f"{name}, no noise"
        try:
            chosen, tried = choose(name, study.rows, at)
        except MissingRunsError:
            lines.append([shown, "", NOT_MEASURED, ""])
            continue
        runs = [Run(name, chosen, at, seed=seed, videos=0) for seed in SEEDS]
        score = np.mean([study.rows[run]["tasks"][task] for run in runs for task in SELECTION])
        told = ", ".join(_setting(knob, value) for knob, value in chosen)
        lines.append([shown, str(tried), told, f"{100 * score:.1f}"])
    return markdown(["objective", "tried", "chosen", "validation score"], lines)


def objectives(study: Study) -> str:
    """Every objective at the default noise, and against `NortonLoss()`."""
    return _against(at_default(study), "NortonLoss", also=("DTW",))


def at_default(study: Study) -> dict[str, Sample]:
    """Every rival, trained at the default noise."""
    return study.by_objective("objectives", steps=Run.steps)


def downstream(study: Study) -> str:
    """Every task, of the headline objectives at the default noise, and what there is to reach."""
    found, untrained = at_default(study), study.by_objective("objectives", steps=0)
    if not set(parts.HEADLINE) <= found.keys() or not {"InfoNCE", CEILING} <= untrained.keys():
        return NOT_MEASURED + "."
    head = ["task", "untrained", *parts.HEADLINE, CEILING, "NortonLoss − InfoNCE"]
    lines = []
    for task in TASKS:
        lines.append(
            [
                task,
                f"{untrained['InfoNCE'].of(task).mean:.1f}",
                *(str(found[name].of(task)) for name in parts.HEADLINE),
                f"{untrained[CEILING].of(task).mean:.1f}",
                found["NortonLoss"].minus(found["InfoNCE"], task, len(TASKS)).signed,
            ]
        )
    return markdown(head, lines)


def defaults(study: Study) -> str:
    """Tuned settings against the defaults: would they be better ones?"""
    head = ["start", "noise in training", "task", "NortonLoss", "NortonLoss, tuned", "difference"]
    asked = list(
        dict.fromkeys(
            (run.warm_steps, run.noise, run.level)
            for run in parts.defaults(lambda *_: (("learning_rate", 1.0),))
        )
    )
    lines = []
    for warm_steps, kind, level in asked:
        start = "warm" if warm_steps else "cold"
        told = f"{kind} {100 * level:.0f} %" if level else kind
        found = study.by_objective("defaults", warm_steps=warm_steps, noise=kind, level=level)
        for task in BOTH:
            if not set(head[3:5]) <= found.keys():
                lines.append([start, told, task, NOT_MEASURED, "", ""])
                continue
            ours, tuned = (found[name] for name in head[3:5])
            difference = tuned.minus(ours, task, len(BOTH) * len(asked))
            cells = [str(ours.of(task)), str(tuned.of(task)), difference.signed]
            lines.append([start, told, task, *cells])
    return markdown(head, lines)


def noise(study: Study) -> str:
    """The headline objectives at every kind and level of noise."""
    head = ["noise", "level", *parts.HEADLINE, "NortonLoss − InfoNCE", "− MIL-NCE"]
    head += ["by transport − InfoNCE"]
    lines = []
    claims = 3 * (1 + len(parts.NOISES))
    for kind, level, searched in (("none", 0.0, "none"), *((*n, "default") for n in parts.NOISES)):
        found = of_noise(study, kind, level, searched)
        line = [kind, f"{100 * level:.0f} %" if level else f"settings of {searched} noise"]
        if not set(parts.HEADLINE) <= found.keys():
            lines.append([*line, NOT_MEASURED, *[""] * (len(head) - 3)])
            continue
        ours = found["NortonLoss"]
        lines.append(
            [
                *line,
                *(f"{found[name].of(CLIPS).mean:.1f}" for name in parts.HEADLINE),
                ours.minus(found["InfoNCE"], CLIPS, claims).signed,
                ours.minus(found["MIL-NCE"], CLIPS, claims).signed,
                ours.minus(found["InfoNCE"], "transport", claims).signed,
            ]
        )
    return markdown(head, lines)


def of_noise(study: Study, kind: str, level: float, searched: str = "default") -> dict[str, Sample]:
    """The headline objectives at a noise, with the settings that a search chose at another."""
    return {
        run.objective: sample
        for run, sample in study.samples("noise").items()
        if (run.noise, run.level) == (kind, level)
        and run.settings == study.chosen(run.objective, searched)
    }


def headline(study: Study) -> str:
    """What README shows of it."""
    head = ["noise in training", "task", "InfoNCE", "MIL-NCE", "NortonLoss", "NortonLoss − InfoNCE"]
    asked = (
        ("none", of_noise(study, "none", 0.0, "none")),
        ("default", at_default(study)),
        ("asynchrony 60 %", of_noise(study, "asynchrony", 0.6)),
        ("all kinds 60 %", of_noise(study, "all", 0.6)),
        ("off-topic captions 80 %", of_noise(study, "off-topic captions", 0.8)),
    )
    tasks = (*BOTH, "DTW")
    lines = []
    for what, found in asked:
        for task in tasks:
            if not set(head[2:5]) <= found.keys():
                lines.append([what, task, NOT_MEASURED, "", "", ""])
                continue
            difference = found["NortonLoss"].minus(found["InfoNCE"], task, len(tasks) * len(asked))
            cells = [str(found[name].of(task)) for name in head[2:5]]
            lines.append([what, task, *cells, difference.signed])
    return markdown(head, lines)


# The row that each row of the ablation is compared with.
_BASES = {"B": "A", "C": "A", "D": "C", "E": "D", "F": "E", "G": "E", "H": "E", "I": "E", "J": "E"}


def ablation(study: Study) -> str:
    """The published ablation, here and there."""
    found = study.by_objective("ablation")
    tasks = (CLIPS, "DTW", "transport")
    lines = []
    for name in ABLATION:
        if name not in found:
            lines.append([name, NOT_MEASURED, *[""] * 4, PUBLISHED.get(name, "")])
            continue
        cells = [str(found[name].of(task)) for task in tasks]
        base = _BASES.get(name[0], "none")
        beside = next((found[row] for row in found if row.startswith(base)), None)
        for task in BOTH:
            claims = len(BOTH) * len(_BASES)
            difference = beside and found[name].minus(beside, task, claims).signed
            cells.append(f"− {base}: {difference}" if difference else "")
        lines.append([name, *cells, PUBLISHED.get(name, "")])
    differences = [f"{task}, difference" for task in BOTH]
    return markdown(
        ["row", *tasks, *differences, "published: clip, DTW, DTW with background"], lines
    )


def variants(study: Study) -> str:
    """One thing changed at a time, against `NortonLoss()`."""
    ours = at_default(study).get("NortonLoss")
    found = study.by_objective("variants")
    return _against({"NortonLoss": ours, **found} if ours else {}, "NortonLoss", list(VARIANTS))


def warm(study: Study) -> str:
    """After 500 steps of InfoNCE, 250 more of each."""
    return _against(study.by_objective("warm"), "InfoNCE")


def bucket(study: Study) -> str:
    """The bucket and faulty negatives, with and without anything for them to find."""
    of_bucket = (
        ("NortonLoss", "E soft maximum, alpha 0.1", "bucket 30 % − none"),
        ("J bucket 50 %", "E soft maximum, alpha 0.1", "bucket 50 % − none"),
        ("learnable bucket", "entropic", "learnable − fixed, both entropic"),
    )
    of_beta = (
        ("NortonLoss", "beta 0", "beta 0.3 − 0, beside the video-paragraph term"),
        ("B + faulty negatives", "A no video-paragraph term", "beta 0.3 − 0, alone"),
    )
    asked = [
        *(
            (f"{kind} {100 * level:.0f} %" if level else kind, {"noise": kind, "level": level}, d)
            for kind, level in parts.OFF_TOPIC
            for d in (*of_bucket, *of_beta)
        ),
        *(
            (f"batch of {videos}", {"noise": "default", "batch_videos": videos}, d)
            for videos in parts.BATCHES
            for d in of_beta
        ),
    ]
    lines = []
    for where, change, (name, other, what) in asked:
        found = study.by_objective("bucket", **change)
        if name not in found or other not in found:
            lines.append([where, what, NOT_MEASURED, ""])
            continue
        claims = len(BOTH) * len(asked)
        differences = (found[name].minus(found[other], task, claims) for task in BOTH)
        lines.append([where, what, *(d.signed for d in differences)])
    return markdown(["", "difference", *BOTH], lines)


def curves(study: Study) -> str:
    """R@1 on the way, the time it took, and where the validation score says to stop."""
    found = study.by_objective("curves")
    if not found:
        return NOT_MEASURED + "."
    steps = (250, 500, 1000, 2000)
    head = [
        "objective",
        *(f"{step} steps" for step in steps),
        "stopped by validation",
        "500 steps take",
    ]
    lines = []
    for name, sample in found.items():
        line = [name]
        for step in steps:
            line.append(_both(_at(sample, step, task) for task in BOTH))
        stopped = [max(row["curve"], key=lambda c: c["validation"]) for row in sample.rows.values()]
        when = np.mean([point["step"] for point in stopped])
        best = _both(100 * np.mean([p["tasks"][task] for p in stopped]) for task in BOTH)
        seconds = np.mean([_point(row, 500)["seconds"] for row in sample.rows.values()])
        lines.append([*line, f"{best}, at {when:.0f}", f"{seconds:.1f} s"])
    return markdown(head, lines)


def scales(study: Study) -> str:
    """Clip -> caption and transport R@1 for each scale of the video-paragraph logits."""
    found = study.samples("scales")
    base = Run("", ())
    lines = []
    for what, change in (
        *((f"{n} steps a video", {"lengths": (n, n)}) for n, _ in parts.LENGTHS),
        *((f"batch of {b}", {"batch_videos": b}) for b in parts.BATCHES),
        *((f"width {w}", {"width": w}) for w in (32, 128)),
    ):
        wanted = replace(base, videos=300, **change)
        of_change = {
            run.objective: sample
            for run, sample in found.items()
            if replace(run, objective="", settings=()) == wanted
        }
        cells = [
            _both(of_change[name].of(task).mean for task in BOTH) if name in of_change else "-"
            for name in (*SCALES, "scale by length", "InfoNCE")
        ]
        lines.append([what, *cells])
    head = [
        "",
        *(name.removeprefix("NortonLoss, ") for name in SCALES),
        "by length, 10 L",
        "InfoNCE",
    ]
    return markdown(head, lines)


def targets(study: Study) -> str:
    """What the study set out to show, and whether it did."""
    lines = []

    def line(what: str, target: str, found: Estimate | None, met: bool | None) -> None:
        told = NOT_MEASURED if found is None else found.signed
        lines.append([what, target, told, "" if met is None else "yes" if met else "no"])

    def compare(
        found: dict[str, Sample], other: str, task: str, claims: int = 1
    ) -> Estimate | None:
        if "NortonLoss" not in found or other not in found:
            return None
        return found["NortonLoss"].minus(found[other], task, claims)

    default = at_default(study)
    high = [(kind, level) for kind, level in parts.TARGETS if kind != "none"]
    claims = 5 + len(BOTH) * len(high)
    for task, least in ((CLIPS, 8), ("transport", 15)):
        found = compare(default, "InfoNCE", task, claims)
        met = None if found is None else found.mean >= least and found.low > 0
        line(f"{task}, default noise, − InfoNCE", f"≥ {least}, interval above 0", found, met)
    for kind, level in high:
        for task in BOTH:
            found = compare(of_noise(study, kind, level), "InfoNCE", task, claims)
            what = f"{task}, {kind} {100 * level:.0f} %, − InfoNCE"
            line(what, "interval above 0", found, None if found is None else found.low > 0)
    for task in BOTH:
        found = compare(of_noise(study, "none", 0.0, "none"), "InfoNCE", task, claims)
        met = None if found is None else found.high >= 0
        line(f"{task}, no noise, − InfoNCE", "interval reaches 0", found, met)
    found = compare(of_noise(study, "all", 0.6), "MIL-NCE", CLIPS, claims)
    line(f"{CLIPS}, all 60 %, − MIL-NCE", "interval above 0", found, found and found.low > 0)
    return markdown(["difference", "target", "measured", "met"], lines)


TABLES: dict[str, Callable[[Study], str]] = {
    table.__name__: table
    for table in (
        targets,
        headline,
        settings,
        objectives,
        defaults,
        downstream,
        noise,
        ablation,
        variants,
        warm,
        bucket,
        curves,
        scales,
    )
}


def _setting(knob: str, value: float) -> str:
    """Marked where a ladder ends, since the best may lie beyond it."""
    end = " †" if value in (LADDERS[knob][0], LADDERS[knob][-1]) else ""
    return f"{knob.replace('_', ' ')} {value:g}{end}"


def _against(
    found: dict[str, Sample],
    base: str,
    names: Sequence[str] | None = None,
    also: Sequence[str] = (),
) -> str:
    """Both headline tasks of each sample, others perhaps, and its difference from one of them."""
    if base not in found:
        return NOT_MEASURED + "."
    names = [name for name in names or found if name != base]
    shown = (*BOTH, *also)
    head = ["objective", *shown, *(f"{task}, − {base}" for task in BOTH), "training"]
    lines = []
    for name in (base, *names):
        if name not in found:
            lines.append([name, NOT_MEASURED, *[""] * (len(head) - 2)])
            continue
        sample = found[name]
        differences = ["", ""]
        if name != base:
            claims = len(BOTH) * len(names)
            differences = [sample.minus(found[base], task, claims).signed for task in BOTH]
        lines.append(
            [
                name,
                *(str(sample.of(task)) for task in shown),
                *differences,
                f"{sample.mean_of('train_s'):.1f} s",
            ]
        )
    return markdown(head, lines)


def _both(values: object) -> str:
    return " / ".join(f"{value:.1f}" for value in values)  # type: ignore[attr-defined]


def _at(sample: Sample, step: int, task: str) -> float:
    return 100 * float(np.mean([_point(row, step)["tasks"][task] for row in sample.rows.values()]))


def _point(row: dict, step: int) -> dict:
    return next(point for point in row["curve"] if point["step"] == step)
