"""Transport problems, Eq. (2): scores, marginals, and the strength of the entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor

from norton_losses._checks import (
    check_device,
    check_floating,
    check_mask,
    check_positive,
    check_range,
    check_shape,
)
from norton_losses._numerics import up_cast, working_dtype
from norton_losses._typing import Range
from norton_losses.distributed import ONE_PROCESS, Shard

Result = TypeVar("Result")
Same = TypeVar("Same", bound="AbstractProblem")


class AbstractProblem(ABC):
    """Marginals, an epsilon, and scores that may be held or made a block of rows at a time.

    Solvers and plans go by these methods alone, whatever the scores are made from.
    """

    tensors: ClassVar[tuple[str, ...]]  # names of the fields that are tensors
    holds_scores: ClassVar[bool]  # whether ``scores`` are in memory

    scores: Tensor  # (..., n, m)
    log_mu: Tensor  # (..., n)
    log_nu: Tensor  # (..., m)
    epsilon: float
    score_range: Range | None
    has_bucket: bool
    shard: Shard  # the processes that hold the rows; columns are those of all
    chunk_rows: int | None  # rows of scores that exist at a time, where they are not held

    @property
    def spread(self) -> float | None:
        """How far apart the scores of present cells are known to be, at most."""
        return None if self.score_range is None else self.score_range[1] - self.score_range[0]

    @property
    @abstractmethod
    def T(self: Same) -> Same:
        """The same problem with rows and columns exchanged."""

    @abstractmethod
    def __getitem__(self: Same, index: Any) -> Same:
        """Some of the batch, by any index of its leading dimensions."""

    @abstractmethod
    def block(self, rows: slice) -> Tensor:
        """Scores (..., rows, m)."""

    @abstractmethod
    def map_rows(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        """``function`` of a block of rows and its scores (..., rows, m), block after block."""

    def precise(self: Same, spread: float | None) -> Same:
        """The same problem, in float64 unless its scores are known to span 500 epsilons at most.

        A logarithm of a plan errs by as many roundings as its scores span epsilons: of float32,
        1e-5 of the span is wrong at 500 of them, and all of it at a million.
        """
        near = spread is not None and spread / self.epsilon <= 500
        return self if near else self.to(torch.float64)

    def detach(self: Same) -> Same:
        """The same problem, cut off from the graph."""
        return self.replace(**{name: getattr(self, name).detach() for name in self.tensors})

    def to(self: Same, dtype: torch.dtype) -> Same:
        """The same problem in ``dtype``, float32 or wider."""
        return self.replace(**{name: getattr(self, name).to(dtype) for name in self.tensors})

    def replace(self: Same, **tensors: Tensor) -> Same:
        """The same problem with some of its tensors exchanged, unchecked."""
        return replace(self, **tensors, check_values=False)  # pyright: ignore


@final
@dataclass(frozen=True, eq=False)
class TransportProblem(AbstractProblem):
    r"""A batch of entropic transport problems with explicit scores.

    .. math:: \max_{Q \ge 0} \langle Q, S \rangle + \varepsilon H(Q)
              \quad \text{with} \quad Q 1 = \mu, \; Q^\top 1 = \nu, \quad H(Q) = -\sum Q \log Q

    Args:
        scores: S (..., n, m), floating, finite everywhere. Half precision is held as float32.
        log_mu: logarithm of the row marginals (..., n); -inf marks an absent row.
        log_nu: logarithm of the column marginals (..., m); -inf marks an absent column.
        epsilon: strength of the entropy, in units of the scores.
        score_range: ``(lo, hi)`` that the scores of present cells are known to lie in. Over a small
            range a solver can take plain numbers for logarithms, and need not read the scores, for
            which the host would wait for the GPU. None means that nothing is known.
        has_bucket: the last row and column are a :class:`~norton_losses.PromptBucket`.
        shard: the processes that hold the rows of the problem; columns are those of all of them.
            Only :class:`~norton_losses.TorchSinkhorn` solves it.
        check_values: refuse what has no solution. Reading the values makes the host wait for the
            GPU; False checks the numbers alone, for tensors that are right by construction.

    Raises:
        ValueError: shapes that do not fit, ``epsilon`` not above 0, scores that are not finite,
            marginals that are NaN, +inf or of different mass, scores outside their range.
        TypeError: tensors that are not floating.

    Source: Eq. (2) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import TransportProblem
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> problem = TransportProblem(torch.eye(2), half, half, epsilon=0.1)
        >>> problem.T.scores.shape
        torch.Size([2, 2])
    """

    tensors = ("scores", "log_mu", "log_nu")
    holds_scores = True
    chunk_rows = None

    scores: Tensor  # (..., n, m)
    log_mu: Tensor  # (..., n)
    log_nu: Tensor  # (..., m)
    epsilon: float
    _: KW_ONLY
    score_range: Range | None = None
    has_bucket: bool = False
    shard: Shard = ONE_PROCESS
    check_values: InitVar[bool] = True

    def __post_init__(self, check_values: bool) -> None:
        check_positive("epsilon", self.epsilon)
        if self.score_range is not None:
            check_range("score_range", self.score_range)
        if check_values:
            check_floating("scores", self.scores, "(..., n, m)")
            *batch, n, m = self.scores.shape
            check_marginal("log_mu", self.log_mu, (*batch, n), self.scores)
            check_marginal("log_nu", self.log_nu, (*batch, m), self.scores)
        bring_to_one_precision(self)
        if check_values:
            self._check_values()

    @classmethod
    def uniform(
        cls,
        scores: Tensor,
        row_mask: Tensor,
        column_mask: Tensor,
        epsilon: float,
        *,
        score_range: Range | None = None,
    ) -> TransportProblem:
        """Equal mass on every valid row (..., n), and on every valid column (..., m).

        What the scores hold where a row or a column is absent has no effect.

        Example:
            >>> import torch
            >>> from norton_losses import TransportProblem
            >>> rows, columns = torch.tensor([True, True]), torch.tensor([True, True, False])
            >>> problem = TransportProblem.uniform(torch.zeros(2, 3), rows, columns, epsilon=1.0)
            >>> problem.log_nu.exp()
            tensor([0.5000, 0.5000, 0.0000])
        """
        check_floating("scores", scores, "(..., n, m)")
        check_mask("row_mask", row_mask, scores.shape[:-1], scores)
        check_mask("column_mask", column_mask, (*scores.shape[:-2], scores.shape[-1]), scores)
        # With one side absent there is nothing to move.
        rows, columns = row_mask.any(-1, keepdim=True), column_mask.any(-1, keepdim=True)
        row_mask, column_mask = row_mask & columns, column_mask & rows
        present = row_mask[..., :, None] & column_mask[..., None, :]
        scores = torch.where(present, up_cast(scores, working_dtype(scores)), 0)
        one = scores.new_zeros(())
        marginals = log_marginal(row_mask, one), log_marginal(column_mask, one)
        # The shard too, since a compiler cannot make the default of a dataclass.
        return cls(
            scores, *marginals, epsilon,
            score_range=score_range, shard=ONE_PROCESS, check_values=False,
        )  # fmt: skip

    @property
    def T(self) -> TransportProblem:
        check_whole(self.shard)
        return self.replace(scores=self.scores.mT, log_mu=self.log_nu, log_nu=self.log_mu)

    @property
    def bucket_value(self) -> Tensor | None:
        """Value p () of the bucket, one for all problems; None without a bucket."""
        corner = (0,) * (self.scores.dim() - 2) + (-1, -1)
        return self.scores[corner] if self.has_bucket else None

    def __getitem__(self, index: Any) -> TransportProblem:
        entries: list[Any] = [*index] if isinstance(index, tuple) else [index]  # pyright: ignore
        masks = [e for e in entries if isinstance(e, Tensor) and e.dtype == torch.bool]
        used = len(entries) + sum(mask.dim() - 1 for mask in masks)
        if any(e is None or e is Ellipsis for e in entries) or used > self.scores.dim() - 2:
            # Not an IndexError, which would silently end a for loop over the parts of one problem.
            raise TypeError(
                "only the batch, all dimensions but the last two, can be indexed, got "
                f"{index!r} for {tuple(self.scores.shape)}; index .plan, or .scores, for entries"
            )
        log_mu, log_nu = self.log_mu[index], self.log_nu[index]
        return self.replace(scores=self.scores[index], log_mu=log_mu, log_nu=log_nu)

    def block(self, rows: slice) -> Tensor:
        return self.scores[..., rows, :]

    def map_rows(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        return [function(slice(None), self.scores)]

    @torch.no_grad()
    def look_for_spread(self) -> float:
        """How far apart the scores of present cells are, the most in a problem; reads the values.

        0 where all cells are absent.
        """
        rows, columns = self.log_mu > -torch.inf, self.log_nu > -torch.inf
        lo = hi = self.scores
        if not (rows.all() and columns.all()):
            absent = ~(rows[..., :, None] & columns[..., None, :])
            lo, hi = lo.masked_fill(absent, torch.inf), hi.masked_fill(absent, -torch.inf)
        lo, hi = lo.amin((-2, -1)), hi.amax((-2, -1))
        return float((hi - lo).clamp(min=0).max())

    def _check_values(self) -> None:
        if not (self.scores / self.epsilon).isfinite().all():
            raise ValueError(
                "scores must be finite, and over epsilon too, got NaN or infinite entries; mark "
                "absent rows and columns with -inf in log_mu and log_nu, and give their cells a "
                "score of 0"
            )
        check_masses(self.log_mu, self.log_nu, self.shard)
        if self.score_range is not None:
            lo, hi = self.score_range
            slack = 1e-3 * max(abs(lo), abs(hi))  # rounding, of half precision too
            outside = (self.scores < lo - slack) | (self.scores > hi + slack)
            present = (self.log_mu[..., :, None] > -torch.inf) & (
                self.log_nu[..., None, :] > -torch.inf
            )
            if (outside & present).any():
                raise ValueError(
                    f"scores must lie in their score_range {self.score_range}, got entries outside "
                    "it; give a wider range, or None if nothing is known"
                )


def log_marginal(mask: Tensor, log_mass: Tensor) -> Tensor:
    """A mass (...), given as its logarithm, spread evenly over the valid entries (..., n)."""
    count = mask.sum(-1).clamp(min=1).to(log_mass.dtype)
    share = (log_mass - count.log())[..., None].expand(mask.shape)
    return share.masked_fill(~mask, -torch.inf)


def bring_to_one_precision(problem: AbstractProblem) -> None:
    """All tensors of a problem in their common working precision."""
    tensors: list[Tensor] = [getattr(problem, name) for name in problem.tensors]
    dtype = working_dtype(*tensors)
    for name, tensor in zip(problem.tensors, tensors, strict=True):
        object.__setattr__(problem, name, up_cast(tensor, dtype))


def check_marginal(name: str, log_marginal: Tensor, shape: Sequence[int], like: Tensor) -> None:
    check_floating(name, log_marginal, "(..., n)")
    check_shape(name, log_marginal, shape)
    check_device(name, log_marginal, like)


def check_whole(shard: Shard) -> None:
    if not shard.alone:
        raise ValueError(
            "rows and columns cannot be exchanged where processes share out the rows; exchange "
            "them before they are shared out"
        )


def check_masses(log_mu: Tensor, log_nu: Tensor, shard: Shard) -> None:
    for name, marginal in (("log_mu", log_mu), ("log_nu", log_nu)):
        if (marginal.isnan() | (marginal == torch.inf)).any():
            raise ValueError(
                f"{name} must be logarithms of finite masses, got NaN or +inf entries; "
                "pass mu.log() of masses that are finite and not negative"
            )
    mu_mass, nu_mass = shard.sum(log_mu.exp().sum(-1)), log_nu.exp().sum(-1)
    rounding = torch.finfo(log_mu.dtype).eps ** 0.5
    if not torch.allclose(mu_mass, nu_mass, rtol=rounding, atol=0):
        worst = (mu_mass - nu_mass).abs().max().item()
        raise ValueError(
            f"rows and columns must have the same total mass, got masses {worst:.3g} apart; "
            "divide each marginal by its sum"
        )
