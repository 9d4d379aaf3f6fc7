"""NortonLoss in a plain loop: a Dataset of ragged videos, a collate function, an optimiser.

``python -m examples.integrations.plain_loop``. An item is one video: a list of clips, each with
frame features of its own number, and a list of captions, each with token ids of its own number.

| of an item                                 | in ``Segments``                            |
| ------------------------------------------ | ------------------------------------------ |
| clips, a list of N arrays (F, 32)          | ``from_list``: (B, N, F, 32) and its mask  |
| captions, a list of N arrays (W,) of ids   | embedded flat, then ``from_flat``          |
| how many captions each video has           | ``counts`` of ``from_flat``                |
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from examples.integrations.made_up import WORDS, ragged_video
from norton_losses import NortonLoss, Segments, parameter_groups
from norton_losses.retrieval import retrieve


def collate(items: list[tuple[list[Tensor], list[Tensor]]]) -> tuple[Segments, Tensor, list[int]]:
    videos = Segments.from_list([clips for clips, _ in items])  # <- pads clips and frames
    words = pad_sequence([w for _, captions in items for w in captions], batch_first=True)
    return videos, words, [len(captions) for _, captions in items]  # <- words stay flat (K, W)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.video, self.words = nn.Linear(32, 64), nn.Embedding(WORDS, 64, padding_idx=0)
        self.loss = NortonLoss()  # <- in the module: its temperature trains and is saved

    def forward(self, videos: Segments, words: Tensor, counts: list[int]) -> list[Segments]:
        text = Segments.from_flat(self.words(words), counts, words > 0)  # <- True where valid
        return [Segments(self.video(videos.tokens), videos.token_mask), text]


def main(videos: int = 640, batch_videos: int = 16) -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-2)  # <- tau does not decay
    dataset: Any = [ragged_video(number) for number in range(videos)]
    for step, batch in enumerate(DataLoader(dataset, batch_videos, collate_fn=collate)):
        loss = model.loss(*model(*batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {loss.item():.6f}")
    with torch.no_grad():
        sides = model(*collate([ragged_video(videos + number) for number in range(100)]))
    print(retrieve(model.loss, *sides, progress=False))


if __name__ == "__main__":
    main()
