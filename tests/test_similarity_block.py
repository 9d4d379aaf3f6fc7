"""The object between a similarity and a measure, and what a loss makes of one's own of either."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from norton_losses import (
    AbstractProblem,
    AbstractSequenceMeasure,
    AbstractSinkhorn,
    BackgroundFiltered,
    CaptionAverage,
    DynamicTimeWarping,
    MeasureOutput,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    Segments,
    SimilarityBlock,
    SoftMaximumSimilarity,
    Support,
    TorchSinkhorn,
    TransportMeasure,
)
from norton_losses.retrieval import retrieve
from norton_losses.sequence_measures import alignment_tiles
from norton_losses.sinkhorn.iteration import Scalings
from tests.batches import make_batch


class TestBlock:
    def test_absent_entries_are_zero_whatever_they_hold(self) -> None:
        values = torch.full((2, 3, 4, 5), math.nan)
        clips, captions = torch.rand(2, 4) < 0.5, torch.rand(3, 5) < 0.5
        valid = clips[:, None, :, None] & captions[None, :, None]
        values[valid] = 0.5
        block = SimilarityBlock(values, clips, captions)
        assert torch.equal(block.values, 0.5 * valid)
        assert torch.equal(block.valid, valid)

    def test_what_is_left_out_is_all_valid_and_half_is_cast_once(self) -> None:
        block = SimilarityBlock(torch.rand(2, 3, 4, 5).half())
        assert block.values.dtype == torch.float32
        assert block.valid.all()
        assert block.bounds is None
        clips, captions = block.counts
        assert torch.equal(clips, torch.full((2, 3), 4))
        assert torch.equal(captions, torch.full((2, 3), 5))

    def test_masks_of_pairs(self) -> None:
        clips = torch.rand(2, 3, 4) < 0.5
        captions = torch.rand(2, 3, 5) < 0.5
        block = SimilarityBlock(torch.rand(2, 3, 4, 5), clips, captions)
        assert torch.equal(block.valid, clips[..., None] & captions[..., None, :])
        kept = block.keep(torch.rand(2, 3, 4) < 0.5)
        assert not (kept.clips & ~clips).any()
        assert kept.bounds == block.bounds

    def test_reading_without_a_graph_keeps_the_gradient(self) -> None:
        values = torch.rand(2, 3, 4, 5, requires_grad=True)
        block = SimilarityBlock(values)
        with torch.no_grad():
            assert not block.values.requires_grad
        block.values.sum().backward()
        assert values.grad is not None
        assert block.values is block.values

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((torch.rand(3, 3),), ValueError, "similarity must have 4 dimensions"),
            ((torch.ones(1, 1, 3, 3).long(),), TypeError, "similarity must be a floating tensor"),
            (
                (torch.rand(2, 3, 4, 5), torch.ones(3, 4).bool()),
                ValueError,
                r"clip_mask must have shape \(2, 4\), got \(3, 4\)",
            ),
            (
                (torch.rand(2, 3, 4, 5), None, torch.ones(3, 2, 5).bool()),
                ValueError,
                r"caption_mask must have shape \(2, 3, 5\), got \(3, 2, 5\)",
            ),
        ],
    )
    def test_mistakes_are_named(self, arguments, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            SimilarityBlock(*arguments)


@dataclass(frozen=True)
class Spy(AbstractSinkhorn):
    """Solves as torch does, and remembers the problems."""

    seen: list[AbstractProblem] = field(default_factory=list, kw_only=True)

    def supports(self, problem: AbstractProblem) -> Support:
        return Support(ok=True, reason="which nobody should read")

    def _solve(self, problem: AbstractProblem) -> Scalings:
        self.seen.append(problem)
        return TorchSinkhorn(self.iterations)._solve(problem)


class TestFilters:
    """A filter around a measure loses nothing, to any depth."""

    @staticmethod
    def wrapped(measure: AbstractSequenceMeasure, depth: int) -> AbstractSequenceMeasure:
        for number in range(depth):
            measure = BackgroundFiltered(measure, 5.0 - number)
        return measure

    @pytest.mark.parametrize("depth", [0, 1, 2, 3])
    def test_bounds_reach_the_solver_in_training_score_and_retrieval(self, depth: int) -> None:
        batch, spy = make_batch(dtype=torch.float32, clips=6), Spy()
        measure = self.wrapped(TransportMeasure(sinkhorn=spy), depth)
        loss = NortonVideoParagraphLoss(measure=measure)
        loss(*batch.tokens)
        loss.score(*batch.tokens)
        loss.score(*batch.tokens, bucket_value=0.2)
        clips = [tokens.mean(1) for tokens in batch.video_tokens]
        retrieve(measure, clips, clips, progress=False)
        assert [problem.score_range for problem in spy.seen] == [(-1.0, 1.0)] * 4
        assert all(TorchSinkhorn().domain_of(problem) == "scaling" for problem in spy.seen)

    @pytest.mark.parametrize("depth", [1, 3])
    def test_plan_bucket_and_path_are_explained(self, depth: int) -> None:
        batch = make_batch(clips=6)
        out = NortonVideoParagraphLoss(measure=self.wrapped(TransportMeasure(), depth)).explain(
            *batch.tokens
        )
        assert out.plan is not None
        assert out.bucket_value is not None
        by_order = NortonVideoParagraphLoss(measure=self.wrapped(DynamicTimeWarping(), depth))
        assert by_order.explain(*batch.tokens).alignment is not None

    def test_for_retrieval_reaches_the_inside(self) -> None:
        measure = self.wrapped(TransportMeasure(), 3)
        for value in (None, 0.25):
            inner, kept = measure.for_retrieval(value), []
            while isinstance(inner, BackgroundFiltered):
                kept.append(inner.clips_per_caption)
                inner = inner.measure
            assert kept == [3.0, 4.0, 5.0]
            assert isinstance(inner, TransportMeasure)
            assert (inner.bucket is None) if value is None else (inner.bucket.value == value)  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="bucket_value is for a TransportMeasure, and here is"):
            self.wrapped(DynamicTimeWarping(), 2).for_retrieval(0.1)

    def test_bounds_let_scores_be_far_off(self) -> None:
        block = SimilarityBlock(torch.rand(2, 2, 3, 3), bounds=(0.0, 1.0))
        spy = Spy()
        self.wrapped(TransportMeasure(bucket=PromptBucket(value=7.0), sinkhorn=spy), 2).evaluate(
            block
        )
        assert spy.seen[0].score_range == (0.0, 7.0)


class TestPath:
    @pytest.mark.parametrize("kind", [DynamicTimeWarping, OrderedAlignment])
    def test_a_loss_trained_by_order_shows_its_path(self, kind: type) -> None:
        batch = make_batch(ragged=True).leaves()
        out = NortonVideoParagraphLoss(measure=kind(0.1)).explain(*batch.sides)
        expected = kind(0.1).explain(out.similarity, out.clip_mask, out.caption_mask).alignment
        assert torch.equal(out.alignment, expected)
        assert not out.alignment.requires_grad
        assert out.plan is None
        out.loss.backward()

    def test_the_path_costs_nothing_unless_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[None] = []
        gradient = alignment_tiles.Tiles.gradient

        def counted(self, *arguments):
            found.append(None)
            return gradient(self, *arguments)

        monkeypatch.setattr(alignment_tiles.Tiles, "gradient", counted)
        out = DynamicTimeWarping().explain(torch.rand(2, 2, 3, 3))
        assert not found
        assert out.alignment is out.alignment
        assert len(found) == 1

    @pytest.mark.parametrize("changed", [0, 1, 2])
    def test_what_is_changed_before_the_path_is_read_is_told(self, changed: int) -> None:
        arguments = torch.rand(2, 2, 3, 3), torch.ones(2, 3).bool(), torch.ones(2, 3).bool()
        out, read = (DynamicTimeWarping().explain(*arguments) for _ in range(2))
        assert read.alignment is not None
        arguments[changed][0] = 0
        with pytest.raises(RuntimeError, match="changed in place since the scores .* read it bef"):
            _ = out.alignment
        assert read.alignment is not None

    def test_measures_without_a_path_have_none(self) -> None:
        for measure in (CaptionAverage(), TransportMeasure()):
            assert measure.explain(torch.rand(2, 2, 3, 3)).alignment is None


def cosines(video: Segments, text: Segments) -> Tensor:
    unit = torch.nn.functional.normalize
    clips, captions = unit(video.embeddings, dim=-1), unit(text.embeddings, dim=-1)
    return torch.einsum("and,bmd->abnm", clips, captions)


class TestOnesOwn:
    def test_a_similarity_is_any_function_of_two_sides(self) -> None:
        batch = make_batch(ragged=True).leaves()

        loss = NortonVideoParagraphLoss(cosines)
        loss(*batch.sides).backward()
        assert batch.video_tokens.grad is not None
        assert batch.video_tokens.grad.any()
        assert loss.score(*batch.sides).shape == (3, 3)
        with pytest.raises(ValueError, match="similarity_range is .* and this similarity has none"):
            loss.score(*batch.sides, similarity_range=(0.0, 1.0))

    def test_a_similarity_of_the_wrong_shape_is_told(self) -> None:
        loss = NortonVideoParagraphLoss(lambda video, text: video.embeddings)
        with pytest.raises(ValueError, match="similarity must have 4 dimensions"):
            loss(*make_batch().tokens)
        turned = NortonVideoParagraphLoss(lambda video, text: torch.rand(3, 3, 5, 4))
        batch = make_batch(clips=4, captions=5)
        with pytest.raises(ValueError, match=r"similarity must have shape \(3, 3, 4, 5\), got"):
            turned(*batch.tokens)
        for wrong in ("cosine", NortonVideoParagraphLoss, 3):
            with pytest.raises(TypeError, match=r"similarity must be called with \(video, text\)"):
                NortonVideoParagraphLoss(wrong)  # type: ignore[arg-type]

    def test_what_a_similarity_gives_for_absent_segments_has_no_effect(self) -> None:
        batch = make_batch(ragged=True)

        def broken(video: Segments, text: Segments) -> Tensor:
            cosines = torch.einsum("and,bmd->abnm", video.embeddings, text.embeddings)
            both = video.mask[:, None, :, None] & text.mask[None, :, None]
            return cosines.tanh().masked_fill(~both, math.nan)

        assert NortonVideoParagraphLoss(broken)(*batch.sides).isfinite()

    def test_a_similarity_sees_zeros_where_masked(self) -> None:
        batch = make_batch(ragged=True)
        sides = []
        for side in batch.sides:
            tokens = side.tokens.masked_fill(~side.token_mask[..., None], math.nan)
            embeddings = side.embeddings.masked_fill(~side.mask[..., None], math.nan)
            sides.append(Segments(tokens, side.token_mask, embeddings=embeddings).to(tokens.device))
            sides[-1].tokens.requires_grad_()

        def products(video: Segments, text: Segments) -> Tensor:
            return torch.einsum("anfd,bmwd->abnm", video.tokens, text.tokens).tanh() + torch.einsum(
                "and,bmd->abnm", video.embeddings, text.embeddings
            )

        value = NortonVideoParagraphLoss(products)(*sides)
        value.backward()
        assert value.isfinite()
        assert all(side.tokens.grad.isfinite().all() for side in sides)

    def test_modules_train_and_are_saved(self) -> None:
        class Bilinear(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.eye(8, dtype=torch.float64))

            def forward(self, video: Segments, text: Segments) -> Tensor:
                return torch.einsum(
                    "and,de,bme->abnm", video.embeddings, self.weight, text.embeddings
                )

        class Best(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

            def forward(self, similarity: Tensor, *masks: Tensor) -> Tensor:
                return self.scale * similarity.mean((-2, -1))

        loss = NortonVideoParagraphLoss(Bilinear(), Best(), learnable_temperature=True)
        loss(*make_batch().tokens).backward()
        gradients = {name: p.grad for name, p in loss.named_parameters()}
        assert len(gradients) == 3
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        assert torch.equal(copy.deepcopy(loss)(*make_batch().tokens), loss(*make_batch().tokens))

    def test_a_measure_with_a_plan_or_a_path_shows_it(self) -> None:
        class Halved(AbstractSequenceMeasure):
            def __init__(self) -> None:
                super().__init__()
                self.inner = TransportMeasure(bucket=None)

            def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
                out = self.inner.evaluate(block)
                return MeasureOutput(out.score / 2, out.plan, lambda: out.plan.core > 0.1)

        out = NortonVideoParagraphLoss(measure=Halved()).explain(*make_batch().tokens)
        assert out.plan is not None
        assert torch.equal(out.alignment, out.plan.core > 0.1)
        assert "plan_entropy" in out.diagnostics()

        def told(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> MeasureOutput:
            return MeasureOutput(similarity.mean((-2, -1)), alignment=similarity > 0)

        by_function = NortonVideoParagraphLoss(measure=told).explain(*make_batch().tokens)
        assert by_function.alignment is not None
        assert by_function.plan is None

    def test_a_measure_gives_one_score_a_pair(self) -> None:
        loss = NortonVideoParagraphLoss(measure=lambda s, c, t: s.sum())
        with pytest.raises(ValueError, match=r"a score for each video .*\(3, 3\), got shape \(\)"):
            loss(*make_batch().tokens)
        with pytest.raises(TypeError, match="a measure must give a torch.Tensor, got float"):
            NortonVideoParagraphLoss(measure=lambda s, c, t: 1.0)(*make_batch().tokens)  # type: ignore[arg-type, return-value]

        class Forgot(AbstractSequenceMeasure):
            def evaluate(self, block: SimilarityBlock) -> Tensor:  # type: ignore[override]
                return block.values.amax((-2, -1))

        with pytest.raises(TypeError, match=r"evaluate must return a MeasureOutput, got Tensor; w"):
            Forgot()(torch.rand(2, 2, 3, 3))

    def test_a_mean_over_nothing_does_not_reach_the_temperature(self) -> None:
        def mean(similarity: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
            both = (clips[:, None, :, None] & captions[None, :, None]).to(similarity)
            return (similarity * both).sum((-2, -1)) / both.sum((-2, -1))

        loss = NortonVideoParagraphLoss(measure=mean, learnable_temperature=True)
        video = Segments.from_list([torch.randn(4, 8), torch.randn(4, 8), torch.zeros(0, 8)])
        value = loss(video, torch.randn(3, 4, 8))
        value.backward()
        assert value.isfinite()
        assert loss.temperature.log_scale.grad.isfinite()

    def test_half_precision_scores_give_a_float32_loss(self) -> None:
        loss = NortonVideoParagraphLoss(measure=lambda s, c, p: s.mean((-2, -1)).bfloat16())
        assert loss(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)).dtype == torch.float32

    def test_a_similarity_may_normalise_absent_embeddings(self) -> None:
        tokens = torch.randn(13, 2, 8, requires_grad=True)
        sides = (Segments.from_flat(t, [8, 5]) for t in (tokens, torch.randn(13, 2, 8)))
        NortonVideoParagraphLoss(cosines)(*sides).backward()
        assert tokens.grad is not None
        assert tokens.grad.isfinite().all()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own tracer
    def test_compiled_parts_are_the_parts(self) -> None:
        batch = make_batch()
        similarity, measure = SoftMaximumSimilarity(), TransportMeasure()
        plain = NortonVideoParagraphLoss(similarity, measure)
        parts = (torch.compile(part, backend="eager") for part in (similarity, measure))
        loss = NortonVideoParagraphLoss(*parts)
        assert torch.equal(loss(*batch.tokens), plain(*batch.tokens))
        assert torch.equal(loss.score(*batch.tokens), plain.score(*batch.tokens))
        assert loss.explain(*batch.tokens).plan is not None


def test_a_reason_is_empty_where_there_is_support() -> None:
    assert Support(ok=True, reason="because").reason == ""
    assert Support(ok=False, reason="because").reason == "because"
    assert Spy().supports(None).reason == ""  # type: ignore[arg-type]
