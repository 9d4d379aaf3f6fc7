"""The demo's corpus is what it says, and the demo runs from end to end at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from examples.handwritten_howto.__main__ import main
from examples.handwritten_howto.corpus import DIGITS, NOTHING, Corpus, Noise, make_corpus, sentence
from examples.handwritten_howto.evaluation import MEASURES, interval

CLEAN = Noise(0.0, 2, 0.0, 0.0, 0.0, 0.0)


def tensors(corpus: Corpus) -> list[torch.Tensor]:
    return [getattr(corpus, name) for name in Corpus.__dataclass_fields__]


def test_same_arguments_give_the_same_corpus() -> None:
    first, second, other = (make_corpus(5, "train", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert not torch.equal(first.recipe, other.recipe)


def test_train_and_test_share_no_scan() -> None:
    def scans(corpus: Corpus) -> set[bytes]:
        return {frame.tobytes() for frame in corpus.frames[corpus.frame_mask].numpy()}

    train = scans(make_corpus(100, "train", noise=CLEAN))
    test = scans(make_corpus(100, "test", noise=CLEAN))
    assert len(train) > 500
    assert len(test) > 300
    assert not train & test


def test_without_noise_clip_and_caption_of_a_slot_are_about_its_step() -> None:
    corpus = make_corpus(6, "train", noise=CLEAN)
    assert torch.equal(corpus.truth, torch.eye(8).bool().expand(6, 8, 8))
    for b, i in np.ndindex(6, 8):
        named = {int(word) - 1 for word in corpus.words[b, i] if word != 0}
        assert named == set(corpus.recipe[b, i].nonzero().flatten().tolist())
        assert len(named) == 3


def test_noise_comes_at_its_rates() -> None:
    corpus = make_corpus(400, "train")
    assert (corpus.clip_step == NOTHING).float().mean().item() == pytest.approx(0.3, abs=0.03)
    shift = torch.arange(8) - corpus.caption_step
    told = corpus.caption_step != NOTHING
    shifted = ((shift != 0) & told).any(1)
    assert shifted.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert shift[told].abs().max() == 2
    digits = ((corpus.words > 0) & (corpus.words <= DIGITS)).any(-1)
    assert torch.equal(digits, told)


def test_sentence_names_digits_and_hides_fillers() -> None:
    assert sentence(torch.tensor([4, 20, 1, 0, 0])) == "three · zero"


def test_interval_holds_the_mean_and_shrinks_with_more_videos() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for videos in (50, 5000):
        hits = np.arange(3 * videos).reshape(3, videos) % 5 < 2
        low, high = interval(hits.astype(float), rng)
        assert low < hits.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_the_demo_runs_and_writes_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    sizes = ["--seeds", "1", "--steps", "2", "--videos", "20", "--held-out", "6"]
    main([*sizes, "--output", str(tmp_path), "--results", str(results)])
    printed = capsys.readouterr().out
    for name in ("InfoNCE", "ClipCaptionOTLoss", "NortonLoss", "transport, background"):
        assert name in printed
    assert (tmp_path / "alignment.png").stat().st_size > 10_000
    record = json.loads(results.read_text())
    assert [row["measure"] for row in record["table"]] == list(MEASURES)
    assert [len(row["cells"]) for row in record["table"]] == [4] * 9
    assert len(record["columns"]) == 4
