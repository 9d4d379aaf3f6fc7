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
from scipy.stats import t as student
from torch import Tensor

from benchmarks.harness.machine import ROOT, commit, cpu_name
from benchmarks.harness.results import COMMITTED
from benchmarks.harness.tables import markdown
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
SHARES = {"at their clip": "own", "at another": "misplaced", "nowhere": "nowhere"}
TRAINED = ("InfoNCE", "InfoNCE, audited", "InfoNCE, paired anew", "NortonLoss")
Rows = list[dict[str, Any]]
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


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(np.array(values, dtype=np.float64))) if len(values) else None


def rows_on_file(path: Path = RESULTS) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def recovered(rows: Rows) -> str:
    """What the audit finds again, beside plain baselines, and with towers that read digits."""
    tasks = {
        "shifted captions at a right clip, %": ("recall", 100, ("audit", "cosine", "diagonal")),
        "error of the shift, clips": ("shift_error", 1, ("audit", "cosine", "diagonal")),
        "AUC, captions that match nothing": ("auc_nowhere", 100, ("audit", "similarity", "bucket")),
        "AUC, captions off topic": ("auc_off_topic", 100, ("audit", "similarity", "bucket")),
        "AUC, clips that match nothing": (
            "auc_unmatched_clips", 100, ("audit", "similarity", "bucket"),
        ),
    }  # fmt: skip
    head = ["", "noise", "audit", "cosine, or similarity", "diagonal, or bucket", "digits known"]
    lines = []
    for task, (key, factor, columns) in tasks.items():
        for level in LEVELS:
            of_level = [row for row in rows if row["level"] == level]
            if not of_level or not of_level[0]["trained"][key].get("audit"):
                continue
            cells = [
                _over_seeds([factor * row["trained"][key][column] for row in of_level])
                for column in columns
            ]
            known = next(
                (row["one-hot"][key]["audit"] for row in of_level if "one-hot" in row), None
            )
            lines.append([task, level, *cells, "" if known is None else f"{factor * known:.2f}"])
            task = ""
    return markdown(head, lines)


def rates(rows: Rows) -> str:
    """Shares of captions, estimated and true, in per cent."""
    head = ["noise", *(f"{what}, {kind}" for what in SHARES for kind in ("estimated", "true"))]
    lines = []
    for level in LEVELS:
        of_level = [row["trained"] for row in rows if row["level"] == level]
        if of_level:
            cells = [level]
            for name in SHARES.values():
                cells.append(_over_seeds([100 * row["estimated"][name] for row in of_level]))
                cells.append(f"{100 * of_level[0]['true'][name]:.1f}")
            lines.append(cells)
    return markdown(head, lines)


def use(rows: Rows) -> str:
    """InfoNCE on what the audit believes, in per cent of R@1."""
    lines = []
    for level in USED:
        of_level = [row["use"] for row in rows if row["level"] == level]
        for task in ("clip → caption", "transport") if of_level else ():
            lines.append(
                [
                    level,
                    task,
                    *(_over_seeds([100 * row[name][task] for row in of_level]) for name in TRAINED),
                ]
            )
    return markdown(["noise", "task", *TRAINED], lines)


def _over_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % interval of Student."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f}"
    reach = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}]"


TABLES = {"recovered": recovered, "rates": rates, "use": use}


def rewritten(page: str) -> str:
    """The page with its blocks as the rows have them."""
    rows = rows_on_file()
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block['table']](rows)}\n{block[3]}", page)


def rewrite_page() -> list[Path]:
    """Bring the page up to date; returns it if it was not."""
    text = PAGE.read_text()
    PAGE.write_text(rewritten(text))
    return [PAGE] if rewritten(text) != text else []


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
