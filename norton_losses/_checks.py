"""Input checks, whose errors name the rule, what was received, and the remedy.

They read shapes, dtypes, devices and Python numbers, never the values of a tensor: reading those
would make a training step wait for the GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def check_floating(name: str, tensor: Tensor, layout: str) -> None:
    """A floating tensor with the dimensions of ``layout``, such as (B, N, D), none of them empty.

    A layout that begins with ``...`` allows any number of dimensions in its place.
    """
    if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} must be a torch.Tensor of shape {layout}, got {type(tensor).__name__}; "
            "convert it with torch.as_tensor"
        )
    letters = [letter for letter in layout.strip("()").split(",") if letter]
    leading = letters[0] == "..."
    rank = len(letters) - leading
    if tensor.dim() < rank if leading else tensor.dim() != rank:
        raise ValueError(
            f"{name} must have {'at least ' if leading else ''}{rank} dimensions {layout}, got "
            f"shape {tuple(tensor.shape)}; add or merge dimensions with unsqueeze or flatten"
        )
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a floating tensor, got {tensor.dtype}; call .float() on it"
        )
    if tensor.numel() == 0:
        raise ValueError(
            f"{name} must have no empty dimension in {layout}, got shape {tuple(tensor.shape)}; "
            "skip empty batches, and mark absent entries in a mask instead of removing all of them"
        )


def check_mask(name: str, mask: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """A bool tensor of exactly ``shape`` on the device of ``like``."""
    if not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} must be a bool torch.Tensor, got {type(mask).__name__}; convert it with "
            "torch.as_tensor"
        )
    if mask.dtype != torch.bool:
        remedy = "write mask.bool(), or mask == 0 if it marks padding with 1"
        if mask.is_floating_point():
            remedy += ", or if it is added to scores, 0 where valid and -inf where not"
        raise TypeError(
            f"{name} must be a bool tensor with True where valid, got {mask.dtype}; {remedy}"
        )
    check_shape(name, mask, shape)
    check_device(name, mask, like)


def check_group_ids(name: str, group_ids: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """An integer tensor of exactly ``shape`` on the device of ``like``."""
    if not isinstance(group_ids, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} must be an integer torch.Tensor, got {type(group_ids).__name__}; convert it "
            "with torch.as_tensor"
        )
    if not is_integer(group_ids):
        raise TypeError(
            f"{name} must be an integer tensor, got {group_ids.dtype}; "
            "number the groups and call .long() on it"
        )
    check_shape(name, group_ids, shape)
    check_device(name, group_ids, like)


def is_integer(tensor: Tensor) -> bool:
    other = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    return not other


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}; give it the "
            "dimensions of the tensor that it goes with"
        )


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on {like.device} like the other inputs, got {tensor.device}; "
            f"move it with .to({str(like.device)!r})"
        )


def check_positive(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_not_negative(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, 0 or above, got {value}")


def check_number(name: str, value: object) -> None:
    # A tensor acts as a number, and a parameter passed here would silently never be trained.
    if not _is_number(value):
        raise TypeError(f"{name} must be a plain number, got {value!r}; if it is a tensor, call "
                        ".item()")  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # pyright: ignore


def check_similarity(name: str, value: float) -> None:
    check_number(name, value)
    if not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite similarity, got {value}")


def check_range(name: str, value: Any) -> None:
    """Two finite numbers (lo, hi) with lo <= hi."""
    pair = isinstance(value, (tuple, list)) and len(cast(Sequence[Any], value)) == 2
    numbers = pair and all(_is_number(bound) for bound in cast(Sequence[Any], value))
    if not numbers or not -math.inf < value[0] <= value[1] < math.inf:
        raise ValueError(
            f"{name} must be finite numbers (lo, hi) with lo <= hi, got {value!r}; "
            "leave it out if nothing is known"
        )


def check_open_range(name: str, value: Any) -> None:
    """Two finite numbers (lo, hi) with lo < hi."""
    check_range(name, value)
    if value[0] == value[1]:
        raise ValueError(f"{name} must be (lo, hi) with lo < hi, got {value}")


def check_count(name: str, value: int | None, *, minimum: int = 1, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value}")


def check_fraction(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_misplaced(
    owner: str, given: Iterable[str], places: Mapping[str, Callable[..., object]]
) -> None:
    """Raise where an argument was given that belongs to a part: places are how to write each."""
    for name in given:
        takers = [how for how, part in places.items() if _takes(part, name)]
        remedy = " or ".join(f"{owner}({how.format(f'{name}=...')})" for how in takers)
        raise TypeError(
            f"{owner} has no argument {name!r}" + (f"; write {remedy}" if takers else "")
        )


def _takes(part: Callable[..., object], name: str) -> bool:
    parameter = signature(part).parameters.get(name)
    return parameter is not None and parameter.kind is not Parameter.VAR_KEYWORD


def check_place(option: str, place: Path) -> None:
    """A file that can be written, as far as can be told before the work."""
    folder = place.absolute().parent
    if place.is_dir():
        raise ValueError(f"{option} must name a file, and {place} is a folder")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{option} must be in a folder that may be written to, got {folder}")


def check_entries(name: str, given: Iterable[Any], counts: Sequence[int]) -> None:
    """An entry for each segment, of which each sequence has its count."""
    lengths = [len(part) for part in given]
    if lengths != list(counts):
        wrong = [i for i, (a, b) in enumerate(zip(lengths, counts, strict=False)) if a != b]
        where = "".join(f", and {lengths[i]} for the {counts[i]} of number {i}" for i in wrong[:1])
        raise ValueError(
            f"{name} must have an entry for each clip or caption of each of {len(counts)} "
            f"sequences, got {len(lengths)} sequences{where}"
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):  # 1 == True
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
