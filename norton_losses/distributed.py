# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false
"""What a process group changes: rows of this process, columns and sums of all processes.

One process is a group of one, for which every operation here is the identity.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
import torch.distributed as dist
from torch import Tensor

from norton_losses._numerics import padded_to

ProcessGroup: TypeAlias = "dist.ProcessGroup | Literal['world'] | None"

# torch 2.13 renames both; older names warn there.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)

NUMBERS = 64  # that the processes tell each other before each step


@final
@dataclass(frozen=True, eq=False)
class Shard:
    r"""The part of a batch that this process holds, and how it is combined with the others.

    The batch of a group of R processes is that of all of them together, in the order of their
    ranks. A process keeps its own videos as rows, and gathers the text of all as columns, padded to
    the largest: so each pair in the world is computed once. Every process returns the loss L of
    that whole batch, and its backward pass is that of the sum of all R returned losses,

    .. math:: \frac{\partial}{\partial x} \sum_r L_r = R \, \frac{\partial L}{\partial x}

    so that the mean over processes that DDP and FSDP take is the gradient of one process with the
    whole batch. What all processes hold alike, such as a temperature, goes through
    :meth:`replicated`, and has that gradient before any mean.

    All processes must call the same methods in the same order.

    Attributes:
        group: None for one process.
        size: R.
        rank: of this process in the group.
        layout: sequences, segments and tokens that each process's text is padded to.
        gathered: whether columns are those of all processes, or of this one alone.

    Example:
        >>> import torch
        >>> from norton_losses.distributed import Shard
        >>> Shard().sum(torch.tensor(2.0))          # of one process
        tensor(2.)
    """

    group: Any = None
    size: int = 1
    rank: int = 0
    layout: tuple[int, int, int] = (0, 0, 0)
    gathered: bool = True

    @staticmethod
    def of(group: ProcessGroup) -> Shard:
        """The place of this process in a group.

        Raises:
            RuntimeError: torch.distributed has not been initialised.
            ValueError: this process is not in the group, or it is not a group.
        """
        if group is None:
            return ONE_PROCESS
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "process_group needs torch.distributed, which is not initialised; call "
                "torch.distributed.init_process_group first, or leave process_group out"
            )
        handle = dist.group.WORLD if group == "world" else group
        rank = dist.get_rank(handle)
        if rank < 0:
            raise ValueError(
                "process_group must hold this process, which is not one of its ranks; call the "
                "loss on the processes of the group alone"
            )
        return Shard(handle, dist.get_world_size(handle), rank)

    @property
    def alone(self) -> bool:
        """Whether the whole batch is here."""
        return self.size == 1

    def tell(self, numbers: Sequence[float] | None) -> Tensor:
        """The numbers of every process (R, n), on the host, which waits for them.

        None tells that this process has failed: the others are waiting for it, and raise.

        Raises:
            RuntimeError: another process has failed.
        """
        mine = torch.zeros(NUMBERS, dtype=torch.float64)
        told = [1.0] if numbers is None else [0.0, *numbers]
        mine[: len(told)] = torch.tensor(told, dtype=torch.float64)
        world = self._gathered(mine.to(self.device)).view(self.size, -1).cpu()
        failed = world[:, 0].nonzero().flatten().tolist()
        if numbers is not None and failed:
            raise RuntimeError(
                f"processes {failed} of the group of {self.size} refused their inputs, and this "
                "one cannot go on alone; see what they raised"
            )
        return world[:, 1:]

    @contextmanager
    def failing_together(self) -> Generator[None, None, None]:
        """Tell the others, who wait for what this process has to tell, if it fails in here."""
        try:
            yield
        except Exception:
            if not self.alone:
                self.tell(None)
            raise

    def own(self, sequences: int, device: torch.device) -> Tensor:
        """Which columns, of sequences, are those of this process: (sequences,)."""
        first = self.rank * self.layout[0] if self.gathered else 0
        return first + torch.arange(sequences, device=device)

    def pad(self, values: Tensor, leading: int) -> Tensor:
        """Values with zeros up to the layout in their leading dimensions."""
        return values if self.alone else padded_to(values, self.layout[:leading])

    def gather(self, values: Tensor, leading: int, wire: torch.dtype | None = None) -> Tensor:
        """Values of all processes, one after another; gradients are summed, and return.

        Args:
            values: (B, ...), (B, M, ...) or (B, M, W, ...), of this process.
            leading: how many dimensions to pad with zeros to the layout: 1, 2 or 3.
            wire: the dtype to send them in; None means their own.
        """
        if self.alone:
            return values
        values = self.pad(values, leading)
        if values.dtype == torch.bool:  # which not every backend sends
            return self._gathered(values.view(torch.uint8)).view(torch.bool)
        if not values.is_floating_point():
            return self._gathered(values)
        return _Gather.apply(values, self, wire or values.dtype)  # pyright: ignore

    def broadcast(self, values: Tensor, rank: int) -> Tensor:
        """Those of one process, on all; without gradient."""
        sent = values.detach().clone(memory_format=torch.contiguous_format)
        if not self.alone:
            dist.broadcast(sent, self._global(rank), group=self.group)
        return sent

    def reduced_to(self, rank: int, values: Tensor) -> Tensor:
        """The sum over processes, on one of them; on the others anything."""
        summed = values.detach().clone(memory_format=torch.contiguous_format)
        if not self.alone:
            dist.reduce(summed, self._global(rank), group=self.group)
        return summed

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, the same on each."""
        return values if self.alone else _Sum.apply(values, self)  # pyright: ignore

    def amin(self, values: Tensor) -> Tensor:
        """Smallest entry of any process (); equal ones share its gradient."""
        return -self.amax(-values)

    def amax(self, values: Tensor) -> Tensor:
        """Largest entry of any process (); equal ones share its gradient."""
        return values.amax() if self.alone else _Largest.apply(values, self)  # pyright: ignore

    def logsumexp(self, values: Tensor) -> Tensor:
        """Log of the sum of exponentials over processes, -inf where all are."""
        if self.alone:
            return values
        top = self._top(values)
        return _log(self.sum((values - top).exp())) + top

    def log_softmax(self, values: Tensor) -> Tensor:
        """Log-softmax of columns (n, m) over the rows of all processes; -inf counts for nothing."""
        if self.alone:
            return values.log_softmax(0)
        shifted = values - self._top(values.amax(0))
        return shifted - _log(self.sum(shifted.exp().sum(0)))

    def any(self, mask: Tensor) -> Tensor:
        """Where a mask of any process is True."""
        return mask if self.alone else self._reduced(mask.long(), "MAX") > 0

    def replicated(self, values: Tensor) -> Tensor:
        """Values that all processes hold alike; their gradients become alike too."""
        return values if self.alone else _Replicated.apply(values, self)  # pyright: ignore

    @property
    def device(self) -> torch.device:
        """Where the group's backend communicates: of NCCL, what torch.cuda.set_device chose."""
        cuda = "nccl" in dist.get_backend(self.group)
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)

    def _gathered(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        out = values.new_empty(self.size * values.shape[0], *values.shape[1:])
        _all_gather(out, values, group=self.group)
        return out

    def _reduced(self, values: Tensor, operation: str = "SUM") -> Tensor:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values, getattr(dist.ReduceOp, operation), group=self.group)
        return values

    def _top(self, values: Tensor) -> Tensor:
        top = self._reduced(values, "MAX")
        return top.masked_fill(top == -torch.inf, 0)

    def __deepcopy__(self, memo: Any) -> Shard:
        return self  # a handle


ONE_PROCESS = Shard()


def _log(values: Tensor) -> Tensor:
    """The logarithm, whose gradient is 0 where the value is."""
    zero = values == 0
    return values.masked_fill(zero, 1).log().masked_fill(zero, -torch.inf)


def check_group(group: object) -> None:
    """Raise unless this is a process group, its name "world", or None."""
    if group is None or group == "world" or hasattr(group, "rank"):
        return
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        return  # of new_group on a process that is not in it: told when it is called
    raise TypeError(
        f'process_group must be "world", a group of torch.distributed, or None, got {group!r}; '
        "torch.distributed.new_group makes one of some ranks"
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: Shard, wire: torch.dtype) -> Tensor:
        ctx.shard = shard
        return shard._gathered(values.to(wire)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _Scatter.apply(grad_outputs[0], ctx.shard), None, None  # pyright: ignore


class _Scatter(torch.autograd.Function):
    """Sums over processes, of which each keeps its own part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        own = values.new_empty(len(values) // shard.size, *values.shape[1:])
        _reduce_scatter(own, values.contiguous(), group=shard.group)
        return own

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        grad = grad_outputs[0]
        return _Gather.apply(grad, ctx.shard, grad.dtype), None  # pyright: ignore


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return shard._reduced(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.sum(grad_outputs[0]), None


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: Shard) -> Tensor:
        largest = shard._reduced(values.amax(), "MAX")
        ctx.save_for_backward(values, largest)
        ctx.shard = shard
        return largest

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        values, largest = ctx.saved_tensors
        hits = values == largest
        both = torch.stack([grad_outputs[0], hits.sum().to(grad_outputs[0].dtype)])
        grad, count = ctx.shard.sum(both)
        return hits * (grad / count), None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.sum(grad_outputs[0]) / ctx.shard.size, None
