"""Several processes give the loss and the gradients of one that has the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from norton_losses import (
    BackgroundFiltered,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    POTSinkhorn,
    PromptBucket,
    Segments,
    SoftMaximumSimilarity,
    TorchSinkhorn,
    TransportMeasure,
    TransportProblem,
    distributed,
)
from norton_losses.distributed import Shard
from norton_losses.retrieval import retrieve
from tests.process_pool import GROUPS, ProcessPool

WIDTH = 6
Side = tuple[Tensor, Tensor]  # tokens (B, N, T, D) and their mask
Make = Callable[[Any], nn.Module]


def of_video(measure: nn.Module | None = None, similarity: Any = None, **options: Any) -> Make:
    return lambda group: NortonVideoParagraphLoss(
        similarity, measure, process_group=group, **options
    )


def _cosines(video: Segments, text: Segments) -> Tensor:
    clips, captions = (nn.functional.normalize(s.embeddings, dim=-1) for s in (video, text))
    return torch.einsum("and,bmd->abnm", clips, captions)


class Scaled(nn.Module):
    """A similarity with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7]))

    def forward(self, video: Segments, text: Segments) -> Tensor:
        return self.weight * _cosines(video, text)


LOSSES: dict[str, Make] = {
    "default": lambda group: NortonLoss(process_group=group),
    "released": lambda group: NortonLoss.released(process_group=group),
    "paper": lambda group: NortonLoss.paper(process_group=group),
    "InfoNCE": lambda group: ClipCaptionOTLoss(beta=0.0, process_group=group),
    "clips": lambda group: ClipCaptionOTLoss(process_group=group),
    "raw clips": lambda group: ClipCaptionOTLoss(normalize=False, process_group=group),
    "clips by rows": lambda group: ClipCaptionOTLoss(chunk_rows=2, process_group=group),
    "clips until they are still": lambda group: ClipCaptionOTLoss(
        sinkhorn=TorchSinkhorn(200, tolerance=1e-6), process_group=group
    ),
    "rows until they are still": lambda group: ClipCaptionOTLoss(
        sinkhorn=TorchSinkhorn(200, tolerance=1e-6), chunk_rows=2, process_group=group
    ),
    "videos": of_video(learnable_temperature=True, scale_by_length=True),
    "no bucket": of_video(TransportMeasure(bucket=None)),
    "learnable bucket": of_video(
        TransportMeasure(bucket=PromptBucket(learnable=True), objective="entropic")
    ),
    "POT": lambda group: NortonVideoParagraphLoss(
        measure=TransportMeasure(sinkhorn="pot"), process_group=group
    ),
    "DTW": of_video(DynamicTimeWarping(0.1)),
    "OTAM": of_video(OrderedAlignment(0.1)),
    "caption average": of_video(CaptionAverage()),
    "filtered": of_video(BackgroundFiltered(TransportMeasure())),
    "maximum": of_video(None, MaxSimilarity()),
    "min-max": of_video(None, SoftMaximumSimilarity(rescale="minmax")),
    "a function": of_video(None, _cosines),
    "learned": of_video(None, Scaled()),
    "by turns": lambda group: NortonLoss(process_group=group, gather="chunked"),
    "videos by turns": of_video(learnable_temperature=True, scale_by_length=True, gather="chunked"),
    "DTW by turns": of_video(DynamicTimeWarping(0.1), gather="chunked"),
    "filtered by turns": of_video(BackgroundFiltered(TransportMeasure()), gather="chunked"),
    "learned by turns": of_video(None, Scaled(), gather="chunked"),
}


def draw(sizes: list[tuple[int, int, int, int, int]], seed: int = 0) -> list[tuple[Side, Side]]:
    """Both sides for each rank, of (B, N, M, F, W), with holes."""
    g = torch.Generator().manual_seed(seed)

    def side(b: int, n: int, t: int) -> Side:
        tokens = torch.randn(b, n, t, WIDTH, generator=g, dtype=torch.float64)
        return tokens, torch.rand(b, n, t, generator=g) < 0.8

    return [(side(b, n, f), side(b, m, w)) for b, n, m, f, w in sizes]


EVEN = [(2, 3, 3, 4, 5)] * 2
UNEVEN = [(3, 2, 2, 4, 1), (1, 4, 4, 2, 5)]
FOUR = [(2, 3, 3, 3, 2), (1, 5, 5, 1, 4), (0, 2, 2, 2, 2), (3, 1, 1, 2, 3)]
OTHER_COUNTS = [(2, 3, 5, 2, 2), (3, 4, 2, 1, 3)]


def step(
    group: Any,
    name: str,
    sides: tuple[Side, Side],
    dtype: torch.dtype,
    group_ids: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], dict[str, Tensor | None]]:
    """Loss, gradients of both sides' tokens, and those of the loss's parameters."""
    loss = LOSSES[name](group)
    loss.zero_grad()  # a measure is built once for all tests
    if dtype == torch.float64:
        loss = loss.double()
    leaves = [tokens.to(dtype).requires_grad_() for tokens, _ in sides]
    made = []
    for leaf, (_, mask) in zip(leaves, sides, strict=True):
        empty = not len(leaf)
        made.append(leaf if empty else Segments(leaf, mask))
    value = loss(*made, group_ids=group_ids)
    value.backward()
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    parameters = {key: p.grad for key, p in loss.named_parameters()}
    return value.detach(), gradients, parameters  # type: ignore[return-value]


def together(sides: list[tuple[Side, Side]]) -> tuple[Side, Side]:
    """The batch of all ranks, padded."""

    def of(place: int) -> Side:
        parts = [pair[place] for pair in sides]
        n, t = (max(mask.shape[d] for _, mask in parts) for d in (1, 2))
        padded = [
            (
                pad(tokens, (0, 0, 0, t - mask.shape[2], 0, n - mask.shape[1])),
                pad(mask, (0, t - mask.shape[2], 0, n - mask.shape[1])),
            )
            for tokens, mask in parts
        ]
        tokens, masks = zip(*padded, strict=True)
        return torch.cat(tokens), torch.cat(masks)

    return of(0), of(1)


def compare(
    pool: ProcessPool,
    name: str,
    sizes: list[tuple[int, int, int, int, int]],
    dtype: torch.dtype = torch.float64,
    group_ids: list[Tensor] | None = None,
) -> None:
    sides = draw(sizes)
    ids = [None] * len(sides) if group_ids is None else group_ids
    whole_ids = None if group_ids is None else torch.cat(group_ids)
    found = pool.run(step, [(name, s, dtype, i) for s, i in zip(sides, ids, strict=True)])
    expected, gradients, parameters = step(None, name, together(sides), dtype, whole_ids)
    loose = dtype != torch.float64
    exact = {"rtol": 1e-6, "atol": 1e-6} if loose else {"rtol": 1e-10, "atol": 1e-10}
    close = {"rtol": 1e-5, "atol": 1e-5} if loose else {"rtol": 1e-9, "atol": 1e-9}
    first = 0
    for rank, result in enumerate(found):
        if isinstance(result, Exception):
            raise result
        value, of_sides, of_parameters = result
        torch.testing.assert_close(value, expected, **exact)
        for gradient, whole in zip(of_sides, gradients, strict=True):
            b, n, t = gradient.shape[:3]
            # The mean over ranks that DDP takes divides it again.
            part = len(sides) * whole[first : first + b, :n, :t]
            torch.testing.assert_close(gradient, part, **close)
        first += sizes[rank][0]
        for key, gradient in of_parameters.items():
            if not key.startswith("similarity"):  # temperatures and the bucket are alike
                torch.testing.assert_close(gradient, parameters[key], **close)
    for key, whole in parameters.items():
        gradient = sum(of_parameters[key] for *_, of_parameters in found) / len(found)
        torch.testing.assert_close(gradient, whole, **close)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, FOUR], ids=["even", "uneven", "four"])
def test_ranks_equal_one_process(
    pool: ProcessPool, name: str, sizes: list[tuple[int, int, int, int, int]]
) -> None:
    if name == "POT":
        pytest.importorskip("ot", reason="POT is not installed")
    compare(pool, name, sizes)


@pytest.mark.parametrize("name", ["default", "released", "clips by rows"])
def test_in_single_precision(pool: ProcessPool, name: str) -> None:
    compare(pool, name, UNEVEN, torch.float32)


@pytest.mark.parametrize("name", ["videos", "DTW", "min-max", "videos by turns"])
def test_with_other_numbers_of_captions_than_clips(pool: ProcessPool, name: str) -> None:
    compare(pool, name, OTHER_COUNTS)


@pytest.mark.parametrize("name", ["default", "clips", "clips by rows", "videos", "by turns"])
def test_groups_are_of_all_ranks(pool: ProcessPool, name: str) -> None:
    ids = [torch.tensor(of_rank) for of_rank in ([0, 1], [1], [], [0, 2, 2])]
    compare(pool, name, FOUR, group_ids=[i.long() for i in ids])


def test_groups_may_have_any_integer_type(pool: ProcessPool) -> None:
    ids = [torch.tensor([0, 1], dtype=torch.int16), torch.tensor([1, 0], dtype=torch.int32)]
    sides = draw(EVEN)
    found = pool.run(
        step, [("videos", s, torch.float64, i) for s, i in zip(sides, ids, strict=True)]
    )
    expected, *_ = step(None, "videos", together(sides), torch.float64, torch.tensor([0, 1, 1, 0]))
    for value, *_ in found:
        torch.testing.assert_close(value, expected)


def test_groups_of_pairs(pool: ProcessPool) -> None:
    ids = [torch.tensor([[0, 1, 2], [3, 3, 4]]), torch.tensor([[0, 5, 6], [7, 4, 4]])]
    compare(pool, "clips", EVEN, group_ids=ids)


def _only_padding_differs(group: Any, sides: tuple[Side, Side]) -> tuple[float, float]:
    loss = NortonLoss(process_group=group)
    dirty = [(tokens.masked_fill(~mask[..., None], torch.nan), mask) for tokens, mask in sides]
    clean, spoiled = (loss(*(Segments(*side) for side in of)) for of in (sides, dirty))
    return clean.item(), spoiled.item()


def test_what_is_masked_has_no_effect(pool: ProcessPool) -> None:
    for clean, dirty in pool.run(_only_padding_differs, [(s,) for s in draw(UNEVEN)]):
        assert clean == dirty


def _nothing_valid(group: Any) -> tuple[float, bool]:
    tokens = torch.randn(2, 3, 2, 4, requires_grad=True)
    absent = Segments(tokens, mask=torch.zeros(2, 3, dtype=torch.bool))
    loss = NortonLoss(process_group=group)(absent, absent)
    loss.backward()
    assert tokens.grad is not None
    return loss.item(), bool(tokens.grad.any())


def test_nothing_valid_on_any_rank_costs_nothing(pool: ProcessPool) -> None:
    assert pool.run(_nothing_valid, [(), ()]) == [(0.0, False)] * 2


def _in_halves(group: Any, sides: tuple[Side, Side], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    video, text = (Segments(tokens.to(dtype).requires_grad_(), mask) for tokens, mask in sides)
    loss = NortonLoss(process_group=group)(video, text)
    loss.backward()
    assert text.tokens.grad is not None
    return loss.detach(), text.tokens.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pool: ProcessPool, dtype: torch.dtype) -> None:
    sides = draw(EVEN)
    expected, gradient = _in_halves(None, together(sides), dtype)
    found = pool.run(_in_halves, [(s, dtype) for s in sides])
    for rank, (loss, of_text) in enumerate(found):
        torch.testing.assert_close(loss, expected)
        assert of_text.dtype == dtype
        torch.testing.assert_close(
            of_text, 2 * gradient[2 * rank : 2 * rank + 2], rtol=2e-2, atol=1e-4
        )


def _frozen(group: Any, sides: tuple[Side, Side], trained: bool) -> Tensor | None:
    (tokens, mask), text = sides
    words = text[0].float().requires_grad_(trained)
    loss = NortonLoss(process_group=group)(Segments(tokens.float(), mask), Segments(words, text[1]))
    loss.backward()
    return words.grad


def test_a_rank_may_have_frozen_text(pool: ProcessPool) -> None:
    sides = draw(EVEN)
    found = pool.run(_frozen, [(sides[0], True), (sides[1], False)])
    both = pool.run(_frozen, [(sides[0], True), (sides[1], True)])
    torch.testing.assert_close(found[0], both[0])
    assert found[1] is None


class Model(nn.Module):
    """A layer that both sides share, beside a loss."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 5, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 5 * WIDTH).view(5, WIDTH))
        self.loss = NortonLoss(
            NortonVideoParagraphLoss(learnable_temperature=True), process_group=group
        ).double()

    def forward(self, video: Side, text: Side) -> Tensor:
        sides = (Segments(self.layer(tokens), mask) for tokens, mask in (video, text))
        return self.loss(*sides)


def _wrapped(group: Any, sides: tuple[Side, Side], wrap: str) -> dict[str, Tensor]:
    model: nn.Module = Model(group)
    if wrap == "DDP":
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    elif wrap == "FSDP2":
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    model(*sides).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        gradients[name.removeprefix("module.")] = whole
    return gradients


@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_wrapped_gradients_are_those_of_one_process(pool: ProcessPool, wrap: str) -> None:
    if wrap == "FSDP2":
        pytest.importorskip("torch.distributed.fsdp", reason="FSDP is not in this torch")
        if not hasattr(torch.distributed.fsdp, "fully_shard"):
            pytest.skip("fully_shard came with torch 2.6")
    sides = draw(UNEVEN)
    expected = _wrapped(None, together(sides), "")
    for found in pool.run(_wrapped, [(s, wrap) for s in sides]):
        if isinstance(found, Exception):
            raise found
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


class TestErrors:
    def test_a_rank_that_refuses_its_inputs_stops_the_others(self, pool: ProcessPool) -> None:
        (video, text), good = draw(EVEN)
        bad = (video, (text[0][..., :-1], text[1]))
        found = pool.run(step, [("default", bad, torch.float64), ("default", good, torch.float64)])
        assert isinstance(found[0], ValueError)
        assert "share their width" in str(found[0])
        assert isinstance(found[1], RuntimeError)
        assert "processes [0] of the group of 2" in str(found[1])
        compare(pool, "default", EVEN)  # and they go on

    def test_widths_are_the_same_everywhere(self, pool: ProcessPool) -> None:
        one, other = draw(EVEN)
        narrow = tuple((tokens[..., :-1], mask) for tokens, mask in other)
        jobs = [("default", one, torch.float64), ("default", narrow, torch.float64)]
        for error in pool.run(step, jobs):
            assert isinstance(error, ValueError)
            assert "width of tokens must be the same on all processes, got [6, 5]" in str(error)

    def test_all_or_none_have_group_ids(self, pool: ProcessPool) -> None:
        one, other = draw(EVEN)
        ids = torch.tensor([0, 1])
        jobs = [("videos", one, torch.float64, ids), ("videos", other, torch.float64)]
        for error in pool.run(step, jobs):
            assert isinstance(error, ValueError)
            assert "presence of group_ids" in str(error)

    def test_temperatures_that_drifted_apart_are_noticed(self, pool: ProcessPool) -> None:
        for loss in (_drifted, _fixed):
            for error in pool.run(loss, [(0.2,), (0.21,)]):
                assert isinstance(error, ValueError)
                assert "temperatures" in str(error)

    def test_scales_from_outside_are_compared_too(self, pool: ProcessPool) -> None:
        for error in pool.run(_scaled, [(10.0,), (11.0,)]):
            assert isinstance(error, ValueError)
        for error in pool.run(_trained_scale, [(True,), (False,)]):
            assert isinstance(error, ValueError)
            assert "single numbers that are trained" in str(error)

    def test_a_process_outside_the_group_is_told(self, pool: ProcessPool) -> None:
        found = pool.run(_in_group_of_two, [()] * 3)
        assert found[:2] == [2, 2]
        assert isinstance(found[2], ValueError)

    def test_without_torch_distributed(self) -> None:
        with pytest.raises(RuntimeError, match="init_process_group"):
            NortonLoss(process_group="world")(torch.randn(1, 2, 3), torch.randn(1, 2, 3))

    def test_what_is_no_group(self) -> None:
        with pytest.raises(TypeError, match="process_group"):
            NortonLoss(process_group=2)  # type: ignore[arg-type]

    def test_solvers_of_whole_problems_are_refused(self) -> None:
        pytest.importorskip("ot", reason="POT is not installed")
        for solver in (POTSinkhorn(), TorchSinkhorn(domain="scaling")):
            with pytest.raises(ValueError, match="shared out"):
                ClipCaptionOTLoss(sinkhorn=solver, process_group="world")
            with pytest.raises(ValueError, match="shared out"):
                NortonLoss(clip_caption=ClipCaptionOTLoss(sinkhorn=solver), process_group="world")
            ClipCaptionOTLoss(0.0, sinkhorn=solver, process_group="world")  # has no transport

    def test_what_cannot_be_made_by_turns(self) -> None:
        similarity = SoftMaximumSimilarity(rescale="minmax")
        bucket = PromptBucket(learnable=True)
        for video in (
            {"similarity": similarity},
            {"measure": TransportMeasure(bucket=bucket, objective="entropic")},
        ):
            with pytest.raises(ValueError, match='take gather="all"'):
                NortonVideoParagraphLoss(**video, process_group="world", gather="chunked")
            with pytest.raises(ValueError, match='take gather="all"'):
                NortonLoss(
                    NortonVideoParagraphLoss(**video), process_group="world", gather="chunked"
                )
        with pytest.raises(ValueError, match="gather must be one of"):
            NortonLoss(gather="ring")  # type: ignore[arg-type]

    def test_terms_have_no_group_of_their_own(self) -> None:
        with pytest.raises(ValueError, match="give it to the NortonLoss"):
            NortonLoss(clip_caption=ClipCaptionOTLoss(process_group="world"))


def _drifted(group: Any, temperature: float) -> Tensor:
    loss = ClipCaptionOTLoss(temperature=temperature, process_group=group)
    return loss(torch.randn(3, 4), torch.randn(3, 4))


def _scaled(group: Any, scale: float) -> Tensor:
    loss = ClipCaptionOTLoss(temperature=None, process_group=group)
    return loss(torch.randn(3, 4), torch.randn(3, 4), logit_scale=scale)


def _fixed(group: Any, temperature: float) -> Tensor:
    loss = NortonVideoParagraphLoss(temperature=temperature, process_group=group)
    return loss(torch.randn(3, 2, 4), torch.randn(3, 2, 4))


def _trained_scale(group: Any, trained: bool) -> Tensor:
    loss = ClipCaptionOTLoss(temperature=None, process_group=group)
    scale = torch.tensor(3.0, requires_grad=trained)
    return loss(torch.randn(3, 4), torch.randn(3, 4), logit_scale=scale)


def _without_a_video(group: Any, sequences: int, segments: int) -> Tensor:
    tokens, embeddings = torch.ones(sequences, segments, 2, 4), torch.ones(sequences, segments, 6)
    side = Segments(tokens, tokens[..., 0] > 0, embeddings=embeddings)
    ids = torch.arange(sequences)
    return NortonLoss(process_group=group)(side, side, group_ids=ids).detach()


def test_segments_without_a_sequence(pool: ProcessPool) -> None:
    alone = _without_a_video(None, 3, 2)
    for found in pool.run(_without_a_video, [(3, 2), (0, 5)]):
        if isinstance(found, Exception):
            raise found
        torch.testing.assert_close(found, alone)


def _in_group_of_two(group: Any) -> int:
    NortonLoss(process_group=GROUPS[2])
    return Shard.of(GROUPS[2]).size


def _copied(group: Any) -> tuple[bool, float, float]:
    loss = NortonLoss(process_group=group)
    twin = copy.deepcopy(loss)
    tokens = torch.randn(2, 3, 4)
    same = twin.process_group is loss.process_group
    return same, loss(tokens, tokens).item(), twin(tokens, tokens).item()


def test_a_copy_has_the_same_group(pool: ProcessPool) -> None:
    for same, one, other in pool.run(_copied, [(), ()]):
        assert same
        assert one == other


def _explained(group: Any, sides: tuple[Side, Side]) -> tuple[Any, ...]:
    out = NortonLoss(process_group=group).explain(*(Segments(*side) for side in sides))
    video, clips = out.video_paragraph, out.clip_caption
    plan = clips.plan
    assert plan is not None
    assert clips.targets is not None
    return (
        tuple(video.scores.shape),
        video.scores,
        tuple(clips.targets.shape),
        clips.targets.sum(-1),
        clips.mask,
        plan.marginal_error,
        out.diagnostics(),
    )


def test_explain_has_the_rows_of_this_process(pool: ProcessPool) -> None:
    sides = draw(EVEN)
    _, scores, _, _, _, error, numbers = _explained(None, together(sides))
    found = pool.run(_explained, [(s,) for s in sides])
    for rank, (shape, of_rank, targets, sums, mask, of_plan, diagnostics) in enumerate(found):
        assert shape == (2, 4)
        assert targets == (6, 12)
        torch.testing.assert_close(of_rank, scores[2 * rank : 2 * rank + 2])
        torch.testing.assert_close(sums[mask].sum(), mask.sum().to(sums.dtype), rtol=0.05, atol=0)
        torch.testing.assert_close(of_plan, error)
        assert diagnostics.keys() < numbers.keys()
        assert diagnostics["loss"] == pytest.approx(numbers["loss"])
    total = sum(d["clip_caption/faulty_negative_mass"] for *_, d in found)
    assert total == pytest.approx(numbers["clip_caption/faulty_negative_mass"])


def _bytes_of_clips(group: Any, sides: tuple[Side, Side], iterations: int) -> int:
    return _bytes_sent(group, sides, iterations, of_clips=True)


def test_the_clip_caption_loss_sends_its_embeddings_once(pool: ProcessPool) -> None:
    size, (b, n, *_), iterations = 2, EVEN[0], 7
    k = size * b * n
    there_and_back = 2 * 4 * k * WIDTH + 2 * k  # with masks of segments and of pairs
    expected = there_and_back + iterations * 2 * 4 * k + (3 * 4 + 8) * k
    expected += 8 * distributed.NUMBERS * size
    for found in pool.run(_bytes_of_clips, [(s, iterations) for s in draw(EVEN)]):
        if isinstance(found, Exception):
            raise found
        assert expected <= found <= expected + 100


def _logged_by_one(group: Any, sides: tuple[Side, Side]) -> float:
    out = NortonLoss(process_group=group).explain(*(Segments(*side) for side in sides))
    return out.diagnostics()["loss"] if torch.distributed.get_rank(group) == 0 else 0.0


def test_one_process_may_log(pool: ProcessPool) -> None:
    found = pool.run(_logged_by_one, [(s,) for s in draw(EVEN)])
    assert found[0] > 0
    assert found[1] == 0


class Dropping(nn.Module):
    """A similarity with random numbers, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7]), requires_grad=False)

    def forward(self, video: Segments, text: Segments) -> Tensor:
        return nn.functional.dropout(self.weight * _cosines(video, text), 0.5)


def _with_dropout(group: Any, sides: tuple[Side, Side]) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative along a direction, by the backward pass and by differences; a random number."""
    measure = DynamicTimeWarping(0.1)  # whose gradient is exact
    loss = NortonVideoParagraphLoss(
        Dropping(), measure, process_group=group, gather="chunked"
    ).double()
    (tokens, mask), text = sides
    direction = torch.ones_like(tokens)
    values = []
    for step in (0.0, -1e-5, 1e-5):
        torch.manual_seed(0)
        leaf = (tokens + step * direction).requires_grad_()
        value = loss(Segments(leaf, mask), Segments(*text))
        if step == 0:
            value.backward()
            drawn = torch.rand(1)
            assert leaf.grad is not None
            along = (leaf.grad * direction).sum()
        values.append(value.detach())
    return along, 2 * (values[2] - values[1]) / 2e-5, drawn


def test_random_numbers_come_again_by_turns(pool: ProcessPool) -> None:
    """Both ranks move all their tokens at once, and each has its own part of the derivative."""
    found = pool.run(_with_dropout, [(s,) for s in draw(EVEN)])
    for result in found:
        if isinstance(result, Exception):
            raise result
    total = sum(along for along, *_ in found)
    torch.testing.assert_close(total, found[0][1], rtol=1e-4, atol=1e-6)


def _twice_differentiated(
    group: Any, sides: list[tuple[Side, Side]], gather: str = "all"
) -> list[Tensor]:
    """Gradients of the squared gradient; of one process with all sides, or a process with one."""
    similarity = SoftMaximumSimilarity(implementation="reference")
    videos = NortonVideoParagraphLoss(similarity, learnable_temperature=True, scale_by_length=True)
    loss = NortonLoss(videos, process_group=group, gather=gather).double()
    tokens, masks = ([torch.cat([s[k][i] for s in sides]) for k in (0, 1)] for i in (0, 1))
    leaves = [side.requires_grad_() for side in tokens]
    value = loss(*(Segments(*side) for side in zip(leaves, masks, strict=True)))
    gradients = torch.autograd.grad(value, leaves, create_graph=True)
    size = 1 if group is None else torch.distributed.get_world_size(group)
    squared = sum((g / size).square().sum() for g in gradients)
    return list(torch.autograd.grad(squared, leaves))


def test_second_derivatives_are_those_of_one_process(pool: ProcessPool) -> None:
    sides = draw([(2, 3, 3, 4, 5)] * 2)
    alone = _twice_differentiated(None, sides)
    found = pool.run(_twice_differentiated, [([side],) for side in sides])
    for whole, *parts in zip(alone, *found, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-12)


def test_by_turns_there_is_no_second_derivative(pool: ProcessPool) -> None:
    for error in pool.run(_twice_differentiated, [([s], "chunked") for s in draw(EVEN)]):
        assert isinstance(error, RuntimeError)
        assert "first derivative only" in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
def test_a_copy_of_a_compiled_loss_is_a_loss_of_its_own() -> None:
    loss = NortonLoss()
    loss.compile(backend="eager")
    tokens = torch.randn(2, 3, 4)
    loss(tokens, tokens)
    copied = copy.deepcopy(loss)
    with torch.no_grad():
        copied.clip_caption.temperature.log_scale += 1  # type: ignore[union-attr]
    assert copied(tokens, tokens).item() == copied.forward(tokens, tokens).item()
    assert copied(tokens, tokens).item() != loss(tokens, tokens).item()


def _shared_out(group: Any, scores: Tensor, rows: Tensor) -> tuple[Tensor, bool]:
    even = torch.full((len(scores),), 1 / len(scores), dtype=scores.dtype).log()
    problem = TransportProblem(scores[rows], even[rows], even, epsilon=0.5, shard=Shard.of(group))
    plan = TorchSinkhorn(100).solve(problem)
    with pytest.raises(ValueError, match="cannot be exchanged"):
        plan.T  # noqa: B018
    return plan.plan, bool(plan.converged)


def test_a_problem_may_be_shared_out(pool: ProcessPool) -> None:
    scores = torch.rand(5, 5, dtype=torch.float64)
    expected, _ = _shared_out_whole(scores)
    jobs = [(scores, torch.arange(2)), (scores, torch.arange(2, 5))]
    found = pool.run(_shared_out, jobs)
    for result in found:
        if isinstance(result, Exception):
            raise result
    torch.testing.assert_close(torch.cat([plan for plan, _ in found]), expected)
    assert all(converged for _, converged in found)


def _shared_out_whole(scores: Tensor) -> tuple[Tensor, bool]:
    even = torch.full((len(scores),), 1 / len(scores), dtype=scores.dtype).log()
    plan = TorchSinkhorn(100).solve(TransportProblem(scores, even, even, epsilon=0.5))
    return plan.plan, bool(plan.converged)


def _in_the_world(group: Any) -> float:
    tokens = torch.arange(24.0).view(2, 3, 4).sin()
    return NortonLoss(process_group="world")(tokens, tokens).item()


def test_the_world_by_name(pool: ProcessPool) -> None:
    tokens = torch.arange(24.0).view(2, 3, 4).sin()
    expected = NortonLoss()(*[torch.cat([tokens] * 4)] * 2).item()
    for found in pool.run(_in_the_world, [()] * 4):
        assert found == pytest.approx(expected, rel=1e-6)


def _retrieved(group: Any, loss: str | None, videos: list[Tensor], spoiled: bool = False) -> Tensor:
    scorer = NortonLoss() if loss is None else loss
    if spoiled:
        scorer = lambda similarity, *masks: similarity  # noqa: E731 - not a score a pair
    out = retrieve(scorer, videos, videos[::-1], process_group=group, progress=False)
    assert out.video_to_paragraph.recalls.keys() == {1, 5, 10}
    return out.scores


@pytest.mark.parametrize("measure", [None, "dtw"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_retrieval_is_shared_out(pool: ProcessPool, measure: str | None, ranks: int) -> None:
    g = torch.Generator().manual_seed(0)
    videos = [torch.randn(n, 8, generator=g) for n in (3, 5, 4, 3, 1, 6, 2)]
    expected = _retrieved(None, measure, videos)
    for found in pool.run(_retrieved, [(measure, videos)] * ranks):
        torch.testing.assert_close(found, expected)


def test_retrieval_fails_together(pool: ProcessPool) -> None:
    videos = [torch.randn(3, 8) for _ in range(4)]
    one, other = pool.run(_retrieved, [("dtw", videos, True), ("dtw", videos)])
    assert isinstance(one, ValueError)
    assert isinstance(other, RuntimeError)
    spoiled = [videos[0] * torch.nan, *videos[1:]]
    one, other = pool.run(_retrieved, [("dtw", spoiled), ("dtw", videos)])
    assert isinstance(one, ValueError)
    assert isinstance(other, RuntimeError)
    for error in pool.run(_retrieved, [("dtw", videos), ("dtw", videos[:3])]):
        assert isinstance(error, ValueError)
        assert "all videos and all paragraphs" in str(error)
    wide = [video.double() for video in videos]
    for error in pool.run(_retrieved, [("dtw", videos), ("dtw", wide)]):
        assert isinstance(error, ValueError)
        assert "in the same precision" in str(error)


def _bytes_sent(
    group: Any, sides: tuple[Side, Side], iterations: int, *, of_clips: bool = False
) -> int:
    """Of the results of all collectives of a step, of NortonLoss or of its clip-caption term."""
    sent: list[int] = []

    def counted(collective: Callable[..., None]) -> Callable[..., None]:
        def call(out: Tensor, *others: Any, **options: Any) -> None:
            tensors = [out, *(other for other in others if isinstance(other, Tensor))]
            sent.append(max(tensor.numel() * tensor.element_size() for tensor in tensors))
            collective(out, *others, **options)

        return call

    real = distributed._all_gather, distributed._reduce_scatter, distributed.dist.all_reduce
    distributed._all_gather, distributed._reduce_scatter, distributed.dist.all_reduce = map(
        counted, real
    )
    try:
        solver = TorchSinkhorn(iterations)
        loss: nn.Module = NortonLoss(
            NortonVideoParagraphLoss(learnable_temperature=True),
            ClipCaptionOTLoss(sinkhorn=solver),
            process_group=group,
        )
        if of_clips:
            loss = ClipCaptionOTLoss(sinkhorn=solver, process_group=group)
        video, text = (Segments(t.float().requires_grad_(), m) for t, m in sides)
        loss(video, text).backward()
    finally:
        distributed._all_gather, distributed._reduce_scatter, distributed.dist.all_reduce = real
    return sum(sent)


def test_the_volume_of_communication_is_that_of_the_documentation(pool: ProcessPool) -> None:
    """See docs/how_to/distributed.md: what a step gathers, reduces and sums."""
    size, (b, n, m, _, w), iterations = 2, EVEN[0], 7
    k = size * b * m
    tokens, embeddings = 4 * k * w * WIDTH, 4 * k * WIDTH
    gathered = tokens + k * w + embeddings + k  # tokens, their mask, embeddings, valid pairs
    gathered += size * b * min(n, m) * (4 + 1)  # the bucket's aligned pairs
    returned = tokens + embeddings
    transport = iterations * 2 * 4 * k
    # Two column softmaxes: a maximum and a sum forward, a sum back, and which columns are empty.
    columns = size * b
    softmaxes = (3 * 4 + 8) * (columns + k)
    told = 8 * distributed.NUMBERS * size
    expected = gathered + returned + transport + softmaxes + told
    for found in pool.run(_bytes_sent, [(s, iterations) for s in draw(EVEN)]):
        if isinstance(found, Exception):
            raise found
        # The rest are single numbers: sums, counts, gradients of temperatures.
        assert expected <= found <= expected + 200


def test_the_documentation_has_the_measured_shares() -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from benchmarks.distributed import BLOCK, PAGE, rewritten

    text = PAGE.read_text()
    assert [block["what"] for block in BLOCK.finditer(text)] == ["computed", "measured"]
    assert rewritten(text) == text


@pytest.mark.slow
def test_work_is_shared_out_evenly() -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from benchmarks.distributed import ALONE, measure

    rows = [r for r in measure(clips=64, width=16, sizes=(1, 2))["rows"] if r["loss"] in ALONE]
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert two["flops"] == pytest.approx(one["flops"] / 2, rel=0.05)
