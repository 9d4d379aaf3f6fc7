"""The demo's corpus is what it says and leaks nothing, and the demo runs at a tiny size."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from sklearn.datasets import load_digits

from examples.handwritten_howto import concepts, corpus_v1
from examples.handwritten_howto.__main__ import main
from examples.handwritten_howto.corpus import NOTHING, STEPS, Noise, make_corpus, sentence
from examples.handwritten_howto.evaluation import (
    MEASURES,
    HeldOut,
    evaluate,
    paragraph_ranks,
    unit_embeddings,
)
from examples.handwritten_howto.picture import first_shifted
from examples.handwritten_howto.scans import DIGITS, PARTS, draw_scans
from examples.handwritten_howto.towers import PerfectTowers, Towers
from examples.intervals import estimate
from norton_losses.metrics import alignability_auc

SPLITS = tuple(PARTS)


def tensors(corpus: object) -> list[torch.Tensor]:
    return list(vars(corpus).values())


def digits_of(steps: torch.Tensor) -> torch.Tensor:
    """Which digits each step has, (..., 10)."""
    return torch.from_numpy((STEPS[:, :, None] == np.arange(DIGITS)).any(1))[steps]


class TestCorpus:
    def test_same_arguments_give_the_same_corpus(self) -> None:
        first, second, other = (make_corpus(5, "train", seed=seed) for seed in (3, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
        assert not torch.equal(first.clip_step, other.clip_step)

    def test_version_1_is_reproduced_bit_for_bit(self) -> None:
        clean = corpus_v1.Noise(0.0, 2, 0.0, 0.0, 0.0, 0.0)
        for split, seed, noise, digest in (
            ("train", 1, None, "5c04b52d3299e63f"),
            ("test", 2, clean, "9f8185f185cfbb8c"),
        ):
            corpus = corpus_v1.make_corpus(20, split, noise=noise, seed=seed)
            found = hashlib.sha256()
            for tensor in tensors(corpus):
                found.update(tensor.numpy().tobytes())
            assert found.hexdigest()[:16] == digest

    def test_parts_are_whole_forms_of_writers(self) -> None:
        """Every form begins with all digits in their order, twice."""
        _, labels = load_digits(return_X_y=True)
        edges = [0]
        for part in PARTS.values():
            assert part.start == edges[-1]
            assert labels[part][:20].tolist() == 2 * list(range(10))
            edges.append(part.stop)
        assert edges[-1] == len(labels)

    def test_splits_share_no_scan(self) -> None:
        rng = np.random.default_rng(0)
        wanted = np.tile(np.arange(DIGITS), 300)
        seen = [{scan.tobytes() for scan in draw_scans(split, wanted, rng)} for split in SPLITS]
        assert min(map(len, seen)) > 200
        for one, other in combinations(seen, 2):
            assert not one & other

    @pytest.mark.parametrize("split", SPLITS)
    def test_without_noise_clip_and_caption_of_a_slot_are_about_its_step(self, split) -> None:
        corpus = make_corpus(20, split, noise=Noise.none())
        valid = corpus.clip_step != NOTHING
        assert torch.equal(corpus.clip_step, corpus.caption_step)
        assert torch.equal(corpus.frame_mask.any(-1), valid)
        assert torch.equal(corpus.word_mask.any(-1), valid)
        expected = digits_of(corpus.clip_step) & valid[..., None]
        for tokens in (PerfectTowers().watch(corpus), PerfectTowers().read(corpus)):
            assert torch.equal(tokens.tokens.sum(2) > 0, expected)
        assert (corpus.frame_digit[corpus.frame_mask] != NOTHING).all()
        assert set(corpus.lengths.tolist()) == {12, 13, 14, 15, 16}

    def test_noise_comes_at_its_rates(self) -> None:
        corpus = make_corpus(1000, "train")
        valid = corpus.clip_step != NOTHING
        right = corpus.truth.diagonal(dim1=1, dim2=2)[valid].float().mean().item()
        assert right == pytest.approx(0.26, abs=0.01)  # as README says
        off_topic = (corpus.clip_place == NOTHING)[valid].float().mean().item()
        assert off_topic == pytest.approx(0.3, abs=0.02)
        told = corpus.caption_place != NOTHING
        moved = (torch.arange(16) - corpus.caption_place).abs()[told]
        assert moved.max() == 6  # a drift of 1, a jump of 4, and a swap
        within = [make_corpus(1000, "train", noise=replace(Noise(), swapped_steps=0.0))]
        told = within[0].caption_place != NOTHING
        moved = ((torch.arange(16) - within[0].caption_place) != 0) & told
        assert (torch.arange(16) - within[0].caption_place).abs()[told].max() == 5
        assert moved.any(1).float().mean().item() == pytest.approx(0.5, abs=0.05)
        shown = (corpus.frame_digit != NOTHING)[corpus.frame_mask].float().mean().item()
        assert shown == pytest.approx(0.6, abs=0.02)
        named = (corpus.words <= DIGITS)[corpus.word_mask].float().mean().item()
        assert named == pytest.approx(0.6, abs=0.02)
        # A little above its rate, for captions that would tell what is before or after the video.
        assert 0.3 < (corpus.caption_place == NOTHING)[valid].float().mean().item() < 0.36

    def test_off_topic_entries_are_of_other_recipes_as_chance_would_have_it(self) -> None:
        corpus = make_corpus(1000, "test")
        plan = make_corpus(1000, "test", noise=Noise.none())  # the same recipes
        valid = plan.clip_step != NOTHING
        recipe = digits_of(plan.clip_step.clamp(min=0)) & valid[..., None]
        used = recipe.any(1)
        assert (used.sum(1) <= 8).all()
        for step, place in (
            (corpus.clip_step, corpus.clip_place),
            (corpus.caption_step, corpus.caption_place),
        ):
            off_topic = valid & (place == NOTHING)
            assert not (step[:, :, None] == plan.clip_step[:, None]).any(-1)[off_topic].any()
            named = digits_of(step)[off_topic]
            lacking = ~used[:, None].expand(*step.shape, DIGITS)[off_topic]
            # Digits that the video lacks are named about as often as any: noise teaches nothing.
            assert named[lacking].float().mean().item() == pytest.approx(0.3, abs=0.07)
            assert named[~lacking].float().mean().item() == pytest.approx(0.3, abs=0.07)
            assert (named & lacking).any(1).float().mean() > 0.4

    def test_steps_repeat_within_videos_and_batches(self) -> None:
        corpus = make_corpus(400, "train", noise=Noise.none())
        valid = corpus.clip_step != NOTHING
        same = (corpus.clip_step[:, :, None] == corpus.clip_step[:, None]) & valid[:, None]
        repeats = (same.sum(2) > 1)[valid].float().mean().item()
        assert 0.15 < repeats < 0.4
        counts = torch.bincount(corpus.clip_step[valid], minlength=len(STEPS)).sort().values
        assert counts[-1] > 8 * counts[len(STEPS) // 2]
        assert counts[0] > 0

    def test_a_paragraph_that_almost_fits(self) -> None:
        own, near = (
            make_corpus(50, "test", noise=Noise.none(), replaced_steps=share)
            for share in (0.0, 0.25)
        )
        assert torch.equal(own.clip_step, near.clip_step)
        assert torch.equal(own.frames, near.frames)
        other = (own.caption_step != near.caption_step).sum(1)
        asked = (own.lengths / 4).ceil()
        assert torch.equal(other.float(), asked)
        new = (near.caption_step[:, :, None] != own.caption_step[:, None]).all(-1)
        assert torch.equal(new.sum(1).float(), asked)  # told nowhere in the right paragraph

    def test_shuffled_paragraphs_tell_the_same_steps(self) -> None:
        corpus = make_corpus(50, "test", noise=Noise.none(), order="shuffled")
        assert torch.equal(corpus.clip_step.sort(1).values, corpus.caption_step.sort(1).values)
        alike = (corpus.clip_step == corpus.caption_step)[corpus.clip_step != NOTHING]
        assert alike.float().mean() < 0.3

    def test_sentence_names_digits_and_hides_fillers(self) -> None:
        assert sentence(torch.tensor([4, 20, 1, 0, 0])) == "three · zero"

    def test_the_shifted_video_is_shifted(self) -> None:
        corpus = make_corpus(32, "test", seed=3)
        place = corpus.caption_place[first_shifted(corpus)]
        moved = (place != torch.arange(16))[place != NOTHING]
        assert moved.float().mean() > 0.5


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return HeldOut.draw(200, "test", seed=1)


class TestLeaks:
    """What could be had without learning what the digits look like and are called."""

    def test_untrained_towers_score_chance(self, held_out: HeldOut) -> None:
        hits = []
        for seed in range(3):
            torch.manual_seed(seed)
            hits.append(evaluate(Towers(), held_out))
        for measure in MEASURES[1:]:
            values = np.stack([run[measure] for run in hits])
            # Paragraphs of its length and, of the clean kinds, as many that almost fit.
            assert estimate(values).low < (2.5 if "noisy" in measure else 1.25), measure
            assert values.mean() < 0.05, measure

    def test_of_perfect_towers_order_helps_only_in_order(self, held_out: HeldOut) -> None:
        found = evaluate(PerfectTowers(), held_out)
        assert found["DTW"].mean() > 0.9
        assert found["transport"].mean() > 0.9
        assert found["DTW, shuffled"].mean() < 0.6
        assert found["transport, shuffled"].mean() > 0.9
        assert found["clip → caption"].mean() > 0.95

    def test_candidates_have_the_length_of_the_video(self, held_out: HeldOut) -> None:
        corpus = held_out.noisy.corpus
        seen: list[tuple[int, ...]] = []

        def look(similarity: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(similarity.shape))
            return similarity.mean((-2, -1))

        clips, captions = unit_embeddings(PerfectTowers(), corpus)
        paragraph_ranks(clips, captions, corpus.lengths, measures={"look": look})
        videos_of_length = corpus.lengths.bincount().tolist()
        assert {shape[2] for shape in seen} == set(corpus.lengths.tolist())
        for _, paragraphs, n, m in seen:
            assert n == m
            assert paragraphs == videos_of_length[n]

    def test_off_topic_captions_do_not_give_themselves_away(self) -> None:
        """By the words alone, and by the best similarity within the video, of perfect towers."""
        corpus = make_corpus(300, "test")
        valid = corpus.caption_step != NOTHING
        on_topic = (corpus.caption_place != NOTHING)[valid].numpy()
        clips, captions = unit_embeddings(PerfectTowers(), corpus)
        fillers = (corpus.words > DIGITS).sum(-1)[valid].numpy()
        assert 0.45 < alignability_auc(-fillers, on_topic) < 0.55
        cosines = (clips @ captions.mT).masked_fill(~valid[:, :, None], -1)
        best = cosines.amax(1)[valid].numpy()
        assert alignability_auc(best, on_topic) < 0.97


def test_the_demo_runs_and_writes_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    sizes = ["--seeds", "1", "--steps", "2", "--videos", "20", "--held-out", "40"]
    main([*sizes, "--output", str(tmp_path), "--results", str(results)])
    printed = capsys.readouterr().out
    for name in ("InfoNCE", "ClipCaptionOTLoss", "NortonLoss", "transport, noisy"):
        assert name in printed
    assert (tmp_path / "alignment.png").stat().st_size > 10_000
    record = json.loads(results.read_text())
    assert [row["measure"] for row in record["table"]] == list(MEASURES)
    assert [len(row["cells"]) for row in record["table"]] == [4] * 13
    assert len(record["columns"]) == 4


@pytest.mark.slow
def test_the_pictures_of_the_concepts_are_drawn(tmp_path: Path) -> None:
    concepts.main([str(tmp_path), "--steps", "2"])
    pages = "".join(
        page.read_text() for page in (Path(__file__).parents[1] / "docs" / "concepts").glob("*.md")
    )
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == set(re.findall(r"images/(\w+\.png)", pages))
