"""The kernel for small problems: interpreted, compiled for GPUs that are not here, and run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interpreted_sinkhorn import Case, cases, largest_error
from tests.triton_tools import interpreted, resources

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

CASES = cases()
SIDES = [8, 16, 32]

# Measured with Triton 3.7.1; a program of 4 warps has up to 255 registers before it spills.
MOST_REGISTERS = {(8, False): 64, (8, True): 80, (16, False): 64, (16, True): 72}
MOST_REGISTERS |= {(32, False): 96, (32, True): 128}
MOST_SHARED_BYTES = 1024


@pytest.fixture(scope="module")
def interpreted_errors() -> dict[str, float]:
    return interpreted("tests.interpreted_sinkhorn")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernel_is_sinkhorns_iteration(
    interpreted_errors: dict[str, float], name: str
) -> None:
    assert interpreted_errors[name] <= CASES[name].tolerance


def compile_for(capability: int, variant: Any) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from norton_losses.kernels import small_sinkhorn_triton as module

    kernel, constants = module.small_sinkhorn_kernel, module.constants(variant)
    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    signature |= {"epsilon": "fp32"} | dict.fromkeys(constants, "constexpr")
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": module.CONFIGURATIONS[variant].num_warps},
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("log_domain", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("has_bucket", [False, True], ids=["no-bucket", "bucket"])
@pytest.mark.parametrize("side", SIDES)
def test_every_binary_stays_in_registers(
    side: int,
    has_bucket: bool,
    log_domain: bool,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from norton_losses.kernels.small_sinkhorn_triton import Variant

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for(capability, Variant(side, has_bucket, log_domain))
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= MOST_REGISTERS[side, has_bucket]
    # Shared memory only arranges the results, after the loop, whose last sum is the last shuffle.
    assert compiled.metadata.shared <= MOST_SHARED_BYTES
    code = compiled.asm["ptx"]
    assert "shared" not in code[code.index("{") : code.rindex("shfl.sync")]
    assert "bar.sync" not in code[: code.rindex("shfl.sync")]


def test_every_problem_it_can_hold_has_one_configuration() -> None:
    from norton_losses.kernels import small_sinkhorn_triton as module

    assert {variant.side for variant in module.CONFIGURATIONS} == set(SIDES)
    assert len(module.CONFIGURATIONS) == 12
    for longest in range(module.MAX_SIDE + 1):
        variant = module.fitting(longest + 1, 1, True, False)
        assert longest <= variant.side
        assert module.fitting(0, longest, False, False).side == variant.side
    for variant, configuration in module.CONFIGURATIONS.items():
        lanes = configuration.row_lanes * configuration.column_lanes
        # A warp holds whole problems, and every lane of the program holds cells.
        assert configuration.block * lanes == 32 * configuration.num_warps
        assert variant.side % configuration.row_lanes == 0
        assert variant.side % configuration.column_lanes == 0


def test_nothing_but_the_variant_makes_another_binary() -> None:
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn_kernel

    for parameter in small_sinkhorn_kernel.params:
        assert parameter.is_constexpr or parameter.do_not_specialize, parameter.name
        assert parameter.is_constexpr or parameter.do_not_specialize_on_alignment, parameter.name


def test_too_large_a_problem_is_refused() -> None:
    from norton_losses.kernels.small_sinkhorn_triton import fitting

    with pytest.raises(ValueError, match="at most 32 rows and columns"):
        fitting(33, 4, False, True)


def test_no_problem_needs_no_launch() -> None:
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn

    problem = torch.zeros(0, 4, 3), torch.zeros(0, 4), torch.zeros(0, 3)
    log_u, log_v = small_sinkhorn(*problem, 0.1, 5, False, False)
    assert log_u.shape == (0, 4)
    assert log_v.shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_kernel_is_sinkhorns_iteration(name: str) -> None:
    # Exponentials, logarithms and divisions of a GPU are right to 2 ulp, the interpreter's to 1.
    assert largest_error(CASES[name], "cuda") <= 2 * CASES[name].tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("has_bucket", [False, True], ids=["no-bucket", "bucket"])
@pytest.mark.parametrize("log_domain", [False, True], ids=["linear", "log"])
def test_many_problems_at_once_twice_the_same(has_bucket: bool, log_domain: bool) -> None:
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn

    case = Case(9, 7, batch=20_000, has_bucket=has_bucket, log_domain=log_domain, absent=True)
    assert largest_error(case, "cuda") <= case.tolerance
    problem = [tensor.cuda() for tensor in case.make()]
    for ours, again in zip(
        small_sinkhorn(*problem, *case.settings),
        small_sinkhorn(*problem, *case.settings),
        strict=True,
    ):
        assert torch.equal(ours, again)


@pytest.mark.gpu
def test_a_launch_never_waits_for_the_gpu() -> None:
    from norton_losses.kernels.small_sinkhorn_triton import small_sinkhorn

    case = Case(9, 7, has_bucket=True)
    problem = [tensor.cuda() for tensor in case.make()]
    small_sinkhorn(*problem, *case.settings)  # compiled and loaded once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        small_sinkhorn(*problem, *case.settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
