"""The state of random numbers, on the CPU and every GPU, to compute something twice alike."""

from __future__ import annotations

import torch


class RandomState:
    """The state when this was made."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)
