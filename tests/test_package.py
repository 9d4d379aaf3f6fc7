"""The public surface, what importing costs, and which file may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import norton_losses
from norton_losses import audit, functional, metrics, retrieval, sinkhorn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "norton_losses"
MODULES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = {
    "AbstractAlignment",
    "AbstractProblem",
    "AbstractSequenceMeasure",
    "AbstractSinkhorn",
    "AbstractTokenSimilarity",
    "AutoSinkhorn",
    "BackgroundFiltered",
    "CaptionAverage",
    "ClipCaptionOTLoss",
    "ClipCaptionOutput",
    "DynamicTimeWarping",
    "GeomLossSinkhorn",
    "KeOpsSinkhorn",
    "MaxSimilarity",
    "MeanSimilarity",
    "MeasureOutput",
    "NortonLoss",
    "NortonOutput",
    "NortonVideoParagraphLoss",
    "OrderedAlignment",
    "POTSinkhorn",
    "PointCloudProblem",
    "PromptBucket",
    "Segments",
    "SimilarityBlock",
    "SoftMaximumSimilarity",
    "Support",
    "Temperature",
    "TorchSinkhorn",
    "TransportMeasure",
    "TransportPlan",
    "TransportProblem",
    "TritonSinkhorn",
    "VideoParagraphOutput",
    "cached_step",
    "functional",
    "parameter_groups",
    "sinkhorn",
}

# What each file may import of the package. Private helpers may be imported by all.
BELOW: dict[str, set[str]] = {
    "flat_segments": set(),
    "segments": {"flat_segments"},
    "distributed": set(),
    "scalar_state": set(),
    "gradient_cache": {"distributed", "segments"},
    "gathered_text": {"distributed", "segments"},
    "text_by_turns": {"distributed", "segments"},
    "similarity_block": {"distributed"},
    "kernels": {"segments"},
    "sinkhorn": {"distributed", "kernels"},
    "fusion": {"distributed", "segments", "similarity_block"},
    "token_similarity": {"fusion", "kernels", "segments"},
    "prompt_bucket": {"distributed", "scalar_state", "similarity_block", "sinkhorn"},
    "sequence_measures": {"prompt_bucket", "similarity_block", "sinkhorn"},
    "contrastive": {"distributed", "scalar_state"},
    "rectified_targets": set(),
    "outputs": {"contrastive", "sequence_measures", "similarity_block", "sinkhorn"},
    "loss": {"contrastive", "distributed", "gathered_text", "scalar_state", "segments"},
    "video_paragraph": {
        "contrastive",
        "distributed",
        "fusion",
        "loss",
        "outputs",
        "segments",
        "sequence_measures",
        "similarity_block",
        "text_by_turns",
        "token_similarity",
    },
    "clip_caption_chunked": {"contrastive", "rectified_targets", "sinkhorn"},
    "clip_caption": {
        "clip_caption_chunked",
        "contrastive",
        "distributed",
        "loss",
        "outputs",
        "rectified_targets",
        "segments",
        "sinkhorn",
    },
    "norton_similarity": {
        "clip_caption",
        "contrastive",
        "distributed",
        "loss",
        "outputs",
        "similarity_block",
        "video_paragraph",
    },
    "norton": {
        "clip_caption",
        "distributed",
        "loss",
        "norton_similarity",
        "outputs",
        "segments",
        "sequence_measures",
        "sinkhorn",
        "token_similarity",
        "video_paragraph",
    },
    "metrics": set(),
    "retrieval": {
        "distributed",
        "flat_segments",
        "loss",
        "metrics",
        "norton_similarity",
        "segments",
        "sequence_measures",
        "similarity_block",
    },
    "audit": {
        "fusion",
        "norton",
        "retrieval",
        "segments",
        "sequence_measures",
        "token_similarity",
        "video_paragraph",
    },
    "plotting": {"retrieval", "sequence_measures", "sinkhorn"},
}
TOPMOST = {"__init__", "__main__"}
OPTIONAL = {
    "ot": {"pot_sinkhorn"},
    "geomloss": {"geomloss_sinkhorn"},
    "pykeops": {"keops_sinkhorn"},
    "tqdm": {"progress"},
    "triton": {"small_sinkhorn_triton", "soft_maximum_triton", "soft_maximum_device_triton"},
    "matplotlib": {"alignment_figure"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
            names |= {"matplotlib" for a in node.args[:1] if "matplotlib" in ast.unparse(a)}
    return names


def test_public_surface_is_pinned() -> None:
    assert set(norton_losses.__all__) == PUBLIC
    assert norton_losses.__all__ == sorted(norton_losses.__all__)
    for module in (norton_losses, audit, functional, metrics, retrieval, sinkhorn):
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(
    "module",
    [norton_losses, audit, functional, metrics, retrieval],
    ids=lambda module: module.__name__,
)
def test_public_names_are_documented_with_an_example(module) -> None:
    carried = (
        "Output",
        "Support",
        "Features",
        "RetrievalMetrics",
        "Audits",
    )  # results explain their fields; their makers have the example
    for name in module.__all__:
        documented = getattr(module, name).__doc__
        assert documented, name
        if not name.startswith("Abstract") and name not in ("functional", "sinkhorn"):
            assert name.endswith(carried) or ">>>" in documented, name


def test_importing_pulls_in_nothing_optional() -> None:
    code = (
        "import norton_losses, sys; "
        "print(sorted({'ot', 'geomloss', 'pykeops', 'triton', 'matplotlib', 'sklearn'} "
        "& set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        top, *rest = name.split(".")
        if top in OPTIONAL:
            assert path.stem in OPTIONAL[top], f"{path.name} may not import {top}"
        if top == "norton_losses" and rest and layer in BELOW and not rest[0].startswith("_"):
            assert rest[0] in BELOW[layer] | {layer}, f"{layer} may not import {rest[0]}"
        if layer.startswith("_") and top == "norton_losses" and layer not in TOPMOST:
            assert rest, path.name
            assert rest[0].startswith("_"), f"{path.name} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_users_mistakes_are_never_asserted(path: Path) -> None:
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_comparison_is_thrown_away(path: Path) -> None:
    """`np.allclose(a, b)` as a statement tests nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr):
            value = node.value
            discarded = isinstance(value, ast.Compare) or (
                isinstance(value, ast.Call)
                and ast.unparse(value.func).split(".")[-1] in {"allclose", "equal", "isclose"}
            )
            assert not discarded, f"{path.name}:{node.lineno} compares and throws the result away"


def test_default_device_and_dtype_are_respected() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        loss = norton_losses.NortonLoss()
        assert next(loss.parameters()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
