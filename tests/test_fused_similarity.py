"""The similarities without the token tensor, beside their definitions in float64."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import TORCH
from norton_losses import (
    MaxSimilarity,
    NortonVideoParagraphLoss,
    Segments,
    SoftMaximumSimilarity,
)
from norton_losses.kernels import (
    AutoSoftMaximum,
    ChunkedSoftMaximum,
    ragged_tiles,
    soft_maximum_chunked,
)
from norton_losses.kernels.soft_maximum import soft_maximum
from norton_losses.token_similarity import soft_maximum as definition
from tests.batches import Batch, make_batch

ALPHAS = [0.005, 0.02, 0.05, 0.1, 1.0, 10.0]


def similarity(alpha: float, **options: Any) -> SoftMaximumSimilarity | MaxSimilarity:
    """Eq. (5) alone, or its limit at alpha 0; options of the chunked form are handed to it."""
    chunked = {
        name: options.pop(name) for name in ("save_scores", "operand_dtype") & options.keys()
    }
    if chunked:
        options["implementation"] = ChunkedSoftMaximum(**chunked)
    if alpha == 0:
        return MaxSimilarity(pooled_weight=0, **options)
    return SoftMaximumSimilarity(alpha, pooled_weight=0, **options)


def value_and_gradients(module: torch.nn.Module, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    leaves = batch.leaves(dtype)
    value = module(*leaves.token_sides)
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(value.shape, generator=g, dtype=torch.float64).to(dtype)
    return [value.detach(), *torch.autograd.grad(value, leaves.tokens, upstream)]


@pytest.fixture(params=[None, (7, 5), (64, 16)], ids=["one tile", "tiny tiles", "small tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        rows, columns = request.param
        monkeypatch.setattr(soft_maximum_chunked, "ROW_TOKENS", rows)
        monkeypatch.setattr(soft_maximum_chunked, "COLUMN_TOKENS", columns)


@pytest.mark.parametrize("save_scores", [True, False])
@pytest.mark.parametrize("exponential", ["mean", "sum"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_beside_the_definition_in_float64(
    tiles: None, alpha: float, exponential: Any, save_scores: bool
) -> None:
    batch = make_batch(3, 6, 5, frames=9, words=14, width=24, ragged=True)
    ours, exact = (
        similarity(alpha, exponential=exponential, **options)
        for options in ({"save_scores": save_scores}, {"implementation": "reference"})
    )
    value, *gradients = value_and_gradients(ours, batch, torch.float32)
    expected, *slopes = value_and_gradients(exact, batch, torch.float64)
    assert (value - expected).abs().max() <= 2e-6 * max(alpha, 1)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient - slope).abs().max() <= 5e-6 * slope.abs().max()


@pytest.mark.parametrize("wide", [False, True], ids=["more words", "more frames"])
@pytest.mark.parametrize("alpha", [0, *ALPHAS])
def test_float64_is_the_definition(tiles: None, alpha: float, wide: bool) -> None:
    frames, words = (11, 3) if wide else (3, 11)
    batch = make_batch(3, 6, 5, frames=frames, words=words, ragged=True)
    ours = value_and_gradients(similarity(alpha), batch, torch.float64)
    exact = value_and_gradients(similarity(alpha, implementation="reference"), batch, torch.float64)
    for actual, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", [0, 0.02, 0.5])
def test_opposite_and_equal_tokens_stay_finite(alpha: float) -> None:
    up = torch.tensor([0.6, 0.8]).expand(1, 2, 3, 2)
    batch = Batch(
        torch.cat([up, -up], 1), up, torch.ones(1, 4, 3, dtype=torch.bool),
        torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool),
        torch.ones(1, 2, dtype=torch.bool),
    )  # fmt: skip
    value, *gradients = value_and_gradients(similarity(alpha), batch, torch.float32)
    torch.testing.assert_close(value[0, 0, :2], torch.ones(2, 2))
    torch.testing.assert_close(value[0, 0, 2:], -torch.ones(2, 2))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_equal_maxima_share_their_gradient(implementation: Any) -> None:
    word = torch.tensor([1.0, 0.0])
    clip = torch.tensor([0.6, 0.8]).expand(1, 1, 1, 2)
    text = word.expand(1, 1, 2, 2).clone().requires_grad_()
    similarity(0, implementation=implementation)(clip, text).sum().backward()
    assert text.grad is not None
    torch.testing.assert_close(text.grad[0, 0, 0], text.grad[0, 0, 1])
    assert text.grad.any()


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1])
def test_order_of_segments_and_of_tokens_does_not_matter(alpha: float) -> None:
    batch = make_batch(1, 6, 5, frames=9, words=14, ragged=True, dtype=torch.float32)
    clips, frames = torch.randperm(6), torch.randperm(9)
    value = similarity(alpha)(*batch.token_sides)
    shuffled = similarity(alpha)(
        Segments(
            batch.video_tokens[:, clips][:, :, frames], batch.frame_mask[:, clips][:, :, frames]
        ),
        batch.token_sides[1],
    )
    torch.testing.assert_close(shuffled, value[:, :, clips], rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1])
def test_twice_the_same_and_differentiated_twice(alpha: float) -> None:
    batch = make_batch(3, 6, 5, ragged=True, dtype=torch.float32)
    once, again = (value_and_gradients(similarity(alpha), batch, torch.float32) for _ in range(2))
    leaves = batch.leaves()
    value = similarity(alpha, save_scores=True)(*leaves.token_sides).sum()
    first = torch.autograd.grad(value, leaves.tokens, retain_graph=True)
    second = torch.autograd.grad(value, leaves.tokens)
    for a, b in zip([*once, *first], [*again, *second], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("side", [0, 1])
def test_gradient_of_one_side_alone(side: int) -> None:
    leaves = make_batch(ragged=True).leaves()
    both = torch.autograd.grad(similarity(0.1)(*leaves.token_sides).sum(), leaves.tokens)
    tokens = [t.detach() for t in leaves.tokens]
    tokens[side].requires_grad_()
    similarity(0.1)(*leaves.token_sides_of(*tokens)).sum().backward()
    assert tokens[side].grad is not None
    torch.testing.assert_close(tokens[side].grad, both[side])


def test_nothing_present() -> None:
    leaves = make_batch().leaves()
    leaves.frame_mask[:] = False
    value = similarity(0.1)(*leaves.token_sides)
    value.sum().backward()
    assert not value.any()
    for tokens in leaves.tokens:
        assert tokens.grad is not None
        assert not tokens.grad.any()


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1])
def test_the_token_tensor_is_never_held(alpha: float) -> None:
    k, f, w, d = 200, 6, 9, 8
    made = [torch.nn.functional.normalize(torch.randn(k, t, d), dim=-1) for t in (f, w)]
    given = [torch.ones(k, t, dtype=torch.bool) for t in (f, w)]
    none = torch.empty(0)
    with LargestTensor() as seen:
        operands = soft_maximum_chunked.Operands(*made, *given, alpha, torch.float32)
        soft_maximum_chunked.forward(operands, alpha > 0, none)
        upstream = torch.randn(2, k, k)
        soft_maximum_chunked.backward(*upstream, operands, none, wanted=(True, True))
    tile = soft_maximum_chunked.ROW_TOKENS * soft_maximum_chunked.COLUMN_TOKENS
    assert seen.largest <= max(tile, 2 * k * k) < k * f * k * w


def test_tiles_hold_every_present_segment_once_and_little_padding() -> None:
    mask = torch.arange(32) < torch.randint(0, 33, (500, 1))
    mask = mask[:, torch.randperm(32)]
    tiles = ragged_tiles.tiles_of(mask, 512)
    assert torch.equal(
        torch.cat([tile.segments for tile in tiles]).sort().values, mask.any(-1).nonzero()[:, 0]
    )
    kept = [torch.arange(tile.tokens.shape[1]) < tile.lengths[:, None] for tile in tiles]
    valid = torch.cat([tile.tokens[slots] for tile, slots in zip(tiles, kept, strict=True)])
    for tile, slots in zip(tiles, kept, strict=True):
        padded = torch.zeros_like(slots)
        for slot, first in tile.padding:
            padded[first:, slot] = True
        assert torch.equal(padded, ~slots)
    assert torch.equal(valid.sort().values, mask.flatten().nonzero()[:, 0])
    assert all(tile.size <= 512 for tile in tiles)
    assert sum(tile.size for tile in tiles) <= (1 + ragged_tiles.MOST_PADDING) * len(valid)


def test_scores_are_kept_where_they_were_asked_for_and_fit() -> None:
    batch = make_batch(1, 4, 4, ragged=True, dtype=torch.float32)
    arguments = [t.flatten(0, 1) for t in (*batch.tokens, batch.frame_mask, batch.word_mask)]

    def kept(most: int) -> Tensor:
        return soft_maximum(*arguments, 0.1, True, "chunked", None, most)[2]

    assert kept(0).numel() == 0
    assert kept(10).numel() == 10
    assert kept(10**6).numel() == 4 * 3 * 4 * 5  # never more than all products
    leaves = batch.leaves()
    value = soft_maximum(
        leaves.video_tokens.flatten(0, 1), *arguments[1:], 0.1, True, "chunked", None, 10**6
    )
    assert value[0].requires_grad
    assert not value[2].requires_grad


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch 2.15's own check
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_operator_keeps_its_promises(alpha: float, kept: int) -> None:
    tokens = [torch.nn.functional.normalize(torch.randn(*s, 4), dim=-1) for s in ((4, 3), (5, 2))]
    # All present: kept scores fill their room, which would else end in unwritten memory.
    given = [torch.ones(4, 3, dtype=torch.bool), torch.ones(5, 2, dtype=torch.bool)]
    leaves = [t.requires_grad_() for t in tokens]
    arguments = *leaves, *given, alpha, alpha > 0, "chunked", None, kept
    torch.library.opcheck(soft_maximum, arguments)


def test_gradient_of_the_gradient_is_refused() -> None:
    leaves = make_batch().leaves()

    def slope(implementation: Any) -> Tensor:
        value = similarity(0.1, implementation=implementation)(*leaves.tokens)
        (gradient,) = torch.autograd.grad(
            value.square().sum(), leaves.video_tokens, create_graph=True
        )
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match='implementation="reference"'):
        slope("chunked").backward()
    slope("reference").backward()
    assert leaves.video_tokens.grad is not None


def test_backward_inside_autocast_rounds_nothing() -> None:
    batch = make_batch(ragged=True, dtype=torch.float32)
    leaves = batch.leaves()
    value = 1e5 * similarity(0.1)(*leaves.token_sides)  # as a gradient scaler makes it
    outside = torch.autograd.grad(value.sum(), leaves.tokens, retain_graph=True)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            inside = torch.autograd.grad(value.sum(), leaves.tokens, retain_graph=True)
        for a, b in zip(inside, outside, strict=True):
            assert torch.equal(a, b)


# The compiler itself makes an instance of any autograd function that it meets.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.skipif(TORCH < (2, 5), reason="the compiler of torch 2.4 cannot trace Segments")
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("alpha", [0, 0.1])
def test_compiles_whole(alpha: float, dynamic: bool | None) -> None:
    module = similarity(alpha)
    batch = make_batch(ragged=True, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    ours = value_and_gradients(compiled, batch, torch.float32)
    for actual, expected in zip(
        ours, value_and_gradients(module, batch, torch.float32), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("alpha", [0.05, 1.0])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str
)
def test_half_precision_operands(dtype: torch.dtype, rounding: float, alpha: float) -> None:
    batch = make_batch(2, 6, 5, frames=9, words=14, width=24, ragged=True)
    value, *gradients = value_and_gradients(
        similarity(alpha, operand_dtype=dtype), batch, torch.float32
    )
    expected, *slopes = value_and_gradients(similarity(alpha), batch, torch.float64)
    # Each product is rounded three times: both operands, and the sum.
    assert value.dtype == torch.float32
    assert 0 < (value - expected).abs().max() <= 3 * rounding
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - slope).norm() <= 3 * rounding * max(1, 1 / alpha) * slope.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_small_gradient(dtype: torch.dtype) -> None:
    leaves = make_batch(dtype=torch.float32).leaves()
    value = similarity(1.0, operand_dtype=dtype)(*leaves.tokens).sum()
    large = torch.autograd.grad(value, leaves.tokens, torch.tensor(1.0), retain_graph=True)
    small = torch.autograd.grad(value, leaves.tokens, torch.tensor(2.0**-40))
    for a, b in zip(large, small, strict=True):
        torch.testing.assert_close(a, b * 2.0**40, rtol=1e-3, atol=1e-6)


class TestChoices:
    def test_video_paragraph_loss_is_fused(self) -> None:
        used = NortonVideoParagraphLoss().similarity
        assert isinstance(used, SoftMaximumSimilarity)
        assert used.implementation == AutoSoftMaximum()

    @pytest.mark.parametrize("alpha", [0, 0.1])
    def test_travels_and_says_what_it_is(self, alpha: float) -> None:
        module = similarity(alpha, operand_dtype=torch.bfloat16)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other.implementation == module.implementation
        assert "implementation=ChunkedSoftMaximum(" in repr(module)
        assert "bfloat16" in repr(module)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"implementation": "fused"}, "implementation must be one of"),
            ({"save_scores": "never"}, "save_scores must be one of"),
            ({"save_scores": 1}, "save_scores must be one of"),
            ({"operand_dtype": torch.float64}, "operand_dtype must be one of"),
        ],
    )
    @pytest.mark.parametrize("alpha", [0, 0.1])
    def test_unknown_or_conflicting(self, alpha: float, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            similarity(alpha, **options)

    @pytest.mark.parametrize("alpha", [0, 0.01])
    def test_rounded_products_and_a_small_alpha(self, alpha: float) -> None:
        module = similarity(alpha, operand_dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"alpha of at least 0.05 on the CPU"):
            module(*make_batch().tokens)

    def test_triton_never_falls_back(self) -> None:
        pytest.importorskip("triton")
        module = similarity(0.1, implementation="triton")
        with pytest.raises(ValueError, match="runs on CUDA, and the tokens are on cpu"):
            module(*make_batch().tokens)

    def test_missing_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(
            sys.modules,
            "norton_losses.kernels.soft_maximum_triton",
            raising=False,
        )
        monkeypatch.delattr("norton_losses.kernels.soft_maximum_triton", raising=False)
        with pytest.raises(ImportError, match=r"norton-losses\[triton\]"):
            similarity(0.1, implementation="triton")


@pytest.mark.parametrize("wrong", [torch.nn.Parameter(torch.tensor(0.1)), "0.1", True])
def test_alpha_is_a_plain_number(wrong: Any) -> None:
    with pytest.raises(TypeError, match="alpha must be a plain number"):
        SoftMaximumSimilarity(wrong)


def test_definition_is_what_reference_means() -> None:
    batch = make_batch(ragged=True)
    units = (torch.nn.functional.normalize(t, dim=-1) for t in batch.tokens)
    torch.testing.assert_close(
        similarity(0.1, implementation="reference")(*batch.token_sides),
        definition(*batch.token_sides_of(*units), alpha=0.1),
    )
