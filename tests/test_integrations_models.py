"""The examples with models of transformers and open_clip train, from random weights."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch


def example(name: str, *packages: str) -> ModuleType:
    """An example, where its packages are installed."""
    define_operators_of_torchvision()
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    return importlib.import_module(f"examples.integrations.{name}")


def define_operators_of_torchvision() -> None:
    """So that a torchvision built for CUDA, as PyPI's is, is imported beside a torch without it.

    Its operators do not load there, and its import, which transformers and open_clip need, asks for
    two of them. No example calls one.
    """
    try:
        import torchvision  # noqa: F401  # pyright: ignore
    except ImportError:
        return
    except RuntimeError as error:
        assert "operator torchvision::nms does not exist" in str(error)  # noqa: PT017
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


def check_that_it_learnt(printed: str) -> None:
    """Losses fall, and most videos of a test set find their paragraph."""
    losses = re.findall(
        r"^(?:step \d+  loss |\d+ train/loss |\{'loss': ')([\d.]+)", printed, flags=re.MULTILINE
    )
    assert len(losses) >= 4
    assert float(losses[-1]) < float(losses[0])
    (recall,) = re.findall(r"video -> paragraph +([\d.]+)", printed)
    assert float(recall) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_learns_in_a_trainer_and_its_temperature_is_saved(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    example("hf_trainer_clip", "transformers", "accelerate").main(str(tmp_path), kind)
    check_that_it_learnt(capsys.readouterr().out)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-60" / "model.safetensors")
    temperature = saved["loss.clip_caption.temperature.log_scale"].neg().exp().item()
    assert abs(temperature - 0.2) > 0.002  # where it started


@pytest.mark.slow
def test_xclip_learns_from_its_similarities(capsys: pytest.CaptureFixture[str]) -> None:
    example("xclip_similarity", "transformers").main()
    check_that_it_learnt(capsys.readouterr().out)


@pytest.mark.slow
def test_pe_video_learns(capsys: pytest.CaptureFixture[str]) -> None:
    example("pe_video", "transformers.models.pe_video", "timm").main()
    check_that_it_learnt(capsys.readouterr().out)


@pytest.mark.slow
def test_open_clip_learns_by_its_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    example("open_clip_loss", "open_clip_train.train").main()
    check_that_it_learnt(capsys.readouterr().out)
