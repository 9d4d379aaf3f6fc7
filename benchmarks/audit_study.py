"""Is the audit true: what it says of the handwritten how-to corpus, beside what the corpus knows.

``python -m benchmarks.audit_study`` trains towers on each level of noise, audits the corpus that
they were trained on, and trains InfoNCE once more on what the audit believes. Rows are kept as they
come, and a run goes on where the last one ended; the block of the documentation is made from them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.machine import ROOT, commit, cpu_name
from benchmarks.harness.results import COMMITTED
from benchmarks.noise_study.run import noise_of
from examples.handwritten_howto.corpus import NOTHING, Corpus, Noise, make_corpus
from examples.handwritten_howto.evaluation import HeldOut, evaluate
from examples.handwritten_howto.towers import PerfectTowers, Towers
from examples.handwritten_howto.training import train
from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments, TransportMeasure
from norton_losses.audit import AuditOutput, audit
from norton_losses.metrics import alignability_auc

RESULTS = COMMITTED / "audit" / "cpu.jsonl"
PAGE = ROOT / "docs" / "how_to" / "audit.md"
BLOCK = re.compile(r"(<!-- audit: (?P<table>\w+) -->\n).*?(<!-- end of audit -->)", flags=re.DOTALL)
LEVELS: dict[str, Noise] = {
    **{f"{level} %": noise_of("all", level / 100) for level in (0, 20, 40, 60)},
    "default": Noise(),
}
SEEDS = range(5)
USED = ("default", "40 %")  # levels at which InfoNCE is trained on what the audit believes
STEPS, RATE = 500, 8e-3  # as the study of evidence.md has found best for NortonLoss
INFONCE_RATE, INFONCE_TEMPERATURE = 1e-3, 0.4


def of_level(level: str, seed: int, videos: int = 2000, held_out: int = 300) -> dict[str, Any]:
    """One row: towers of a seed, trained on the noise of a level."""
    start = time.perf_counter()
    corpus = make_corpus(videos, "train", noise=LEVELS[level], seed=1)
    judge = HeldOut.draw(held_out, "test", seed=1)
    torch.manual_seed(seed)
    towers, loss = Towers(), NortonLoss()
    train(towers, loss, corpus, seed=seed, steps=STEPS, learning_rate=RATE)
    row: dict[str, Any] = {"level": level, "seed": seed, "steps": STEPS, "videos": videos}
    judged_towers: dict[str, Towers] = {"trained": towers}
    if seed == 0:  # to tell digits is nothing that a seed changes
        judged_towers["one-hot"] = PerfectTowers()
    for name, own in judged_towers.items():
        with torch.no_grad():
            sides = own(corpus)
        begun = time.perf_counter()
        found = audit(loss, *sides, progress=False)
        row[f"{name} audit_s"] = time.perf_counter() - begun
        row[name] = judged(found, corpus, loss, sides)
        if name == "trained" and level in USED:
            row["use"] = used(found, corpus, seed, judge)
            row["use"]["NortonLoss"] = recalls(towers, judge)
    row |= {"seconds": time.perf_counter() - start, "commit": commit(), "machine": cpu_name()}
    return row | {"date": date.today().isoformat(), "torch": torch.__version__}


def judged(
    found: AuditOutput, corpus: Corpus, loss: NortonLoss, sides: tuple[Segments, Segments]
) -> dict[str, Any]:
    """What the audit says against what the corpus knows, beside plain baselines."""
    similarity = loss.video_paragraph.similarity
    hits: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    labels: dict[str, list[bool]] = {"off": [], "nowhere": [], "unmatched": []}
    scores: dict[str, list[float]] = {}
    true_own: list[float] = []
    first = 0
    for video, (tells, n) in enumerate(zip(found.tells, corpus.lengths.tolist(), strict=True)):
        truth, place = corpus.truth[video, :n, :n], corpus.caption_place[video, :n]
        with torch.no_grad():
            one = (side[torch.tensor([video])] for side in sides)
            own = similarity(*one)[0, 0, :n, :n]
            bucket = TransportMeasure(bucket=0.3).explain(own[None, None]).plan
            plan = TransportMeasure(bucket=None).explain(own[None, None]).plan
        assert bucket is not None
        assert plan is not None
        at = torch.arange(n)
        late = found.captions.late[first : first + n]
        first += n
        shifted = (place != NOTHING) & (place != at)
        guesses = {
            "audit": (tells.argmax(0), late),
            "transport": (c := plan.core[0, 0].argmax(0), at - c),
            "cosine": (c := own.argmax(0), at - c),
            "diagonal": (at, torch.zeros(n)),
        }
        for name, (clip, shift) in guesses.items():
            there = shifted & truth.any(0)
            hits.setdefault(name, []).extend(truth[clip[there], there.nonzero()[:, 0]].tolist())
            wrong = (shift - (at - place)).abs()[shifted].double()
            errors.setdefault(name, []).extend(wrong.tolist())
        labels["off"] += (place == NOTHING).tolist()
        labels["nowhere"] += (~truth.any(0)).tolist()
        labels["unmatched"] += (~truth.any(1)).tolist()
        true_own += truth[at, at].tolist()
        told = tells
        for name, values in (
            ("audit", told.sum(0)),
            ("similarity", own.amax(0)),
            ("bucket", -bucket.plan[0, 0, -1, :-1]),
            ("audit clips", 1 - (1 - told.clamp(0, 1)).prod(1)),
            ("similarity clips", own.amax(1)),
            ("bucket clips", -bucket.plan[0, 0, :-1, -1]),
        ):
            scores.setdefault(name, []).extend(values.tolist())
    result: dict[str, Any] = {
        "recall": {name: _mean(values) for name, values in hits.items()},
        "shift_error": {name: _mean(values) for name, values in errors.items()},
        "auc_off_topic": {}, "auc_nowhere": {}, "auc_unmatched_clips": {},
        "estimated": {name: rate.value for name, rate in found.rates.items()},
        "true": {
            "own": _mean(true_own),
            "nowhere": _mean(labels["nowhere"]),
            "unmatched_clips": _mean(labels["unmatched"]),
        },
    }  # fmt: skip
    result["true"]["misplaced"] = 1 - result["true"]["own"] - result["true"]["nowhere"]
    for name, values in scores.items():
        kind, clips = name.removesuffix(" clips"), name.endswith(" clips")
        for key, label in (
            (("auc_unmatched_clips", "unmatched"),)
            if clips
            else (("auc_off_topic", "off"), ("auc_nowhere", "nowhere"))
        ):
            fits = ~np.array(labels[label])
            if fits.any() and not fits.all():
                result[key][kind] = alignability_auc(np.array(values), fits)
    return result


def used(found: AuditOutput, corpus: Corpus, seed: int, judge: HeldOut) -> dict[str, Any]:
    """InfoNCE on everything, on what the audit leaves, and on the pairs that it makes."""
    pairs = {
        "InfoNCE": lambda own, clip, sure: (None, torch.ones_like(own).bool()),
        "InfoNCE, audited": lambda own, clip, sure: (None, own > 0.5),
        "InfoNCE, paired anew": lambda own, clip, sure: (clip, sure > 0.5),
    }
    return {name: recalls(_infonce(found, corpus, seed, of), judge) for name, of in pairs.items()}


def _infonce(
    found: AuditOutput, corpus: Corpus, seed: int, pairs: Callable[..., tuple[Any, Tensor]]
) -> Towers:
    """Towers trained by InfoNCE on the pairs of clips and captions that are left."""
    n = corpus.clip_step.shape[1]
    columns = found.captions
    own, clip, sure = (torch.zeros(len(corpus), n, dtype=torch.double) for _ in range(3))
    at = columns.video, columns.caption
    own[at], clip[at] = columns.own, columns.clip.double()
    sure[at] = (1 - columns.nowhere) * columns.share
    torch.manual_seed(seed)
    towers, loss = Towers(), ClipCaptionOTLoss(beta=0.0, temperature=INFONCE_TEMPERATURE)
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=INFONCE_RATE)
    g = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        drawn = torch.randint(len(corpus), (8,), generator=g)
        batch = corpus[drawn]
        chosen, kept = pairs(own[drawn], clip[drawn].long(), sure[drawn])
        video, text = towers(batch)
        kept = kept & (batch.clip_step != NOTHING)
        clips = torch.arange(n).expand(len(drawn), n) if chosen is None else chosen
        place = torch.arange(len(drawn))[:, None].expand_as(clips)
        shown = video.embeddings[place, clips][kept]
        if len(shown) < 2:
            continue
        # Captions that were put to one clip are not each other's negatives.
        value = loss(shown, text.embeddings[kept], group_ids=(place * n + clips)[kept])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return towers


def recalls(towers: Towers, judge: HeldOut) -> dict[str, float]:
    hits = evaluate(towers, judge)
    return {name: float(hits[name].mean()) for name in ("clip → caption", "transport")}


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(np.array(values, dtype=np.float64))) if len(values) else float("nan")


def rows_on_file(path: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_study")
    parser.add_argument("--levels", nargs="*", default=list(LEVELS), choices=list(LEVELS))
    options = parser.parse_args(arguments)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["level"], row["seed"]) for row in rows_on_file()}
    for seed in SEEDS:
        for level in options.levels:
            if (level, seed) in done:
                continue
            row = of_level(level, seed)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{level}, seed {seed}: {row['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
