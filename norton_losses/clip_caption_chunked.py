"""The clip-caption loss by blocks of rows, Eq. (8): no K x K tensor is held, back or forth."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_losses._numerics import masked_logsumexp
from norton_losses.contrastive import Groups
from norton_losses.rectified_targets import rectified_targets
from norton_losses.sinkhorn import PointCloudProblem, TransportPlan


def chunked_cross_entropy(
    problem: PointCloudProblem,
    plan: TransportPlan | None,
    beta: float,
    mask: Tensor,
    groups: Groups | None,
) -> Tensor:
    r"""The loss of logits that exist a block of rows at a time.

    .. math:: \frac1K \Big[ \sum_{ij} T_{ij} (\mathrm{lse}_j \, l_{i \cdot} - l_{ij})
              + \sum_{ij} T_{ij} (d_j - l_{ij})
              + \sum_j T_{\cdot j} (\mathrm{lse}_i \, l_{\cdot j} - d_j) \Big]

    which is Eq. (8) with both log-softmaxes written out, so that sums over rows are all that
    crosses from block to block. The pairs' own logits :math:`d_j = l_{jj}` cancel: without them,
    large numbers would.

    The logits l (K, K), with their gradient, are the scores of ``problem``; ``mask`` (K,) is of the
    valid pairs.
    """
    index = torch.arange(len(mask), device=mask.device)
    own_logits = (problem.x.detach() * problem.y.detach()).sum(-1)  # d, a constant

    def of_rows(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = index[rows, None] == index
        candidates, duplicates = mask[rows, None] & mask, None
        identity = (own & mask).to(logits.dtype)
        if groups is not None:
            duplicates = groups.duplicates(rows)
            candidates = candidates & ~duplicates
        targets = rectified_targets(identity, transported(rows, logits), beta, duplicates)
        alone = ~candidates.any(0)
        by_column = logits.masked_fill(~candidates, -torch.inf).masked_fill(alone, 0).logsumexp(0)
        by_row = masked_logsumexp(logits, candidates, 1)
        # Logits of pairs that are no candidates drop out, since their targets are 0.
        surprise = targets * (by_row[:, None] - logits + own_logits - logits)
        return surprise.sum(), targets.sum(0), by_column.masked_fill(alone, -torch.inf)

    def transported(rows: slice, logits: Tensor) -> Tensor | None:
        if plan is None:
            return None
        same = plan.log_u.dtype == logits.dtype
        scores = logits if same else plan.problem.block(rows)
        return mask.sum() * plan.log_rows(rows, scores).exp().to(logits.dtype)

    surprise, target_columns, by_column = zip(*problem.map_rows(of_rows), strict=True)
    partial = torch.stack(by_column)  # (blocks, K)
    column_lse = masked_logsumexp(partial, partial > -torch.inf, 0)
    columns = (torch.stack(target_columns).sum(0) * (column_lse - own_logits)).sum()
    return (torch.stack(surprise).sum() + columns) / mask.sum().clamp(min=1)
