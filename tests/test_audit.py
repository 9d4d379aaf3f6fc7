"""The audit: its model of narration against all ways there are, corpora of known noise, its files."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_losses import ClipCaptionOTLoss, NortonLoss, NortonVideoParagraphLoss, Segments
from norton_losses.audit import Narration, audit, narration, write_report
from norton_losses.audit.__main__ import main
from norton_losses.metrics import alignability_auc
from norton_losses.retrieval import load_features, save_features
from tests.browser import opened


def corpus(videos: int = 60, off_topic: float = 0.0, late: int = 0, seed: int = 0) -> Any:
    """Videos, their captions so many clips late, and which captions are about nothing of theirs."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 12, (videos,), generator=g).tolist()
    clips = [torch.randn(n, 24, generator=g) for n in lengths]
    captions, lost = [], []
    for of_video in clips:
        told = (torch.arange(len(of_video)) - late).clamp(min=0)
        off = torch.rand(len(of_video), generator=g) < off_topic
        strange = torch.randn(len(of_video), 24, generator=g)
        noise = 0.7 * torch.randn(len(of_video), 24, generator=g)
        captions.append(torch.where(off[:, None], strange, of_video[told]) + noise)
        lost.append(off)
    return clips, captions, torch.cat(lost)


def of_all_ways(model: Narration, similarity: Tensor) -> Tensor:
    """P(caption j tells clip i), by adding up every way of the narrator."""
    n, m = similarity.shape
    ratio = model.ratios[torch.bucketize(similarity, model.edges)]
    start = [(1 - model.initial) / n + (model.initial if i == 0 else 0) for i in range(n)]
    far, beside = len(model.steps) // 2, len(model.beside) // 2
    tells, total = torch.zeros(n, m, dtype=torch.double), 0.0
    for way in itertools.product(range(n), repeat=m):
        weight = start[way[0]]
        for a, b in itertools.pairwise(way):
            to_all = [model.steps[k - a + far].item() for k in range(n)]
            weight *= to_all[b - a + a] / sum(to_all)
        parts = []
        for j, place in enumerate(way):
            told = {
                place + d: (1 - model.nowhere)
                * model.beside[d + beside].item()
                * ratio[place + d, j].item()
                for d in range(-beside, beside + 1)
                if 0 <= place + d < n
            }
            seen = model.nowhere + sum(told.values())
            weight *= seen
            parts.append({clip: share / seen for clip, share in told.items()})
        total += weight
        for j, told in enumerate(parts):
            for clip, share in told.items():
                tells[clip, j] += weight * share
    return tells / total


def test_the_shares_are_those_of_all_ways_of_the_narrator() -> None:
    g = torch.Generator().manual_seed(0)
    own = [torch.randn(n, m, generator=g).double() for n, m in ((4, 3), (2, 4), (1, 2), (4, 4))]
    model, shares = Narration.fit(own, torch.randn(500, generator=g), rounds=3)
    for similarity, found in zip(own, shares, strict=True):
        torch.testing.assert_close(found, of_all_ways(model, similarity))


def test_videos_are_walked_through_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    own = [torch.randn(n, m, generator=g) for n, m in ((3, 5), (7, 4), (5, 5), (1, 1), (7, 7))]
    foreign = torch.randn(300, generator=g)
    _, together = Narration.fit(own, foreign)
    monkeypatch.setattr(narration, "_CELLS", 1)  # each by itself
    _, alone = Narration.fit(own, foreign)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("late", [0, 1, 3])
def test_late_captions_are_found_at_their_clips(late: int) -> None:
    clips, captions, _ = corpus(late=late)
    out = audit("transport", clips, captions, progress=False)
    there = out.captions.caption >= late  # before it the first clip is told again
    right = (out.captions.clip == out.captions.caption - late)[there]
    assert right.double().mean() > 0.97
    assert (out.captions.late[there] - late).abs().mean() < 0.05
    assert out.rates["own"].value == pytest.approx(float(late == 0), abs=0.15 if late else 0.02)
    assert out.videos.lag.median().item() == pytest.approx(late, abs=1.6)
    if not late:
        assert out.videos.drift.abs().max() < 0.05
        assert out.videos.lag.abs().max() < 0.1
        assert (out.videos.in_order == 1).all()


def test_captions_about_nothing_are_told_from_others() -> None:
    clips, captions, lost = corpus(videos=100, off_topic=0.4)
    out = audit("transport", clips, captions, progress=False)
    assert alignability_auc(1 - out.captions.nowhere, ~lost) > 0.98
    assert out.rates["nowhere"].value == pytest.approx(lost.double().mean().item(), abs=0.04)
    assert out.rates["nowhere"].low < out.rates["nowhere"].value < out.rates["nowhere"].high
    rates = [out.rates[name].value for name in ("own", "misplaced", "nowhere")]
    assert sum(rates) == pytest.approx(1)
    assert out.rates["unmatched_clips"].value == pytest.approx(
        lost.double().mean().item(), abs=0.06
    )
    assert "videos, " in str(out)


def test_a_loss_brings_its_similarity_and_masks() -> None:
    clips, captions, _ = corpus(videos=20)
    video, text = Segments.from_list(clips), Segments.from_list(captions)
    expected = audit("dtw", clips, captions, progress=False)
    for loss in (NortonLoss(), NortonVideoParagraphLoss()):
        out = audit(loss, video, text, progress=False)
        assert out.captions.video.equal(expected.captions.video)
        assert (out.captions.clip == expected.captions.clip).double().mean() > 0.97


def test_numbers_that_differ_and_times() -> None:
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(9, 24, generator=g) for _ in range(40)]
    captions = [one[[1, 4, 7]] for one in clips]  # put there by their number
    out = audit("transport", clips, captions, progress=False)
    assert out.captions.put.tolist() == 40 * [1, 4, 7]
    assert out.rates["own"].value > 0.9
    assert out.captions.late_seconds.isnan().all()
    times = [np.arange(9) * 10.0] * 40, [np.array([24.0, 54.0, 84.0])] * 40
    timed = audit("transport", clips, captions, times=times, progress=False)
    assert timed.captions.late_seconds.mean().item() == pytest.approx(14, abs=1)
    assert timed.captions.put.tolist() == 40 * [2, 5, 8]
    assert timed.captions.late.reshape(40, 3)[:, 0].mean().item() == pytest.approx(1, abs=0.1)


def test_one_clip_and_one_caption() -> None:
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(1, 8, generator=g) for _ in range(5)]
    out = audit("transport", clips, clips, progress=False)
    columns = [
        getattr(out.captions, name) for name in ("share", "nowhere", "own", "late", "spread")
    ]
    assert torch.stack(columns).isfinite().all()
    assert out.videos.in_order.tolist() == [1.0] * 5


def test_videos_of_one_group_are_not_strange() -> None:
    clips, captions, _ = corpus(videos=20)
    twice = [*clips, *clips], [*captions, *captions]
    groups = torch.arange(20).repeat(2)
    alone = audit("transport", *twice, progress=False)
    grouped = audit("transport", *twice, group_ids=groups, progress=False)
    assert grouped.narration.ratios[-1] > alone.narration.ratios[-1]
    with pytest.raises(ValueError, match="no two videos of a batch are strange"):
        audit("transport", clips, captions, group_ids=torch.zeros(20).long(), progress=False)


@pytest.mark.parametrize("length", [40, 90])
def test_long_videos_are_walked_through_as_short_ones(length: int) -> None:
    """Beyond the farthest step that is told apart, far jumps must not feed themselves."""
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(length, 24, generator=g) for _ in range(12)]
    captions, lost = [], []
    for one in clips:
        off = torch.rand(length, generator=g) < 0.4
        strange = torch.randn(length, 24, generator=g)
        noise = 1.2 * torch.randn(length, 24, generator=g)
        captions.append(torch.where(off[:, None], strange, one) + noise)
        lost.append(off)
    out = audit("transport", clips, captions, progress=False)
    right = (out.captions.clip == out.captions.caption)[~torch.cat(lost)]
    assert right.double().mean() > 0.97
    assert out.narration.steps[31] > 0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda g: torch.ones(5, 8),
        lambda g: torch.zeros(5, 8),
        lambda g: torch.eye(8)[torch.randint(8, (5,), generator=g)],
        lambda g: (torch.randn(5, 8, generator=g) - 1.6).relu(),
        lambda g: torch.randn(5, 8, generator=g).half(),
    ],
    ids=["constant", "zero", "one-hot", "sparse", "half"],
)
def test_similarities_that_tie_give_finite_numbers(make: Any, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    clips = [make(g) for _ in range(12)]
    out = audit("transport", clips, clips, progress=False)
    assert all(math.isfinite(value) for rate in out.rates.values() for value in rate)
    write_report(out, tmp_path / "report.html")


def test_mistakes_are_named() -> None:
    clips, captions, _ = corpus(videos=4)
    loss = ClipCaptionOTLoss()
    with pytest.raises(TypeError, match="must be a NortonLoss or .* got ClipCaptionOTLoss"):
        audit(loss, clips, captions, progress=False)
    with pytest.raises(ValueError, match="got 4 videos and 3 paragraphs"):
        audit("transport", clips, captions[:3], progress=False)
    with pytest.raises(ValueError, match="two videos at least"):
        audit("transport", clips[:1], captions[:1], progress=False)
    with pytest.raises(ValueError, match="captions must have an entry for each"):
        audit("transport", clips, captions, captions=[["wash"]] * 4, progress=False)
    with pytest.raises(ValueError, match="times must be of clips and of captions, two lists"):
        audit("transport", clips, captions, times=(clips,), progress=False)  # type: ignore[arg-type]
    still = [torch.zeros(len(one)) for one in clips]
    with pytest.raises(ValueError, match="times of a video's clips must rise, got .* for video 0"):
        audit("transport", clips, captions, times=(still, still), progress=False)
    with pytest.raises(ValueError, match="times must be of clips and of captions"):
        audit("transport", clips, captions, times=(None, still), progress=False)  # type: ignore[arg-type]
    broken = NortonVideoParagraphLoss(
        lambda v, t: torch.full((len(v), len(t), v.mask.shape[1], t.mask.shape[1]), torch.nan)
    )
    with pytest.raises(ValueError, match="similarities must be finite, got .* of videos"):
        audit(broken, clips, captions, progress=False)
    endless = [torch.full((len(one),), math.inf) for one in clips]
    with pytest.raises(ValueError, match="times must be finite numbers"):
        audit("transport", clips, captions, times=(endless, endless), progress=False)
    with pytest.raises(ValueError, match="must share the width D|width D"):
        audit("transport", clips, [one[:, :3] for one in captions], progress=False)


def test_files_hold_what_was_found(tmp_path: Path) -> None:
    clips, captions, _ = corpus(videos=6)
    texts = [[f'"{v}", {j}' for j in range(len(one))] for v, one in enumerate(captions)]
    out = audit("transport", clips, captions, captions=texts, progress=False)
    out.to_csv(tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["text"] for row in rows] == [text for part in texts for text in part]
    assert [int(row["clip"]) for row in rows] == out.captions.clip.tolist()
    out.to_json(tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["captions"]["late_seconds"][0] is None
    assert found["videos"]["own"] == pytest.approx(out.videos.own.tolist())
    out.save_weights(tmp_path / "a.npz")
    saved = np.load(tmp_path / "a.npz")
    assert saved["weights"].tolist() == out.captions.own.tolist()
    assert saved["captions_per_paragraph"].tolist() == [len(one) for one in captions]
    for write, ending in ((out.to_csv, "csv"), (out.to_json, "json"), (out.save_weights, "npz")):
        with pytest.raises(ValueError, match=rf"must end in \.{ending}"):
            write(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        write_report(out, tmp_path / "a.txt")


def test_the_shell_writes_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    clips, captions, _ = corpus(videos=6, late=1)
    order = [5, 4, 3, 2, 1, 0]
    texts = [[f"caption {v}.{j}" for j in range(len(one))] for v, one in enumerate(captions)]
    times = (
        [np.arange(len(one)) * 2.0 for one in clips],
        [np.arange(len(captions[i])) * 2.0 for i in order],
    )
    turned = [captions[i] for i in order], [texts[i] for i in order]
    save_features("f.npz", clips, turned[0], order, texts=turned[1], times=times)
    files = ("--report", "a.html", "--csv", "a.csv", "--json", "a.json", "--weights", "a.npz")
    main(["f.npz", *files, "--retrieval", "--no-progress"])
    printed = capsys.readouterr().out
    assert "6 videos" in printed
    assert "video -> paragraph" in printed
    assert all((tmp_path / name).is_file() for name in ("a.html", "a.csv", "a.json", "a.npz"))
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert rows[0]["text"] == "caption 0.0"
    for arguments in (["absent.npz"], ["f.npz", "--csv", "a.txt"], ["f.npz", "--csv", "x/a.csv"]):
        with pytest.raises(SystemExit, match="error: "):
            main([*arguments, "--no-progress"])


def test_texts_and_times_of_a_feature_file(tmp_path: Path) -> None:
    clips, captions, _ = corpus(videos=3)
    path = tmp_path / "f.npz"
    save_features(path, clips, captions)
    assert load_features(path).texts is None
    texts = [[str(j) for j in range(len(one))] for one in captions]
    times = [np.arange(len(one)) for one in clips], [np.arange(len(one)) for one in captions]
    save_features(path, clips, captions, texts=texts, times=times)
    loaded = load_features(path)
    assert loaded.texts is not None
    assert loaded.times is not None
    assert [part.tolist() for part in loaded.texts] == texts
    assert all(np.array_equal(a, b) for a, b in zip(loaded.times[1], times[1], strict=True))
    with pytest.raises(ValueError, match="texts must have an entry"):
        save_features(path, clips, captions, texts=texts[:2])
    with pytest.raises(ValueError, match="texts must be of str, got None"):
        save_features(path, clips, captions, texts=[[None] * len(one) for one in captions])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"times\[1\] must have an entry .* for the"):
        save_features(path, clips, captions, times=(times[0], [*times[1][1:], times[1][0][:1]]))
    arrays = dict(np.load(path))
    del arrays["clip_times"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="clip_times and caption_times go together"):
        load_features(path)


HOSTILE = (
    "</script><script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
)


@pytest.mark.slow
def test_the_report_is_one_page_that_sorts_searches_and_keeps_captions_text(tmp_path: Path) -> None:
    clips, captions, _ = corpus(videos=300, off_topic=0.3, late=1)
    texts = [[f"caption {v}.{j}" for j in range(len(one))] for v, one in enumerate(captions)]
    texts[7][2] = HOSTILE + ' SCRIPT-HASH "DATA" <!-- '
    out = audit("transport", clips, captions, captions=texts, progress=False)
    write_report(out, tmp_path / "report.html", title="<b>A & B</b>")
    with opened(390, 844) as (page, complaints):
        page.on("request", lambda asked: complaints.append(asked.url))
        page.goto((tmp_path / "report.html").as_uri())
        complaints.remove((tmp_path / "report.html").as_uri())
        assert page.title() == "<b>A & B</b>"
        assert page.locator("#rows tr").count() == 200
        page.click("#more")
        assert page.locator("#rows tr").count() == 300
        shares = page.locator("#rows tr td:nth-child(3)").all_inner_texts()
        assert shares == sorted(shares, key=int)
        assert int(shares[0]) == round(100 * out.videos.own.min().item())
        page.click("#head button >> nth=0")
        assert page.get_attribute("#rows tr >> nth=0", "data-video") in ("0", "299")
        page.fill("#search", "onerror")
        assert page.locator("#rows tr").count() == 1
        page.click("#rows tr")
        assert HOSTILE in page.inner_text("#video li >> nth=2")
        assert page.locator("#video svg circle").count() == len(captions[7])
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.title() == "<b>A & B</b>"
        assert complaints == []
