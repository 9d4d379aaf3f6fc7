"""`NortonLoss.released` reproduces the released implementation, faults included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_losses import NortonLoss, NortonOutput, Segments

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "released").glob("*.npz"))
LEAVES = ("video_tokens", "text_tokens", "pooled_video", "pooled_text")


class Case:
    def __init__(self, path: Path) -> None:
        arrays = np.load(path)
        self.config = json.loads(str(arrays["config"]))
        self.arrays = {
            name: torch.tensor(arrays[name]) for name in arrays.files if name != "config"
        }
        self.length = self.config["length"]
        self.batch = self.config["clips"] // self.length
        self.leaves = {name: self._sequences(name).requires_grad_() for name in LEAVES}

    def _sequences(self, name: str) -> Tensor:
        return self.arrays[name].unflatten(0, (self.batch, self.length))

    def loss(self) -> NortonLoss:
        config = self.config
        return NortonLoss.released(
            alpha=config["alpha"],
            epsilon=config["epsilon"],
            prompt_ratio=config["prompt_ratio"],
            beta=config["beta"],
            pooled_weight=config["fusion_weight"],
            iterations=config["iterations"],
        )

    def explain(self) -> NortonOutput:
        sides = (("video_tokens", "frame_mask", "video"), ("text_tokens", "word_mask", "text"))
        return self.loss().explain(
            *(
                Segments(
                    self.leaves[tokens],
                    self._sequences(mask).bool(),
                    embeddings=self.leaves[f"pooled_{side}"],
                )
                for tokens, mask, side in sides
            )
        )

    def as_blocks(self, pairs: Tensor) -> Tensor:
        """(video, paragraph, clip, caption) -> the fixture's (paragraph * video, caption, clip)."""
        return pairs.permute(1, 0, 3, 2).flatten(0, 1)

    def check(self, name: str, actual: Tensor) -> None:
        expected = self.arrays[name]
        scale = expected.abs().max().clamp(min=1e-12)
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_all_cases_are_here() -> None:
    assert len(FIXTURES) == 5


def test_values(case: Case) -> None:
    out = case.explain()
    video_paragraph, clip_caption = out.video_paragraph, out.clip_caption
    assert video_paragraph.plan is not None
    assert video_paragraph.bucket_value is not None
    assert clip_caption.plan is not None
    case.check("video_paragraph_loss", video_paragraph.loss.detach())
    case.check("clip_caption_loss", clip_caption.loss.detach())
    case.check("similarity_blocks", case.as_blocks(video_paragraph.similarity))
    case.check("bucket_value", video_paragraph.bucket_value)
    case.check("plan_blocks", 2 * case.length * case.as_blocks(video_paragraph.plan.core))
    case.check("video_paragraph_logits", video_paragraph.logits.T)
    case.check("clip_caption_plan", case.config["clips"] * clip_caption.plan.plan)


def test_gradients_of_the_video_paragraph_term(case: Case) -> None:
    loss = case.explain().video_paragraph.loss
    gradients = torch.autograd.grad(loss, list(case.leaves.values()), materialize_grads=True)
    for name, gradient in zip(LEAVES, gradients, strict=True):
        case.check(f"vp_grad_{name}", gradient.flatten(0, 1))


def test_gradients_of_the_clip_caption_term(case: Case) -> None:
    names = ("pooled_video", "pooled_text")
    loss = case.explain().clip_caption.loss
    gradients = torch.autograd.grad(loss, [case.leaves[name] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        case.check(f"cc_grad_{name}", gradient.flatten(0, 1))


def test_the_terms_add_up(case: Case) -> None:
    out = case.explain()
    total = out.clip_caption.loss + 0.1 * out.video_paragraph.loss
    torch.testing.assert_close(out.loss, total, rtol=1e-12, atol=0)
