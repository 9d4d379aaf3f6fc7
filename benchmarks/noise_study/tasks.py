"""The downstream tasks of the paper, on towers that are trained: a number for each block of videos.

A task's value is kept for 20 blocks of held-out videos, the same ones for every run, so that
differences can be paired and intervals drawn over seeds and videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from examples.handwritten_howto.corpus import STEPS, Corpus, Noise, make_corpus
from examples.handwritten_howto.evaluation import (
    CLIPS,
    SEQUENCE_MEASURES,
    HeldOut,
    clip_hits,
    paragraph_ranks,
    per_video,
    unit_captions,
    unit_embeddings,
)
from examples.handwritten_howto.scans import DIGITS, NOTHING, Split
from examples.handwritten_howto.towers import Towers
from norton_losses import PromptBucket, TransportMeasure
from norton_losses.metrics import frame_accuracy, multiple_choice_accuracy

BLOCKS = 20
CAPTIONS = "caption → clip"
ANSWERS = "question answering"
FRAMES, FRAMES_SHOWN = "frame accuracy", "frame accuracy, no background"
ALIGNED, ALIGNED_BY_PLAN = "alignment recall", "alignment recall, by plan"
SELECTION = (CLIPS, "transport")  # what settings are chosen by, their mean
TASKS = (
    CLIPS,
    CAPTIONS,
    *SEQUENCE_MEASURES,
    "DTW, shuffled",
    "transport, noisy, R@10",
    "DTW, noisy, R@10",
    ANSWERS,
    FRAMES,
    FRAMES_SHOWN,
    ALIGNED,
    ALIGNED_BY_PLAN,
)
_CHOICES = 5
_PROBE_VIDEOS, _RIDGE = 200, 1e-3

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exam:
    """Held-out videos, noisy as in training, and others with the default noise whatever that is.

    The latter have shifted captions and background frames to find, in every run the same.
    """

    held_out: HeldOut
    labelled: Corpus
    probe: Corpus  # videos of training, to fit a linear probe on

    @classmethod
    def draw(cls, videos: int, split: Split, noise: Noise, lengths: tuple[int, int]) -> Exam:
        held_out = HeldOut.draw(videos, split, noise=noise, seed=1, lengths=lengths)
        labelled = make_corpus(videos, split, seed=2, lengths=lengths)
        probe = make_corpus(_PROBE_VIDEOS, "train", seed=3, lengths=lengths)
        return cls(held_out, labelled, probe)


@torch.no_grad()
def examine(towers: Towers, exam: Exam) -> Values:
    """Every task of `TASKS`, (BLOCKS,) each."""
    corpus, near = exam.held_out.clean
    assert near is not None
    clips, captions = unit_embeddings(towers, corpus)
    hits = {
        CLIPS: clip_hits(clips, captions, corpus),
        CAPTIONS: _caption_hits(clips, captions, corpus),
    }
    almost = unit_captions(towers, near)
    ranks = paragraph_ranks(clips, captions, corpus.lengths, almost)
    hits |= {name: _at(r, 1) for name, r in ranks.items()}

    shuffled, near = exam.held_out.shuffled  # of the same footage
    assert near is not None
    told, almost = (unit_captions(towers, paragraphs) for paragraphs in (shuffled, near))
    measures = {"DTW": SEQUENCE_MEASURES["DTW"]}
    ranks = paragraph_ranks(clips, told, shuffled.lengths, almost, measures)
    hits["DTW, shuffled"] = _at(ranks["DTW"], 1)

    noisy = exam.held_out.noisy.corpus
    measures |= {"transport": SEQUENCE_MEASURES["transport"]}
    ranks = paragraph_ranks(*unit_embeddings(towers, noisy), noisy.lengths, measures=measures)
    hits |= {f"{name}, noisy, R@10": _at(r, 10) for name, r in ranks.items()}

    values = {name: in_blocks(h) for name, h in hits.items()}
    values[ANSWERS] = _question_answering(clips, captions, corpus)
    values |= _frames(towers, exam)
    return values | _alignment(*unit_embeddings(towers, exam.labelled), exam.labelled)


@torch.no_grad()
def selection_score(towers: Towers, held_out: HeldOut) -> Values:
    """The tasks of `SELECTION` alone, on the validation split."""
    corpus, near = held_out.clean
    assert near is not None
    clips, captions = unit_embeddings(towers, corpus)
    almost = unit_captions(towers, near)
    measures = {"transport": SEQUENCE_MEASURES["transport"]}
    ranks = paragraph_ranks(clips, captions, corpus.lengths, almost, measures)
    hits = {CLIPS: clip_hits(clips, captions, corpus), "transport": _at(ranks["transport"], 1)}
    return {name: in_blocks(h) for name, h in hits.items()}


def in_blocks(values: np.ndarray) -> np.ndarray:
    """Means (BLOCKS,) of the values (B,) of videos that follow each other."""
    return np.array([block.mean() for block in np.array_split(values, BLOCKS)])


def _at(ranks: np.ndarray, k: int) -> np.ndarray:
    return (ranks < k).astype(np.float64)


def _caption_hits(clips: Tensor, captions: Tensor, corpus: Corpus) -> np.ndarray:
    """Text-to-video retrieval: share of captions whose nearest clip of all shows what they tell."""
    shown, told = corpus.clip_place != NOTHING, corpus.caption_place != NOTHING
    nearest = (captions[told] @ clips[shown].T).argmax(1)
    right = corpus.clip_step[shown][nearest] == corpus.caption_step[told]
    return per_video(right, told)


def _question_answering(clips: Tensor, captions: Tensor, corpus: Corpus) -> np.ndarray:
    """A clip and five captions: all share two digits, and the third one tells which is right.

    So no answer stands out among the others, nor by its popularity: frequent steps are asked about
    no more often than rare ones. Captions are those of all videos, a random one of each step.
    """
    rng = np.random.default_rng(0)
    told = corpus.caption_step.flatten().numpy()
    order = np.argsort(told, kind="stable")
    first = np.searchsorted(told[order], np.arange(len(STEPS)))
    count = np.bincount(told[told != NOTHING], minlength=len(STEPS))
    video, _ = shown = _questions(corpus.clip_step.numpy(), rng)
    steps = _alternatives(corpus.clip_step.numpy()[shown], count > 0, rng)  # the right one first
    chosen = order[first[steps] + (rng.random(steps.shape) * count[steps]).astype(int)]
    places = rng.permuted(np.tile(np.arange(_CHOICES), (len(steps), 1)), axis=1)
    chosen = np.take_along_axis(chosen, places, axis=1)
    answers = (places == 0).argmax(1)
    asked = clips[shown]
    candidates = captions.flatten(0, 1)[torch.from_numpy(chosen)]
    return _by_block(
        video,
        len(corpus),
        lambda part: multiple_choice_accuracy(asked[part], candidates[part], answers[part]),
    )


def _questions(clip_step: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places of clips (B, N): of each step as many as of one that a tenth are rarer than."""
    shown = clip_step != NOTHING
    each = np.sort(np.bincount(clip_step[shown], minlength=len(STEPS)))[len(STEPS) // 10]
    keys = rng.random(clip_step.shape)
    rank = np.empty(clip_step.shape, dtype=int)  # of a clip among those that show its step
    for step in range(len(STEPS)):
        of_step = clip_step == step
        rank[of_step] = keys[of_step].argsort().argsort()
    return np.nonzero(shown & (rank < each))  # type: ignore[return-value]


def _alternatives(step: np.ndarray, told: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, choices): each step (n,), and others that have another digit in place of one of its.

    Only steps that are told, (120,), are among them.
    """
    digits = rng.permuted(STEPS[step], axis=1)
    # With every other third digit, seven each.
    rest = np.tile(np.arange(DIGITS), (len(step), 1))
    rest = rest[(rest[:, :, None] != digits[:, None]).all(2)].reshape(len(step), -1, 1)
    pair = np.broadcast_to(digits[:, None, :2], (*rest.shape[:2], 2))
    place = DIGITS ** np.arange(2, -1, -1)
    wanted = np.sort(np.concatenate([pair, rest], axis=-1), axis=-1)
    others = np.searchsorted(STEPS @ place, wanted @ place)
    if (told[others].sum(1) < _CHOICES - 1).any():
        raise ValueError("too few steps are told to choose among; draw more videos")
    drawn = np.where(told[others], rng.random(others.shape), 2.0).argsort(1)[:, : _CHOICES - 1]
    return np.concatenate([step[:, None], np.take_along_axis(others, drawn, axis=1)], axis=1)


def _frames(towers: Towers, exam: Exam) -> Values:
    """Action segmentation: the digit that each frame shows, or background, by a linear probe."""
    tokens, digits, _ = _labelled_frames(towers, exam.probe)
    gram = tokens.T @ tokens + _RIDGE * len(tokens) * torch.eye(tokens.shape[1])
    probe = torch.linalg.solve(gram, tokens.T @ one_hot(digits, DIGITS + 1).float())
    tokens, digits, video = _labelled_frames(towers, exam.labelled)
    predicted = (tokens @ probe).argmax(1)

    def accuracy(background: int | None) -> np.ndarray:
        return _by_block(
            video,
            len(exam.labelled),
            lambda part: frame_accuracy(predicted[part], digits[part], background=background),
        )

    return {FRAMES: accuracy(None), FRAMES_SHOWN: accuracy(DIGITS)}


def _labelled_frames(towers: Towers, corpus: Corpus) -> tuple[Tensor, Tensor, np.ndarray]:
    """Unit tokens with a 1 for the intercept, digits, 10 for background, and videos of frames."""
    mask = corpus.frame_mask
    tokens = normalize(towers.watch(corpus).tokens[mask], dim=-1)
    tokens = torch.nn.functional.pad(tokens, (0, 1), value=1.0)
    digits = corpus.frame_digit[mask]
    digits = torch.where(digits == NOTHING, DIGITS, digits)
    return tokens, digits, mask.nonzero()[:, 0].numpy()


def _alignment(clips: Tensor, captions: Tensor, corpus: Corpus) -> Values:
    """Share of captions whose own slot shows something else, and another clip them, that find it.

    By the best clip of their video, and by the clip to which transport moves most of their mass.
    """
    cosines = clips @ captions.mT  # (B, N, M)
    valid = corpus.clip_step != NOTHING
    moved = corpus.truth.any(1) & ~corpus.truth.diagonal(dim1=1, dim2=2)
    best = cosines.masked_fill(~valid[:, :, None], -torch.inf).argmax(1)
    threshold = torch.quantile(cosines.diagonal(dim1=1, dim2=2)[valid], 0.3).item()
    measure = TransportMeasure(bucket=PromptBucket(value=threshold))
    # A batch of problems (B, 1): every video with its own paragraph.
    plan = measure.explain(cosines[:, None], valid, valid[:, None]).plan
    assert plan is not None
    by_plan = plan.core[:, 0].argmax(1)

    def recall(found: Tensor) -> np.ndarray:
        right = corpus.truth.gather(1, found[:, None])[:, 0][moved].double().numpy()
        video = moved.nonzero()[:, 0].numpy()
        return _by_block(video, len(corpus), lambda part: right[part].mean())

    return {ALIGNED: recall(best), ALIGNED_BY_PLAN: recall(by_plan)}


def _by_block(video: np.ndarray, videos: int, value: Callable[[np.ndarray], float]) -> np.ndarray:
    """The value of the entries of each block of videos, (BLOCKS,); entries are given by video."""
    edges = np.searchsorted(video, [part[0] for part in np.array_split(np.arange(videos), BLOCKS)])
    parts = np.split(np.arange(len(video)), edges[1:])
    return np.array([value(part) for part in parts])
