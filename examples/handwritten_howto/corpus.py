"""The handwritten how-to corpus, version 2: narrated videos of real scans, and noise of known kind.

A *step* is a set of three digits, one of 120. A *recipe* is 12 to 16 steps, some of them more than
once, that use eight of the ten digits. A *video* shows its recipe, a clip a step: frames, scans of
the step's digits among distractors. Its *paragraph* tells the recipe, a caption a step: a sentence
with the digits' names among filler words. Then comes the noise that long narrated videos have, at
rates that `Noise` names, and a corpus remembers what each clip and each caption is about.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from examples.handwritten_howto.scans import DIGITS, NOTHING, Split, draw_scans

FRAMES, WORDS = 6, 8  # at most, of a clip and of a caption
FILLERS = 30
VOCABULARY = 1 + DIGITS + FILLERS  # word 0 is padding, then the digits' names, then fillers
STEPS = np.array(list(combinations(range(DIGITS), 3)))  # (120, 3)

_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TRIES = 16  # to find a step that is not in a recipe; that all fail is less than one in 10 million
_LARGEST_JUMP = 4  # beside a drift of one step: off by five at most, and by six if swapped
# How often each step is cooked: a few are everywhere and most are rare, as in real kitchens.
_POPULARITY = np.random.default_rng(0).permutation((1.0 + np.arange(len(STEPS))) ** -0.7)


@dataclass(frozen=True)
class Noise:
    """How far narration and footage part, as shares between 0 and 1.

    The defaults are those of training.
    """

    shifted_videos: float = 0.5  # narration drifts by a step, and jumps by up to four more
    swapped_steps: float = 0.25  # pairs of steps, 1 and 2, 3 and 4, told in the other order
    off_topic_captions: float = 0.3  # sentences about a step of another recipe
    off_topic_clips: float = 0.3  # footage of a step of another recipe
    distractor_frames: float = 0.4  # of a clip's frames, which then may miss some of its digits
    filler_words: float = 0.4  # of a caption's words

    @classmethod
    def none(cls) -> Noise:
        return cls(*(0.0 for _ in fields(cls)))


@dataclass(frozen=True)
class Corpus:
    """B videos of N clips (at most F frames each), and their N captions (at most W words each).

    A video has as many valid clips as captions.
    """

    frames: Tensor  # (B, N, F, 8, 8), float in [0, 1]
    frame_digit: Tensor  # (B, N, F), the digit that a frame shows, NOTHING of a distractor
    frame_mask: Tensor  # (B, N, F), bool
    words: Tensor  # (B, N, W), int64, 0 where padded
    clip_step: Tensor  # (B, N), the row of STEPS that a clip shows, NOTHING where padded
    caption_step: Tensor  # (B, N), the row of STEPS that a caption tells
    clip_place: Tensor  # (B, N), where in its recipe the step stands, NOTHING where off topic
    caption_place: Tensor  # (B, N)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, videos: Tensor) -> Corpus:
        """The videos of the given indices (b,)."""
        return Corpus(*(getattr(self, field.name)[videos] for field in fields(self)))

    def to(self, device: torch.device) -> Corpus:
        return Corpus(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def word_mask(self) -> Tensor:
        return self.words != 0

    @property
    def lengths(self) -> Tensor:
        """(B,), the number of clips, and of captions."""
        return (self.clip_step != NOTHING).sum(1)

    @property
    def truth(self) -> Tensor:
        """(B, N, N), bool: clip i shows the step that caption j tells, both of them on topic."""
        same = self.clip_step[:, :, None] == self.caption_step[:, None, :]
        on_topic = (self.clip_place != NOTHING)[:, :, None] & (self.caption_place != NOTHING)[
            :, None
        ]
        return same & on_topic


def make_corpus(
    videos: int,
    split: Split,
    *,
    noise: Noise | None = None,
    seed: int = 0,
    order: Literal["cooked", "shuffled"] = "cooked",
    replaced_steps: float = 0.0,
    lengths: tuple[int, int] = (12, 16),
) -> Corpus:
    """Draw a corpus; the same arguments give the same corpus.

    Args:
        videos: how many.
        split: whose scans to show.
        noise: None means `Noise()`.
        seed: of everything random; the recipes and the footage depend on nothing but it, `videos`,
            `split`, `lengths` and the noise of footage.
        order: of the narration. Shuffled paragraphs tell the same steps in random order, so that
            order helps nobody.
        replaced_steps: share of a recipe's steps that the paragraph replaces by others of the same
            eight digits. Such a paragraph almost fits: a distractor, whose captions and clips are
            no pairs.
        lengths: the least and the most steps of a recipe, N.
    """
    noise = noise or Noise()
    cooks, films, tells = (np.random.default_rng([seed, part, len(split)]) for part in range(3))
    recipe, spares = _draw_recipes(cooks, videos, *lengths)
    slots = np.broadcast_to(np.arange(lengths[1]), recipe.shape)
    valid = recipe != NOTHING

    off_topic = films.random(recipe.shape) < noise.off_topic_clips
    clip_place = np.where(valid & ~off_topic, slots, NOTHING)
    clip_step = _steps_at(clip_place, recipe, _elsewhere(films, recipe))

    elsewhere = _elsewhere(tells, recipe)
    told = _narrate(tells, valid, noise, order)
    off_topic = tells.random(recipe.shape) < noise.off_topic_captions
    caption_place = np.where(valid & ~off_topic, told, NOTHING)
    if replaced_steps:
        turn = np.where(valid, tells.random(recipe.shape), 2.0).argsort(1).argsort(1)
        replaced = turn < np.ceil(replaced_steps * valid.sum(1, keepdims=True))
        recipe = np.where(replaced, spares, recipe)
    caption_step = _steps_at(caption_place, recipe, elsewhere)

    frame_digit, frame_mask = _fill(films, clip_step, FRAMES, 2, noise.distractor_frames)
    named, word_mask = _fill(tells, caption_step, WORDS, 3, noise.filler_words)
    fillers = 1 + DIGITS + tells.integers(FILLERS, size=named.shape)
    words = np.where(named == NOTHING, fillers, 1 + named) * word_mask
    frames = draw_scans(split, frame_digit, films) * frame_mask[..., None, None]
    arrays = (frames, np.where(frame_mask, frame_digit, NOTHING), frame_mask, words)
    labels = (clip_step, caption_step, clip_place, caption_place)
    return Corpus(*map(torch.from_numpy, (*arrays, *labels)))


def sentence(words: Tensor) -> str:
    """A caption's word ids (W,) as text: digits by name, fillers as dots."""
    names = {1 + digit: name for digit, name in enumerate(_NAMES)}
    return " ".join(names.get(word, "·") for word in words.tolist() if word != 0)


def _draw_recipes(
    rng: np.random.Generator, videos: int, shortest: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recipes (B, N) of rows of STEPS, and as many other steps of the same eight digits."""
    unused = rng.random((videos, DIGITS)).argsort(1)[:, :2]
    usable = ~(STEPS[None, :, :, None] == unused[:, None, None]).any((2, 3))  # (B, 120)
    recipe = _draw_steps(rng, usable * _POPULARITY, longest)
    length = rng.integers(shortest, longest + 1, videos)
    recipe = np.where(np.arange(longest) >= length[:, None], NOTHING, recipe)
    own = (recipe[:, :, None] == np.arange(len(STEPS))).any(1)
    return recipe, _draw_steps(rng, (usable & ~own) * _POPULARITY, longest)


def _draw_steps(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """(B, count) rows of STEPS, drawn by weights (B, 120)."""
    chance = np.cumsum(weights, axis=1)
    drawn = rng.random((len(weights), count)) * chance[:, -1:]
    return (drawn[:, :, None] >= chance[:, None]).sum(2)


def _elsewhere(rng: np.random.Generator, recipe: np.ndarray) -> np.ndarray:
    """(B, N) steps of the other recipes, none of which is in this one.

    They are as chance would have it. If they always named digits that the video lacks, noise would
    teach that what is shown is not told, which is the opposite of the truth and not its absence.
    """
    steps = recipe[recipe != NOTHING]
    drawn = steps[rng.integers(len(steps), size=(*recipe.shape, _TRIES))]
    own = (drawn[..., None] == recipe[:, None, None]).any(-1)
    first = own.argmin(-1)  # that is not in the recipe
    return np.take_along_axis(drawn, first[..., None], axis=-1)[..., 0]


def _narrate(rng: np.random.Generator, valid: np.ndarray, noise: Noise, order: str) -> np.ndarray:
    """(B, N): the place of the recipe that is told at each slot, NOTHING before and after it."""
    videos, longest = valid.shape
    slots, length = np.arange(longest), valid.sum(1, keepdims=True)
    if order == "shuffled":
        sequence = np.where(valid, rng.random(valid.shape), 2.0).argsort(1)
    else:
        swapped = rng.random((videos, longest // 2)) < noise.swapped_steps
        swapped = np.repeat(swapped & valid[:, 1::2], 2, axis=1)
        swapped = np.pad(swapped, ((0, 0), (0, longest % 2)))
        sequence = slots ^ swapped  # the place beside it: 0 and 1, 2 and 3
    drift, jump = rng.choice([-1, 1], (2, videos, 1))
    jump = jump * rng.integers(1, _LARGEST_JUMP + 1, (videos, 1))
    # The drift comes in the first half; before or after the jump, which comes anywhere.
    begins = rng.random((2, videos, 1)) * length * np.array([0.5, 1.0])[:, None, None]
    shift = drift * (slots >= begins[0]) + jump * (slots >= begins[1])
    shift = np.where(rng.random((videos, 1)) < noise.shifted_videos, shift, 0)
    slot = slots - shift  # a positive shift: the caption comes late
    inside = (slot >= 0) & (slot < length)
    told = np.take_along_axis(sequence, slot.clip(0, longest - 1), axis=1)
    return np.where(inside, told, NOTHING)


def _steps_at(place: np.ndarray, recipe: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """The steps at places of a recipe, those of `elsewhere` off topic, NOTHING where padded."""
    of_recipe = np.take_along_axis(recipe, place.clip(0), axis=1)
    shown = np.where(place == NOTHING, elsewhere, of_recipe)
    return np.where(recipe == NOTHING, NOTHING, shown)


def _fill(
    rng: np.random.Generator, step: np.ndarray, room: int, slack: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Entries (B, N, room) and their mask: the step's three digits in random order, among others.

    Between `room - slack` and `room` entries are valid: NOTHING at the rate of the noise, but for
    one at least; of the rest every digit once, as far as they go, then digits once more.
    """
    shape = (*step.shape, room)
    digits = rng.permuted(STEPS[step], axis=-1)
    count = rng.integers(room - slack, room + 1, step.shape)
    nothing = np.minimum(rng.binomial(count, noise), count - 1)
    entries = np.take_along_axis(digits, rng.integers(3, size=shape), axis=-1)
    entries[..., :3] = digits
    slot = np.arange(room)
    mask = slot < count[..., None]
    entries = np.where(slot < (count - nothing)[..., None], entries, NOTHING)
    order = np.where(mask, rng.random(shape), 2.0).argsort(-1)
    entries = np.take_along_axis(entries, order, axis=-1)
    return entries, mask & (step != NOTHING)[..., None]
