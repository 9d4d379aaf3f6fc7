"""Checked conversion of numpy and torch arrays to numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[Any] | Tensor | Sequence[Any]


def as_numpy(array: Array) -> NDArray[Any]:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def check_scores(name: str, array: Array, rank: int) -> NDArray[np.float64]:
    values = as_numpy(array).astype(np.float64)
    if values.ndim != rank or values.size == 0:
        raise ValueError(
            f"{name} must have {rank} dimensions, none of them empty, got shape {values.shape}"
        )
    if np.isnan(values).any():
        place = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
        raise ValueError(
            f"{name} must not hold NaN, got {int(np.isnan(values).sum())} of {values.size}, the "
            f"first at {place}; a NaN has no rank, so mend what made it"
        )
    return values


def check_integers(name: str, array: Array, shape: tuple[int | None, ...]) -> NDArray[np.int64]:
    values = as_numpy(array)
    if values.ndim != len(shape) or any(w not in (None, g) for w, g in zip(shape, values.shape)):  # noqa: B905
        wanted = str(tuple("T" if length is None else length for length in shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {wanted}, got {values.shape}")
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must hold integers, got {values.dtype}; pass .argmax(-1) of logits"
        )
    return values.astype(np.int64)


def check_labels(name: str, array: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    values = as_numpy(array)
    if values.dtype != np.bool_ or values.shape != shape:
        raise ValueError(
            f"{name} must be bool of shape {shape}, got {values.dtype} of shape {values.shape}"
        )
    return values


def check_index(
    name: str, array: Array, shape: tuple[int | None, ...], candidates: int
) -> NDArray[np.int64]:
    index = check_integers(name, array, shape)
    wrong = (index < 0) | (index >= candidates)
    if wrong.any():
        raise ValueError(f"{name} must lie in 0 .. {candidates - 1}, got {index[wrong][0]}")
    return index
