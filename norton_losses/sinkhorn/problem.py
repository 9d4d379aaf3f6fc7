"""The transport problem, Eq. (2): what to move where, at which smoothing.

Scores are explicit in a :class:`TransportProblem`, and products of points in a
:class:`PointCloudProblem`, which never holds them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from norton_losses._checks import (
    check_count,
    check_device,
    check_floating,
    check_mask,
    check_positive,
    check_shape,
)
from norton_losses._numerics import up_cast, working_dtype
from norton_losses._typing import Range

_BLOCK_BYTES = 1 << 26

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class TransportProblem:
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
        check_values: read the values once and refuse what has no solution. It makes the host wait
            for the GPU, so the losses, whose problems are right by construction, switch it off.

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

    scores: Tensor  # (..., n, m)
    log_mu: Tensor  # (..., n)
    log_nu: Tensor  # (..., m)
    epsilon: float
    _: KW_ONLY
    score_range: Range | None = None
    has_bucket: bool = False
    check_values: InitVar[bool] = True

    def __post_init__(self, check_values: bool) -> None:
        check_positive("epsilon", self.epsilon)
        check_floating("scores", self.scores, "(..., n, m)")
        check_floating("log_mu", self.log_mu, "(..., n)")
        check_floating("log_nu", self.log_nu, "(..., m)")
        *batch, n, m = self.scores.shape
        check_shape("log_mu", self.log_mu, (*batch, n))
        check_shape("log_nu", self.log_nu, (*batch, m))
        if self.score_range is not None:
            _check_range(self.score_range)
        _cast_all(self, ("scores", "log_mu", "log_nu"))
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
        check_mask("row_mask", row_mask, scores.shape[:-1], scores)
        check_mask("column_mask", column_mask, (*scores.shape[:-2], scores.shape[-1]), scores)
        # With one side absent there is nothing to move.
        rows, columns = row_mask.any(-1, keepdim=True), column_mask.any(-1, keepdim=True)
        row_mask, column_mask = row_mask & columns, column_mask & rows
        absent = ~(row_mask[..., :, None] & column_mask[..., None, :])
        scores = up_cast(scores, working_dtype(scores)).masked_fill(absent, 0)
        one = scores.new_zeros(())
        return cls(
            scores,
            log_marginal(row_mask, one),
            log_marginal(column_mask, one),
            epsilon,
            score_range=score_range,
            check_values=False,
        )

    @property
    def T(self) -> TransportProblem:
        """The same problem with rows and columns exchanged."""
        return self._with(self.scores.mT, self.log_nu, self.log_mu)

    def detach(self) -> TransportProblem:
        """The same problem, cut off from the graph."""
        return self._with(self.scores.detach(), self.log_mu.detach(), self.log_nu.detach())

    def to(self, dtype: torch.dtype) -> TransportProblem:
        """The same problem in ``dtype``, float32 or wider."""
        return self._with(self.scores.to(dtype), self.log_mu.to(dtype), self.log_nu.to(dtype))

    def __getitem__(self, index: Any) -> TransportProblem:
        """Some of the batch, by any index of its leading dimensions."""
        entries: list[Any] = [*index] if isinstance(index, tuple) else [index]  # pyright: ignore
        masks = [e for e in entries if isinstance(e, Tensor) and e.dtype == torch.bool]
        used = len(entries) + sum(mask.dim() - 1 for mask in masks)
        if any(e is None or e is Ellipsis for e in entries) or used > self.scores.dim() - 2:
            # No IndexError, which would end a loop over the parts of one problem in silence.
            raise TypeError(
                "only the batch, all dimensions but the last two, can be indexed, got "
                f"{index!r} for {tuple(self.scores.shape)}; index .plan, or .scores, for entries"
            )
        return self._with(self.scores[index], self.log_mu[index], self.log_nu[index])

    def block(self, rows: slice) -> Tensor:
        """Scores (..., rows, m)."""
        return self.scores[..., rows, :]

    def map_rows(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        """``function`` of the rows and their scores (..., rows, m): here of all rows at once."""
        return [function(slice(None), self.scores)]

    def _with(self, scores: Tensor, log_mu: Tensor, log_nu: Tensor) -> TransportProblem:
        return replace(self, scores=scores, log_mu=log_mu, log_nu=log_nu, check_values=False)

    def _check_values(self) -> None:
        if not (self.scores / self.epsilon).isfinite().all():
            raise ValueError(
                "scores must be finite, and over epsilon too, got NaN or infinite entries; mark "
                "absent rows and columns with -inf in log_mu and log_nu, and give their cells a "
                "score of 0"
            )
        _check_marginals(self.log_mu, self.log_nu)
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


@dataclass(frozen=True, eq=False)
class PointCloudProblem:
    r"""One entropic transport problem whose scores are products of points, and are never held.

    .. math:: S_{ij} = \langle x_i, y_j \rangle

    Half a squared distance differs from a product only by norms, which the scalings take up, so
    solvers of squared distances serve it as well.

    Args:
        x: points of the rows (n, D), floating.
        y: points of the columns (m, D), floating.
        log_mu: logarithm of the row marginals (n,); -inf marks an absent row.
        log_nu: logarithm of the column marginals (m,); -inf marks an absent column.
        epsilon: strength of the entropy, in units of the scores.
        chunk_rows: how many rows of scores exist at a time; None means about 64 MiB of them.
        check_values: read the values once, as in :class:`TransportProblem`.

    Raises:
        ValueError: shapes that do not fit, ``epsilon`` not above 0, points that are not finite,
            marginals that are NaN, +inf or of different mass, ``chunk_rows`` below 1.
        TypeError: tensors that are not floating.

    Source: Eq. (2) and (7) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import PointCloudProblem, TorchSinkhorn
        >>> x, y = torch.randn(1000, 8), torch.randn(800, 8)
        >>> log_mu, log_nu = torch.full((1000,), 1e-3).log(), torch.full((800,), 1 / 800).log()
        >>> problem = PointCloudProblem(x, y, log_mu, log_nu, epsilon=4.0, chunk_rows=256)
        >>> TorchSinkhorn().solve(problem).converged
        tensor(True)
    """

    x: Tensor  # (n, D)
    y: Tensor  # (m, D)
    log_mu: Tensor  # (n,)
    log_nu: Tensor  # (m,)
    epsilon: float
    _: KW_ONLY
    chunk_rows: int | None = None
    check_values: InitVar[bool] = True

    has_bucket = False

    def __post_init__(self, check_values: bool) -> None:
        check_positive("epsilon", self.epsilon)
        check_count("chunk_rows", self.chunk_rows, optional=True)
        check_floating("x", self.x, "(n, D)")
        check_floating("y", self.y, "(m, D)")
        check_shape("y", self.y, (len(self.y), self.x.shape[1]))
        check_floating("log_mu", self.log_mu, "(n,)")
        check_floating("log_nu", self.log_nu, "(m,)")
        check_shape("log_mu", self.log_mu, (len(self.x),))
        check_shape("log_nu", self.log_nu, (len(self.y),))
        _cast_all(self, ("x", "y", "log_mu", "log_nu"))
        if check_values:
            largest = self.x.shape[1] * self.x.abs().max() * self.y.abs().max()
            if not (largest / self.epsilon).isfinite():
                raise ValueError(
                    "x and y must be finite, and their products over epsilon too, got NaN, "
                    "infinite or overlong points; mark absent points with -inf in their marginal, "
                    "and put them at 0"
                )
            _check_marginals(self.log_mu, self.log_nu)

    @property
    def scores(self) -> Tensor:
        """S (n, m), made anew each time: for looking at small problems."""
        return self.x @ self.y.T

    @property
    def T(self) -> PointCloudProblem:
        """The same problem with rows and columns exchanged."""
        return self._with(self.y, self.x, self.log_nu, self.log_mu)

    def explicit(self) -> TransportProblem:
        """The same problem with its scores held: n x m numbers."""
        return TransportProblem(
            self.scores, self.log_mu, self.log_nu, self.epsilon, check_values=False
        )

    def detach(self) -> PointCloudProblem:
        """The same problem, cut off from the graph."""
        return self._with(*(t.detach() for t in (self.x, self.y, self.log_mu, self.log_nu)))

    def to(self, dtype: torch.dtype) -> PointCloudProblem:
        """The same problem in ``dtype``, float32 or wider."""
        return self._with(*(t.to(dtype) for t in (self.x, self.y, self.log_mu, self.log_nu)))

    def block(self, rows: slice) -> Tensor:
        """Scores (rows, m)."""
        return self.x[rows] @ self.y.T

    def map_rows(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        """``function`` of a block of rows and its scores (rows, m), block after block.

        For the gradient the scores are computed again, so that no two blocks exist at a time.
        """
        n, m = len(self.x), len(self.y)
        size = self.chunk_rows or max(1, _BLOCK_BYTES // (m * self.x.element_size()))

        def of_block(rows: slice, x: Tensor, y: Tensor) -> Result:
            return function(rows, x @ y.T)

        blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        if not torch.is_grad_enabled():
            return [function(rows, self.block(rows)) for rows in blocks]
        return [
            checkpoint(  # pyright: ignore
                of_block, rows, self.x[rows], self.y, use_reentrant=False, preserve_rng_state=False
            )
            for rows in blocks
        ]

    def _with(self, x: Tensor, y: Tensor, log_mu: Tensor, log_nu: Tensor) -> PointCloudProblem:
        return replace(self, x=x, y=y, log_mu=log_mu, log_nu=log_nu, check_values=False)


Problem: TypeAlias = TransportProblem | PointCloudProblem


def log_marginal(mask: Tensor, log_mass: Tensor) -> Tensor:
    """A mass (...), given as its logarithm, spread evenly over the valid entries (..., n)."""
    count = mask.sum(-1).clamp(min=1).to(log_mass.dtype)
    share = (log_mass - count.log())[..., None].expand(mask.shape)
    return share.masked_fill(~mask, -torch.inf)


def _cast_all(problem: Problem, names: Sequence[str]) -> None:
    """Bring the tensors of that name to their working precision; all must share a device."""
    tensors: list[Tensor] = [getattr(problem, name) for name in names]
    dtype = working_dtype(*tensors)
    for name, tensor in zip(names, tensors, strict=True):
        check_device(name, tensor, tensors[0])
        object.__setattr__(problem, name, up_cast(tensor, dtype))


def _check_range(score_range: Range) -> None:
    lo, hi = score_range
    if not -math.inf < lo <= hi < math.inf:
        raise ValueError(
            f"score_range must be finite numbers (lo, hi) with lo <= hi, got {score_range}; "
            "leave it out if nothing is known"
        )


def _check_marginals(log_mu: Tensor, log_nu: Tensor) -> None:
    for name, marginal in (("log_mu", log_mu), ("log_nu", log_nu)):
        if (marginal.isnan() | (marginal == torch.inf)).any():
            raise ValueError(
                f"{name} must be logarithms of finite masses, got NaN or +inf entries; "
                "pass mu.log() of masses that are finite and not negative"
            )
    mu_mass, nu_mass = log_mu.exp().sum(-1), log_nu.exp().sum(-1)
    rounding = torch.finfo(log_mu.dtype).eps ** 0.5
    if not torch.allclose(mu_mass, nu_mass, rtol=rounding, atol=0):
        worst = (mu_mass - nu_mass).abs().max().item()
        raise ValueError(
            f"rows and columns must have the same total mass, got masses {worst:.3g} apart; "
            "divide each marginal by its sum"
        )
