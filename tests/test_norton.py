from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from norton_losses import (
    CaptionAverage,
    ClipCaptionOTLoss,
    MaxSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    Segments,
    SoftMaximumSimilarity,
    TransportMeasure,
)
from tests.batches import make_batch

LOSSES = {
    "default": NortonLoss,
    "released": NortonLoss.released,
    "paper": NortonLoss.paper,
    "ablated": lambda: NortonLoss(
        NortonVideoParagraphLoss(MaxSimilarity(), CaptionAverage()), ClipCaptionOTLoss(beta=0)
    ),
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())


def test_is_the_weighted_sum_of_its_terms() -> None:
    batch = make_batch(ragged=True)
    loss = NortonLoss(weight=0.7)
    out = loss.explain(*batch.sides)
    video_paragraph = loss.video_paragraph(*batch.sides)
    clips, captions = (
        torch.where(mask[..., None], tokens, 0).sum(2) / mask.sum(2, keepdim=True).clamp(min=1)
        for tokens, mask in (
            (batch.video_tokens, batch.frame_mask & batch.clip_mask[..., None]),
            (batch.text_tokens, batch.word_mask & batch.caption_mask[..., None]),
        )
    )
    both = batch.clips_present & batch.captions_present
    clip_caption = loss.clip_caption(Segments(clips, mask=both), Segments(captions, mask=both))
    assert torch.equal(out.video_paragraph.loss, video_paragraph)
    torch.testing.assert_close(out.clip_caption.loss, clip_caption)
    torch.testing.assert_close(out.loss, clip_caption + 0.7 * video_paragraph)
    assert torch.equal(out.clip_caption.mask, both.flatten())
    assert torch.equal(loss(*batch.sides), out.loss)


def test_weight_zero_is_the_clip_caption_loss() -> None:
    batch = make_batch()
    loss = NortonLoss(weight=0.0)
    assert torch.equal(loss(*batch.tokens), loss.clip_caption(*(t.mean(2) for t in batch.tokens)))


def test_needs_as_many_clips_as_captions() -> None:
    batch = make_batch(clips=5, captions=4)
    with pytest.raises(ValueError, match=r"N = 5 clips and M = 4.*use NortonVideoParagraphLoss"):
        NortonLoss()(*batch.tokens)


def test_group_ids_are_for_the_video_paragraph_term() -> None:
    batch = make_batch()
    groups = torch.tensor([0, 0, 1])
    loss = NortonLoss()
    out = loss.explain(*batch.tokens, group_ids=groups)
    alone = loss.video_paragraph(*batch.tokens, group_ids=groups)
    assert torch.equal(out.video_paragraph.loss, alone)
    assert torch.equal(out.clip_caption.loss, loss.explain(*batch.tokens).clip_caption.loss)


def test_logit_scale_is_for_the_clip_caption_term() -> None:
    batch = make_batch()
    loss = NortonLoss(clip_caption=ClipCaptionOTLoss(temperature=None))
    free, scaled = loss.explain(*batch.tokens), loss.explain(*batch.tokens, logit_scale=20.0)
    assert torch.equal(free.video_paragraph.loss, scaled.video_paragraph.loss)
    torch.testing.assert_close(scaled.clip_caption.logits, 20 * free.clip_caption.logits)
    with pytest.raises(ValueError, match="logit_scale replaces the temperature"):
        NortonLoss()(*batch.tokens, logit_scale=20.0)


@pytest.mark.parametrize("without", [(0,), (1,), (0, 1)])
def test_a_scale_goes_to_the_terms_that_have_no_temperature(without: tuple[int, ...]) -> None:
    batch = make_batch()
    bare = NortonVideoParagraphLoss(temperature=None), ClipCaptionOTLoss(temperature=None)
    loss = NortonLoss(*(term if place in without else None for place, term in enumerate(bare)))  # type: ignore[arg-type]
    free = NortonLoss(*bare).explain(*batch.tokens)
    out = loss.explain(*batch.tokens, logit_scale=20.0)
    for term, scaled, plain in (
        (loss.video_paragraph, out.video_paragraph, free.video_paragraph),
        (loss.clip_caption, out.clip_caption, free.clip_caption),
    ):
        scale = 20.0 if term.temperature is None else 1 / term.temperature().item()
        torch.testing.assert_close(scaled.logits, scale * plain.logits)


def test_score_is_the_video_paragraph_terms() -> None:
    batch = make_batch()
    loss = NortonLoss()
    assert torch.equal(loss.score(*batch.tokens), loss.video_paragraph.score(*batch.tokens))
    stretched = NortonLoss.released()
    known = {"similarity_range": (-0.5, 0.5), "bucket_value": 0.2}
    score = stretched.score(*batch.tokens, **known)
    assert torch.equal(score, stretched.video_paragraph.score(*batch.tokens, **known))
    with pytest.raises(ValueError, match="pass similarity_range"):
        stretched.score(*batch.tokens, bucket_value=0.2)


def test_embeddings_go_to_both_terms() -> None:
    batch, clips = make_batch(), torch.randn(3, 4, 8).double()
    loss = NortonLoss()
    base = loss.explain(*batch.tokens)
    out = loss.explain(Segments(batch.video_tokens, embeddings=clips), batch.text_tokens)
    assert not torch.equal(out.video_paragraph.loss, base.video_paragraph.loss)
    assert not torch.equal(out.clip_caption.loss, base.clip_caption.loss)


class TestPresets:
    def test_released(self) -> None:
        loss = NortonLoss.released(alpha=0.5, epsilon=0.2, prompt_ratio=0.4, beta=0.1, iterations=9)
        similarity, measure = loss.video_paragraph.similarity, loss.video_paragraph.measure
        assert isinstance(similarity, SoftMaximumSimilarity)
        assert isinstance(measure, TransportMeasure)
        assert (similarity.alpha, similarity.rescale, similarity.exponential) == (
            0.5,
            "minmax",
            "sum",
        )
        assert similarity.count_padding
        assert similarity.pooled_weight == 0.5
        assert (measure.epsilon, measure.conserve_mass, measure.sinkhorn.iterations) == (
            0.2,
            True,
            9,
        )
        assert measure.bucket is not None
        assert measure.bucket.ratio == 0.4
        assert (loss.clip_caption.beta, loss.clip_caption.epsilon) == (0.1, 1.0)
        assert not loss.clip_caption.normalize
        assert loss.video_paragraph.temperature is not None
        assert loss.video_paragraph.temperature().item() == pytest.approx(0.07)
        assert loss.video_paragraph.scale_by_length
        assert loss.clip_caption.temperature is None
        assert not list(loss.parameters())
        assert loss.weight == 0.1

    def test_paper(self) -> None:
        loss = NortonLoss.paper()
        similarity, measure = loss.video_paragraph.similarity, loss.video_paragraph.measure
        assert isinstance(similarity, SoftMaximumSimilarity)
        assert isinstance(measure, TransportMeasure)
        assert (similarity.alpha, similarity.pooled_weight, similarity.rescale) == (1.0, 0.0, None)
        assert not similarity.count_padding
        assert similarity.exponential == "sum"
        assert (measure.epsilon, measure.conserve_mass) == (0.1, False)
        assert not loss.clip_caption.normalize
        for term in (loss.video_paragraph, loss.clip_caption):
            assert term.temperature is not None
            assert term.temperature().item() == pytest.approx(0.07)
        assert loss.video_paragraph.scale_by_length
        assert len(list(loss.parameters())) == 2
        assert loss.weight == 0.1

    @pytest.mark.parametrize("preset", [NortonLoss.released, NortonLoss.paper])
    def test_both_transports_have_their_iterations_and_the_loss_its_group(self, preset) -> None:
        loss = preset(iterations=7, process_group="world")
        assert loss.process_group == "world"
        assert loss.video_paragraph.measure.sinkhorn.iterations == 7
        assert loss.clip_caption.sinkhorn.iterations == 7

    def test_default(self) -> None:
        loss = NortonLoss()
        assert loss.weight == 1
        assert loss.clip_caption.temperature is not None
        assert loss.clip_caption.temperature().item() == pytest.approx(0.2)
        assert not loss.video_paragraph.scale_by_length
        assert len(list(loss.parameters())) == 1


class TestAsModule:
    @every_loss
    def test_explain_and_forward_share_their_signature(self, make) -> None:
        for loss in (make(), make().video_paragraph, make().clip_caption):
            forward, explain = inspect.signature(loss.forward), inspect.signature(loss.explain)
            assert forward.parameters == explain.parameters

    def test_temperatures_register(self) -> None:
        of_pairs = "clip_caption.temperature.log_scale"
        of_sequences = "video_paragraph.temperature.log_scale"
        assert [name for name, _ in NortonLoss().named_parameters()] == [of_pairs]
        assert {of_pairs, of_sequences} <= set(NortonLoss().state_dict())
        assert [name for name, _ in NortonLoss.paper().named_parameters()] == [
            of_sequences,
            of_pairs,
        ]

    def test_a_step_of_an_optimiser_moves_the_temperatures(self) -> None:
        batch, loss = make_batch(), NortonLoss.paper()
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        before = [p.item() for p in loss.parameters()]
        loss(*batch.tokens).backward()
        optimizer.step()
        assert all(p.item() != b for p, b in zip(loss.parameters(), before, strict=True))

    def test_two_instances_share_nothing(self) -> None:
        first, second = NortonLoss(), NortonLoss()
        ids = [{id(part) for part in loss.modules()} for loss in (first, second)]
        assert not ids[0] & ids[1]
        pointers = [{p.data_ptr() for p in loss.parameters()} for loss in (first, second)]
        assert not pointers[0] & pointers[1]

    # torch's own tracer instantiates autograd functions, which torch deprecates.
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.slow
    @every_loss
    def test_compiles_without_a_graph_break(self, make) -> None:
        batch = make_batch(ragged=True).leaves()
        loss = make()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        value = compiled(*batch.sides)
        expected = loss(*batch.sides)
        torch.testing.assert_close(value, expected)
        for ours, theirs in zip(
            torch.autograd.grad(value, batch.tokens),
            torch.autograd.grad(expected, batch.tokens),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    @every_loss
    def test_moves_to_double(self, make) -> None:
        batch = make_batch()
        assert make().double()(*batch.tokens).dtype == torch.float64

    @every_loss
    def test_printed_form_names_its_settings(self, make) -> None:
        printed = repr(make())
        for setting in ("weight=", "beta=", "pooled_weight="):
            assert setting in printed


class TestDtypes:
    @every_loss
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_in_float32_out(self, make, dtype: torch.dtype) -> None:
        batch = make_batch(ragged=True).leaves(dtype)
        loss = make()
        value = loss(*batch.sides)
        exact = loss(*batch.sides_of(*(t.detach().float() for t in batch.tokens)))
        assert value.dtype == torch.float32
        assert torch.equal(value, exact)
        value.backward()
        assert batch.video_tokens.grad is not None
        assert batch.video_tokens.grad.dtype == dtype
        assert batch.video_tokens.grad.isfinite().all()

    @every_loss
    def test_float64_throughout(self, make) -> None:
        batch = make_batch()
        out = make().explain(*batch.tokens)
        assert out.loss.dtype == out.video_paragraph.scores.dtype == torch.float64
        assert out.clip_caption.targets.dtype == torch.float64

    @every_loss
    def test_mixed_dtypes_promote(self, make) -> None:
        video, text = make_batch().tokens
        assert make()(video.half(), text.float()).dtype == torch.float32
        assert make()(video.float(), text).dtype == torch.float64

    @every_loss
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_rounds_nothing(self, make, dtype: torch.dtype) -> None:
        batch = make_batch(dtype=torch.float32, ragged=True)
        loss = make()
        outside = loss(*batch.sides)
        with torch.autocast("cpu", dtype=dtype):
            inside = loss(*batch.sides)
        assert torch.equal(inside, outside)


@every_loss
def test_non_contiguous_inputs(make) -> None:
    batch = make_batch(ragged=True)
    strided = [t.transpose(0, 2).contiguous().transpose(0, 2) for t in batch.tokens]
    assert not strided[0].is_contiguous()
    loss = make()
    torch.testing.assert_close(loss(*batch.sides_of(*strided)), loss(*batch.sides))


@pytest.mark.parametrize("name", ["default", "paper", "ablated"])
def test_what_is_masked_has_no_effect(name: str) -> None:
    batch, loss = make_batch(ragged=True), LOSSES[name]()

    def run(garbage: float) -> list[torch.Tensor]:
        leaves = batch.leaves()
        with torch.no_grad():
            leaves.video_tokens[~(batch.frame_mask & batch.clip_mask[..., None])] = garbage
            leaves.text_tokens[~(batch.word_mask & batch.caption_mask[..., None])] = -garbage
        value = loss(*leaves.sides)
        return [value.detach(), *torch.autograd.grad(value, leaves.tokens)]

    for clean, dirty in zip(run(0.0), run(math.nan), strict=True):
        assert torch.equal(clean, dirty)


@every_loss
def test_nothing_valid_gives_zero_on_the_graph(make) -> None:
    batch = make_batch().leaves()
    batch.clip_mask[:] = False
    value = make()(*batch.sides)
    value.backward()
    assert value.item() == 0
    assert batch.video_tokens.grad is not None
    assert not batch.video_tokens.grad.any()


def test_trains_a_linear_tower_to_align() -> None:
    torch.manual_seed(0)
    meaning = torch.randn(8, 4, 16)
    clips, captions = meaning[:, :, None] + 0.1 * torch.randn(8, 4, 3, 16), meaning[:, :, None]
    tower, loss = nn.Linear(16, 16), NortonLoss()
    optimizer = torch.optim.Adam([*tower.parameters(), *loss.parameters()], lr=1e-2)
    losses = []
    for _ in range(30):
        losses.append(loss(tower(clips), captions))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    ranking = loss.score(tower(clips), captions).argmax(1)
    assert torch.equal(ranking, torch.arange(8))


def test_a_similarity_is_no_loss() -> None:
    with pytest.raises(TypeError, match="video_paragraph must be a NortonVideoParagraphLoss"):
        NortonLoss(SoftMaximumSimilarity())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clip_caption must be a ClipCaptionOTLoss"):
        NortonLoss(clip_caption=NortonVideoParagraphLoss())  # type: ignore[arg-type]
