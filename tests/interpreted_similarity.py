"""The soft-maximum kernels on CPU tensors, in Triton's interpreter, beside float64.

Run as a module with TRITON_INTERPRET=1, which has to be set before Triton is first imported. Prints
the largest error of every case over its tolerance, as JSON.
"""

from __future__ import annotations

import json
import unittest.mock
from dataclasses import dataclass

import torch
from torch import Tensor

from norton_losses.kernels import soft_maximum_chunked as chunked
from norton_losses.kernels.soft_maximum import soft_maximum


@dataclass(frozen=True)
class Case:
    clips: int = 9
    captions: int = 10
    frames: int = 4
    words: int = 6
    width: int = 24
    alpha: float = 0.1
    mean: bool = True
    operand_dtype: torch.dtype | None = None
    ragged: bool = True
    wanted: tuple[bool, bool] = (True, True)
    slab_bytes: int | None = None  # None is what the library takes

    def make(self) -> tuple[list[Tensor], list[Tensor]]:
        """Unit tokens, zero where masked, and masks; some segments are absent."""
        g = torch.Generator().manual_seed(0)
        tokens, given = [], []
        for segments, slots in ((self.clips, self.frames), (self.captions, self.words)):
            mask = torch.rand(segments, slots, generator=g) < 0.6
            mask[0], mask[-1] = False, True
            mask = mask if self.ragged else torch.ones_like(mask)
            made = torch.randn(segments, slots, self.width, generator=g)
            made = torch.nn.functional.normalize(made, dim=-1)
            tokens.append(made.masked_fill(~mask[..., None], 0))
            given.append(mask)
        return tokens, given


def cases() -> dict[str, Case]:
    shapes = {
        "16 by 16": Case(),
        "16 by 32": Case(frames=16, words=31),
        "16 by 64": Case(frames=7, words=61, captions=5),
        "32 by 16": Case(frames=20, words=9),
        "64 by 16": Case(frames=33, words=3, clips=5),
        "32 by 32": Case(frames=18, words=32, width=70),
        "64 by 64": Case(frames=40, words=64, clips=4, captions=5),
        "one of each": Case(1, 1, 1, 1, 1, ragged=False),
        "wide": Case(width=200, words=18),
        "full lengths": Case(ragged=False),
        "sums": Case(mean=False),
        "clips alone": Case(wanted=(True, False)),
        "captions alone": Case(wanted=(False, True)),
        "a slab each caption": Case(frames=20, words=9, slab_bytes=1),
        "slabs of three captions": Case(words=18, slab_bytes=3 * 9 * 4 * 18 * 4),
        "wide, small alpha": Case(width=768, frames=16, words=31, alpha=0.005),
    }
    found = dict(shapes)
    for alpha in (0.0, 0.005, 0.02, 1.0, 10.0):
        found[f"alpha {alpha}"] = Case(alpha=alpha, mean=alpha > 0, frames=18, words=20)
    for alpha in (0.0, 0.02, 0.1, 1.0):
        found[f"float16, alpha {alpha}"] = Case(
            alpha=alpha, mean=alpha > 0, operand_dtype=torch.float16
        )
    return found


def errors(case: Case, device: str = "cpu") -> float:
    """Largest error over its tolerance: of values absolute, of gradients beside the largest."""
    (clips, captions), given = case.make()
    exact = [t.to(case.operand_dtype or t.dtype).double() for t in (clips, captions)]
    none = torch.empty(0, dtype=torch.float64)
    operands = chunked.Operands(*exact, *given, case.alpha, torch.float64)
    expected = chunked.forward(operands, case.mean, none)
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(2, case.clips, case.captions, generator=g)
    slopes = chunked.backward(*upstream.double(), operands, none, case.wanted)

    leaves = [
        t.to(device).requires_grad_(wants)
        for t, wants in zip((clips, captions), case.wanted, strict=True)
    ]
    given = [mask.to(device) for mask in given]
    how = case.alpha, case.mean, "triton", case.operand_dtype, 0
    values = soft_maximum(*leaves, *given, *how)[:2]
    from norton_losses.kernels import soft_maximum_triton as kernel

    slab_bytes = case.slab_bytes or kernel.SLAB_BYTES
    with unittest.mock.patch.object(kernel, "SLAB_BYTES", slab_bytes):
        gradients = torch.autograd.grad(
            values, [leaf for leaf in leaves if leaf.requires_grad], list(upstream.to(device))
        )

    # Interpreted, sums of half precision are rounded as torch's own are on the CPU; a small alpha
    # or none turns that rounding into another best word.
    rounding = 0.0 if case.operand_dtype is None else torch.finfo(case.operand_dtype).eps
    loosest = (2e-6 + (rounding if device == "cpu" else 0.0)) * max(case.alpha, 1)
    steepest = (5e-6 if rounding == 0 else 2 * rounding) * max(1, rounding / max(case.alpha, 1e-3))
    found = [_error(a, b) / loosest for a, b in zip(values, expected, strict=True)]
    slopes = [s for s, wants in zip(slopes, case.wanted, strict=True) if wants]
    for gradient, slope in zip(gradients, slopes, strict=True):
        found.append(_error(gradient, slope) / (steepest * slope.abs().max().item()))
    return max(found)


def _error(actual: Tensor, expected: Tensor) -> float:
    error = (actual.detach().cpu().double() - expected).abs().max().item()
    return error if error == error else float("inf")  # NaN is not an error that max() would see


def opcheck() -> None:
    tokens, given = Case().make()
    leaves = [t.requires_grad_() for t in tokens]
    torch.library.opcheck(soft_maximum, (*leaves, *given, 0.1, True, "triton", None, 0))


def main() -> None:
    opcheck()
    print(json.dumps({name: errors(case) for name, case in cases().items()}, indent=1))


if __name__ == "__main__":
    main()
