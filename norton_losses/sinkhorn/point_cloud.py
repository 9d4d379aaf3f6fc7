"""A transport problem whose scores are products of points, and are never held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from norton_losses._checks import (
    check_count,
    check_device,
    check_floating,
    check_positive,
    check_shape,
)
from norton_losses.distributed import ONE_PROCESS, Shard
from norton_losses.sinkhorn.problem import (
    AbstractProblem,
    Result,
    TransportProblem,
    bring_to_one_precision,
    check_marginal,
    check_masses,
    check_whole,
)

_BLOCK_BYTES = 1 << 26


@final
@dataclass(frozen=True, eq=False)
class PointCloudProblem(AbstractProblem):
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
        shard: as of :class:`TransportProblem`.
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

    tensors = ("x", "y", "log_mu", "log_nu")
    holds_scores = False

    x: Tensor  # (n, D)
    y: Tensor  # (m, D)
    log_mu: Tensor  # (n,)
    log_nu: Tensor  # (m,)
    epsilon: float
    _: KW_ONLY
    chunk_rows: int | None = None
    shard: Shard = ONE_PROCESS
    check_values: InitVar[bool] = True

    score_range = None
    has_bucket = False

    def __post_init__(self, check_values: bool) -> None:
        check_positive("epsilon", self.epsilon)
        check_count("chunk_rows", self.chunk_rows, optional=True)
        if check_values:
            check_floating("x", self.x, "(n, D)")
            check_floating("y", self.y, "(m, D)")
            check_shape("y", self.y, (len(self.y), self.x.shape[1]))
            check_device("y", self.y, self.x)
            check_marginal("log_mu", self.log_mu, (len(self.x),), self.x)
            check_marginal("log_nu", self.log_nu, (len(self.y),), self.x)
        bring_to_one_precision(self)
        if check_values:
            largest = self.x.shape[1] * self.x.abs().max() * self.y.abs().max()
            if not (largest / self.epsilon).isfinite():
                raise ValueError(
                    "x and y must be finite, and their products over epsilon too, got NaN, "
                    "infinite or overlong points; mark absent points with -inf in their marginal, "
                    "and put them at 0"
                )
            check_masses(self.log_mu, self.log_nu, self.shard)

    @property
    def scores(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """S (n, m), made anew each time: for looking at small problems."""
        return self.x @ self.y.T

    @property
    def T(self) -> PointCloudProblem:
        check_whole(self.shard)
        return self.replace(x=self.y, y=self.x, log_mu=self.log_nu, log_nu=self.log_mu)

    def __getitem__(self, index: Any) -> PointCloudProblem:
        raise TypeError("the plan of a point cloud has no parts; index plan.plan for entries")

    def explicit(self) -> TransportProblem:
        """The same problem with its scores held: n x m numbers."""
        return TransportProblem(
            self.scores,
            self.log_mu,
            self.log_nu,
            self.epsilon,
            shard=self.shard,
            check_values=False,
        )

    def block(self, rows: slice) -> Tensor:
        return self.x[rows] @ self.y.T

    def map_rows(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        # For the gradient the scores are computed again, so that no two blocks exist at a time.
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
