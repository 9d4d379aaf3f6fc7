"""NortonLoss on features that lie on disk: memory-mapped arrays, windows of 8 clips.

``python -m examples.integrations.precomputed_features``. A long video gives several windows, which
are not each other's negatives: ``group_ids`` of both terms is the video.

| on disk                                  | in ``Segments``                                  |
| ---------------------------------------- | ------------------------------------------------ |
| clips.npy, captions.npy (all clips, 32)  | windows (B, 8, 32), through a head (B, 8, 64)    |
| offsets.npy (videos + 1,), a video's     | ``mask`` (B, 8), False after its last clip       |
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.integrations.made_up import write_features
from norton_losses import NortonLoss, Segments
from norton_losses.retrieval import retrieve


def windows_of(folder: Path) -> list[tuple[int, int, int]]:
    videos = enumerate(itertools.pairwise(np.load(folder / "offsets.npy").tolist()))
    return [(a, min(a + 8, end), v) for v, (start, end) in videos for a in range(start, end, 8)]


def main(folder: Path, videos: int = 300) -> None:
    torch.manual_seed(0)
    write_features(folder, videos)
    files = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("clips", "captions")]
    heads, loss = nn.ModuleList([nn.Linear(32, 64), nn.Linear(32, 64)]), NortonLoss()
    optimizer = torch.optim.Adam([*heads.parameters(), *loss.parameters()], lr=1e-2)

    def collate(windows: list[tuple[int, int, int]]) -> tuple[Tensor, list[Segments]]:
        sides = [Segments.from_list([f[a:b] for a, b, _ in windows]) for f in files]  # <- padded
        return torch.tensor([video for *_, video in windows]), sides

    def encode(sides: list[Segments]) -> list[Segments]:
        read = zip(heads, sides, strict=True)
        return [Segments(head(side.tokens[:, :, 0].float()), mask=side.mask) for head, side in read]

    windows: Any = windows_of(folder)
    for step, (group, sides) in enumerate(DataLoader(windows, 32, True, collate_fn=collate)):
        value = loss.clip_caption(*encode(sides), group_ids=group)  # <- of one video: no negatives
        value += loss.weight * loss.video_paragraph(*encode(sides), group_ids=group)  # <- here too
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        print(f"step {step}  loss {value.item():.6f}")
    print(retrieve(loss, *encode(collate(windows[:100])[1]), progress=False))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
