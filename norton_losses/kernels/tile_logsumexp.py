r"""Log-sum-exp over both sides of a tile of products, or their maximum, with the gradient.

A tile holds the products of a few clips with a few captions, (A, F, W, B): captions last, so that
sums over words and over frames both run along whole vectors. With
:math:`E_{ij} = e^{s_{ij} / \alpha}`, :math:`R_i = \sum_j E_{ij}`, :math:`C_j = \sum_i E_{ij}` and
upstream gradients g, h of the two directions,

.. math::
    \frac{\partial}{\partial s_{ij}} = E_{ij} \Big( \frac{g}{f R_i} + \frac{h}{w C_j} \Big).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

SHARED_RANGE = 60.0
"""The largest 2 / alpha at which exp(s / alpha) serves both directions, for s in [-1, 1]."""

_FRAMES, _WORDS = 1, 2  # the dimensions of rows' and columns' tokens in a tile


class AbstractReduction(ABC):
    """Reduces the products of a tile over words for each frame, and over frames for each word.

    Results are in units of ``unit``, and a prepared tile holds ``padding`` where it has no token.
    """

    unit: float = 1.0
    padding: float = -torch.inf

    def prepare(self, scores: Tensor) -> None:  # noqa: B027, optional
        """Turn products / unit, in place, into the form that the other two methods take."""

    @abstractmethod
    def best(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Best word (A, F, B) and best frame (A, W, B); 0 where padded."""

    @abstractmethod
    def weigh(self, prepared: Tensor, by_row: Tensor, by_column: Tensor, out: Tensor) -> None:
        """The gradient of the products, given that of the best: (A, 1, B) in each direction."""


@final
class SharedExponential(AbstractReduction):
    """One exponential for both directions, of products no larger than 1."""

    padding = 0.0

    def __init__(self, alpha: float) -> None:
        self.unit = alpha

    def prepare(self, scores: Tensor) -> None:
        scores.exp_()

    def best(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self._sums(prepared)
        return rows.log_(), columns.log_()

    def weigh(self, prepared: Tensor, by_row: Tensor, by_column: Tensor, out: Tensor) -> None:
        rows, columns = self._sums(prepared)
        of_rows, of_columns = (by_row / rows).unsqueeze(_WORDS), (by_column / columns)
        torch.add(of_rows, of_columns.unsqueeze(_FRAMES), out=out).mul_(prepared)

    def _sums(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        # Padding leaves a sum of exactly 0, and 1 in its place adds nothing anywhere.
        rows, columns = prepared.sum(_WORDS), prepared.sum(_FRAMES)
        return rows.masked_fill_(rows == 0, 1), columns.masked_fill_(columns == 0, 1)


class SeparateExponentials(AbstractReduction):
    """One exponential for each direction, relative to its maximum: safe for any alpha."""

    def __init__(self, alpha: float) -> None:
        self.unit = alpha

    def best(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        return self._best(prepared, _WORDS), self._best(prepared, _FRAMES)

    def weigh(self, prepared: Tensor, by_row: Tensor, by_column: Tensor, out: Tensor) -> None:
        self._shares(prepared, by_row, _WORDS, out)
        out.add_(self._shares(prepared, by_column, _FRAMES, torch.empty_like(out)))

    def _best(self, prepared: Tensor, dim: int) -> Tensor:
        top = _top(prepared, dim)
        total = (prepared - top).exp_().sum(dim)
        return total.masked_fill_(total == 0, 1).log_().add_(top.squeeze(dim))

    def _shares(self, prepared: Tensor, weight: Tensor, dim: int, out: Tensor) -> Tensor:
        torch.sub(prepared, _top(prepared, dim), out=out).exp_()
        total = out.sum(dim, keepdim=True)
        return out.mul_(weight.unsqueeze(dim) / total.masked_fill_(total == 0, 1))


@final
class Maximum(SeparateExponentials):
    """The hard maximum, where alpha is 0; equal maxima share their gradient."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def _best(self, prepared: Tensor, dim: int) -> Tensor:
        return _top(prepared, dim).squeeze(dim)

    def _shares(self, prepared: Tensor, weight: Tensor, dim: int, out: Tensor) -> Tensor:
        torch.eq(prepared, _top(prepared, dim), out=out)
        return out.mul_(weight.unsqueeze(dim) / out.sum(dim, keepdim=True).clamp_(min=1))


def reduction_of(alpha: float) -> AbstractReduction:
    """The reduction for this alpha; 0 is the hard maximum."""
    if alpha == 0:
        return Maximum()
    return SharedExponential(alpha) if 2 / alpha <= SHARED_RANGE else SeparateExponentials(alpha)


def _top(prepared: Tensor, dim: int) -> Tensor:
    """The maximum, 0 where all is padding."""
    top = prepared.amax(dim, keepdim=True)
    return top.masked_fill_(top == -torch.inf, 0)
