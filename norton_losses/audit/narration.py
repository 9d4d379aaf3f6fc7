r"""A hidden Markov model of narration: which clip each caption tells, if any.

``similarities (n, m) of videos with their own captions -> P(caption j tells clip i), (n, m)``

The narrator is at one clip of the video with each caption, and moves on from clip to clip, mostly
by the same step. A caption tells that clip, or one beside it, or something that is not in the
video. It is as similar to the clip that it tells as fitting pairs are, and to all others as strange
pairs are.

.. math:: P(z_{j+1} = k \mid z_j = i) \propto q_{k-i}, \qquad
          P(S_{\cdot j} \mid z_j = i) \propto
          \rho + (1 - \rho) \sum_d r_d \frac{f_1(S_{i+d,j})}{f_0(S_{i+d,j})}

:math:`f_0` is measured on captions with clips of other videos. The rest is fitted by expectation
maximisation: the distributions q of steps and r of what is beside, the share :math:`\rho` of
captions that tell no clip, and :math:`f_1`. A caption that fits its clip no better than strange
ones do cannot be told from one that tells none, and counts as such: :math:`\rho` is an upper bound
where the similarities are weak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

_BINS = torch.cat([torch.linspace(0, 0.9, 31)[1:-1], torch.linspace(0.9, 0.999, 30)])
_FARTHEST = 30  # clips of a step that the distribution tells apart
_CELLS = 1 << 22  # of the transitions of videos that are walked through together
_ROUNDS = 30
_BESIDE = 2  # clips, at most, from where the narrator is to the clip that a caption tells


@dataclass(frozen=True, eq=False)
class Narration:
    """What was fitted to a corpus.

    Attributes:
        edges: (E,), similarities between the bins in which f1 / f0 is constant; ascending.
        ratios: (E + 1,), f1 / f0 in each bin: how much a similarity speaks for a pair that fits.
        nowhere: rho.
        steps: (2 * F + 1,), q from F clips back to F on; the ends stand for all that is farther.
        beside: (2 * D + 1,), r from D clips back to D on.
        initial: the share of videos whose first caption is at the first clip; else anywhere.

    Example:
        >>> import torch
        >>> from norton_losses.audit import Narration
        >>> g = torch.Generator().manual_seed(0)
        >>> own = [torch.eye(4) + 0.1 * torch.randn(4, 4, generator=g) for _ in range(9)]
        >>> model, shares = Narration.fit(own, 0.1 * torch.randn(500, generator=g))
        >>> shares[0].argmax(0).tolist(), round(model.nowhere, 1)
        ([0, 1, 2, 3], 0.0)
    """

    edges: Tensor
    ratios: Tensor
    nowhere: float
    steps: Tensor
    beside: Tensor
    initial: float

    @classmethod
    def fit(
        cls, own: Sequence[Tensor], foreign: Tensor, rounds: int = _ROUNDS
    ) -> tuple[Narration, list[Tensor]]:
        """The model, and for each video the shares (n, m): P(caption j tells clip i).

        Args:
            own: similarities (n, m) of each video with its own captions.
            foreign: (K,), similarities of captions with clips of other videos.
            rounds: of expectation maximisation.
        """
        foreign = foreign.double()
        edges = cast(Tensor, foreign.quantile(_BINS.double()).unique())  # pyright: ignore
        expected = _counts(torch.bucketize(foreign, edges), torch.ones_like(foreign), edges)
        expected = (expected + 1) / (expected + 1).sum()
        rising = torch.linspace(0, 1, len(expected), dtype=torch.double) ** 8
        steps = torch.full((2 * _FARTHEST + 1,), 0.3 / (2 * _FARTHEST), dtype=torch.double)
        steps[_FARTHEST + 1] = 0.7
        beside = torch.tensor([0.05, 0.1, 0.7, 0.1, 0.05], dtype=torch.double)
        model = cls(edges, _rising(rising + 1e-3, expected), 0.3, steps, beside, 0.5)
        batches = [_Batch.of(own, places, edges) for places in _groups(own)]
        for _ in range(rounds):
            model = model._refitted((batch.walk(model) for batch in batches), batches, expected)
        shares: list[Tensor] = [torch.empty(0)] * len(own)
        for batch in batches:
            found = batch.walk(model).tells
            for place, tells in zip(batch.places, found, strict=True):
                n, m = own[place].shape
                shares[place] = tells[:n, :m]
        return model, shares

    def _refitted(
        self, walks: Iterator[_Walk], batches: Sequence[_Batch], expected: Tensor
    ) -> Narration:
        """The model that explains best what the walks found."""
        seen = torch.zeros_like(expected)
        steps, beside = torch.zeros_like(self.steps), torch.zeros_like(self.beside)
        told = captions = first = 0.0
        for walk, batch in zip(walks, batches, strict=True):
            seen += _counts(batch.bins, walk.tells, self.edges)
            steps += walk.steps
            beside += walk.beside
            told += walk.tells.sum().item()
            captions += batch.captions.sum().item()
            first += walk.first.sum().item()
        videos = sum(len(batch.places) for batch in batches)
        # What f1 has in common with f0 cannot be told from captions that tell no clip. It is taken
        # for theirs: as much as the lower half of strange similarities has of f1.
        half = max(int((expected.cumsum(0) <= 0.5).sum()), 1)
        fitting = seen / seen.sum()
        common = min((fitting[:half].sum() / expected[:half].sum()).item(), 0.99)
        fitting = (fitting / expected - common).clamp(min=0)
        return Narration(
            self.edges,
            _rising(fitting, expected),
            min(max(1 - (1 - common) * told / captions, 1e-3), 1 - 1e-3),
            (steps + 1e-3) / (steps + 1e-3).sum(),
            (beside + 1e-3) / (beside + 1e-3).sum(),
            min(max(first / videos, 1e-3), 1 - 1e-3),
        )


@dataclass(frozen=True, eq=False)
class _Walk:
    """What was found of a batch: expectations over all ways through the videos."""

    tells: Tensor  # (B, N, M)
    steps: Tensor  # (2 * F + 1,), how often each step was taken
    beside: Tensor  # (2 * D + 1,), how often a caption told the clip so far from the narrator's
    first: Tensor  # (B,), whether the first caption was put at the first clip by rule


@dataclass(frozen=True, eq=False)
class _Batch:
    """Videos of like length, padded."""

    places: list[int]
    bins: Tensor  # (B, N, M), of the similarities
    clips: Tensor  # (B, N), bool
    captions: Tensor  # (B, M), bool

    @classmethod
    def of(cls, own: Sequence[Tensor], places: list[int], edges: Tensor) -> _Batch:
        n, m = (max(own[place].shape[side] for place in places) for side in (0, 1))
        bins = torch.zeros(len(places), n, m, dtype=torch.long)
        clips, captions = torch.zeros(len(places), n).bool(), torch.zeros(len(places), m).bool()
        for row, place in enumerate(places):
            rows, columns = own[place].shape
            bins[row, :rows, :columns] = torch.bucketize(own[place].double().contiguous(), edges)
            clips[row, :rows] = captions[row, :columns] = True
        return cls(places, bins, clips, captions)

    def walk(self, model: Narration) -> _Walk:
        """Forwards and backwards through the captions."""
        b, n, m = self.bins.shape
        ratios = model.ratios[self.bins].masked_fill(~self.clips[:, :, None], 0)
        # Of each place the ratio of the clip d beside it, times the share of captions that tell it.
        fits = [(1 - model.nowhere) * r * _shifted(ratios, d) for d, r in _beside(model)]
        seen = (sum(fits[1:], fits[0]) + model.nowhere).masked_fill(
            ~self.clips[:, :, None], 0
        )  # (B, N, M)
        place = torch.arange(n)
        step = (place - place[:, None]).clamp(-_FARTHEST, _FARTHEST) + _FARTHEST
        # Of the farthest steps each clip that they lead to has its part.
        alike = torch.ones(b, n, n, dtype=torch.double)
        on = self.clips.sum(1)[:, None] - place - _FARTHEST
        alike = torch.where(step == 2 * _FARTHEST, on.clamp(min=1)[:, :, None], alike)
        alike = torch.where(step == 0, (place - _FARTHEST + 1).clamp(min=1)[:, None], alike)
        moves = (model.steps[step] / alike).masked_fill(~self.clips[:, None], 0)
        moves = moves / moves.sum(2, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
        anywhere = self.clips / self.clips.sum(1, keepdim=True)
        start = (1 - model.initial) * anywhere.double()
        start[:, 0] += model.initial

        forwards = [_normalised(start * seen[:, :, 0])]
        for j in range(1, m):
            ahead = (forwards[-1][:, None] @ moves)[:, 0] * seen[:, :, j]
            live = self.captions[:, j, None]
            forwards.append(torch.where(live, _normalised(ahead), forwards[-1]))
        steps = torch.zeros_like(model.steps)
        behind = torch.ones(b, n, dtype=torch.double)
        backwards, onwards = [behind], list[Tensor]()
        for j in range(m - 1, 0, -1):
            live = self.captions[:, j, None]
            weight = seen[:, :, j] * behind
            came = (moves @ weight[:, :, None])[:, :, 0]
            onwards.append(weight * live / (forwards[j - 1] * came).sum(1, keepdim=True))
            behind = torch.where(live, _normalised(came), behind)
            backwards.append(behind)
        if m > 1:  # the steps between all captions at once
            pairs = torch.stack(forwards[:-1], 2) @ torch.stack(onwards[::-1], 1) * moves
            steps.index_add_(0, step.flatten(), pairs.sum(0).flatten())
        at = torch.stack(forwards, 2) * torch.stack(backwards[::-1], 2)
        at = at / at.sum(1, keepdim=True) * self.captions[:, None]
        by_rule = model.initial / start[:, 0]
        of_each = at / seen.clamp(min=model.nowhere)
        parts = [of_each * fit for fit in fits]
        moved = [_shifted(part, -d) for part, (d, _) in zip(parts, _beside(model), strict=True)]
        beside = torch.stack([part.sum() for part in parts])
        return _Walk(sum(moved[1:], moved[0]), steps, beside, at[:, 0, 0] * by_rule)


def _beside(model: Narration) -> list[tuple[int, float]]:
    return list(enumerate(_plain(model.beside), -_BESIDE))


def _shifted(of_clips: Tensor, d: int) -> Tensor:
    """(B, N, M) that has at clip i what was at clip i + d, and 0 beyond the ends."""
    shifted = torch.zeros_like(of_clips)
    n = of_clips.shape[1]
    if abs(d) < n:
        shifted[:, max(-d, 0) : n - max(d, 0)] = of_clips[:, max(d, 0) : n - max(-d, 0)]
    return shifted


def _groups(own: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of videos, those of like length together."""
    order = sorted(range(len(own)), key=lambda place: tuple(own[place].shape))
    group: list[int] = []
    longest = 0
    for place in order:
        longest = max(longest, *own[place].shape)
        if group and (len(group) + 1) * longest**2 > _CELLS:
            yield group
            group, longest = [], max(own[place].shape)
        group.append(place)
    if group:
        yield group


def _counts(bins: Tensor, weights: Tensor, edges: Tensor) -> Tensor:
    return torch.bincount(bins.flatten(), weights.flatten(), minlength=len(edges) + 1)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)


def _rising(ratios: Tensor, expected: Tensor) -> Tensor:
    """The nearest ratios that do not fall as similarity rises (pool adjacent violators).

    Their mean over foreign pairs is 1, since both densities sum to 1.
    """
    levels: list[tuple[float, float, int]] = []  # ratio, weight, bins
    for ratio, weight in zip(_plain(ratios), _plain(expected), strict=True):
        size = 1
        while levels and levels[-1][0] >= ratio:
            other, other_weight, other_size = levels.pop()
            ratio = (ratio * weight + other * other_weight) / (weight + other_weight)
            weight, size = weight + other_weight, size + other_size
        levels.append((ratio, weight, size))
    pooled = [ratio for ratio, _, size in levels for _ in range(size)]
    rising = torch.tensor(pooled, dtype=torch.double).clamp(min=1e-6)
    return rising / (rising * expected).sum()


def _plain(values: Tensor) -> list[float]:
    return values.tolist()  # pyright: ignore
