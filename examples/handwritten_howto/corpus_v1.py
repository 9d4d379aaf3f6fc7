"""The handwritten how-to corpus: narrated videos made of real scans, with noise of known kind.

A *video* is a recipe of N steps, a *step* is a set of digits. Its *clip* shows frames: some are
scans of the step's digits, the others distractors (a scan whose pixels are shuffled, or a stray
digit). Its *caption* is a sentence: the names of the step's digits among filler words. Then comes
the noise that long narrated videos have, at rates that `Noise` names, and every corpus remembers
what each clip and caption is really about.

The scans are the 1,797 handwritten digits (8 x 8 pixels) that scikit-learn ships. The training
corpus and the test corpus use different scans.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

DIGITS = 10
FILLERS = 30
VOCABULARY = 1 + DIGITS + FILLERS  # word 0 is padding, then the digits' names, then fillers
NOTHING = -1  # the step of a clip or caption that shows or tells none

_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Noise:
    """How far narration and footage part, as shares between 0 and 1 but for `max_shift`.

    The defaults are those of training: half of the videos are narrated early or late.
    """

    shifted_videos: float = 0.5
    max_shift: int = 2  # steps by which a shifted video's captions come early or late, at most
    irrelevant_captions: float = 0.3  # sentences of fillers only
    irrelevant_clips: float = 0.3  # footage of distractors only, though its step is narrated
    distractor_frames: float = 0.4  # share of a clip's frames that show none of its digits
    filler_words: float = 0.4  # share of a caption's words that name none of its digits


@dataclass(frozen=True)
class Corpus:
    """B videos of N clips (at most F frames each), and their N captions (at most W words each)."""

    frames: Tensor  # (B, N, F, 8, 8), float in [0, 1]
    frame_mask: Tensor  # (B, N, F), bool
    words: Tensor  # (B, N, W), int64, 0 where padded
    word_mask: Tensor  # (B, N, W), bool
    clip_step: Tensor  # (B, N), the step that a clip shows, or NOTHING
    caption_step: Tensor  # (B, N), the step that a caption tells, or NOTHING
    recipe: Tensor  # (B, N, 10), bool, the digits of each step

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, videos: Tensor) -> Corpus:
        """The videos of the given indices (b,)."""
        return Corpus(*(getattr(self, field.name)[videos] for field in fields(self)))

    @property
    def truth(self) -> Tensor:
        """(B, N, N), bool: clip i shows the step that caption j tells."""
        same = self.clip_step[:, :, None] == self.caption_step[:, None, :]
        return same & (self.clip_step != NOTHING)[:, :, None]


def make_corpus(
    videos: int,
    split: Literal["train", "test"],
    *,
    noise: Noise | None = None,
    seed: int = 0,
    steps: int = 8,
    digits: int = 3,
    max_frames: int = 6,
    max_words: int = 8,
) -> Corpus:
    """Draw a corpus; the same arguments give the same corpus.

    Args:
        videos: how many.
        split: whose scans to show.
        noise: None means `Noise()`.
        seed: of everything random.
        steps: N, clips and captions of a video.
        digits: different digits of a step.
        max_frames: F; a clip has `max_frames - 2` to `max_frames`.
        max_words: W; a caption has `max_words - 3` to `max_words`.
    """
    noise = noise or Noise()
    rng = np.random.default_rng([seed, split == "test"])
    scans = _Scans(split, rng)
    recipe = np.argsort(rng.random((videos, steps, DIGITS)), axis=-1) < digits
    shift = rng.integers(1, noise.max_shift + 1, videos) * rng.choice([-1, 1], videos)
    shift = np.where(rng.random(videos) < noise.shifted_videos, shift, 0)

    slots = np.arange(steps)
    clip_step = np.where(rng.random((videos, steps)) < noise.irrelevant_clips, NOTHING, slots)
    told = slots - shift[:, None]  # a positive shift: the caption comes late
    told = np.where((told >= 0) & (told < steps), told, NOTHING)
    irrelevant = rng.random((videos, steps)) < noise.irrelevant_captions
    caption_step = np.where(irrelevant, NOTHING, told)

    frames = np.zeros((videos, steps, max_frames, 8, 8), dtype=np.float32)
    frame_mask = np.zeros((videos, steps, max_frames), dtype=bool)
    words = np.zeros((videos, steps, max_words), dtype=np.int64)
    for b, i in np.ndindex(videos, steps):
        frame_count = int(rng.integers(max_frames - 2, max_frames + 1))
        word_count = int(rng.integers(max_words - 3, max_words + 1))
        shown = _fill(
            rng, _digits_of(recipe[b], int(clip_step[b, i])), frame_count, noise.distractor_frames
        )
        named = _fill(
            rng, _digits_of(recipe[b], int(caption_step[b, i])), word_count, noise.filler_words
        )
        frames[b, i, :frame_count] = [scans.frame(digit) for digit in shown]
        frame_mask[b, i, :frame_count] = True
        words[b, i, :word_count] = [_word(rng, digit) for digit in named]
    return Corpus(
        torch.from_numpy(frames),
        torch.from_numpy(frame_mask),
        torch.from_numpy(words),
        torch.from_numpy(words != 0),
        torch.from_numpy(clip_step),
        torch.from_numpy(caption_step),
        torch.from_numpy(recipe),
    )


def sentence(words: Tensor) -> str:
    """A caption's word ids (W,) as text: digits by name, fillers as dots."""
    names = {1 + digit: name for digit, name in enumerate(_NAMES)}
    return " ".join(names.get(word, "·") for word in words.tolist() if word != 0)


class _Scans:
    """Real scans of one split, drawn by digit, and distractors made of them."""

    def __init__(self, split: str, rng: np.random.Generator) -> None:
        pixels, digits = load_digits(return_X_y=True)
        # The scans are stored in the order of their writers: cut once, and the hands differ too.
        cut = round(len(digits) * (1 - _TEST_SHARE))
        part = slice(0, cut) if split == "train" else slice(cut, None)
        images = np.reshape(pixels, (-1, 8, 8))[part] / 16
        self._by_digit = [images[digits[part] == digit] for digit in range(DIGITS)]
        self._rng = rng

    def frame(self, digit: int) -> np.ndarray:
        """A scan of `digit`; of NOTHING, a stray digit, or a scan with its pixels shuffled."""
        stray = digit == NOTHING
        scan = self._rng.choice(self._by_digit[self._rng.integers(DIGITS) if stray else digit])
        if stray and self._rng.random() < 0.5:
            return self._rng.permutation(scan.ravel()).reshape(scan.shape)
        return scan


def _digits_of(recipe: np.ndarray, step: int) -> np.ndarray:
    return np.flatnonzero(recipe[step]) if step != NOTHING else np.empty(0, dtype=np.int64)


def _fill(rng: np.random.Generator, digits: np.ndarray, count: int, noise: float) -> np.ndarray:
    """`count` entries in random order: every digit once, then NOTHING or a digit once more."""
    if len(digits) == 0:
        return np.full(count, NOTHING)
    room = max(count - len(digits), 0)
    empty = min(rng.binomial(count, noise), room)
    entries = [digits[:count], np.full(empty, NOTHING), rng.choice(digits, room - empty)]
    return rng.permutation(np.concatenate(entries))


def _word(rng: np.random.Generator, digit: int) -> int:
    return 1 + digit if digit != NOTHING else 1 + DIGITS + int(rng.integers(FILLERS))
