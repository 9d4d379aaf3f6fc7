"""The base class of modules whose state is one scalar: how it is kept, loaded, cast and reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_losses._numerics import is_traced


class ScalarState(nn.Module):
    """One parameter or buffer of shape (1,), since FSDP refuses 0-d, in float32 at least.

    A checkpoint may hold it as () or (1,). A cast to half precision leaves it in float32: the steps
    of an optimiser are smaller than what bfloat16 can tell apart.
    """

    def hold(self, name: str, start: float, *, learnable: bool) -> None:
        """Keep a scalar under this name."""
        self.start = start
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        value = torch.full((1,), start, dtype=dtype)
        if learnable:
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the state to its start, which ``to_empty`` leaves open."""
        for value in self._state().values():
            value.fill_(self.start)

    def shown(self) -> str:
        """The state for a repr."""
        (value,) = self._state().values()
        return "no value" if is_traced(value) else f"{value.item():.4f}"

    def _state(self) -> dict[str, Tensor]:
        return dict([*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype.itemsize < 4:
                return tensor.to(moved.device)
            if moved.dtype.itemsize > tensor.dtype.itemsize and not moved.is_meta:
                # What was rounded, and not trained since, is rounded anew.
                rounded = (tensor == torch.full_like(tensor, self.start)).to(moved.device)
                return torch.where(rounded, torch.full_like(moved, self.start), moved)
            return moved

        return super()._apply(kept, recurse)  # pyright: ignore

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        for name in self._state():
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser, with weight decay for all but temperatures and bucket offsets.

    Decay pulls the logarithm of a temperature to 0, and so the temperature to 1.

    Args:
        model: with the loss in it; or a loss.
        weight_decay: of the other parameters.

    Returns:
        Two groups, of which the second has no decay; parameters that are not trained in neither.

    Example:
        >>> import torch
        >>> from norton_losses import NortonLoss, parameter_groups
        >>> model = torch.nn.ModuleDict({"tower": torch.nn.Linear(4, 4), "loss": NortonLoss()})
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.01), (1, 0.0)]
    """
    scalars = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ScalarState)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [p for p in trained if (id(p) in scalars) == without],
            "weight_decay": 0.0 if without else weight_decay,
        }
        for without in (False, True)
    ]
