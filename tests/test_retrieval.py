"""Retrieval: tiles, ragged inputs, files, the shell, and what users get wrong."""

from __future__ import annotations

import math
import re
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_losses import (
    AbstractSequenceMeasure,
    BackgroundFiltered,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeasureOutput,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    Segments,
    SimilarityBlock,
    SoftMaximumSimilarity,
    TransportMeasure,
)
from norton_losses.retrieval import (
    RetrievalOutput,
    load_features,
    ragged,
    retrieval_table,
    retrieve,
    save_features,
)
from norton_losses.retrieval.__main__ import main
from norton_losses.retrieval.retrieve import MEASURES
from tests.batches import make_batch

G = torch.Generator().manual_seed(0)
VIDEOS = [torch.randn(int(n), 6, generator=G) for n in torch.randint(2, 9, (11,), generator=G)]
PARAGRAPHS = [
    video[:: 1 + i % 2] + 0.8 * torch.randn(video[:: 1 + i % 2].shape, generator=G)
    for i, video in enumerate(VIDEOS)
]
KINDS = [
    "transport",
    "dtw",
    "otam",
    "caption-average",
    DynamicTimeWarping(0.1),
    BackgroundFiltered(OrderedAlignment()),
    BackgroundFiltered(TransportMeasure()),
    NortonVideoParagraphLoss(),
    NortonLoss(NortonVideoParagraphLoss(MaxSimilarity(), CaptionAverage())),
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: str(k).split("\n")[0])


@every_kind
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_results_do_not_depend_on_the_tiling(kind, batch_size: int) -> None:
    out = retrieve(kind, VIDEOS, PARAGRAPHS, batch_size=batch_size, progress=False)
    whole = retrieve(kind, VIDEOS, PARAGRAPHS, progress=False)
    torch.testing.assert_close(out.scores, whole.scores, rtol=0, atol=2e-6)
    assert out.video_to_paragraph == whole.video_to_paragraph
    assert out.paragraph_to_video == whole.paragraph_to_video


@every_kind
def test_long_sequences_make_small_tiles(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieve(kind, VIDEOS, PARAGRAPHS, progress=False)
    monkeypatch.setattr(ragged, "SEGMENTS", 12)
    out = retrieve(kind, VIDEOS, PARAGRAPHS, progress=False)
    torch.testing.assert_close(out.scores, whole.scores, rtol=0, atol=2e-6)


def test_groups_are_a_partition_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "SEGMENTS", 20)
    sequences = ragged.read_ragged("videos", "clip", VIDEOS)
    for batch_size in (1, 2, 3, 50):
        groups = sequences.groups(batch_size)
        assert sorted(torch.cat(groups).tolist()) == list(range(11))
        for group in groups:
            assert len(group) <= batch_size
            assert len(group) == 1 or len(group) * max(len(VIDEOS[i]) for i in group) <= 20


@pytest.mark.parametrize("name", list(MEASURES))
def test_scores_are_those_of_every_pair_alone(name: str) -> None:
    out = retrieve(name, VIDEOS, PARAGRAPHS, progress=False)
    measure = MEASURES[name]()
    if isinstance(measure, TransportMeasure):
        measure = measure.for_retrieval()
    unit = torch.nn.functional.normalize
    for a, b in [(0, 0), (3, 7), (10, 1)]:
        similarity = unit(VIDEOS[a], dim=-1) @ unit(PARAGRAPHS[b], dim=-1).T
        expected = measure(similarity[None, None])
        torch.testing.assert_close(out.scores[a, b], expected[0, 0], rtol=0, atol=2e-6)


def test_a_loss_scores_as_its_score_does() -> None:
    batch = make_batch(ragged=True, dtype=torch.float32)
    loss = NortonLoss()
    expected = loss.score(*batch.sides, bucket_value=0.1)
    out = retrieve(loss, *batch.sides, bucket_value=0.1, progress=False)
    torch.testing.assert_close(out.scores, expected, rtol=0, atol=1e-6)
    minmax = NortonVideoParagraphLoss(SoftMaximumSimilarity(rescale="minmax"))
    options = {"similarity_range": (-1.0, 1.0)}
    torch.testing.assert_close(
        retrieve(minmax, *batch.sides, **options, progress=False).scores,
        minmax.score(*batch.sides, **options),
    )


def test_counted_padding_counts_the_same_in_every_tile() -> None:
    """Ragged frames are padded to the longest clip of all videos, and not of the tile."""
    videos = [torch.randn(2, frames, 6, generator=G) for frames in (1, 2, 5)]
    loss = NortonLoss.released().video_paragraph
    options = {"similarity_range": (-1.0, 1.0), "progress": False}
    together = retrieve(loss, videos, videos, **options)
    apart = retrieve(loss, videos, videos, batch_size=1, **options)
    torch.testing.assert_close(apart.scores, together.scores, rtol=0, atol=1e-6)


def padded(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=math.nan)
    lengths = torch.tensor([len(s) for s in sequences])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def test_lists_arrays_and_segments_are_the_same() -> None:
    (videos, clips), (paragraphs, captions) = padded(VIDEOS), padded(PARAGRAPHS)
    out = retrieve(
        "dtw", Segments(videos, mask=clips), Segments(paragraphs, mask=captions), progress=False
    )
    plain = retrieve("dtw", VIDEOS, [p.numpy() for p in PARAGRAPHS], progress=False)
    assert torch.equal(out.scores, plain.scores)
    even = torch.stack([video[:2] for video in VIDEOS])
    arrays = retrieve("dtw", even.numpy(), even, progress=False)
    lists = retrieve("dtw", list(even), list(even.numpy()), progress=False)
    assert torch.equal(arrays.scores, lists.scores)


def test_gaps_in_a_mask_are_closed() -> None:
    gaps = torch.zeros(11, 20, 6)
    mask = torch.zeros(11, 20, dtype=torch.bool)
    for number, video in enumerate(VIDEOS):
        places = torch.randperm(20, generator=G)[: len(video)].sort().values
        gaps[number, places], mask[number, places] = video, True
    out = retrieve("dtw", Segments(gaps, mask=mask), PARAGRAPHS, progress=False)
    assert torch.equal(out.scores, retrieve("dtw", VIDEOS, PARAGRAPHS, progress=False).scores)


def test_frames_may_be_a_list_or_padded() -> None:
    batch = make_batch(dtype=torch.float32)
    frames = torch.tensor([[3, 3, 3, 3], [2, 2, 2, 2], [1, 1, 1, 1]])
    mask = torch.arange(3) < frames[..., None]
    loss = NortonVideoParagraphLoss()
    video = Segments(batch.video_tokens, mask)
    expected = loss.score(video, batch.text_tokens)
    as_list = [tokens[:, :f] for tokens, f in zip(batch.video_tokens, (3, 2, 1), strict=True)]
    for videos in (video, as_list):
        out = retrieve(loss, videos, batch.text_tokens, progress=False)
        torch.testing.assert_close(out.scores, expected, rtol=0, atol=1e-6)


def test_each_clip_of_a_list_may_have_its_own_number_of_frames() -> None:
    g = torch.Generator().manual_seed(0)
    videos = [
        [torch.randn(int(f), 6, generator=g) for f in torch.randint(1, 5, (n,), generator=g)]
        for n in (3, 1, 4)
    ]
    padded_videos = Segments.from_list(videos)
    texts = torch.randn(3, 2, 5, 6, generator=g)
    loss = NortonVideoParagraphLoss()
    out = retrieve(loss, videos, texts, progress=False)
    torch.testing.assert_close(out.scores, loss.score(padded_videos, texts), rtol=0, atol=1e-6)


def test_embeddings_of_their_own_are_not_forgotten() -> None:
    """As in training: the loss mixes their cosine in, and a measure compares them."""
    batch = make_batch(dtype=torch.float32)
    clips, captions = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    video = Segments(batch.video_tokens, embeddings=clips)
    text = Segments(batch.text_tokens, embeddings=captions)
    loss = NortonVideoParagraphLoss()
    out = retrieve(loss, video, text, progress=False)
    torch.testing.assert_close(out.scores, loss.score(video, text), rtol=0, atol=1e-6)
    without = loss.score(*batch.tokens)
    assert (out.scores - without).abs().max() > 1e-3
    by_measure = retrieve("dtw", video, text, progress=False)
    assert torch.equal(by_measure.scores, retrieve("dtw", clips, captions, progress=False).scores)


def test_a_measure_with_a_method_named_score_is_no_loss() -> None:
    class Best(torch.nn.Module):
        def forward(self, similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
            return similarity.amax((-2, -1))

        def score(self, similarity: Tensor) -> Tensor:
            raise AssertionError("this is no loss")

    class Own(AbstractSequenceMeasure):
        def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
            return MeasureOutput(block.values.amax((-2, -1)))

        def score(self, video: object, text: object) -> Tensor:
            raise AssertionError("this is no loss")

    found = [retrieve(kind, VIDEOS, PARAGRAPHS, progress=False).scores for kind in (Best(), Own())]
    assert torch.equal(*found)
    unit = torch.nn.functional.normalize
    best = (unit(VIDEOS[3], dim=-1) @ unit(PARAGRAPHS[5], dim=-1).T).max()
    torch.testing.assert_close(found[0][3, 5], best, rtol=0, atol=1e-6)


def test_a_loss_of_ones_own_needs_a_score_alone() -> None:
    class Wrapped:
        def __init__(self) -> None:
            self.loss = NortonVideoParagraphLoss()

        def score(self, video: Segments, text: Segments, *, bucket_value: float | None) -> Tensor:
            return self.loss.score(video, text, bucket_value=bucket_value)

    class Lazy(Wrapped, torch.nn.Module):
        """Its forward takes three arguments, as that of a measure does."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.loss = NortonVideoParagraphLoss()

        def forward(self, video: Segments, text: Segments, step: int) -> Tensor:
            raise AssertionError("only score is asked")

    expected = retrieve(NortonVideoParagraphLoss(), VIDEOS, PARAGRAPHS, progress=False)
    for own in (Wrapped(), Lazy(), torch.compile(NortonVideoParagraphLoss(), backend="eager")):
        out = retrieve(own, VIDEOS, PARAGRAPHS, progress=False)  # type: ignore[arg-type]
        assert torch.equal(out.scores, expected.scores)


def test_compiled_measures_are_measures() -> None:
    compiled = torch.compile(DynamicTimeWarping(), backend="eager")
    out = retrieve(compiled, VIDEOS, PARAGRAPHS, progress=False)  # type: ignore[arg-type]
    assert torch.equal(out.scores, retrieve("dtw", VIDEOS, PARAGRAPHS, progress=False).scores)


def test_a_score_of_the_wrong_shape_is_told() -> None:
    class Broken:
        def score(self, video: Segments, text: Segments, *, bucket_value: float | None) -> object:
            return torch.zeros(len(text))

    class Numbers(Broken):
        def score(self, video: Segments, text: Segments, *, bucket_value: float | None) -> object:
            return [0.0]

    with pytest.raises(ValueError, match=r"a tensor \(Bv, Bt\), here \(11, 11\), got \(11,\)"):
        retrieve(Broken(), VIDEOS, PARAGRAPHS, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a tensor \(Bv, Bt\), here \(11, 11\), got list"):
        retrieve(Numbers(), VIDEOS, PARAGRAPHS, progress=False)  # type: ignore[arg-type]


def test_a_clip_without_frames_in_a_list_is_no_clip() -> None:
    videos = [[torch.randn(2, 8, generator=G) for _ in range(4)] for _ in range(3)]
    gap = [[*video[:2], video[0][:0], *video[2:]] for video in videos]
    loss = NortonVideoParagraphLoss()
    expected = retrieve(loss, videos, videos, progress=False)
    torch.testing.assert_close(retrieve(loss, gap, videos, progress=False).scores, expected.scores)


def test_a_measure_compares_the_mean_tokens_of_segments() -> None:
    batch = make_batch(ragged=True)
    means = [Segments(side.embeddings, mask=side.mask) for side in batch.sides]
    out = retrieve("dtw", *batch.sides, progress=False)
    torch.testing.assert_close(out.scores, retrieve("dtw", *means, progress=False).scores)


def test_truth_gives_both_directions() -> None:
    videos = [VIDEOS[0], VIDEOS[1], VIDEOS[1]]
    out = retrieve("dtw", videos, VIDEOS[:2], truth=[0, 1, 1], progress=False)
    assert out.scores.shape == (3, 2)
    assert out.video_to_paragraph.recalls == {1: 1.0, 5: 1.0, 10: 1.0}
    assert out.paragraph_to_video.median_rank == 1.0
    wrong = retrieve("dtw", videos, VIDEOS[:2], truth=[1, 0, 0], progress=False)
    assert wrong.video_to_paragraph.recalls[1] == 0.0
    assert wrong.video_to_paragraph.median_rank == 2.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    videos = [video.to(dtype) for video in VIDEOS]
    out = retrieve("transport", videos, videos, progress=False)
    assert out.scores.dtype == torch.promote_types(dtype, torch.float32)
    assert out.video_to_paragraph.recalls[1] == 1.0


def test_inputs_that_require_gradient_are_only_read() -> None:
    videos = [video.clone().requires_grad_() for video in VIDEOS]
    assert not retrieve("otam", videos, videos, progress=False).scores.requires_grad


def test_the_bar_goes_to_stderr_and_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    retrieve("dtw", VIDEOS, PARAGRAPHS)
    shown = capsys.readouterr()
    assert "121/121" in shown.err
    assert not shown.out
    retrieve("dtw", VIDEOS, PARAGRAPHS, progress=False)
    assert not capsys.readouterr().err


def test_without_tqdm_a_line_tells_of_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    retrieve("dtw", VIDEOS, PARAGRAPHS)
    shown = capsys.readouterr()
    assert shown.err.startswith("scored 121 pairs in ")
    assert shown.err.count("\n") == 1
    assert not shown.out
    retrieve("dtw", VIDEOS, PARAGRAPHS, progress=False)
    assert not capsys.readouterr().err


def test_the_table_shows_the_recalls() -> None:
    outputs = {"dtw": retrieve("dtw", VIDEOS, PARAGRAPHS, progress=False)}
    table = retrieval_table(outputs)
    recall = 100 * outputs["dtw"].video_to_paragraph.recalls[1]
    assert f"{recall:.1f}" in table
    assert outputs["dtw"].table("dtw") == table
    assert str(outputs["dtw"]) == outputs["dtw"].table("scores")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("dynamic", VIDEOS, VIDEOS), ValueError, r"one of \['transport', 'dtw', 'otam', 'cap"),
        ((ClipCaptionOTLoss(), VIDEOS, VIDEOS), TypeError, "must be a loss with .score.*ClipCapt"),
        ((3, VIDEOS, VIDEOS), TypeError, "or the name of one.*got int"),
        (("dtw", [], VIDEOS), ValueError, "videos must hold one sequence at least"),
        (("dtw", "videos.npz", VIDEOS), TypeError, "videos must be a list with one array of seg"),
        (
            ("dtw", [VIDEOS[0], VIDEOS[1][:0]], VIDEOS[:2]),
            ValueError,
            r"got none in 1 of \d+: videos\[1\]",
        ),
        (("dtw", [VIDEOS[0][0]], VIDEOS[:1]), ValueError, r"videos\[0\] must have shape \(n, D\)"),
        (("dtw", [VIDEOS[0], VIDEOS[1][:, :5]], VIDEOS[:2]), ValueError, "got 6 in .* and 5 in"),
        (
            ("dtw", VIDEOS[:1], [VIDEOS[0][:, :5]]),
            ValueError,
            "must share their width D, got 6 and",
        ),
        (("dtw", [VIDEOS[0] * math.nan], VIDEOS[:1]), ValueError, r"videos\[0\] must be finite"),
        (("dtw", [VIDEOS[0].long()], VIDEOS[:1]), TypeError, r"videos\[0\] must be a floating"),
        (
            ("dtw", VIDEOS[:2], VIDEOS),
            ValueError,
            "a paragraph for each video, got 2 videos and 11",
        ),
        (("dtw", [torch.rand(2, 3, 4)], [torch.rand(2, 4)]), ValueError, "pool them"),
    ],
)
def test_mistakes_are_named(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        retrieve(*arguments, progress=False)


def test_mistakes_of_masks_and_options_are_named() -> None:
    tokens = torch.rand(2, 3, 4)
    empty = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(
        ValueError,
        match=r"one clip at least, got none in 1 of \d+: videos\[1\]; leave them out, and pass truth",
    ):
        retrieve("dtw", Segments(tokens, mask=empty), tokens, progress=False)
    tokenless = [[torch.rand(2, 4)], [torch.rand(0, 4), torch.rand(0, 4)]]
    with pytest.raises(
        ValueError,
        match=r"one clip at least, got none in 1 of \d+: videos\[1\]; leave them out, and pass truth",
    ):
        retrieve(NortonVideoParagraphLoss(), tokenless, tokenless[:1], truth=[0, 0], progress=False)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        retrieve("dtw", tokens, tokens, batch_size=0, progress=False)
    with pytest.raises(ValueError, match="bucket_value is for a TransportMeasure"):
        retrieve("dtw", tokens, tokens, bucket_value=0.1, progress=False)
    with pytest.raises(ValueError, match=r"truth must lie in 0 \.\. 1, got 2"):
        retrieve("dtw", tokens, tokens, truth=[0, 2], progress=False)
    tokens[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=r"videos\[1\] must be finite"):
        retrieve("dtw", tokens, tokens[:1], truth=[0, 0], progress=False)
    mask = ~tokens.isnan().any(-1)
    retrieve("dtw", Segments(tokens, mask=mask), torch.rand(2, 3, 4), progress=False)


def test_the_time_is_that_of_the_scoring() -> None:
    start = time.perf_counter()
    found = retrieve("dtw", VIDEOS, VIDEOS)
    assert 0 < found.seconds <= time.perf_counter() - start
    with pytest.raises(TypeError, match="process_group must"):
        retrieve("dtw", VIDEOS, VIDEOS, process_group=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_sequence_that_is_not_finite_is_named(bad: float) -> None:
    """The first segment of the third of four sequences, behind two of other lengths."""
    videos = [torch.randn(n, 3, 4) for n in (2, 4, 1, 3)]
    videos[2][0, 1, 2] = bad
    with pytest.raises(ValueError, match=r"videos\[2\] must be finite"):
        retrieve("dtw", videos, videos[:1], truth=torch.zeros(4).long())


def test_masked_tokens_may_hold_anything() -> None:
    tokens = torch.randn(2, 3, 4, 5)
    mask = torch.rand(2, 3, 4) < 0.5
    mask[..., 0] = True
    loss = NortonLoss()
    clean = retrieve(loss, Segments(tokens, mask), tokens)
    dirty = retrieve(loss, Segments(tokens.masked_fill(~mask[..., None], math.inf), mask), tokens)
    assert torch.equal(dirty.scores, clean.scores)


@pytest.mark.parametrize(("empty", "shown"), [(3, r"videos\[2\]; leave"), (4, r", \.\.\.; leave")])
def test_three_empty_sequences_are_named_and_more_are_counted(empty: int, shown: str) -> None:
    mask = torch.ones(5, 2, dtype=torch.bool)
    mask[:empty] = False
    videos = Segments(torch.randn(5, 2, 1, 4), mask=mask)
    with pytest.raises(ValueError, match=rf"got none in {empty} of 5: .*{shown}"):
        retrieve("dtw", videos, videos)


def test_a_measure_that_yields_nan_is_told() -> None:
    def broken(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
        return similarity.sum((-2, -1)) * math.nan

    with pytest.raises(ValueError, match="scores must not hold NaN, got 121 of 121"):
        retrieve(broken, VIDEOS, PARAGRAPHS, progress=False)


def test_what_is_no_score_or_no_object_is_told() -> None:
    def rows(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
        return similarity.sum((-3, -2, -1))

    with pytest.raises(ValueError, match=r"a score for each video.*\(11, 11\), got shape \(11,\)"):
        retrieve(rows, VIDEOS, PARAGRAPHS, progress=False)
    with pytest.raises(TypeError, match="a measure must give a torch.Tensor, got ndarray"):
        retrieve(
            lambda s, c, t: s.sum((-2, -1)).numpy(),  # type: ignore[arg-type, return-value]
            VIDEOS,
            PARAGRAPHS,
            progress=False,
        )
    for kind in (TransportMeasure, NortonLoss):
        with pytest.raises(TypeError, match=f"got the class {kind.__name__}; call it"):
            retrieve(kind, VIDEOS, PARAGRAPHS, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="similarity_range is for a loss"):
        retrieve("dtw", VIDEOS, PARAGRAPHS, similarity_range=(0.0, 1.0), progress=False)


def test_arrays_of_any_memory_and_mixed_dtypes() -> None:
    arrays = [video.numpy().copy()[::-1] for video in VIDEOS]
    arrays[0].setflags(write=False)
    arrays[1] = arrays[1].astype(np.float64)
    plain = [torch.from_numpy(np.ascontiguousarray(a).copy()).double() for a in arrays]
    out = retrieve("dtw", arrays, arrays, batch_size=2, progress=False)
    expected = retrieve("dtw", plain, plain, progress=False)
    torch.testing.assert_close(out.scores, expected.scores, rtol=0, atol=1e-12)


def test_a_bucket_is_the_value_given_or_none() -> None:
    measure = TransportMeasure(bucket=PromptBucket(value=0.2))
    fixed = retrieve(TransportMeasure(), VIDEOS, PARAGRAPHS, bucket_value=0.2, progress=False)
    again = retrieve(measure, VIDEOS, PARAGRAPHS, bucket_value=0.2, progress=False)
    bare = retrieve(measure, VIDEOS, PARAGRAPHS, progress=False)
    assert torch.equal(fixed.scores, again.scores)
    assert not torch.allclose(fixed.scores, bare.scores)


class TestReadyScores:
    def test_the_metrics_are_those_of_retrieve(self) -> None:
        g = torch.Generator().manual_seed(3)
        videos, paragraphs = torch.randn(5, 3, 8, generator=g), torch.randn(7, 3, 8, generator=g)
        truth = [6, 0, 0, 3, 2]
        expected = retrieve("dtw", videos, paragraphs, truth=truth, progress=False)
        for scores in (expected.scores, expected.scores.numpy(), expected.scores.tolist()):
            found = RetrievalOutput.from_scores(scores, truth)
            assert str(found) == str(expected)
            assert found.video_to_paragraph == expected.video_to_paragraph
            assert found.paragraph_to_video == expected.paragraph_to_video
            assert found.seconds == 0
            torch.testing.assert_close(found.scores.to(expected.scores), expected.scores)

    def test_scores_of_any_memory_are_copied(self) -> None:
        scores = np.eye(3)
        scores.setflags(write=False)
        assert RetrievalOutput.from_scores(scores[:, ::-1], [2, 1, 0]).scores[0, 2] == 1
        given = torch.eye(3)
        out = RetrievalOutput.from_scores(given)
        given.zero_()
        assert out.scores.equal(torch.eye(3))

    def test_mistakes_are_named(self) -> None:
        with pytest.raises(ValueError, match="without truth there must be a paragraph for each"):
            RetrievalOutput.from_scores(torch.zeros(2, 3))
        with pytest.raises(
            ValueError, match=r"scores must be numbers \(Bv, Bt\), got .* of shape \(3,\)"
        ):
            RetrievalOutput.from_scores(torch.zeros(3))
        with pytest.raises(ValueError, match="must not hold NaN"):
            RetrievalOutput.from_scores(torch.full((2, 2), torch.nan))
        for wrong in (np.eye(2) * 1j, np.array([["a"]]), None):
            with pytest.raises(ValueError, match="scores must be numbers"):
                RetrievalOutput.from_scores(wrong)  # type: ignore[arg-type]

    def test_a_loss_of_similarities_cannot_score_tokens(self) -> None:
        loss = NortonLoss.from_similarity()
        with pytest.raises(TypeError, match=r"give its \.score to RetrievalOutput\.from_scores"):
            retrieve(loss, torch.randn(2, 3, 8), torch.randn(2, 3, 8))


class TestFeatureFile:
    def test_written_and_read(self, tmp_path: Path) -> None:
        save_features(tmp_path / "f.npz", VIDEOS, [p.numpy() for p in PARAGRAPHS], range(11))
        features = load_features(str(tmp_path / "f.npz"))
        for read, given in zip(
            features.videos + features.paragraphs, VIDEOS + PARAGRAPHS, strict=True
        ):
            assert np.array_equal(read, given.numpy())
        assert features.truth is not None
        assert features.truth.tolist() == list(range(11))

    def test_the_page_of_the_format_is_what_is_written(self, tmp_path: Path) -> None:
        from norton_losses.retrieval import feature_file

        texts = [["wash"] * len(one) for one in PARAGRAPHS]
        times = [[0.5] * len(one) for one in VIDEOS], [[0.5] * len(one) for one in PARAGRAPHS]
        extras = {"texts": texts, "times": times}
        save_features(tmp_path / "f.npz", VIDEOS, PARAGRAPHS, range(11), **extras)  # type: ignore[arg-type]
        keys = re.findall(r"^``(\w+)``", feature_file.__doc__ or "", flags=re.MULTILINE)
        with np.load(tmp_path / "f.npz") as archive:
            assert sorted(keys) == sorted(archive.files)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"clips_per_video": None},
                r"lacks the key clips_per_video, integer of shape \(videos,",
            ),
            (
                {"caption_embeddings": None},
                r"caption_embeddings, floating of shape \(all captions, D",
            ),
            ({"clip_embeddings": np.ones(5)}, r"clip_embeddings must have shape \(all clips, D\)"),
            (
                {"clip_embeddings": np.ones((5, 2), int)},
                "clip_embeddings must be floating, got int",
            ),
            (
                {"clips_per_video": np.array([2.0, 3.0])},
                "clips_per_video must be integer, got float",
            ),
            (
                {"clips_per_video": np.array([2, 2])},
                "sum to the rows of clip_embeddings, got 4 and 5",
            ),
            (
                {"clips_per_video": np.array([5, 0])},
                "must be 1 or above, got 0 at 1; leave out what",
            ),
            ({"clip_embeddings": np.ones((5, 3))}, "share their width D, got 3 and 2"),
            (
                {"truth": np.array([0, 2])},
                r"truth must be the paragraph, 0 \.\. 1, of each of the 2",
            ),
            ({"clips_per_video": np.array([2, 2, 1])}, "got 3 videos and 2 paragraphs"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict, message: str, tmp_path: Path) -> None:
        arrays = {
            "clip_embeddings": np.ones((5, 2)),
            "clips_per_video": np.array([2, 3]),
            "caption_embeddings": np.ones((4, 2)),
            "captions_per_paragraph": np.array([1, 3]),
        }
        arrays.update(change)
        path = tmp_path / "f.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(ValueError, match=message):
            load_features(path)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text", b"\x93NUMPY\x01"])
    def test_what_is_no_archive_is_told(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "f.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not an .npz file that numpy can read"):
            load_features(path)

    def test_cut_off_and_pickled_files_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "f.npz"
        save_features(path, VIDEOS, PARAGRAPHS)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="is not an .npz file"):
            load_features(path)
        np.savez(path, clip_embeddings=np.array([{}], dtype=object))
        with pytest.raises(ValueError, match="without pickle"):
            load_features(path)
        encrypted = bytearray(whole)
        for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0 of the flags
            place = encrypted.find(header)
            while place >= 0:
                encrypted[place + offset] |= 1
                place = encrypted.find(header, place + 4)
        path.write_bytes(bytes(encrypted))
        with pytest.raises(ValueError, match="is not an .npz file .*encrypted"):
            load_features(path)
        np.save(tmp_path / "f.npy", np.ones(3))
        (tmp_path / "f.npy").rename(path)
        with pytest.raises(ValueError, match="is not an .npz file"):
            load_features(path)

    def test_other_members_are_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "f.npz"
        save_features(path, VIDEOS, PARAGRAPHS)
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **arrays, ids=np.array([{}], dtype=object))
        assert len(load_features(path).videos) == 11
        np.savez(path, ids=np.array([{}], dtype=object))
        with pytest.raises(ValueError, match="lacks the key clip_embeddings.*it has ids"):
            load_features(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("clip_embeddings", b"not an array")
        with pytest.raises(ValueError, match="clip_embeddings must have shape"):
            load_features(path)

    def test_nothing_unfit_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"path must end in \.npz"):
            save_features(tmp_path / "f.pt", VIDEOS, VIDEOS)
        with pytest.raises(ValueError, match="one array .n, D. for each, of one width"):
            save_features(tmp_path / "f.npz", [VIDEOS[0], VIDEOS[1][:, :3]], VIDEOS)
        with pytest.raises(TypeError, match="lists with one array for each, got one array"):
            save_features(tmp_path / "f.npz", torch.rand(2, 3, 4), VIDEOS)
        with pytest.raises(TypeError, match="lists with one array for each, got one array"):
            save_features(tmp_path / "f.npz", VIDEOS, np.ones((2, 3, 4)))
        assert not list(tmp_path.iterdir())


class TestShell:
    @pytest.fixture
    def features(self, tmp_path: Path) -> Path:
        save_features(tmp_path / "features.npz", VIDEOS, PARAGRAPHS)
        return tmp_path / "features.npz"

    def test_scores_do_not_go_to_a_folder(self, features: Path) -> None:
        folder = features.parent / "folder.npz"
        folder.mkdir()
        with pytest.raises(SystemExit, match="error: --scores must name a file"):
            main([str(features), "--scores", str(folder)])

    def test_it_prints_what_retrieve_finds(
        self, features: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scores = features.parent / "scores.npz"
        main([str(features), "--no-progress", "--scores", str(scores)])
        printed = capsys.readouterr()
        outputs = {name: retrieve(name, VIDEOS, PARAGRAPHS, progress=False) for name in MEASURES}
        assert printed.out == retrieval_table(outputs) + "\n"
        assert not printed.err
        with np.load(scores) as archive:
            assert np.array_equal(archive["otam"], outputs["otam"].scores.numpy())

    def test_options_reach_it(self, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("tqdm")
        options = ["--measures", "dtw", "--clips-per-caption", "1.3"]
        main([str(features), *options, "--batch-size", "3"])
        out = retrieve(BackgroundFiltered(DynamicTimeWarping()), VIDEOS, PARAGRAPHS, progress=False)
        printed = capsys.readouterr()
        outputs = {"dtw, filtered": out}
        assert printed.out == retrieval_table(outputs) + "\n"
        assert "121/121" in printed.err

    def test_scores_never_overwrite_the_features(self, features: Path) -> None:
        with pytest.raises(SystemExit, match="other than the features"):
            main([str(features), "--scores", str(features)])
        assert len(load_features(features).videos) == 11

    def test_truth_and_options_are_handed_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_features(tmp_path / "f.npz", VIDEOS[:3], PARAGRAPHS[:2], [1, 0, 1])
        seen: list[dict] = []

        def spy(measure, videos, paragraphs, **options):
            seen.append(options)
            return retrieve(measure, videos, paragraphs, **options)

        monkeypatch.setattr("norton_losses.retrieval.__main__.retrieve", spy)
        options = ["--batch-size", "5", "--device", "cpu", "--no-progress"]
        main([str(tmp_path / "f.npz"), "--measures", " dtw , otam", *options])
        assert len(seen) == 2
        assert seen[0].pop("truth").tolist() == [1, 0, 1]
        assert seen[0] == {"batch_size": 5, "device": "cpu", "progress": False}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--measures", "dtw,foo"], r"error: measure must be one of \['transport', 'dtw'"),
            (["--clips-per-caption", "0"], "error: clips_per_caption must be"),
            (["--batch-size", "0"], "error: batch_size must be"),
            (["--device", "abacus"], "error: device must be one that torch can .* 'abacus'"),
            (["--device", "meta"], "error: device must be .* it holds no data"),
            (["--scores", "nowhere/scores.npz"], "error: --scores must be in a folder .*nowhere"),
            (["--scores", "scores"], "error: --scores must name an .npz file other than"),
            (["--measures", "dtw,"], "error: measure must be one of .* got ''"),
            (
                ["--measures", "transport", "--clips-per-caption", "1.3"],
                "error: --clips-per-caption filters dtw and otam, and --measures names transport",
            ),
        ],
    )
    def test_mistakes_end_it_with_a_line(
        self, features: Path, options: list[str], message: str
    ) -> None:
        with pytest.raises(SystemExit, match=message):
            main([str(features), *options])
        with pytest.raises(SystemExit, match="error: there is no file"):
            main([str(features.parent / "nothing.npz")])


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_numbers_that_torch_does_not_have(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    videos = [rng.standard_normal((n, 5)).astype(np.float32) for n in (3, 2)]
    expected = retrieve("dtw", videos, videos[::-1], progress=False)
    others = [video.astype(dtype) for video in videos]
    found = retrieve("dtw", others, others[::-1], progress=False)
    torch.testing.assert_close(found.scores, expected.scores, check_dtype=False)


@pytest.mark.parametrize("device", ["foo", "meta", 3.5, "cuda:99"])
def test_a_device_that_is_not_there(device: Any) -> None:
    with pytest.raises(ValueError, match="device must be one that torch can compute on here"):
        retrieve("dtw", VIDEOS, VIDEOS, device=device, progress=False)


def test_the_default_device_is_not_taken() -> None:
    videos = [torch.randn(3, 5), torch.randn(2, 5)]
    tokens = [torch.randn(3, 2, 5), torch.randn(2, 4, 5)]
    expected = [
        retrieve(s, v, v, progress=False) for s, v in (("dtw", videos), (NortonLoss(), tokens))
    ]
    torch.set_default_device("meta")
    try:
        found = [
            retrieve(s, v, v, progress=False)
            for s, v in (("dtw", videos), (NortonLoss().to_empty(device="cpu"), tokens))
        ]
    finally:
        torch.set_default_device(None)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.scores, b.scores)
