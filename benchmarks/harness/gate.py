"""The correctness gate: what is wrong is not timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.passes import one_pass, value_and_gradients
from benchmarks.harness.work import Contender, Inputs, Mode, Prepared, Work, placed

MOST_GRADIENT_ERROR = 0.5
"""In any dtype, with any slack: a gradient of zeros has an error of 1."""

DIFFERENTIATED: tuple[Mode, ...] = ("forward+backward", "training step")


@dataclass(frozen=True)
class Answer:
    """The value, and the gradient by each leaf where the mode has a backward pass."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How far a contender is from the definition in float64, and whether that is too far."""

    value_error: float  # largest difference
    gradient_error: float | None  # largest difference over the gradient's largest entry
    passed: bool
    dtype: torch.dtype  # of the result
    seconds: float  # of this first call, compilation included


def reference_answer(
    definition: Callable[[Inputs], Prepared], inputs: Inputs, mode: Mode
) -> Answer:
    """The definition in float64, at the inputs as the contenders get them, rounding included."""
    prepared = definition(placed(inputs, "cpu", torch.float64))
    if mode in DIFFERENTIATED:
        return Answer(*value_and_gradients(prepared))
    with torch.no_grad():
        return Answer(prepared.read(prepared.call()))


def judge(
    work: Work,
    contender: Contender,
    prepared: Prepared,
    expected: Answer,
    mode: Mode,
    dtype: torch.dtype,
) -> Verdict:
    """Compare with the reference, more strictly the more digits the dtype has."""
    begin = time.perf_counter()
    if mode in DIFFERENTIATED:
        answer = Answer(*value_and_gradients(prepared))
    else:
        result = one_pass(contender, prepared, mode)()
        answer = Answer(prepared.read(result).detach())
    if answer.value.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    value_error = _largest_difference(answer.value, expected.value)
    # Tolerances are those of float32. In float64 losses still keep their temperature in float32.
    digits = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    scale = contender.slack * max(digits, 1e-2)
    passed = value_error <= work.value_tolerance * scale
    gradient_error = None
    if mode in DIFFERENTIATED:
        pairs = zip(answer.gradients, expected.gradients, strict=True)
        gradient_error = max(
            _largest_difference(ours, theirs) / theirs.abs().max().item() for ours, theirs in pairs
        )
        loosest = min(work.gradient_tolerance * scale, MOST_GRADIENT_ERROR)
        passed = passed and gradient_error <= loosest
    return Verdict(value_error, gradient_error, passed, answer.value.dtype, seconds)


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    difference = (ours.detach().double().cpu() - theirs).abs().max().item()
    return _WRONG if math.isnan(difference) or math.isinf(difference) else difference


_WRONG = 1e300  # for NaN and infinity, which JSON cannot hold
