"""One run of the study: which objective, with which settings, on which noise, from which seed."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from benchmarks.harness.machine import commit, cpu_name
from benchmarks.noise_study.objectives import OBJECTIVES, START
from benchmarks.noise_study.tasks import Exam, Values, examine, selection_score
from examples.handwritten_howto.corpus import Corpus, Noise, make_corpus
from examples.handwritten_howto.evaluation import HeldOut
from examples.handwritten_howto.towers import Towers
from examples.handwritten_howto.training import train
from norton_losses.contrastive import COLDEST, HOTTEST

VERSION = 3  # raise it when the corpus or an objective changes: rows on file are then of no run
TRAINING_VIDEOS, VALIDATION_VIDEOS = 2000, 400
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What fixes a run: two equal ones give the same row, up to rounding and time."""

    objective: str
    settings: tuple[tuple[str, float], ...]  # of the objective's knobs and the learning rate
    noise: str = "default"
    level: float = 0.0
    seed: int = 0
    steps: int = 500
    batch_videos: int = 8
    width: int = 64
    lengths: tuple[int, int] = (12, 16)
    warm_steps: int = 0  # of InfoNCE before
    every: int = 0  # steps between examinations on the way; 0 for none
    videos: int = (
        1000  # held out; 0 for the score on the validation split that settings are chosen by
    )

    @property
    def key(self) -> str:
        """A digest of what differs from the defaults, so that a new field leaves old keys alone."""
        values = asdict(self)
        told = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        return hashlib.sha256(json.dumps([VERSION, told]).encode()).hexdigest()[:16]


def noise_of(kind: str, level: float) -> Noise:
    """The noise of a kind at a level, and no other; `default` and `all` have every kind."""
    told = {"shifted_videos": level, "swapped_steps": level / 2}
    captions, clips = {"off_topic_captions": level}, {"off_topic_clips": level}
    tokens = {"distractor_frames": level, "filler_words": level}
    kinds = {
        "default": vars(Noise()),
        "none": {},
        "asynchrony": told,
        "off-topic captions": captions,
        "background clips": clips,
        "frames and words": tokens,
        "all": told | captions | clips | tokens,
    }
    return replace(Noise.none(), **kinds[kind])


def execute(run: Run) -> Row:
    """Train, examine, and describe what came out.

    Seconds are those of the processor, on one thread: other work on the machine costs them little.
    """
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    objective = OBJECTIVES[run.objective]
    towers = objective.towers(run.width)
    noise = noise_of(run.noise, run.level)
    corpus = _training_corpus(noise, run.lengths)
    if run.warm_steps:
        infonce = OBJECTIVES["InfoNCE"].build(temperature=START["temperature"])
        # Batches of their own: those of this run are still to come.
        train(towers, infonce, corpus, seed=1000 + run.seed, steps=run.warm_steps)
    settings = dict(run.settings)
    learning_rate = settings.pop("learning_rate")
    loss = objective.build(**settings)
    curve: list[Row] = []
    seconds, step, since = 0.0, 0, time.process_time()

    def on_step() -> None:
        nonlocal seconds, step, since
        step += 1
        if run.every and step % run.every == 0:
            seconds += time.process_time() - since
            curve.append(
                {
                    "step": step,
                    "seconds": round(seconds, 2),
                    "validation": _mean(selection_score(towers, _validation(run.lengths))),
                    "tasks": {k: _mean({k: v}) for k, v in _examine(towers, run, noise).items()},
                }
            )
            since = time.process_time()

    train(
        towers,
        loss,
        corpus,
        seed=run.seed,
        steps=run.steps,
        batch_videos=run.batch_videos,
        learning_rate=learning_rate,
        on_step=on_step,
    )
    seconds += time.process_time() - since
    start = time.process_time()
    tasks = {
        name: [round(float(v), 4) for v in values]
        for name, values in _examine(towers, run, noise).items()
    }
    return {
        "key": run.key,
        "run": {**asdict(run), "settings": dict(run.settings), "lengths": list(run.lengths)},
        "tasks": tasks,
        "curve": curve,
        "temperatures": _temperatures(loss),
        "train_s": round(seconds, 2),
        "examine_s": round(time.process_time() - start, 2),
        "commit": commit(),
        "date": date.today().isoformat(),
        "machine": machine(),
    }


def _mean(values: Values) -> float:
    return round(float(np.mean(list(values.values()))), 4)


def machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu_name()}, 1 thread, {versions}"


def _examine(towers: Towers, run: Run, noise: Noise) -> Values:
    if run.videos == 0:
        return selection_score(towers, _validation(run.lengths))
    return examine(towers, _exam(run.videos, noise, run.lengths))


def _temperatures(loss: torch.nn.Module) -> dict[str, float]:
    """Where the temperatures of a loss have come to."""
    return {
        name.removesuffix(".log_scale"): round((-value).exp().clamp(COLDEST, HOTTEST).item(), 4)
        for name, value in loss.state_dict().items()
        if name.endswith("log_scale") and ".inner." not in name  # which a floor hides
    }


@lru_cache(maxsize=2)
def _training_corpus(noise: Noise, lengths: tuple[int, int]) -> Corpus:
    return make_corpus(TRAINING_VIDEOS, "train", noise=noise, seed=1, lengths=lengths)


@lru_cache(maxsize=2)
def _validation(lengths: tuple[int, int]) -> HeldOut:
    return HeldOut.draw(VALIDATION_VIDEOS, "validation", seed=1, lengths=lengths)


@lru_cache(maxsize=1)
def _exam(videos: int, noise: Noise, lengths: tuple[int, int]) -> Exam:
    return Exam.draw(videos, "test", noise, lengths)
