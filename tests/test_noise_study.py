"""The noise study: its rivals are what they are named after, its search climbs, its rows come back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("jsonschema", reason="jsonschema is not installed")
pytest.importorskip("scipy", reason="scipy is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

import jsonschema

from benchmarks.noise_study import __main__ as command
from benchmarks.noise_study import pages, search, tables
from benchmarks.noise_study.figures import draw_all
from benchmarks.noise_study.objectives import (
    ABLATION,
    CEILING,
    LADDERS,
    OBJECTIVES,
    RIVALS,
    START,
    norton,
)
from benchmarks.noise_study.parts import LENGTHS, NOISES, PARTS, SEARCHES
from benchmarks.noise_study.rivals import (
    MILNCE,
    Floored,
    RampedWeight,
    SequenceContrast,
    TokenMaxContrast,
)
from benchmarks.noise_study.rows import FULL_ROWS, Rows, validate
from benchmarks.noise_study.run import Run, execute, noise_of
from benchmarks.noise_study.statistics import Sample, samples
from benchmarks.noise_study.tasks import (
    BLOCKS,
    SELECTION,
    TASKS,
    Exam,
    _alternatives,
    _questions,
    examine,
    in_blocks,
)
from examples.handwritten_howto.corpus import NOTHING, STEPS, Noise
from examples.handwritten_howto.towers import PerfectTowers, Towers
from examples.paragraph_alignment.evaluation import diagonal
from norton_losses import (
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    NortonLoss,
)
from norton_losses.functional import clip_caption_loss
from tests.batches import make_batch

SETTINGS = (("learning_rate", 1e-3),)


class TestRivals:
    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_every_objective_is_called_as_a_loss(self, name: str) -> None:
        objective = OBJECTIVES[name]
        batch = make_batch(4, ragged=True, dtype=torch.float32).leaves()
        batch.caption_mask[:] = batch.clip_mask
        batch.word_mask[batch.caption_mask, 0] = True
        batch.frame_mask[batch.clip_mask, 0] = True
        loss = objective.build(**{knob: START[knob] for knob in objective.knobs})
        value = loss(*batch.sides)
        value.backward()
        assert value.shape == ()
        assert value.item() > 0
        for leaf in (*batch.tokens, *loss.parameters()):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
        assert batch.video_tokens.grad is not None
        assert batch.video_tokens.grad.any()

    def test_mil_nce_of_no_window_is_infonce(self) -> None:
        batch = make_batch(ragged=True)
        infonce = ClipCaptionOTLoss(beta=0.0, temperature=0.2)
        torch.testing.assert_close(MILNCE(0.2, 0)(*batch.sides), infonce(*batch.sides))

    def test_mil_nce_is_its_definition(self) -> None:
        batch = make_batch(2, 4, ragged=True)
        video, text = batch.sides
        places = (video.mask & text.mask).nonzero().tolist()
        unit = torch.nn.functional.normalize
        clips, captions = (unit(side.embeddings, dim=-1) for side in (video, text))
        total = 0.0
        for b, i in places:
            for one, other in ((clips, captions), (captions, clips)):
                terms = {(c, j): (one[b, i] @ other[c, j] / 0.5).exp().item() for c, j in places}
                bag = sum(e for (c, j), e in terms.items() if c == b and abs(i - j) <= 1)
                total -= np.log(bag / sum(terms.values()))
        expected = total / len(places)
        assert MILNCE(0.5, 1)(video, text).item() == pytest.approx(expected, rel=1e-6)

    def test_token_max_contrasts_clips_by_their_best_tokens(self) -> None:
        batch = make_batch(2, 3, 3)
        similarity = MaxSimilarity(pooled_weight=0.0)(*batch.sides)
        flat = torch.stack(
            [
                similarity[a, b, i, j]
                for a in range(2)
                for i in range(3)
                for b in range(2)
                for j in range(3)
            ]
        )
        expected = clip_caption_loss(flat.view(6, 6) / 0.2, beta=0.0)
        torch.testing.assert_close(TokenMaxContrast(0.2, 0.0)(*batch.sides), expected)

    def test_sequence_contrast_is_infonce_and_a_contrast_of_alignments(self) -> None:
        batch = make_batch(3, ragged=True)
        video, text = batch.sides
        unit = torch.nn.functional.normalize
        cosines = torch.einsum(
            "and,bmd->abnm", *(unit(side.embeddings, dim=-1) for side in (video, text))
        )
        logits = 10 * DynamicTimeWarping(0.1)(cosines, video.mask, text.mask)
        own = -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal().mean()
        infonce = ClipCaptionOTLoss(beta=0.0, temperature=0.2)(video, text)
        found = SequenceContrast(DynamicTimeWarping(0.1), 0.2, 10.0, 3.0)(video, text)
        torch.testing.assert_close(found, 3 * own + infonce)

    def test_shuffled_paragraphs_are_more_negatives(self) -> None:
        """To a measure without order each of them looks as good as the video's own paragraph."""
        batch = make_batch(3, ragged=True)
        plain = SequenceContrast(CaptionAverage(), 0.2, 1e-4, 1.0)(*batch.sides)
        more = SequenceContrast(CaptionAverage(), 0.2, 1e-4, 1.0, shuffled=5)(*batch.sides)
        assert (more - plain).item() == pytest.approx(np.log((3 + 5) / 3), abs=1e-3)

    def test_diagonal(self) -> None:
        similarity = torch.arange(16.0).view(1, 1, 4, 4)
        mask = torch.tensor([[True, True, False, True]])
        found = diagonal(similarity, mask, torch.tensor([[True, False, True, True]]))
        assert found.tolist() == [[(0 + 15) / 2]]

    def test_the_weight_ramps_up(self) -> None:
        batch, loss = make_batch(), RampedWeight(norton(weight=2.0), 4)
        weights = []
        for _ in range(6):
            loss(*batch.sides)
            weights.append(loss.loss.weight)
        assert weights == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]

    def test_a_floor_holds(self) -> None:
        temperature = Floored(0.1, 0.07)
        assert temperature().item() == pytest.approx(0.1)
        temperature.inner.log_scale.data += 1
        assert temperature().item() == pytest.approx(0.07)
        (-temperature()).backward()  # a loss that falls with the temperature may raise it again
        assert temperature.inner.log_scale.grad is not None
        assert temperature.inner.log_scale.grad > 0

    def test_the_ablation_ends_at_the_default(self) -> None:
        default, built = NortonLoss(), ABLATION["I bucket 30 %"].build()
        assert repr(built) == repr(default)


class TestRuns:
    def test_keys_are_of_what_differs_from_the_defaults(self) -> None:
        assert Run("InfoNCE", SETTINGS).key == Run("InfoNCE", SETTINGS, steps=500).key
        keys = {run.key for part in PARTS.values() for run in part(lambda *_: SETTINGS)}
        runs = {run for part in PARTS.values() for run in part(lambda *_: SETTINGS)}
        assert len(keys) == len(runs)

    def test_noise_of_a_kind_is_that_kind_alone(self) -> None:
        assert noise_of("none", 0.0) == Noise.none()
        assert noise_of("default", 0.0) == Noise()
        everything = noise_of("all", 0.6)
        for kind, _ in NOISES[1:]:
            some = {k: v for k, v in vars(noise_of(kind, 0.6)).items() if v}
            assert some
            assert some.items() <= vars(everything).items()

    def test_a_run_gives_a_row_twice(self) -> None:
        run = Run(
            "MIL-NCE",
            (*SETTINGS, ("temperature", 0.2), ("window", 1)),
            steps=2,
            videos=300,
            every=1,
        )
        threads = torch.get_num_threads()
        first, second = execute(run), execute(run)
        torch.set_num_threads(threads)
        validate(first)
        assert first["tasks"] == second["tasks"]
        assert set(first["tasks"]) == set(TASKS)
        assert [point["step"] for point in first["curve"]] == [1, 2]
        assert first["key"] == run.key

    def test_no_steps_leave_perfect_towers_perfect(self) -> None:
        (run,) = (r for r in PARTS["objectives"](lambda *_: SETTINGS) if r.objective == CEILING)
        threads = torch.get_num_threads()
        row = execute(replace(run, videos=300))
        torch.set_num_threads(threads)
        validate(row)
        assert np.mean(row["tasks"]["frame accuracy"]) == 1

    def test_a_warm_start_is_another_start(self) -> None:
        run = Run("InfoNCE", (*SETTINGS, ("temperature", 0.2)), steps=1, videos=0)
        threads = torch.get_num_threads()
        cold, warm = execute(run), execute(replace(run, warm_steps=3))
        torch.set_num_threads(threads)
        assert set(cold["tasks"]) == set(SELECTION)
        assert cold["tasks"] != warm["tasks"]


class TestTasks:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def exam(cls) -> None:
        cls.clean = Exam.draw(300, "test", Noise.none(), (12, 16))

    def test_perfect_towers_pass(self) -> None:
        found = {
            name: values.mean() for name, values in examine(PerfectTowers(), self.clean).items()
        }
        assert set(found) == set(TASKS)
        assert found["clip → caption"] > 0.95
        assert found["caption → clip"] > 0.95
        # A caption that repeats two shared digits can be nearer than one that repeats the third.
        assert found["question answering"] > 0.7
        # A stray digit among the distractors looks like one of the step.
        assert found["frame accuracy, no background"] == 1
        assert found["alignment recall"] > 0.7
        assert found["alignment recall, by plan"] > 0.7

    def test_untrained_towers_guess(self) -> None:
        runs = []
        for seed in range(4):
            torch.manual_seed(seed)
            runs.append(examine(Towers(), self.clean))
        found = {name: np.mean([run[name] for run in runs]) for name in TASKS}
        assert found["question answering"] == pytest.approx(0.2, abs=0.05)
        assert found["clip → caption"] < 0.05
        assert found["caption → clip"] < 0.05
        assert found["alignment recall"] < 0.3

    def test_popularity_answers_no_question(self) -> None:
        step = self.clean.held_out.clean.corpus.clip_step.numpy()
        rng = np.random.default_rng(0)
        shown = np.bincount(step[step != NOTHING], minlength=len(STEPS))
        asked = step[_questions(step, rng)]
        choices = shown[_alternatives(asked, shown > 0, rng)]
        best = choices == choices.max(1, keepdims=True)
        assert (best[:, 0] / best.sum(1)).mean() == pytest.approx(0.2, abs=0.02)
        assert np.bincount(asked).max() == len(asked) // len(STEPS) + 1

    def test_alternatives_are_told_and_share_two_digits(self) -> None:
        told = np.random.default_rng(1).random(len(STEPS)) < 0.9
        asked = np.nonzero(told)[0]
        choices = _alternatives(asked, told, np.random.default_rng(0))
        assert (choices[:, 0] == asked).all()
        assert told[choices].all()
        for steps in choices:
            assert len(set(steps)) == 5
            assert len(set.intersection(*(set(STEPS[step]) for step in steps))) == 2
        with pytest.raises(ValueError, match="draw more videos"):
            _alternatives(asked, np.arange(len(STEPS)) == 0, np.random.default_rng(0))

    @pytest.mark.slow
    @pytest.mark.parametrize("lengths", LENGTHS)
    def test_videos_of_any_length_are_examined(self, lengths: tuple[int, int]) -> None:
        found = examine(PerfectTowers(), Exam.draw(300, "test", Noise(), lengths))
        assert set(found) == set(TASKS)
        assert all(np.isfinite(values).all() for values in found.values())

    def test_blocks_are_of_videos_in_a_row(self) -> None:
        blocks = in_blocks(np.arange(100.0))
        assert blocks.tolist() == [2 + 5 * i for i in range(BLOCKS)]


def row_of(run: Run, share: float) -> dict:
    """A row in which every task of every block has the same share."""
    return {
        "key": run.key,
        "run": {**vars(run), "settings": dict(run.settings), "lengths": list(run.lengths)},
        "tasks": {task: [share] * BLOCKS for task in TASKS},
        "curve": [],
        "temperatures": {},
        "train_s": 1.0,
        "examine_s": 1.0,
        "commit": "0000000",
        "date": "2026-01-01",
        "machine": "none",
    }


class TestSearch:
    def climb(self, rows: Rows, score, objective: str = "MIL-NCE") -> tuple[dict, int]:
        for _ in range(50):
            try:
                chosen, tried = search.choose(objective, rows)
                return dict(chosen), tried
            except search.MissingRunsError as error:
                for run in error.runs:
                    rows.add("search", row_of(run, score(dict(run.settings))))
        raise AssertionError("the search does not end")

    def test_it_climbs_each_ladder_to_its_top(self, tmp_path: Path) -> None:
        top = {"learning_rate": 4e-3, "temperature": 0.05, "window": 4}

        def score(settings: dict) -> float:
            away = [
                abs(LADDERS[knob].index(value) - LADDERS[knob].index(top[knob]))
                for knob, value in settings.items()
            ]
            return 1 - 0.05 * sum(away)

        chosen, tried = self.climb(Rows(tmp_path), score)
        assert chosen == top
        assert tried < 15
        # From the rows on file alone.
        assert dict(search.choose("MIL-NCE", Rows(tmp_path))[0]) == top

    def test_a_flat_score_leaves_the_start(self, tmp_path: Path) -> None:
        chosen, _ = self.climb(Rows(tmp_path), lambda settings: 0.5)
        assert chosen == {knob: START[knob] for knob in chosen}

    def test_variants_have_the_learning_rate_of_what_they_vary(self, tmp_path: Path) -> None:
        rows = Rows(tmp_path)
        found, _ = self.climb(rows, lambda s: s["learning_rate"], "NortonLoss")
        assert found == {"learning_rate": LADDERS["learning_rate"][-1]}
        assert self.climb(rows, lambda s: 0.0, "beta 0")[0] == found


class TestRows:
    def test_they_come_back(self, tmp_path: Path) -> None:
        run, rows = Run("InfoNCE", SETTINGS), Rows(tmp_path)
        assert run not in rows
        rows.add("noise", row_of(run, 0.5))
        again = Rows(tmp_path)
        assert run in again
        assert again[run] == json.loads(json.dumps(row_of(run, 0.5)))
        assert replace(run, seed=1) not in again

    def test_half_a_row_is_taken_away(self, tmp_path: Path) -> None:
        run, other = Run("InfoNCE", SETTINGS), Run("MIL-NCE", SETTINGS)
        Rows(tmp_path).add("noise", row_of(run, 0.5))
        with (tmp_path / "noise.jsonl").open("a") as file:
            file.write(json.dumps(row_of(other, 0.5))[:100])
        rows = Rows(tmp_path)
        assert run in rows
        assert other not in rows
        rows.add("noise", row_of(other, 0.5))
        assert other in Rows(tmp_path)

    def test_the_schema_refuses(self, tmp_path: Path) -> None:
        row = row_of(Run("InfoNCE", SETTINGS), 0.5)
        for spoiled in (
            {**row, "tasks": {"transport": [0.5]}},
            {**row, "run": {**row["run"], "noise": "fog"}},
            {**row, "note": "by hand"},
        ):
            with pytest.raises(jsonschema.ValidationError):
                Rows(tmp_path).add("noise", spoiled)

    def test_committed_rows_keep_the_schema_and_are_of_todays_objectives(self) -> None:
        rows = Rows(FULL_ROWS)
        for key, row in rows._by_key.items():
            assert row["run"]["objective"] in OBJECTIVES
            settings = tuple(sorted(row["run"]["settings"].items()))
            lengths = tuple(row["run"]["lengths"])
            run = Run(**{**row["run"], "settings": settings, "lengths": lengths})
            assert run.key == key, "of another version of the study"


class TestStatistics:
    def sample(self, shares: np.ndarray) -> Sample:
        sample = Sample()
        for seed, blocks in enumerate(shares):
            sample.rows[seed] = {"tasks": {"transport": blocks.tolist()}}
        return sample

    def test_differences_are_paired(self) -> None:
        rng = np.random.default_rng(0)
        shares = rng.random((3, BLOCKS))
        difference = self.sample(shares + 0.01).minus(self.sample(shares), "transport")
        assert difference.mean == pytest.approx(1)
        assert difference.low == pytest.approx(1)
        assert difference.signed == "+1.0 [+1.0, +1.0]"

    def test_more_claims_have_wider_intervals(self) -> None:
        rng = np.random.default_rng(0)
        one, other = (self.sample(rng.random((3, BLOCKS))) for _ in range(2))
        widths = [
            (e := one.minus(other, "transport", claims)).high - e.low for claims in (1, 10, 100)
        ]
        assert widths == sorted(widths)
        assert widths[2] > 1.2 * widths[0]

    def test_samples_are_of_runs_that_differ_in_their_seed(self, tmp_path: Path) -> None:
        rows = Rows(tmp_path)
        runs = [
            Run("InfoNCE", SETTINGS, level=level, seed=s)
            for level in (0.2, 0.4, 0.6)
            for s in range(4)
        ]
        alone = Run("MIL-NCE", SETTINGS, level=0.8)
        for run in [*runs[:7], *runs[8:10], alone]:
            rows.add("noise", row_of(run, run.level))
        found = samples([*runs, alone], rows)  # two seeds of four are none
        assert [sorted(sample.rows) for sample in found.values()] == [[0, 1, 2, 3], [0, 1, 2], [0]]
        means = [sample.of("transport").mean for sample in found.values()]
        assert means == pytest.approx([20, 40, 80])


class TestPages:
    def test_every_page_has_the_tables_of_the_committed_rows(self) -> None:
        assert not pages.stale_pages()

    def test_tables_of_nothing_say_so(self, tmp_path: Path) -> None:
        study = tables.Study(Rows(tmp_path))
        for name, table in tables.TABLES.items():
            assert "not measured" in table(study) or name == "scales"

    @pytest.mark.slow
    def test_tables_and_figures_of_every_row(self, tmp_path: Path) -> None:
        """Of rows in which an objective's share is told by its place in the list."""
        share = {name: (1 + i) / 100 for i, name in enumerate(OBJECTIVES)}
        rows = Rows(tmp_path)

        def add(run: Run) -> None:
            row = row_of(run, share[run.objective])
            if run.every:
                points = range(run.every, run.steps + 1, run.every)
                tasks = dict.fromkeys(TASKS, share[run.objective])
                row["curve"] = [
                    {"step": n, "seconds": n / 100, "validation": n / 1e4, "tasks": tasks}
                    for n in points
                ]
            rows.add("all", row)

        for name, noise in SEARCHES:
            while True:
                try:
                    search.choose(name, rows, noise)
                except search.MissingRunsError as error:
                    for run in error.runs:
                        add(run)
                else:
                    break
        study = tables.Study(rows)
        for run in dict.fromkeys(run for part in PARTS.values() for run in part(study.chosen)):
            add(run)
        written = {name: table(study) for name, table in tables.TABLES.items()}
        for table in written.values():
            assert "not measured" not in table
            assert "nan" not in table
        ours, infonce = (100 * share[name] for name in ("NortonLoss", "InfoNCE"))
        assert f"{ours:.1f} [{ours:.1f}, {ours:.1f}]" in written["headline"]
        assert written["headline"].count(f"{ours - infonce:+.1f} [") == 15
        assert written["targets"].count("| no ") == 1  # 9 points are more than 8 and less than 15
        assert f"{100 * share['min-max']:.1f}" in written["variants"]
        assert f"{100 * share['NortonLoss, scale 40']:.1f}" in written["scales"]
        figures = draw_all(study, tmp_path)
        assert [path.stem for path in figures] == ["noise", "ablation", "curves", "scales"]
        assert all("InfoNCE" in path.read_text() for path in figures[::2])

    def test_every_table_is_on_a_page(self) -> None:
        text = "".join(page.read_text() for page in pages.PAGES)
        for name in tables.TABLES:
            assert f"<!-- study: {name} -->" in text


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [
        Run(name, (*SETTINGS, *((k, START[k]) for k in RIVALS[name].knobs)), steps=2, videos=300)
        for name in ("InfoNCE", "NortonLoss", "ClipCaptionOTLoss")
    ]
    monkeypatch.setattr(command, "QUICK_ROWS", tmp_path)
    monkeypatch.setattr(command, "quick", lambda choose: runs[:2])
    assert command.main(["--quick", "--minutes", "0"]) == 0
    assert not list(tmp_path.iterdir())
    assert command.main(["--quick"]) == 0
    assert "2/2" in capfd.readouterr().err
    monkeypatch.setattr(command, "quick", lambda choose: runs)
    assert command.main(["--quick"]) == 0
    assert "1/1" in capfd.readouterr().err
    assert all(run in Rows(tmp_path) for run in runs)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["fog"])
    assert "no part named fog" in capsys.readouterr().err
