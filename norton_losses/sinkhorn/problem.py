"""The transport problem, Eq. (2): what to move where, at which smoothing."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace

import torch
from torch import Tensor

from norton_losses._checks import (
    check_device,
    check_floating,
    check_mask,
    check_positive,
    check_shape,
)
from norton_losses._numerics import up_cast, working_dtype


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
        has_bucket: the last row and column are a :class:`~norton_losses.PromptBucket`.
        check_values: read the values once and refuse what has no solution. It makes the host wait
            for the GPU, so the losses, whose problems are right by construction, switch it off.

    Raises:
        ValueError: shapes that do not fit, ``epsilon`` not above 0, scores that are not finite,
            marginals that are NaN, +inf or of different mass.
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
        dtype = working_dtype(self.scores, self.log_mu, self.log_nu)
        for name in ("scores", "log_mu", "log_nu"):
            tensor: Tensor = getattr(self, name)
            check_device(name, tensor, self.scores)
            object.__setattr__(self, name, up_cast(tensor, dtype))
        if check_values:
            self._check_values()

    @classmethod
    def uniform(
        cls, scores: Tensor, row_mask: Tensor, column_mask: Tensor, epsilon: float
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

    def _with(self, scores: Tensor, log_mu: Tensor, log_nu: Tensor) -> TransportProblem:
        return replace(self, scores=scores, log_mu=log_mu, log_nu=log_nu, check_values=False)

    def _check_values(self) -> None:
        if not self.scores.isfinite().all():
            raise ValueError(
                "scores must be finite, got NaN or infinite entries; mark absent rows and columns "
                "with -inf in log_mu and log_nu, and give their cells any finite score"
            )
        for name, marginal in (("log_mu", self.log_mu), ("log_nu", self.log_nu)):
            if (marginal.isnan() | (marginal == torch.inf)).any():
                raise ValueError(
                    f"{name} must be logarithms of finite masses, got NaN or +inf entries; "
                    "pass mu.log() of masses that are finite and not negative"
                )
        mu_mass, nu_mass = self.log_mu.exp().sum(-1), self.log_nu.exp().sum(-1)
        rounding = torch.finfo(self.scores.dtype).eps ** 0.5
        if not torch.allclose(mu_mass, nu_mass, rtol=rounding, atol=0):
            worst = (mu_mass - nu_mass).abs().max().item()
            raise ValueError(
                f"rows and columns must have the same total mass, got masses {worst:.3g} apart; "
                "divide each marginal by its sum"
            )


def log_marginal(mask: Tensor, log_mass: Tensor) -> Tensor:
    """A mass (...), given as its logarithm, spread evenly over the valid entries (..., n)."""
    count = mask.sum(-1).clamp(min=1).to(log_mass.dtype)
    share = (log_mass - count.log())[..., None].expand(mask.shape)
    return share.masked_fill(~mask, -torch.inf)
