"""The base class of modules whose state is scalars: how it is kept, loaded, cast and reset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ScalarState(nn.Module, ABC):
    """Parameters and buffers of shape (1,), since FSDP refuses 0-d, in float32 at least.

    A checkpoint may hold them as () or (1,). A cast to half precision leaves them as they are:
    the steps of an optimiser are smaller than what bfloat16 can tell apart.
    """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Set the state to its start, as after ``to_empty``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype.itemsize < 4 else moved

        return super()._apply(kept, recurse)  # pyright: ignore

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        state = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        for name, _ in state:
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore


def scalar(value: float) -> Tensor:
    """A number (1,) as such a module holds it: float32 whatever half the default dtype is."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.full((1,), value, dtype=dtype)


def shown(state: Tensor) -> str:
    """The number for a repr."""
    return "on meta" if state.is_meta else f"{state.item():.4f}"
