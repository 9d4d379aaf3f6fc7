"""The clip-caption loss by blocks of rows, Eq. (8): no K x K tensor is held, back or forth."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_losses._numerics import masked_logsumexp
from norton_losses.contrastive import Pairs
from norton_losses.rectified_targets import rectified_targets
from norton_losses.sinkhorn import PointCloudProblem, TransportPlan


def chunked_cross_entropy(
    problem: PointCloudProblem,
    plan: TransportPlan | None,
    beta: float,
    pairs: Pairs,
) -> Tensor:
    r"""The loss of logits that exist a block of rows at a time.

    .. math:: \frac1K \Big[ \sum_{ij} T_{ij} (\mathrm{lse}_j \, l_{i \cdot} - l_{ij})
              + \sum_{ij} T_{ij} (d_j - l_{ij})
              + \sum_j T_{\cdot j} (\mathrm{lse}_i \, l_{\cdot j} - d_j) \Big]

    which is Eq. (8) with both log-softmaxes written out, so that sums over rows are all that
    crosses from block to block. The pairs' own logits :math:`d_j = l_{jj}` cancel: without them,
    large numbers would.

    The logits l (n, K), with their gradient, are the scores of ``problem``.
    """
    shard, count = pairs.shard, pairs.columns.sum()
    # d, constants: of each row, and of the columns, whose rows may be those of other processes.
    of_row = (problem.x.detach() * problem.y.detach()[pairs.own]).sum(-1)
    of_column = shard.sum(of_row.new_zeros(len(pairs.columns)).index_put((pairs.own,), of_row))

    def of_rows(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        candidates, duplicates = pairs.rows[rows, None] & pairs.columns, None
        identity = pairs.identity(rows).to(logits.dtype)
        if pairs.groups is not None:
            duplicates = pairs.groups.duplicates(pairs.own[rows])
            candidates = candidates & ~duplicates
        targets = rectified_targets(identity, transported(rows, logits), beta, duplicates)
        by_row, by_column = (masked_logsumexp(logits, candidates, dim) for dim in (1, 0))
        # Logits of pairs that are no candidates drop out, since their targets are 0.
        surprise = targets * (by_row[:, None] - logits + of_column - logits)
        return surprise.sum(), targets.sum(0), by_column.masked_fill(~candidates.any(0), -torch.inf)

    def transported(rows: slice, logits: Tensor) -> Tensor | None:
        if plan is None:
            return None
        same = plan.log_u.dtype == logits.dtype
        scores = logits if same else plan.problem.block(rows)
        return count * plan.log_rows(rows, scores).exp().to(logits.dtype)

    surprise, target_columns, by_column = zip(*problem.map_rows(of_rows), strict=True)
    partial = torch.stack(by_column)  # (blocks, K)
    found = shard.any((partial > -torch.inf).any(0))
    alone = (partial == -torch.inf).all(0)
    within = partial.masked_fill(alone, 0).logsumexp(0).masked_fill(alone, -torch.inf)
    column_lse = shard.logsumexp(within).masked_fill(~found, 0)
    columns = (torch.stack(target_columns).sum(0) * (column_lse - of_column)).sum()
    return shard.sum(torch.stack(surprise).sum() + columns) / count.clamp(min=1)
