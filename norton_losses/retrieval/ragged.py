"""Sequences of different lengths, one tensor each, and padded batches of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from norton_losses._checks import check_floating, check_mask
from norton_losses._numerics import unit, up_cast, working_dtype

SEGMENTS = 1 << 11  # of a group, padding included, unless one sequence alone has more


@dataclass(frozen=True, eq=False)
class Batch:
    """Some sequences, padded to the longest of them."""

    tokens: Tensor  # (b, L, D) or (b, L, T, D)
    mask: Tensor  # (b, L)
    token_mask: Tensor | None  # (b, L, T)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of segments (clips or captions), all of them valid."""

    tokens: list[Tensor]  # (n, D) each, or (n, T, D) with one T
    token_masks: list[Tensor] | None  # (n, T) each

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(tokens) for tokens in self.tokens])

    def groups(self, batch_size: int) -> list[Tensor]:
        """Indices in groups of like length, with little to pad and less than SEGMENTS in each."""
        lengths, order = self.lengths.sort(stable=True)
        groups: list[Tensor] = []
        start = 0
        for end, longest in enumerate([*lengths.tolist(), SEGMENTS]):  # pyright: ignore
            size = end - start
            if size and (size == batch_size or (size + 1) * longest > SEGMENTS):
                groups.append(order[start:end])
                start = end
        return groups

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        """The sequences of these indices (b,), on a device."""
        numbers = [int(i) for i in indices]
        lengths = torch.tensor([len(self.tokens[i]) for i in numbers])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        token_mask = None
        if self.token_masks is not None:
            token_mask = pad_sequence([self.token_masks[i] for i in numbers], batch_first=True)
            token_mask = token_mask.to(device)
        tokens = pad_sequence([self.tokens[i] for i in numbers], batch_first=True)
        return Batch(tokens.to(device), mask.to(device), token_mask)

    def units(self) -> Ragged:
        """The same with vectors of unit norm, in float32 or wider."""
        units = [unit(up_cast(tokens, working_dtype(tokens))) for tokens in self.tokens]
        return Ragged(units, self.token_masks)


def read_ragged(
    name: str,
    segment: str,
    sequences: Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]],
    mask: Tensor | None,
    token_mask: Tensor | None,
) -> Ragged:
    """What a user passed as ``name``, sequences of ``segment``: no absent segment is left in it."""
    if isinstance(sequences, np.ndarray):
        sequences = _as_tensor(sequences)
        mask, token_mask = (None if m is None else torch.as_tensor(m) for m in (mask, token_mask))
    if isinstance(sequences, Tensor):
        return _unpadded(name, segment, sequences, mask, token_mask)
    if mask is not None or token_mask is not None:
        raise ValueError(
            f"masks describe padded tensors, and {name} is a list with one array for each "
            "sequence; leave absent entries out of the arrays instead"
        )
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} must be a padded tensor, or a list with one array of {segment}s for each "
            f"sequence, got {type(sequences).__name__}"
        )
    if len(sequences) == 0:
        raise ValueError(f"{name} must hold one sequence at least, got none")
    tokens: list[Tensor] = []
    for number, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor):
            sequence = _as_tensor(sequence)
        tensor = sequence.detach()
        if tensor.dim() not in (2, 3) or tensor.dim() != (tokens or [tensor])[0].dim():
            raise ValueError(
                f"{name}[{number}] must have shape (n, D), or all of {name} (n, T, D), got "
                f"{tuple(tensor.shape)}"
            )
        if len(tensor) == 0:
            raise _empty(f"{name}[{number}]", segment)
        check_floating(f"{name}[{number}]", tensor, "(n, D)" if tensor.dim() == 2 else "(n, T, D)")
        if tensor.shape[-1] != (tokens or [tensor])[0].shape[-1]:
            raise ValueError(
                f"{name} must share their width D, got {tokens[0].shape[-1]} in {name}[0] and "
                f"{tensor.shape[-1]} in {name}[{number}]"
            )
        _check_finite(f"{name}[{number}]", tensor)
        tokens.append(tensor)
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tokens})
    tokens = [tensor.to(dtype) for tensor in tokens]
    if tokens[0].dim() == 2:
        return Ragged(tokens, None)
    widest = max(tensor.shape[1] for tensor in tokens)
    masks = [_prefix(tensor, widest) for tensor in tokens]
    room = [(0, 0, 0, widest - tensor.shape[1]) for tensor in tokens]
    padded = [torch.nn.functional.pad(t, r) for t, r in zip(tokens, room, strict=True)]
    return Ragged(padded, masks)


def _unpadded(
    name: str, segment: str, tokens: Tensor, mask: Tensor | None, token_mask: Tensor | None
) -> Ragged:
    single = tokens.dim() == 3
    check_floating(name, tokens, "(B, L, D)" if single else "(B, L, T, D)")
    tokens = tokens.detach()
    if mask is None:
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    check_mask(f"{segment}_mask", mask, tokens.shape[:2], tokens)
    if token_mask is not None:
        if single:
            raise ValueError(
                f"a mask of tokens describes 4-d {name} (B, L, T, D), but {name} has shape "
                f"{tuple(tokens.shape)}; pass {segment}_mask instead"
            )
        check_mask(f"mask of the tokens of {name}", token_mask, tokens.shape[:3], tokens)
        mask = mask & token_mask.any(-1)
    sequences = [sequence[valid] for sequence, valid in zip(tokens, mask, strict=True)]
    masks = None
    if not single:
        if token_mask is None:
            token_mask = tokens.new_ones(tokens.shape[:3], dtype=torch.bool)
        masks = [of_one[valid] for of_one, valid in zip(token_mask, mask, strict=True)]
    for number, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise _empty(f"{name}[{number}]", segment)
        _check_finite(f"{name}[{number}]", sequence if masks is None else sequence[masks[number]])
    return Ragged(sequences, masks)


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """Copied only where torch could not share it: negative strides, read-only memory."""
    return torch.as_tensor(np.require(array, requirements=["C", "W"]))


def _prefix(tokens: Tensor, widest: int) -> Tensor:
    return (torch.arange(widest, device=tokens.device) < tokens.shape[1]).expand(len(tokens), -1)


def _empty(name: str, segment: str) -> ValueError:
    return ValueError(
        f"{name} must have one {segment} at least, got none; leave it out, and its truth"
    )


def _check_finite(name: str, tokens: Tensor) -> None:
    if not tokens.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinite entries; look at what made them, or leave "
            "it out"
        )
