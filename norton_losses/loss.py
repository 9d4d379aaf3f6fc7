"""Base classes of the losses: one signature, and one place where inputs are read."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from norton_losses._checks import check_choice, check_positive
from norton_losses._numerics import full_precision, is_traced
from norton_losses._typing import Gather
from norton_losses.contrastive import Temperature
from norton_losses.distributed import ONE_PROCESS, ProcessGroup, Shard, check_group
from norton_losses.gathered_text import gather_text
from norton_losses.scalar_state import ScalarState
from norton_losses.segments import Segments, or_absent, read_pair

P = ParamSpec("P")


class HasLoss(Protocol):
    """What ``explain`` returns."""

    @property
    def loss(self) -> Tensor: ...


Output = TypeVar("Output", bound=HasLoss)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """The arguments of one call after reading."""

    video: Segments
    text: Segments
    group_ids: Tensor | None
    logit_scale: Tensor | float | None
    shard: Shard
    by_turns: bool = False  # text is that of this process, that of the others is to be fetched
    wire: torch.dtype = torch.float32  # in which it is then sent

    def with_all_embeddings(self) -> LossInputs:
        """The same with the embeddings of the text of all processes, and no tokens."""
        if not self.by_turns:
            return self
        shard, text = self.shard, self.text
        embeddings, mask = shard.gather(text.embeddings, 2), shard.gather(text.mask, 2)
        return replace(self, text=Segments(embeddings, mask=mask), by_turns=False)


def loss_of(
    explain: Callable[Concatenate[Any, P], HasLoss],
) -> Callable[Concatenate[Any, P], Tensor]:
    """A ``forward`` with the arguments of an ``explain``, which returns the loss alone."""

    def forward(self: Any, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        return self.explain(*args, **kwargs).loss

    forward.__doc__ = "The loss (), float32 or wider; arguments and errors as in :meth:`explain`."
    return update_wrapper(forward, explain, assigned=("__annotations__",))


class AbstractLoss(nn.Module, ABC, Generic[Output]):
    """A loss of videos and the paragraphs that came with them."""

    by_embeddings = False  # whether embeddings are all that is compared

    def __init__(self, process_group: ProcessGroup, gather: Gather = "all") -> None:
        super().__init__()
        check_group(process_group)
        check_choice("gather", gather, ("all", "chunked"))
        self.process_group: ProcessGroup = process_group
        self.gather: Gather = gather

    def explain(
        self,
        video: Segments | Tensor,
        text: Segments | Tensor,
        *,
        group_ids: Tensor | None = None,
        logit_scale: Tensor | float | None = None,
    ) -> Output:
        """The loss and what it was made of.

        Args:
            video: :class:`~norton_losses.Segments`; or tokens (B, N, F, D), or (B, N, D), one token
                a clip, that are all valid.
            text: the same of paragraphs, (B, M, W, D) or (B, M, D); paragraph b came with video b.
            group_ids: (B,), integer. Sequences of the same group are not each other's negatives.
            logit_scale: () multiplies the logits of a loss that was built with
                ``temperature=None``. It is already exponentiated: 1 / tau, not its logarithm.

        Raises:
            ValueError: shapes that do not fit each other; a ``logit_scale`` beside a temperature.
            TypeError: tokens that are not floating, masks that are not bool.
        """
        if self.process_group is None:
            inputs = self.read(video, text, group_ids, logit_scale)
            self.check(inputs)
            _notice_that_nothing_is_valid(inputs)
        else:
            inputs = self._read_with_others(video, text, group_ids, logit_scale)
        with full_precision(inputs.video.tokens):
            return self.evaluate(inputs)

    forward = loss_of(explain)

    def _read_with_others(self, *given: Any) -> LossInputs:
        """Read the inputs of this process, and gather the text of all of them."""
        shard = Shard.of(self.process_group)
        with shard.failing_together():
            inputs = self.read(*given, may_be_empty=True)
            self.check(inputs)
            video, text = inputs.video, inputs.text
            alike: list[Tensor] = [p for p in self.parameters() if p.numel() == 1]
            scalars = (module for module in self.modules() if isinstance(module, ScalarState))
            alike += [buffer for module in scalars for buffer in module.buffers()]
            if inputs.logit_scale is not None:
                alike.append(torch.as_tensor(inputs.logit_scale))
            wire = text.tokens.dtype
            if self.by_embeddings:
                video, text = (Segments(s.embeddings, mask=s.mask) for s in (video, text))
            else:
                wire = getattr(given[1], "tokens", given[1]).dtype
        by_turns = self.gather == "chunked"
        ids = inputs.group_ids is not None
        video, text, shard = gather_text(video, text, shard, wire, alike, ids, by_turns)
        return replace(inputs, video=video, text=text, shard=shard, by_turns=by_turns, wire=wire)

    def __deepcopy__(self, memo: Any) -> Any:
        memo[id(self.process_group)] = self.process_group  # a handle, which cannot be copied
        copied: Any = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        copied.__dict__.pop("_compiled_call_impl", None)  # bound to the original, as in nn.Module
        return copied

    def read(
        self,
        video: Any,
        text: Any,
        group_ids: Any,
        logit_scale: Any,
        *,
        may_be_empty: bool = False,
    ) -> LossInputs:
        """Check the arguments; with ``may_be_empty``, no sequence stands for one that is absent."""
        if may_be_empty:
            if group_ids is not None and not len(group_ids):
                group_ids = group_ids.new_zeros(1)
            video, text = or_absent(video), or_absent(text)
        video, text = read_pair(video, text, by_embeddings=self.by_embeddings)
        if len(video) != len(text):
            remedy = "to rank other numbers of them use .score of a NortonLoss"
            if video.tokens.shape[1] == len(text) or text.tokens.shape[1] == len(video):
                remedy += "; if the tokens of one are (N, B, T, D), give their .transpose(0, 1)"
            raise ValueError(
                f"video and text must hold as many sequences, got B = {len(video)} and "
                f"{len(text)}; {remedy}"
            )
        return LossInputs(video, text, group_ids, logit_scale, ONE_PROCESS)

    @abstractmethod
    def check(self, inputs: LossInputs) -> None:
        """Raise where the inputs do not fit this loss, before any work."""

    @abstractmethod
    def evaluate(self, inputs: LossInputs) -> Output:
        """The loss and what it was made of, from checked inputs."""


class AbstractContrastiveLoss(AbstractLoss[Output]):
    """A loss with one contrast, at its own temperature or at a ``logit_scale`` from outside."""

    def __init__(
        self,
        temperature: float | None,
        learnable: bool,
        process_group: ProcessGroup,
        gather: Gather = "all",
    ) -> None:
        super().__init__(process_group, gather)
        self.temperature = (
            None if temperature is None else Temperature(temperature, learnable=learnable)
        )

    def check_logit_scale(self, logit_scale: Tensor | float | None) -> None:
        """Raise unless ``logit_scale`` is a single number and the only temperature."""
        if logit_scale is None:
            return
        if self.temperature is not None:
            raise ValueError(
                "logit_scale replaces the temperature, and this loss has one of its own; build it "
                f"with {type(self).__name__}(temperature=None), a term of a NortonLoss as well, or "
                "leave logit_scale out"
            )
        if not isinstance(logit_scale, Tensor):
            check_positive("logit_scale", logit_scale)
        elif logit_scale.numel() != 1:
            raise ValueError(
                "logit_scale must be a single number, already exponentiated, got shape "
                f"{tuple(logit_scale.shape)}; for CLIP models pass model.logit_scale.exp()"
            )
        elif isinstance(logit_scale, nn.Parameter) and not torch.compiler.is_compiling():
            warnings.warn(
                "logit_scale is a parameter, and so most likely a logarithm: pass "
                "model.logit_scale.exp(), or 1 * it if it is trained as a factor",
                stacklevel=2,
            )

    def scale(self, logit_scale: Tensor | float | None, like: Tensor, shard: Shard) -> Tensor:
        """What scores are multiplied by (): 1 / tau, or the scale from outside, or 1."""
        scale = 1.0 if logit_scale is None else logit_scale
        if self.temperature is not None:
            scale = 1 / self.temperature()
        if not isinstance(scale, Tensor):
            return like.new_full((), scale)
        if shard.alone:
            return scale.reshape(())
        # A number on the CPU would do, but its gradient is summed where the tokens are.
        return shard.replicated(scale.reshape(()).to(like.device))


def _notice_that_nothing_is_valid(inputs: LossInputs) -> None:
    """On the CPU alone: a GPU would have to wait."""
    masks = inputs.video.mask, inputs.text.mask
    if masks[0].is_cpu and not is_traced(masks[0]) and not all(mask.any() for mask in masks):
        warnings.warn(
            "no clip, or no caption, of this batch is valid, so that the loss is 0: masks are True "
            "where valid, and one that is True at padding goes in as ~mask",
            stacklevel=2,
        )
