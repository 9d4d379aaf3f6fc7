"""The wheel that users install: what is in it, how large it is, and that it carries its types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 215_000  # bytes

# A user's script: every public part that one meets in a training loop, and nothing cast or ignored.
SCRIPT = """
from torch import Tensor, nn
import torch
from norton_losses import (
    CaptionAverage, ClipCaptionOTLoss, DynamicTimeWarping, NortonLoss, NortonVideoParagraphLoss,
    PromptBucket, Segments, SoftMaximumSimilarity, TransportMeasure, parameter_groups,
)
from norton_losses.audit import audit, write_report
from norton_losses.functional import video_paragraph_loss
from norton_losses.metrics import recall_at
from norton_losses.plotting import plot_alignment
from norton_losses.retrieval import RetrievalOutput, retrieve

def mean_cosine(video: Segments, text: Segments) -> Tensor:
    return torch.einsum("bnd,cmd->bcnm", video.embeddings, text.embeddings)

measure = TransportMeasure(0.1, bucket=PromptBucket(value=0.1), sinkhorn="torch")
loss = NortonLoss(
    NortonVideoParagraphLoss(SoftMaximumSimilarity(alpha=0.1), measure),
    ClipCaptionOTLoss(beta=0.0),
    weight=0.5,
)
NortonVideoParagraphLoss(mean_cosine, DynamicTimeWarping(0.1))
NortonVideoParagraphLoss(measure=CaptionAverage())
video = Segments.from_flat(torch.randn(13, 6, 8), counts=[8, 5])
text = Segments.from_list([torch.randn(8, 8), torch.randn(5, 8)])
value: Tensor = loss(video, text)
out = loss.explain(video, text)
numbers: dict[str, float] = out.diagnostics()
plan = out.video_paragraph.plan
if plan is not None:
    plot_alignment(plan[0, 0], captions=["wash"] * 8)
scores: Tensor = loss.score(video, text, bucket_value=0.1)
table: RetrievalOutput = retrieve(loss, video, text, progress=False)
print(table.video_to_paragraph.recalls[1], recall_at(scores), numbers, value)
write_report(audit(loss, video, text, progress=False), "report.html")
print(video_paragraph_loss(torch.randn(2, 2, 3, 4)))
torch.optim.AdamW(parameter_groups(nn.ModuleList([loss]), weight_decay=0.01))
"""


_without_caches = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("build") is None:
        pytest.skip("build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"  # a build leaves its folders where it is made, and takes what is there
    shutil.copytree(ROOT / "norton_losses", copy / "norton_losses", ignore=_without_caches)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_holds_the_package_and_its_licence_alone_and_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST
    names = zipfile.ZipFile(wheel).namelist()
    package = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("norton_losses/") for name in package)
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "norton_losses").rglob("*.py")}
    data = {"norton_losses/py.typed", "norton_losses/audit/report.html"}
    assert set(package) == sources | data
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_a_users_script_is_typed_throughout(wheel: Path, tmp_path: Path) -> None:
    if find_spec("pyright") is None or find_spec("matplotlib") is None:
        pytest.skip("pyright or matplotlib is not installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = {
        "include": ["script.py"],
        "strict": ["script.py"],
        "extraPaths": ["installed"],
        "pythonVersion": "3.10",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = json.loads(run.stdout)["generalDiagnostics"]
    assert [f"{one.get('rule')}: {one['message']}" for one in said] == []
    path = {"PYTHONPATH": str(tmp_path / "installed")}
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | path)
    assert run.returncode == 0
