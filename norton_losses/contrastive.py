"""From scores to a loss: symmetric cross-entropy at a temperature, Eq. (4) and (8)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from norton_losses._checks import check_floating, check_mask, check_number, check_shape
from norton_losses._numerics import is_traced, masked_log_softmax, up_cast, working_dtype
from norton_losses.distributed import ONE_PROCESS, Shard
from norton_losses.scalar_state import ScalarState

COLDEST, HOTTEST = 0.01, 1.0  # the temperatures allowed
PATIENCE = 1000  # steps without a change, more than gradients are accumulated over


def symmetric_cross_entropy(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    anchors: Tensor | None = None,
    candidates: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy along the rows plus cross-entropy along the columns.

    .. math:: -\frac1K \sum_{ij} T_{ij} \big[ \log \mathrm{softmax}_j(l_{i \cdot})_j
              + \log \mathrm{softmax}_i(l_{\cdot j})_i \big]

    Args:
        logits: l (K, K), floating. What lies outside ``candidates`` may be anything finite.
        targets: T (K, K), floating, not negative; None is the identity.
        anchors: (K,), bool, the rows and columns that the mean runs over; None means all.
        candidates: (K, K), bool, the cells that the softmaxes see; None means all. The target of
            every other cell counts as 0.

    Returns:
        (), float32 or wider; 0 with zero gradients where there is no anchor.

    Raises:
        ValueError: logits that are not square, or other shapes that differ from theirs.

    Source: Eq. (4) and (8) of Lin et al., ICLR 2024, as a mean over the batch.

    Example:
        >>> import torch
        >>> from norton_losses.functional import symmetric_cross_entropy
        >>> symmetric_cross_entropy(torch.zeros(4, 4)) / 2      # log(4), once in each direction
        tensor(1.3863)
    """
    check_square("logits", logits)
    if targets is not None:
        check_floating("targets", targets, "(K, K)")
        check_shape("targets", targets, logits.shape)
    if anchors is None:
        anchors = logits.new_ones(len(logits), dtype=torch.bool)
    if candidates is None:
        candidates = torch.ones_like(logits, dtype=torch.bool)
    check_mask("anchors", anchors, logits.shape[:1], logits)
    check_mask("candidates", candidates, logits.shape, logits)
    logits = up_cast(logits, working_dtype(logits, targets))
    if targets is not None:
        targets = targets.masked_fill(~(anchors[:, None] & anchors), 0)
    own = torch.arange(len(logits), device=logits.device)
    return contrast(logits, targets, anchors, candidates, own, ONE_PROCESS)


def contrast(
    logits: Tensor,
    targets: Tensor | None,
    anchors: Tensor,
    candidates: Tensor,
    own: Tensor,
    shard: Shard,
) -> Tensor:
    """:func:`symmetric_cross_entropy` of rows (n, K), of which the columns ``own`` (n,) are theirs.

    Targets are 0 in every column that is not an anchor. Arguments are known to fit.
    """
    empty = ~shard.any(candidates.any(0))
    by_column = shard.log_softmax(
        logits.masked_fill(~candidates, -torch.inf).masked_fill(empty, 0)
    ).masked_fill(~candidates, 0)
    log_p = masked_log_softmax(logits, candidates, 1) + by_column
    if targets is None:
        surprise = -log_p.gather(1, own[:, None])[:, 0]
    else:
        surprise = -(targets * log_p).sum(-1)
    total = shard.sum(surprise.masked_fill(~anchors, 0).sum())
    return total / shard.sum(anchors.sum()).clamp(min=1)


class Groups(NamedTuple):
    """Groups of entries that are not each other's negatives.

    Two of the K entries are duplicates if they share a group and differ in member.

    Attributes:
        group: (K,), integer.
        member: (K,), integer, what an entry is part of, such as its sequence; entries of one member
            remain negatives of each other.
    """

    group: Tensor
    member: Tensor

    @staticmethod
    def of(group_ids: Tensor) -> Groups:
        """Groups in which all entries of one group are duplicates of each other."""
        return Groups(group_ids, torch.arange(group_ids.shape[0], device=group_ids.device))

    def gathered(self, shard: Shard) -> Groups:
        """Of all processes, from those of this one: (B,) or (B, N), members numbered in each."""
        leading = self.group.dim()
        first = shard.rank * math.prod(shard.layout[:leading])
        return Groups(
            shard.gather(self.group.long(), leading).flatten(),
            shard.gather(self.member + first, leading).flatten(),
        )

    def duplicates(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Which pairs of some rows with all entries are duplicates: (rows, K), bool."""
        same = self.group[rows, None] == self.group
        return same & (self.member[rows, None] != self.member)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clip-caption pairs: n clips of this process as rows, K captions of all as columns.

    Attributes:
        rows: (n,), bool, the valid pairs of this process.
        columns: (K,), bool, those of all processes.
        own: (n,), the columns of this process's pairs.
        groups: of the K pairs.
        shard: the processes that hold the rows.
    """

    rows: Tensor
    columns: Tensor
    own: Tensor
    groups: Groups | None
    shard: Shard

    @staticmethod
    def alone(mask: Tensor, groups: Groups | None = None) -> Pairs:
        """Pairs (K,) of one process, row i with column i."""
        own = torch.arange(len(mask), device=mask.device)
        return Pairs(mask, mask, own, groups, ONE_PROCESS)

    def identity(self, rows: slice = slice(None)) -> Tensor:
        """Which cells (rows, K) are valid pairs."""
        index = torch.arange(len(self.columns), device=self.own.device)
        return (self.own[rows, None] == index) & self.rows[rows, None]

    def marginals(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logarithms of the mass 1, evenly on the pairs of all processes: (n,) and (K,)."""
        share = -self.columns.sum().clamp(min=1).to(dtype).log()
        rows, columns = (share.expand(m.shape) for m in (self.rows, self.columns))
        return rows.masked_fill(~self.rows, -torch.inf), columns.masked_fill(
            ~self.columns, -torch.inf
        )


def check_temperature(temperature: float) -> None:
    check_number("temperature", temperature)
    if not COLDEST <= temperature <= HOTTEST:
        raise ValueError(
            f"temperature must lie in [{COLDEST}, {HOTTEST}], got {temperature}; logits are "
            "divided by it, and 0.07 is the usual start"
        )


def check_square(name: str, logits: Tensor) -> None:
    check_floating(name, logits, "(K, K)")
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(
            f"{name} must be square (K, K), entry i of one side matching entry i of the other, "
            f"got {tuple(logits.shape)}"
        )


class ClampWithReturn(torch.autograd.Function):
    """Clamp whose gradient vanishes outside the bounds only where it points further outwards.

    With a plain clamp, a parameter that one large step carried out of bounds would never return.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, lo: float, hi: float) -> Tensor:
        return value.clamp(lo, hi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, *ctx.bounds = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (value,), (lo, hi), grad = ctx.saved_tensors, ctx.bounds, grad_outputs[0]
        outwards = ((value > hi) & (grad < 0)) | ((value < lo) & (grad > 0))
        return grad.masked_fill(outwards, 0), None, None


@final
class Temperature(ScalarState):
    r"""The temperature of a contrastive loss, learned on a logarithmic scale.

    .. math:: \tau = e^{-s}, \quad s = \mathrm{clamp}(\mathtt{log\_scale}, 0, \log 100)

    Calling it gives :math:`\tau` (), float32 or wider; logits are scores divided by it.

    Args:
        value: the start, in [0.01, 1], in units of the scores.
        learnable: whether ``log_scale`` is a parameter or a buffer. Both are in ``state_dict``.

    Raises:
        ValueError: ``value`` outside [0.01, 1].

    Source: the temperature of Eq. (4) of Lin et al., ICLR 2024; its clamp is the released code's.

    Example:
        >>> from norton_losses import Temperature
        >>> temperature = Temperature(0.07)
        >>> temperature()
        tensor(0.0700, grad_fn=<ExpBackward0>)
    """

    log_scale: Tensor
    _watched: tuple[int, Tensor | None] = 0, None  # calls in training, log_scale at the first

    def __init__(self, value: float = 0.07, *, learnable: bool = True) -> None:
        super().__init__()
        check_temperature(value)
        self.hold("log_scale", -math.log(value), learnable=learnable)

    def forward(self) -> Tensor:
        if self.training and torch.is_grad_enabled() and not is_traced(self.log_scale):
            self._notice_that_nobody_trains_it()
        log_scale = up_cast(self.log_scale, working_dtype(self.log_scale)).reshape(())
        bounds = -math.log(HOTTEST), -math.log(COLDEST)
        return (-ClampWithReturn.apply(log_scale, *bounds)).exp()  # pyright: ignore

    def _notice_that_nobody_trains_it(self) -> None:
        if not self.log_scale.requires_grad:
            return
        calls, start = self._watched
        if calls == PATIENCE or type(self.log_scale.data) is not Tensor:  # said, or a fake tensor
            return
        start = self.log_scale.detach().clone() if start is None else start
        self._watched = calls + 1, start
        # By its value: not every optimiser counts up the version of what it changes.
        if calls + 1 == PATIENCE and torch.allclose(start.to(self.log_scale), self.log_scale):
            warnings.warn(
                f"the temperature has not changed in {PATIENCE} steps: hand the loss's "
                "parameters() to the optimiser beside the model's, or build the loss with "
                "learnable_temperature=False",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_watched"}

    def extra_repr(self) -> str:
        return f"log_scale={self.shown()}, learnable={self.log_scale.requires_grad}"
