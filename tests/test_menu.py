"""Every public module, served everything that people do to a module of theirs."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

from conftest import TORCH
from norton_losses import (
    BackgroundFiltered,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    SoftMaximumSimilarity,
    Temperature,
    TorchSinkhorn,
    TransportMeasure,
    parameter_groups,
)
from norton_losses.functional import caption_average, minmax

Inputs = tuple[Tensor, ...]
FIXTURES = Path(__file__).parent / "fixtures"
STATM = Path("/proc/self/statm")


def tokens() -> Inputs:
    return torch.randn(3, 4, 3, 5), torch.randn(3, 4, 2, 5)


def pairs() -> Inputs:
    return torch.randn(6, 5), torch.randn(6, 5)


def similarity() -> Inputs:
    return (torch.rand(3, 3, 4, 5),)


@dataclass
class Served:
    """A module, what it takes, and what it cannot do, as the documentation says."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    refuses: frozenset[str] = frozenset()


def videos(**options: Any) -> Callable[[], nn.Module]:
    return lambda: NortonVideoParagraphLoss(**options)


def learned() -> nn.Module:
    measure = TransportMeasure(bucket=PromptBucket(learnable=True), objective="entropic")
    return NortonVideoParagraphLoss(measure=measure, learnable_temperature=True)


def implicit() -> nn.Module:
    return TransportMeasure(sinkhorn=TorchSinkhorn(plan_gradient="implicit"))


MENU = {
    "NortonLoss": Served(NortonLoss, tokens),
    "NortonLoss.released": Served(NortonLoss.released, tokens),
    "NortonLoss.paper": Served(NortonLoss.paper, tokens),
    "NortonVideoParagraphLoss": Served(videos(), tokens),
    "learned": Served(learned, tokens),
    "of DTW": Served(videos(measure=DynamicTimeWarping(0.1)), tokens),
    "of OTAM": Served(videos(measure=OrderedAlignment(0.1)), tokens),
    "ClipCaptionOTLoss": Served(ClipCaptionOTLoss, pairs),
    "by rows": Served(
        lambda: ClipCaptionOTLoss(chunk_rows=2), pairs, frozenset({"compile", "func"})
    ),
    "SoftMaximumSimilarity": Served(SoftMaximumSimilarity, tokens),
    "reference": Served(lambda: SoftMaximumSimilarity(implementation="reference"), tokens),
    "MaxSimilarity": Served(MaxSimilarity, tokens),
    "MeanSimilarity": Served(MeanSimilarity, tokens),
    "TransportMeasure": Served(TransportMeasure, similarity),
    "implicit": Served(implicit, similarity),
    "CaptionAverage": Served(CaptionAverage, similarity),
    "DynamicTimeWarping": Served(DynamicTimeWarping, similarity),
    "OrderedAlignment": Served(OrderedAlignment, similarity),
    "BackgroundFiltered": Served(lambda: BackgroundFiltered(TransportMeasure()), similarity),
    "Temperature": Served(Temperature, lambda: ()),
}
WITH_INPUTS = [name for name in MENU if name != "Temperature"]
each = pytest.mark.parametrize("name", MENU)
each_with_inputs = pytest.mark.parametrize("name", WITH_INPUTS)


def served(name: str, seed: int = 0) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(seed)
    return MENU[name].make(), MENU[name].inputs()


def gradients(module: Any, inputs: Inputs) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = module(*leaves).sum()
    return value.detach(), *torch.autograd.grad(value, leaves)


def close(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, check_dtype=False)


@contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


@each
def test_copies_are_alike(name: str) -> None:
    module, inputs = served(name)
    expected = module(*inputs)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    other = MENU[name].make()
    with torch.no_grad():
        for value in other.state_dict().values():
            value += 0.5
    other.load_state_dict(torch.load(saved))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(twin(*inputs), expected)
        assert repr(twin) == repr(module)


@each
def test_made_on_meta_and_reset(name: str) -> None:
    module, inputs = served(name)
    with torch.device("meta"):
        empty = MENU[name].make()
    assert repr(empty)
    made = empty.to_empty(device="cpu")
    for part in made.modules():
        if any(True for _ in [*part.parameters(recurse=False), *part.buffers(recurse=False)]):
            part.reset_parameters()  # type: ignore[operator]
    assert torch.equal(made(*inputs), module(*inputs))


@each_with_inputs
def test_on_meta_there_are_shapes(name: str) -> None:
    if name == "by rows" and TORCH < (2, 5):
        pytest.skip("the checkpointing of torch 2.4 does not know meta")
    module, inputs = served(name)
    found = module.to("meta")(*(t.to("meta") for t in inputs))
    assert found.is_meta
    assert found.shape == MENU[name].make()(*inputs).shape


@each
def test_defaults_of_torch_change_nothing(name: str) -> None:
    module, inputs = served(name)
    expected = module(*inputs)
    for dtype, device in ((torch.float64, None), (torch.bfloat16, None), (None, "meta")):
        with default(dtype, device):
            if device is None:
                module = MENU[name].make()
            found = module(*inputs)
        assert found.device.type == "cpu"
        close(found, expected)


@each
def test_a_cast_keeps_the_state_exact(name: str) -> None:
    module, _ = served(name)
    exact = MENU[name].make().double().state_dict()
    for dtype in (torch.bfloat16, torch.float16):
        for key, value in MENU[name].make().to(dtype).state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, module.state_dict()[key])
    for value in exact.values():
        assert value.dtype == torch.float64


def test_a_wider_cast_does_not_keep_the_rounding() -> None:
    assert Temperature(0.2).double()().item() == pytest.approx(0.2, abs=1e-15)
    trained = Temperature(0.2)
    with torch.no_grad():
        trained.log_scale += 0.25
    assert torch.equal(trained.double().log_scale.float(), trained.log_scale.float())


@each_with_inputs
def test_fake_tensors_have_shapes(name: str) -> None:
    module, inputs = served(name)
    shape = module(*inputs).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = [mode.from_tensor(t).requires_grad_() for t in inputs]
        value = module(*leaves)
        value.sum().backward()
    assert value.shape == shape
    assert [leaf.grad.shape for leaf in leaves if leaf.grad is not None] == [
        t.shape for t in inputs
    ]


@each_with_inputs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_its_numbers(name: str, dtype: torch.dtype) -> None:
    module, inputs = served(name)
    halves = tuple(t.to(dtype) for t in inputs)
    wide = gradients(module, tuple(t.float() for t in halves))
    value, *found = gradients(module, halves)
    assert value.dtype == torch.float32
    close(value, wide[0])
    for gradient, expected in zip(found, wide[1:], strict=True):
        assert gradient.dtype == dtype
        # Of a mean of tokens too, whose gradient is rounded before it is added to theirs.
        close(gradient.float(), expected, 1e-2, atol=1e-2 * expected.abs().max().item())


@each_with_inputs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    module, inputs = served(name)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    with torch.autocast("cpu", dtype):
        value = module(*leaves).sum()
    close((value, *torch.autograd.grad(value, leaves)), gradients(module, inputs))


@each_with_inputs
def test_memory_layout_has_no_effect(name: str) -> None:
    module, inputs = served(name)
    expected = gradients(module, inputs)

    def gapped(t: Tensor) -> Tensor:
        wide = t.new_full((*t.shape, 2), torch.nan)
        wide[..., 0] = t
        return wide[..., 0]

    def transposed(t: Tensor) -> Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    for change in (gapped, transposed, torch._lazy_clone):
        leaves = [change(t.clone()).requires_grad_() for t in inputs]
        value = module(*leaves).sum()
        close((value, *torch.autograd.grad(value, leaves)), expected)


@each_with_inputs
def test_expanded_inputs(name: str) -> None:
    module, inputs = served(name)
    alike = tuple(t[:1].expand(t.shape) for t in inputs)
    close(module(*alike), module(*(t.contiguous() for t in alike)))


@each_with_inputs
def test_activation_checkpointing(name: str) -> None:
    module, inputs = served(name)
    expected = gradients(module, inputs)
    again = lambda *leaves: checkpoint(module, *leaves, use_reentrant=False)  # noqa: E731
    close(gradients(again, inputs), expected, rtol=0)


@each
def test_inference_mode_and_no_grad(name: str) -> None:
    module, inputs = served(name)
    expected = module(*inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            close(module(*inputs), expected)


@each_with_inputs
def test_a_gradient_scaler_trains(name: str) -> None:
    module, inputs = served(name)
    width = inputs[0].shape[-1]
    tower = nn.Linear(width, width)
    exact = torch.autograd.grad(module(tower(inputs[0]), *inputs[1:]).sum(), tower.weight)[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.float16):
        encoded = tower(inputs[0])
        assert encoded.dtype == torch.float16
        value = module(encoded, *(t.half() for t in inputs[1:])).sum()
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    assert tower.weight.grad is not None
    close(tower.weight.grad, exact, 2e-2, atol=2e-2 * exact.abs().max().item())
    before = tower.weight.clone()
    scaler.step(optimizer)  # which it does not where a gradient is not finite
    assert not torch.equal(tower.weight, before)


@each_with_inputs
def test_deterministic_algorithms(name: str) -> None:
    module, inputs = served(name)
    expected = gradients(module, inputs)
    torch.use_deterministic_algorithms(True)
    try:
        found = [gradients(module, inputs) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    close(found[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each_with_inputs
def test_threads_do_not_meet(name: str) -> None:
    module, _ = served(name)
    jobs = [served(name, seed)[1] for seed in range(8)]
    expected = [gradients(module, inputs) for inputs in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda inputs: gradients(module, inputs), jobs))
    close(found, expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@each
def test_anomaly_detection_finds_nothing(name: str) -> None:
    module, inputs = served(name)
    with torch.autograd.detect_anomaly(check_nan=True):
        leaves = [t.requires_grad_() for t in inputs]
        value = module(*leaves).sum()
        if value.requires_grad:
            value.backward()


@each_with_inputs
def test_torch_func(name: str) -> None:
    module, inputs = served(name)
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def value(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(module, parameters, inputs).sum()

    wanted = tuple(range(1, 1 + len(inputs)))
    if "func" in MENU[name].refuses:
        with pytest.raises(RuntimeError, match="saved tensor hooks"):
            grad(value, wanted)(parameters, *inputs)
        return
    close(grad(value, wanted)(parameters, *inputs), gradients(module, inputs)[1:])
    if parameters:
        own = torch.autograd.grad(module(*inputs).sum(), list(module.parameters()))
        close(list(grad(value)(parameters, *inputs).values()), list(own))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@each_with_inputs
def test_whole_graphs_compile(name: str) -> None:
    if "compile" in MENU[name].refuses:
        pytest.skip("is not compiled whole, as its documentation says")
    module, inputs = served(name)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    close(gradients(compiled, inputs), gradients(module, inputs))


class TestWhatFunctionsCheck:
    def test_functions_equal_their_modules(self) -> None:
        (values,) = similarity()
        assert torch.equal(caption_average(values), CaptionAverage()(values))

    def test_minmax_is_never_in_half_precision(self) -> None:
        wide = torch.tensor([-60000.0, 60000.0, 0.0], dtype=torch.float16)
        found = minmax(wide, torch.ones(3, dtype=torch.bool))
        assert found.dtype == torch.float32
        assert found.tolist() == [0.0, 1.0, 0.5]

    @pytest.mark.parametrize(
        ("values", "mask", "known", "error"),
        [
            ("x", [True], None, TypeError),
            (torch.ones(2), torch.ones(3, dtype=torch.bool), None, ValueError),
            (torch.ones(2), torch.ones(2), None, TypeError),
            (torch.ones(2), torch.ones(2, dtype=torch.bool), (1, 0), ValueError),
            (torch.ones(2), torch.ones(2, dtype=torch.bool), (1, 1), ValueError),
            (torch.ones(2), torch.ones(2, dtype=torch.bool), (0, True), ValueError),
            (torch.ones(2), torch.ones(2, dtype=torch.bool), "01", ValueError),
        ],
    )
    def test_minmax_checks(self, values: Any, mask: Any, known: Any, error: type) -> None:
        with pytest.raises(error):
            minmax(values, mask, known)


def test_temperatures_and_buckets_do_not_decay() -> None:
    model = nn.ModuleDict({"tower": nn.Linear(3, 3), "loss": learned()})
    model["tower"].bias.requires_grad_(False)
    decayed, scalars = parameter_groups(model, weight_decay=0.1)
    assert decayed == {"params": [model["tower"].weight], "weight_decay": 0.1}
    assert [p.shape for p in scalars["params"]] == [(1,), (1,)]
    assert scalars["weight_decay"] == 0
    optimizer = torch.optim.AdamW([decayed, scalars], lr=0.1)
    before = model["loss"].temperature().item()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model["loss"].temperature().item() == before


class TestForLong:
    @pytest.mark.parametrize("kind", ["state_dict", "pickle"])
    def test_what_version_0_1_0_saved_is_read(self, kind: str) -> None:
        if kind == "pickle":
            loss = pickle.loads((FIXTURES / "loss-0.1.0.pickle").read_bytes())
        else:
            loss = NortonLoss(learned())
            loss.load_state_dict(torch.load(FIXTURES / "state_dict-0.1.0.pt"))
        frames = torch.linspace(-1, 1, 48).sin().view(2, 3, 2, 4)
        words = torch.linspace(-2, 3, 72).cos().view(2, 3, 3, 4)
        assert loss(frames, words).item() == pytest.approx(19.417652, rel=1e-5)

    @pytest.mark.slow
    @pytest.mark.skipif(not STATM.exists(), reason="the system does not tell resident memory")
    def test_two_thousand_steps_leave_nothing_behind(self) -> None:
        module, inputs = served("NortonLoss")
        module.eval()  # in training it would say that nobody trains its temperature

        def resident(steps: int) -> int:
            for _ in range(steps):
                gradients(module, inputs)
            return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        before = resident(200)
        assert resident(2000) - before < 1 << 20  # 500 bytes of each step would be more
