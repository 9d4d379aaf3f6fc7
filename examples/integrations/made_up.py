"""Small data that can be learnt, for examples whose subject is another: made from random steps."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WORDS = 101  # token ids, of which 0 is padding
SIZE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}  # of a small tower
LOOKS = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_STEPS = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))  # what a clip can show


def ragged_video(number: int) -> tuple[list[Tensor], list[Tensor]]:
    """Frame features (F, 32) of each clip, and token ids (W,) of each caption, a clip early."""
    g = torch.Generator().manual_seed(number)
    steps = torch.randint(50, (int(torch.randint(4, 9, (), generator=g)),), generator=g).tolist()
    frames, words = (torch.randint(2, 7, (len(steps),), generator=g).tolist() for _ in range(2))
    shown, told = zip(steps, frames, strict=True), zip([*steps[1:], steps[0]], words, strict=True)
    clips = [_STEPS[step] + torch.randn(f, 32, generator=g) for step, f in shown]
    return clips, [1 + step + 50 * torch.randint(2, (w,), generator=g) for step, w in told]


def filmed(g: torch.Generator, *clips: int) -> tuple[Tensor, Tensor]:
    """Pixels (*clips, 4, 3, 32, 32) that show one of 40 steps each, and token ids (*clips, 8)."""
    steps = torch.randint(40, (*clips, 1), generator=g)
    pixels = LOOKS[steps] + torch.randn(*clips, 4, 3, 32, 32, generator=g)
    return pixels, (1 + steps) * (torch.arange(8) < 2 + steps % 7)  # captions of 2 to 8 words


def write_features(folder: Path, videos: int) -> None:
    """clips.npy and captions.npy (all clips, 32), float16, and offsets.npy (videos + 1,)."""
    g = np.random.default_rng(0)
    offsets = np.concatenate([[0], g.integers(5, 25, videos).cumsum()])
    steps, hidden = g.normal(size=(offsets[-1], 32)), g.normal(size=(32, 32))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "clips.npy", (steps + g.normal(size=steps.shape) / 2).astype("f2"))
    np.save(folder / "captions.npy", (steps @ hidden).astype("f2"))


def flat_outputs(towers: nn.ModuleList, clips: int, seed: int) -> dict[str, Tensor]:
    """What a model of MMPT gives: tokens, masks and pooled means of flat clips and captions."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randn(clips, 1, 32, generator=g)
    made: dict[str, Tensor] = {}
    for side, tower, length in zip(("video", "text"), towers, (6, 10), strict=True):
        tokens = tower(steps + torch.randn(clips, length, 32, generator=g))
        mask = torch.rand(clips, length, generator=g) < 0.8
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        made |= {f"{side}_outputs": tokens, f"{side}_mask_outputs": mask, f"pooled_{side}": pooled}
    return made
