"""Sinkhorn's iteration, Eq. (3), written in the domain in which it is carried out."""

from __future__ import annotations

import torch
from torch import Tensor


def log(
    log_kernel: Tensor,
    log_mu: Tensor,
    log_nu: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The iteration on logarithms: no overflow whatever the range of scores over epsilon.

    Logarithms of size r carry an absolute error of about r ulp, so a range of 1e5 or more is work
    for float64.

    Args:
        log_kernel: S / epsilon (..., n, m).
        log_mu: (..., n), -inf at absent rows.
        log_nu: (..., m), -inf at absent columns.
        iterations: the most steps to take.
        tolerance: leave a problem alone once its rows are within this L1 distance of mu (columns
            are exact after every step), and stop when all are. Reading that waits for the GPU.

    Returns:
        log_u (..., n), log_v (..., m) and the steps taken for each problem (...).
    """
    absent_rows, absent_columns = log_mu == -torch.inf, log_nu == -torch.inf
    empty = absent_rows.all(-1, keepdim=True) | absent_columns.all(-1, keepdim=True)
    log_mu, log_nu = log_mu.masked_fill(empty, -torch.inf), log_nu.masked_fill(empty, -torch.inf)
    log_u = torch.full_like(log_mu, -torch.inf)
    # Absent columns start at -inf, so that padding changes nothing at any number of steps.
    log_v = torch.zeros_like(log_nu).masked_fill(absent_columns, -torch.inf)
    active = torch.ones_like(empty)
    steps = torch.zeros_like(empty[..., 0], dtype=torch.int64)
    for step in range(iterations):
        # Only an empty problem sums nothing: -inf, which would meet the -inf of its marginals.
        row_sums = (log_kernel + log_v[..., None, :]).logsumexp(-1).masked_fill(empty, 0)
        if tolerance is not None and step > 0:
            error = ((log_u + row_sums).exp() - log_mu.exp()).abs().sum(-1, keepdim=True)
            active = active & (error > tolerance)
            if not active.any():
                break
        next_u = log_mu - row_sums
        column_sums = (log_kernel + next_u[..., :, None]).logsumexp(-2).masked_fill(empty, 0)
        next_v = log_nu - column_sums
        if tolerance is not None:
            next_u = torch.where(active, next_u, log_u)
            next_v = torch.where(active, next_v, log_v)
        log_u, log_v = next_u, next_v
        steps = steps + active[..., 0]
    return log_u, log_v, steps
