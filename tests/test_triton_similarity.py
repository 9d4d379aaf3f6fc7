"""The soft-maximum kernels: interpreted, compiled for GPUs that are not here, and run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from norton_losses import MaxSimilarity, Segments, SoftMaximumSimilarity
from norton_losses.kernels import TritonSoftMaximum
from tests.batches import make_batch
from tests.interpreted_similarity import Case, cases, errors
from tests.triton_tools import interpreted, resources

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

CASES = cases()
MAXIMUM, SHARED, SEPARATE = KINDS = range(3)
BYTES = {"bf16": 2, "fp32": 4}

# Measured with Triton 3.7.1; a program of 8 warps has up to 255 registers before it spills.
MOST_REGISTERS = 255
MOST_SHARED_BYTES = {80: 64 << 10, 90: 96 << 10}  # of 163 and 227 KiB


@pytest.fixture(scope="module")
def interpreted_errors() -> dict[str, float]:
    return interpreted("tests.interpreted_similarity")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernels_are_the_soft_maximum(
    interpreted_errors: dict[str, float], name: str
) -> None:
    assert interpreted_errors[name] <= 1


def compile_for(capability: int, variant: Any, dtype: str, kind: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from norton_losses.kernels import soft_maximum_triton as module

    kernel = module.weights_kernel if variant.backward else module.best_kernel
    constants = module.constants(variant, BYTES[dtype], kind)
    if not variant.backward:
        constants["MEAN"] = True
    signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            signature[name] = "*i64" if "lengths" in name or "places" in name else "*fp32"
    signature |= dict.fromkeys(
        {"row_ptr", "column_ptr", "weights_ptr"} & set(kernel.arg_names), f"*{dtype}"
    )
    signature |= dict.fromkeys({"scale", "unit"} & set(kernel.arg_names), "fp32")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in ("D", "row_ptr", "column_ptr", "weights_ptr")
    }
    fixed = module.configuration(variant, BYTES[dtype])
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": fixed.num_warps, "num_stages": fixed.num_stages},
    )


def binaries() -> list[Any]:
    """Every variant at both precisions, in the kind that needs the most room; some in each kind."""
    found = []
    for capability in (80, 90):
        for dtype in BYTES:
            for backward in (False, True):
                for slots in ((16, 16), (16, 32), (16, 64), (32, 32), (32, 64), (64, 64)):
                    kinds = KINDS if slots == (16, 32) else [SEPARATE]
                    for kind in kinds:
                        name = "backward" if backward else "forward"
                        found.append(
                            pytest.param(
                                capability, dtype, (*slots, backward), kind,
                                id=f"sm_{capability}-{dtype}-{name}-{slots[0]}x{slots[1]}-{kind}",
                            )
                        )  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "variant", "kind"), binaries())
def test_every_binary_stays_in_registers(
    capability: int,
    dtype: str,
    variant: tuple[int, int, bool],
    kind: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from norton_losses.kernels.soft_maximum_triton import Variant

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for(capability, Variant(*variant), dtype, kind)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= MOST_REGISTERS
    assert compiled.metadata.shared <= MOST_SHARED_BYTES[capability]
    tensor_cores = "wgmma" if capability == 90 else "mma.sync"
    assert tensor_cores in compiled.asm["ptx"]


def test_every_length_is_served_by_one_variant() -> None:
    from norton_losses.kernels import soft_maximum_triton as module
    from norton_losses.kernels.dispatch import MAX_SLOTS

    assert module.SLOTS[-1] == MAX_SLOTS
    assert len(module.VARIANTS) == len(set(module.VARIANTS)) == 12
    for f in range(1, MAX_SLOTS + 1):
        for w in (1, 16, 17, 64):
            x, y = (
                module._side(torch.zeros(2, n, 8), torch.ones(2, n, dtype=torch.bool), None)
                for n in (f, w)
            )
            launched = module._variants(x, y, backward=False)
            assert {variant for _, variant in launched} <= set(module.VARIANTS)
            # Each launch serves the lengths above half its slots, so the widest is served once.
            served = [
                (rows, columns)
                for swap, variant in launched
                for rows, columns in [variant[:2][:: -1 if swap else 1]]
                if serves(rows, f) and serves(columns, w)
            ]
            assert len(served) == 1


def serves(slots: int, length: int) -> bool:
    return (slots // 2 if slots > 16 else 0) < length <= slots


def test_no_number_and_no_offset_makes_another_binary() -> None:
    from norton_losses.kernels import soft_maximum_triton as module

    for kernel in (module.best_kernel, module.weights_kernel):
        for parameter in kernel.params:
            same = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
            aligned = {"D", "row_ptr", "column_ptr", "weights_ptr"}  # as all that is ever passed
            floating = {"scale", "unit"}
            assert parameter.is_constexpr or same or parameter.name in aligned | floating


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_operands_are_aligned_wherever_a_slab_begins(tokens: int) -> None:
    from norton_losses.kernels import soft_maximum_triton as module

    for dtype in (torch.float32, torch.bfloat16):
        side = module._side(torch.zeros(4, tokens, 7), torch.ones(4, tokens).bool(), dtype)
        assert all(side.some(first, 1).tokens.data_ptr() % 16 == 0 for first in range(4))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"frames": 65}, "holds 64 frames and words, and the tokens have 65"),
        ({"dtype": torch.float64}, "computes in float32, and the tokens are torch.float64"),
    ],
)
def test_what_it_cannot_serve_is_refused(
    batch: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    made = make_batch(1, 2, 2, **{"dtype": torch.float32, **batch})
    for similarity in (
        SoftMaximumSimilarity(implementation="triton"),
        MaxSimilarity(implementation="triton"),
    ):
        with pytest.raises(ValueError, match=message):
            similarity(*made.tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_kernels_are_the_soft_maximum(name: str) -> None:
    # Exponentials and logarithms of a GPU are right to 2 ulp, the interpreter's to 1.
    assert errors(CASES[name], "cuda") <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_many_clips_twice_the_same(dtype: torch.dtype | None) -> None:
    case = Case(300, 200, 18, 32, 768, operand_dtype=dtype)
    assert errors(case, "cuda") <= 2
    tokens, given = case.make()
    similarity = SoftMaximumSimilarity(implementation=TritonSoftMaximum(dtype))
    batch = [t[None].cuda() for t in (*tokens, *given)]
    values = [
        similarity(Segments(batch[0], batch[2]), Segments(batch[1], batch[3])) for _ in range(2)
    ]
    assert torch.equal(*values)


@pytest.mark.gpu
def test_float64_on_cuda_is_chunked() -> None:
    made = make_batch(ragged=True)
    here = SoftMaximumSimilarity()(*made.tokens)
    there = SoftMaximumSimilarity()(*(t.cuda() for t in made.tokens))
    torch.testing.assert_close(there.cpu(), here)
