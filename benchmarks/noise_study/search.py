"""The search that every objective gets: up each of its ladders in turn, by the validation score.

It begins at `START`, moves to a neighbour of the ladder while that scores better, and goes on to
the next knob: first the objective's own, then the learning rate. The score is the mean of clip ->
caption and transport R@1 over two seeds, on the noise-free validation split, after training at the
default noise; for the headline objectives once more after training without noise.
"""

from __future__ import annotations

import numpy as np

from benchmarks.noise_study.objectives import LADDERS, OBJECTIVES, START
from benchmarks.noise_study.rows import Rows
from benchmarks.noise_study.run import Run
from benchmarks.noise_study.tasks import SELECTION

SEEDS = (100, 101)  # of no other run

Chosen = tuple[tuple[str, float], ...]


class MissingRunsError(Exception):
    """Runs that the search cannot go on without."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__(f"{len(runs)} runs")
        self.runs = runs


def choose(objective: str, rows: Rows, noise: str = "default") -> tuple[Chosen, int]:
    """Settings of an objective for a noise, and how many were tried, from rows on file.

    Raises:
        MissingRunsError: with the runs to do first.
    """
    like = OBJECTIVES[objective].like
    if like is not None:
        found, tried = choose(like, rows, noise)
        return tuple(item for item in found if item[0] in OBJECTIVES[objective].all_knobs), tried
    settings = dict(start_of(objective))
    seen: dict[Chosen, float] = {}

    def score(trials: list[dict[str, float]]) -> list[float]:
        runs = [
            Run(objective, tuple(sorted(trial.items())), noise, seed=seed, videos=0)
            for trial in trials
            for seed in SEEDS
        ]
        missing = [run for run in runs if run not in rows]
        if missing:
            raise MissingRunsError(missing)
        values = [np.mean([rows[run]["tasks"][task] for task in SELECTION]) for run in runs]
        means = np.reshape(values, (len(trials), len(SEEDS))).mean(1)
        seen.update((tuple(sorted(t.items())), s) for t, s in zip(trials, means, strict=True))
        return means.tolist()

    for knob in OBJECTIVES[objective].all_knobs:
        ladder = LADDERS[knob]
        place = ladder.index(settings[knob])
        # Both neighbours at once, so that workers have something to do; the first wins a tie.
        around = [i for i in (place, place - 1, place + 1) if 0 <= i < len(ladder)]
        scores = dict(
            zip(around, score([settings | {knob: ladder[i]} for i in around]), strict=True)
        )
        best = max(scores, key=scores.__getitem__)
        step = best - place
        while step and 0 <= best + step < len(ladder):
            (beyond,) = score([settings | {knob: ladder[best + step]}])
            if beyond <= scores[best]:
                break
            best += step
            scores[best] = beyond
        settings[knob] = ladder[best]
    return tuple(sorted(settings.items())), len(seen)


def start_of(objective: str) -> Chosen:
    """Where the search begins, and what a study without one uses."""
    return tuple(sorted((knob, START[knob]) for knob in OBJECTIVES[objective].all_knobs))
