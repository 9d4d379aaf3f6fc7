"""The handwritten how-to corpus as a DataLoader, which trainers deal out among processes."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from examples.handwritten_howto.corpus import Corpus, make_corpus


def howto_batches(videos: int, batch_videos: int) -> DataLoader[Any]:
    """Batches of a training corpus, each a Corpus; it was drawn at random, so none is shuffled."""
    corpus = make_corpus(videos, "train", seed=1)

    def collate(drawn: list[int]) -> Corpus:
        return corpus[torch.tensor(drawn)]

    numbers: Any = range(videos)
    return DataLoader(numbers, batch_videos, collate_fn=collate)
