from __future__ import annotations

import math

import pytest
import torch

from norton_losses import (
    NortonLoss,
    NortonVideoParagraphLoss,
    PromptBucket,
    Temperature,
    TransportMeasure,
)
from norton_losses._numerics import (
    masked_amax,
    masked_log_softmax,
    masked_logsumexp,
    masked_mean,
    unit,
    up_cast,
)

REDUCTIONS = [masked_mean, masked_logsumexp, masked_amax, masked_log_softmax]


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 1e30, 1e37])
def test_unit_norm_at_every_scale(scale: float) -> None:
    vectors = torch.randn(5, 7)
    expected = torch.nn.functional.normalize(vectors, dim=-1)
    torch.testing.assert_close(unit(vectors * scale), expected)


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])], ids=["all", "masked"])
def test_unit_derivatives(mask: torch.Tensor | None) -> None:
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (vectors, mask))
    assert torch.autograd.gradgradcheck(unit, (vectors, mask))
    direct = torch.func.grad(lambda v: unit(v, mask)[:, 0].sum())(vectors.detach())
    (expected,) = torch.autograd.grad(unit(vectors, mask)[:, 0].sum(), vectors)
    torch.testing.assert_close(direct, expected)
    batched = torch.func.vmap(lambda v: unit(v, mask))(vectors.expand(2, 3, 4))
    torch.testing.assert_close(batched[1], unit(vectors, mask))


def test_zero_and_masked_vectors_stay_zero_without_gradient() -> None:
    vectors = torch.randn(3, 4)
    vectors[0], vectors[1] = 0, math.nan
    vectors.requires_grad_()
    out = unit(vectors, torch.tensor([True, False, True]))
    out.pow(3).sum().backward()
    assert vectors.grad is not None
    assert not out[:2].any()
    assert not vectors.grad[:2].any()
    assert vectors.grad[2].any()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reductions_see_valid_entries_only(reduce) -> None:
    values = torch.randn(3, 5, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 1, 0]).bool().expand(3, 5)
    kept = reduce(values[:, mask[0]], torch.ones(3, 3, dtype=torch.bool), 1)
    values = values.masked_fill(~mask, math.nan).requires_grad_()
    out = reduce(values, mask, 1)
    torch.testing.assert_close(out if out.dim() == 1 else out[:, mask[0]], kept)
    out.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert not values.grad[~mask].any()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reductions_of_nothing_are_zero(reduce) -> None:
    values = torch.randn(2, 4, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    out = reduce(values, mask, 1)
    assert not out[1].any()
    out.sum().backward()
    assert values.grad is not None
    assert not values.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_saturate_on_their_way_to_half(dtype: torch.dtype) -> None:
    half = torch.ones(3, dtype=dtype, requires_grad=True)
    up_cast(half, torch.float32).backward(torch.tensor([3.4e38, -3.4e38, 2.0]))
    top = torch.finfo(dtype).max
    assert half.grad is not None
    assert half.grad.tolist() == [top, -top, 2.0]


class TestTemperature:
    @pytest.mark.parametrize("value", [0.01, 0.07, 1.0])
    def test_starts_where_told(self, value: float) -> None:
        assert Temperature(value)().item() == pytest.approx(value, rel=1e-6)

    @pytest.mark.parametrize("value", [0.0, 0.0099, 1.01, -1.0, math.nan])
    def test_range(self, value: float) -> None:
        with pytest.raises(ValueError, match=r"temperature must lie in \[0.01, 1.0\], got"):
            Temperature(value)

    def test_a_tensor_is_no_start(self) -> None:
        with pytest.raises(TypeError, match=r"temperature must be a plain number.*call \.item\(\)"):
            Temperature(torch.tensor(0.07))  # pyright: ignore[reportArgumentType]

    def test_maps_over_a_batch_of_scales(self) -> None:
        temperature, scales = Temperature(), torch.tensor([[-2.0], [1.0], [6.0]])
        mapped = torch.func.vmap(
            lambda scale: torch.func.functional_call(temperature, {"log_scale": scale}, ())
        )(scales)
        torch.testing.assert_close(mapped, torch.tensor([1.0, math.exp(-1), 0.01]))

    def test_learnable_or_not_it_is_saved(self) -> None:
        learned, fixed = Temperature(), Temperature(learnable=False)
        assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
        assert not list(fixed.parameters())
        assert set(fixed.state_dict()) == set(learned.state_dict()) == {"log_scale"}

    @pytest.mark.parametrize(("outside", "bound"), [(6.0, 0.01), (-2.0, 1.0)])
    def test_clamped_outside_and_able_to_return(self, outside: float, bound: float) -> None:
        temperature = Temperature()
        parameter = next(temperature.parameters())
        torch.nn.init.constant_(parameter, outside)
        assert temperature().item() == pytest.approx(bound, rel=1e-6)
        towards, outwards = (
            torch.autograd.grad(sign * temperature(), parameter)[0].item() for sign in (1, -1)
        )
        if outside < 0:
            towards, outwards = outwards, towards
        # Descent subtracts the gradient: a positive one lowers log_scale.
        assert towards == 0
        assert outwards != 0
        assert math.copysign(1, outwards) == math.copysign(1, outside)

    @pytest.mark.parametrize("start", [0.01, 1.0])
    def test_at_a_bound_it_has_the_gradient_of_the_inside(self, start: float) -> None:
        temperature = Temperature(start).double()
        for sign in (1, -1):
            (gradient,) = torch.autograd.grad(sign * temperature(), [temperature.log_scale])
            assert gradient.item() == pytest.approx(-sign * start)

    def test_half_parameter_float32_out(self) -> None:
        temperature = Temperature(0.07).half()
        assert temperature().dtype == torch.float32
        assert temperature().item() == pytest.approx(0.07, rel=1e-2)
        halved = {"log_scale": temperature.log_scale.half()}  # as mixed precision may do
        assert torch.func.functional_call(temperature, halved, ()).dtype == torch.float32

    @pytest.mark.parametrize("learnable", [True, False])
    def test_state_has_one_dimension_and_either_shape_loads(self, learnable: bool) -> None:
        """FSDP refuses parameters without dimension; older checkpoints have them."""
        temperature = Temperature(0.07, learnable=learnable)
        assert temperature.log_scale.shape == (1,)
        assert temperature().shape == ()
        for saved in (torch.tensor(2.0), torch.tensor([2.0])):
            temperature.load_state_dict({"log_scale": saved})
            assert temperature().item() == pytest.approx(math.exp(-2), rel=1e-6)
        with pytest.raises(RuntimeError, match="size mismatch"):
            temperature.load_state_dict({"log_scale": torch.zeros(2)})


def test_every_parameter_of_a_loss_has_one_dimension() -> None:
    bucket = PromptBucket(learnable=True)
    measure = TransportMeasure(bucket=bucket, objective="entropic")
    loss = NortonLoss(NortonVideoParagraphLoss(measure=measure))
    assert {tuple(p.shape) for p in loss.parameters()} == {(1,)}
    older = {name: value.reshape(()) + 0.5 for name, value in loss.state_dict().items()}
    loss.load_state_dict(older)
    assert loss.video_paragraph.measure.bucket.offset.item() == 0.5
    assert (
        loss.clip_caption.temperature.log_scale.item()
        == older["clip_caption.temperature.log_scale"]
    )
