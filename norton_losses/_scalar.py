"""The base class of modules with scalar parameters, kept in shape (1,) since FSDP refuses 0-d."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ScalarState(nn.Module):
    """Parameters and buffers of shape (1,); a checkpoint may hold them as () or (1,)."""

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        state = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        for name, _ in state:
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore
