"""A cached step has the loss and the gradients of one large batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import fsdp

from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments, cached_step
from tests.process_pool import ProcessPool
from tests.test_distributed import together

WIDTH = 6
Batch = tuple[Segments, Segments]


def draw(sizes: list[tuple[int, int, int, int]], seed: int = 0) -> list[Batch]:
    """Batches of (B, N, F, W), with holes."""
    g = torch.Generator().manual_seed(seed)

    def side(b: int, n: int, t: int) -> Segments:
        tokens = torch.randn(b, n, t, WIDTH, generator=g, dtype=torch.float64)
        return Segments(tokens, torch.rand(b, n, t, generator=g) < 0.8)

    return [(side(b, n, f), side(b, n, w)) for b, n, f, w in sizes]


UNEVEN = [(2, 3, 4, 2), (3, 2, 1, 5), (1, 4, 2, 2)]
EVEN = [(2, 3, 4, 5)] * 3


class Encoder(nn.Module):
    """A layer that both sides share; frozen for a batch whose tokens are all zero."""

    def __init__(self, dropout: float = 0.0, *, embeddings: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 5, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 5 * WIDTH).view(5, WIDTH))
        self.dropout = nn.Dropout(dropout)
        self.embeddings = embeddings
        self.graphs: list[bool] = []

    def forward(self, batch: Batch) -> Batch:
        self.graphs.append(torch.is_grad_enabled())
        if not any(side.tokens.any() for side in batch):
            with torch.no_grad():
                return self._encode(batch[0]), self._encode(batch[1])
        return self._encode(batch[0]), self._encode(batch[1])

    def _encode(self, side: Segments) -> Segments:
        tokens = self.dropout(self.layer(side.tokens))
        embeddings = None
        if self.embeddings:
            embeddings = (tokens * side.token_mask[..., None]).sum(2).sin()
        return Segments(tokens, side.token_mask, embeddings=embeddings)


class TokenEncoder(Encoder):
    """The same that gives tokens."""

    def forward(self, batch: Batch) -> Any:
        return tuple(side.tokens for side in super().forward(batch))


def whole(batches: list[Batch]) -> Batch:
    pairs = [tuple((side.tokens, side.token_mask) for side in batch) for batch in batches]
    video, text = together(pairs)  # type: ignore[arg-type]
    return Segments(*video), Segments(*text)


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("make", [NortonLoss, NortonLoss.paper, ClipCaptionOTLoss])
def test_gradients_are_those_of_one_batch(
    make: Any, sizes: list[tuple[int, int, int, int]], embeddings: bool
) -> None:
    batches = draw(sizes)
    encoders = [Encoder(embeddings=embeddings) for _ in range(2)]
    losses = [make().double() for _ in range(2)]
    expected = losses[0](*encoders[0](whole(batches)))
    expected.backward()
    value = cached_step(encoders[1], losses[1], batches)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    assert encoders[1].graphs == [False] * 3 + [True] * 3
    for found, wanted in zip(
        gradients(encoders[1], losses[1]), gradients(encoders[0], losses[0]), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_plain_tensors_and_other_arguments() -> None:
    batches = [(torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)) for _ in range(2)]
    layer, loss = nn.Linear(WIDTH, 4), NortonLoss()
    ids = torch.tensor([0, 1, 0, 2])
    expected = loss(*(layer(torch.cat(side)) for side in zip(*batches, strict=True)), group_ids=ids)
    found = cached_step(lambda b: (layer(b[0]), layer(b[1])), loss, batches, group_ids=ids)
    torch.testing.assert_close(found, expected.detach())


def test_pairs_of_embeddings() -> None:
    batches = [(torch.randn(n, WIDTH), torch.randn(n, WIDTH)) for n in (3, 5)]
    layer, loss = nn.Linear(WIDTH, 4), ClipCaptionOTLoss()
    expected = loss(*(layer(torch.cat(side)) for side in zip(*batches, strict=True)))
    found = cached_step(lambda b: (layer(b[0]), layer(b[1])), loss, batches)
    torch.testing.assert_close(found, expected.detach())


def test_a_batch_may_be_empty() -> None:
    batches = [*draw(EVEN), *draw([(1, 3, 2, 2)])]
    encoder, loss = Encoder(), NortonLoss().double()
    expected = cached_step(encoder, loss, batches[:-1])

    def encode(batch: Any) -> Any:
        if batch is not None:
            return encoder(batch)
        return [encoder.layer(side.tokens[:0]) for side in batches[-1]]

    found = cached_step(encode, loss, [*batches[:-1], None])
    torch.testing.assert_close(found, expected)
    ids = torch.arange(sum(len(batch[0]) for batch in batches[:-1])) // 2
    expected = cached_step(encoder, loss, batches[:-1], group_ids=ids)
    found = cached_step(encode, loss, [None, *batches[:-1]], group_ids=ids)  # none of its own
    torch.testing.assert_close(found, expected)


def test_inside_autocast() -> None:
    batches, encoder, loss = draw(EVEN), Encoder(), NortonLoss()
    encoder.float()
    floats = [tuple(side.to(torch.float32) for side in batch) for batch in batches]
    with torch.autocast("cpu", torch.bfloat16):
        cached_step(encoder, loss, floats)
    assert encoder.layer.weight.grad is not None
    assert encoder.layer.weight.grad.any()


def test_random_numbers_are_the_same_in_both_passes() -> None:
    """With other ones the gradient of a linear layer would not be that of the loss."""
    batches, encoder, loss = draw(EVEN), Encoder(dropout=0.5), NortonLoss().double()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    value = cached_step(encoder, loss, batches)
    after = torch.rand(1)
    torch.set_rng_state(state)
    encoded = [encoder(batch) for batch in batches]
    assert torch.equal(after, torch.rand(1))
    sides = [
        Segments(torch.cat([s.tokens for s in side]), torch.cat([s.token_mask for s in side]))
        for side in zip(*encoded, strict=True)
    ]
    found = encoder.layer.weight.grad
    assert found is not None
    found = found.clone()
    encoder.zero_grad()
    expected = loss(*sides)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, encoder.layer.weight.grad)


def test_gradients_add_up() -> None:
    batches, encoder, loss = draw(EVEN), Encoder(), NortonLoss().double()
    cached_step(encoder, loss, batches)
    once = [g.clone() for g in gradients(encoder, loss) if g is not None]
    cached_step(encoder, loss, batches)
    for twice, one in zip(gradients(encoder, loss), once, strict=True):
        torch.testing.assert_close(twice, 2 * one)


def test_errors() -> None:
    with pytest.raises(ValueError, match="one batch at least"):
        cached_step(Encoder(), NortonLoss(), [])
    batches = [(torch.randn(2, 3, d), torch.randn(2, 3, d)) for d in (4, 5)]
    with pytest.raises(ValueError, match="same width"):
        cached_step(lambda batch: batch, NortonLoss(), batches)


def _cached(group: Any, batches: list[Batch], wrap: str) -> tuple[Tensor, list[Tensor], int]:
    """Loss, gradients of encoder and loss, and how often DDP reduced."""
    encoder, loss = TokenEncoder(), NortonLoss(process_group=group).double()
    module: Any = None
    reduced = 0
    if wrap == "DDP":
        module = nn.parallel.DistributedDataParallel(encoder, process_group=group)

        def hook(state, bucket):  # type: ignore[no-untyped-def] # DDP checks annotations
            nonlocal reduced
            reduced += 1
            future = torch.distributed.all_reduce(bucket.buffer(), group=group, async_op=True)
            size = torch.distributed.get_world_size(group)
            return future.get_future().then(lambda f: f.value()[0] / size)

        module.register_comm_hook(None, hook)
    elif wrap == "FSDP2":
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        module = fully_shard(encoder, mesh=DeviceMesh.from_group(group, "cpu"))

    def encode(batch: Batch) -> Any:
        tokens = (module or encoder)(batch)  # FSDP2 sees gradients of plain tensors alone
        return [Segments(t, side.token_mask) for t, side in zip(tokens, batch, strict=True)]

    value = cached_step(encode, loss, batches, module=module)
    found = []
    for gradient in gradients(encoder, loss):
        assert gradient is not None
        found.append(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient)
    return value, found, reduced


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_on_several_processes(pool: ProcessPool, wrap: str, frozen: bool) -> None:
    if wrap == "FSDP2" and not hasattr(fsdp, "fully_shard"):
        pytest.skip("fully_shard came with torch 2.6")
    batches = [draw(UNEVEN, 0), draw(EVEN, 1)]
    if frozen:
        for of_rank in batches:
            of_rank[-1] = tuple(side.with_tokens(0 * side.tokens) for side in of_rank[-1])
    value, expected, _ = _cached(None, [*batches[0], *batches[1]], "")
    for found in pool.run(_cached, [(of_rank, wrap) for of_rank in batches]):
        if isinstance(found, Exception):
            raise found
        torch.testing.assert_close(found[0], value, rtol=1e-10, atol=0)
        for one, other in zip(found[1], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert found[2] == (wrap == "DDP")


def _of_other_widths(group: Any, width: int) -> None:
    batches = [tuple(torch.randn(1, 2, w) for _ in "vt") for w in (4, width)]
    cached_step(lambda batch: batch, NortonLoss(process_group=group), batches)


def _of_another_dtype(group: Any, dtype: torch.dtype) -> None:
    tokens = torch.ones(1, 2, 4, dtype=dtype)
    cached_step(lambda batch: (tokens, tokens), NortonLoss(process_group=group), [0, 1])


@pytest.mark.parametrize(
    ("step", "wrong", "right", "error"),
    [
        (_of_other_widths, 5, 4, ValueError),
        (_of_another_dtype, torch.int64, torch.float32, TypeError),
    ],
)
def test_a_rank_that_refuses_its_batches_tells_the_others(
    pool: ProcessPool, step: Any, wrong: Any, right: Any, error: type
) -> None:
    waiting, refused = pool.run(step, [(right,), (wrong,)])
    assert isinstance(waiting, RuntimeError)
    assert "processes [1]" in str(waiting)
    assert isinstance(refused, error)
