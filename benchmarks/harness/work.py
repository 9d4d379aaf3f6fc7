"""What a suite declares: works, their contenders, and what was to be reached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Size = Literal["smoke", "quick", "full"]
Role = Literal["ours", "naive", "peer", "floor"]
Mode = Literal["forward", "forward+backward", "no-grad", "training step"]
Quantity = Literal["faster", "times the floor", "less memory", "peak memory", "added time"]

PASSES: tuple[Mode, ...] = ("forward", "forward+backward", "no-grad")
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A contender with its inputs in hand: everything from here on is on the clock.

    Attributes:
        call: computes the result.
        leaves: what the backward pass differentiates by.
        read: from the result to the tensor that the gate compares; off the clock.
        step: what follows the backward pass in a training step.
    """

    call: Callable[[], Any]
    leaves: Sequence[Tensor] = ()
    read: Callable[[Any], Tensor] = lambda result: result
    step: Callable[[], None] | None = None


class CannotTakePartError(Exception):
    """Raised while a contender is prepared: what keeps it from this work, as a reason to show."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: as the tables show it.
        role: ours; naive, which ratios divide by; a peer; or a floor, which computes less than the
            work and passes no gate.
        prepare: from inputs to what is timed; set-up, conversion and copies belong here. It may
            raise :class:`CannotTakePartError`.
        modes: those it can do; None means all of the work's.
        needs: the distribution that it comes from, to be named with its version.
        device: the only kind of device that it runs on; None means any.
        compiles: its first call takes long; it takes part in the full run alone.
        slack: how much larger its errors may be than the work's tolerance.
        bytes_needed: a prediction. Above half of what is free the contender is skipped, ours
            above three quarters.
        against: the naive contender that its ratio divides; None means the work's first.
        reference: the definition of what it computes; None means the work's.
    """

    name: str
    role: Role
    prepare: Callable[[Inputs], Prepared]
    modes: tuple[Mode, ...] | None = None
    needs: str | None = None
    device: str | None = None
    compiles: bool = False
    slack: float = 1.0
    bytes_needed: float = 0.0
    against: str | None = None
    reference: Callable[[Inputs], Prepared] | None = None


@dataclass(frozen=True)
class Claim:
    """A comparison of two contenders, or a peak, that somebody set out to reach, or published.

    It is about the work's heaviest mode.

    Attributes:
        ours, against: names of contenders; nothing is against a ``"peak memory"``.
        quantity: ``"faster"`` is time of the other over ours, ``"times the floor"`` the reverse,
            ``"less memory"`` the other's peak over ours, ``"peak memory"`` ours in bytes,
            ``"added time"`` is ours over the other, less one, in per cent.
        at_least, at_most: the target, if there is one.
        published: the figure of the paper, from another machine.
    """

    ours: str
    against: str | None
    quantity: Quantity = "faster"
    at_least: float | None = None
    at_most: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Work:
    """One piece of work at one set of shapes.

    Attributes:
        name: as the tables show it; unique in its suite.
        parameters: the shapes.
        inputs: makes them, float32 on the CPU, seeded; floating ones that require gradient are the
            leaves.
        contenders: who does it.
        reference: the definition, run in float64 by the gate; it may be slow, not large.
        modes: which passes are timed.
        sweep: the parameter that grows from work to work, if a figure shows that.
        value_tolerance: largest difference from the reference, in float32.
        gradient_tolerance: the same for gradients, over the largest entry of each.
        memory: whether peaks are measured.
        fewest_rounds: more than 3 where differences are small, whatever they take.
        device: the only kind of device that it is for; None means any.
    """

    name: str
    parameters: Mapping[str, int | float | str]
    inputs: Callable[[], Inputs]
    contenders: Sequence[Contender]
    reference: Callable[[Inputs], Prepared]
    modes: tuple[Mode, ...] = PASSES
    sweep: str | None = None
    value_tolerance: float = 1e-5
    gradient_tolerance: float = 1e-4
    memory: bool = True
    fewest_rounds: int = 3
    device: str | None = None
    claims: Sequence[Claim] = field(default_factory=tuple)

    @property
    def heaviest(self) -> Mode:
        return heaviest(self.modes)

    def of(self, contender: str) -> Contender:
        return next(c for c in self.contenders if c.name == contender)


def heaviest(modes: Collection[Mode]) -> Mode:
    """The one that does most: peaks, claims and figures are of it."""
    order: tuple[Mode, ...] = ("training step", "forward+backward", "forward", "no-grad")
    return next(mode for mode in order if mode in modes)


def function(name: str, role: Role, compute: Callable[..., Tensor], **settings: Any) -> Contender:
    """A contender that is a function of the inputs, by their names."""

    def prepare(inputs: Inputs) -> Prepared:
        return prepared(compute, inputs)

    return Contender(name, role, prepare, **settings)


def compiled(name: str, compute: Callable[..., Tensor], **settings: Any) -> Contender:
    """The same under ``torch.compile``, as a peer."""

    def prepare(inputs: Inputs) -> Prepared:
        return prepared(torch.compile(compute), inputs)

    return Contender(name, "peer", prepare, needs="torch", compiles=True, **settings)


def prepared(compute: Callable[..., Tensor], inputs: Inputs) -> Prepared:
    leaves = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return Prepared(lambda: compute(**inputs), leaves)


def placed(inputs: Inputs, device: str, dtype: torch.dtype) -> Inputs:
    """The inputs on a device, the floating ones in a dtype, each a leaf of its own."""

    def place(tensor: Tensor) -> Tensor:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device, wanted, copy=True).requires_grad_(tensor.requires_grad)

    return {name: place(tensor) for name, tensor in inputs.items()}
