"""Flat segments of ragged sequences, and their padding: reads lists, pads rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from norton_losses._checks import is_integer

Array: TypeAlias = Tensor | NDArray[Any]


class FlatSegments(NamedTuple):
    """Segments one after another, without padding: the arguments of ``Segments.from_flat``.

    Attributes:
        tokens: (K, T, D), or (K, D) where each segment has one token.
        counts: (B,), int64, how many segments belong to each sequence.
        token_mask: (K, T), bool; None beside (K, D).
    """

    tokens: Tensor
    counts: Tensor
    token_mask: Tensor | None


def pad_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """Put rows (R, ...) at the R valid places of a mask (G, L), in order; zeros elsewhere."""
    padded = rows.new_zeros(*mask.shape, *rows.shape[1:])
    padded[mask] = rows
    return padded


def mask_of_counts(counts: int | Tensor | Sequence[int], total: int) -> Tensor | None:
    """Which of (B, N) places hold a segment; None for a single count, which fills all."""
    try:
        found = torch.as_tensor(counts, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or not is_integer(found):
        raise TypeError(
            f"counts must be whole numbers, one for each sequence, got {counts!r}; of a floating "
            "tensor pass counts.long()"
        )
    found = found.long()  # torch does not compare every integer dtype
    if found.dim() == 0:
        if found < 1 or total % found:
            raise ValueError(
                f"a single count must divide the {total} segments given, got {int(found)}; pass "
                "one count for each sequence"
            )
        return None
    if found.dim() != 1 or found.numel() == 0 or (found < 0).any() or found.sum() != total:
        raise ValueError(
            f"counts must have shape (B,), 0 or above, and the sum {total} of the segments given, "
            f"got {found.numpy()} of sum {int(found.sum())}; of offsets take .diff(), of the "
            "sequence of each segment .bincount()"
        )
    return torch.arange(int(found.max()), device="cpu") < found[:, None]


def flatten_list(name: str, sequences: Sequence[Array | Sequence[Array]]) -> FlatSegments:
    """The segments of all sequences one after another, tokens padded to the most of any segment."""
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} must be a list with one array of segments for each sequence, got "
            f"{type(sequences).__name__}; a padded tensor goes to Segments(tokens, token_mask)"
        )
    if not sequences:
        raise ValueError(f"{name} must hold one sequence at least, got none")
    rows: list[Tensor] = []  # tokens (R, D)
    counts: list[int] = []  # segments of each sequence
    lengths: list[int] = []  # tokens of each segment
    single: bool | None = None
    for number, sequence in enumerate(sequences):
        where = f"{name}[{number}]"
        if isinstance(sequence, (list, tuple)):
            parts = [_read_array(where, segment) for segment in sequence]
            if parts and (single or any(part.dim() != 2 for part in parts)):
                raise ValueError(
                    f"{where} must be a list of arrays (T, D), as all of {name}, got shapes "
                    f"{[tuple(part.shape) for part in parts][:9]}; stack embeddings (D,) to (n, D)"
                )
            single = False if parts else single
            lengths += [len(part) for part in parts]
        else:
            array = _read_array(where, sequence)
            if array.dim() not in (2, 3) or single not in (None, array.dim() == 2):
                raise ValueError(
                    f"{where} must have shape (n, D), or all of {name} (n, T, D), got "
                    f"{tuple(array.shape)}"
                )
            single, parts = array.dim() == 2, [array.flatten(0, -2)]
            lengths += [1 if single else array.shape[1]] * len(array)
        counts.append(len(sequence))
        for part in parts:
            if rows and part.shape[-1] != rows[0].shape[-1]:
                raise ValueError(
                    f"{name} must share their width D, got {rows[0].shape[-1]} in {name}[0] and "
                    f"{part.shape[-1]} in {where}"
                )
            rows.append(part)
    if not any(lengths):
        raise ValueError(f"{name} must hold one segment at least, got none")
    together, of_sequences = torch.cat(rows), torch.tensor(counts, device="cpu")
    if single:
        return FlatSegments(together, of_sequences, None)
    place = torch.arange(max(lengths), device="cpu")
    token_mask = place < torch.tensor(lengths, device="cpu")[:, None]
    token_mask = token_mask.to(together.device)
    return FlatSegments(pad_rows(together, token_mask), of_sequences, token_mask)


def _read_array(where: str, array: Any) -> Tensor:
    if not isinstance(array, (Tensor, np.ndarray)):
        raise TypeError(
            f"{where} must be an array of torch or numpy, or a list of them, got "
            f"{type(array).__name__}"
        )
    given = cast(Array, array)
    floating = given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"
    if not floating:
        raise TypeError(
            f"{where} must be a floating array, got {given.dtype}; embed token ids first, or call "
            ".float()"
        )
    return as_tensor(given)


def as_tensor(array: Array) -> Tensor:
    """A tensor that shares the array's memory, or copies it where torch cannot share it."""
    if isinstance(array, Tensor):
        return array
    # Torch has neither another byte order nor long doubles.
    dtype = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")  # pyright: ignore
    return torch.as_tensor(np.require(array, cast(Any, dtype), ["C", "W"]), device="cpu")
