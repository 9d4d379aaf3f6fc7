"""A small video tower and a small text tower of transformer layers, as real models have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FEATURES, VOCABULARY = 512, 30522  # of a frozen video backbone; of BERT


@dataclass(frozen=True)
class TowerSizes:
    """Width D of the tokens and number of layers."""

    width: int
    video_layers: int
    text_layers: int


class Towers(nn.Module):
    """Frame features (K, F, 512) and word numbers (K, W) to tokens (K, F, D) and (K, W, D)."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.frames = nn.Linear(FEATURES, width)
        self.video = _encoder(width, sizes.video_layers)
        self.words = nn.Embedding(VOCABULARY, width)
        self.text = _encoder(width, sizes.text_layers)

    def forward(
        self, features: Tensor, words: Tensor, frame_mask: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        video = self.video(self.frames(features), src_key_padding_mask=~frame_mask)
        text = self.text(self.words(words), src_key_padding_mask=~word_mask)
        return video, text


def build(sizes: TowerSizes, like: Tensor) -> Towers:
    """The same weights every time, on the device and in the dtype of ``like``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Towers(sizes).to(like)


def _encoder(width: int, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width,
        max(width // 64, 1),
        4 * width,
        dropout=0.0,
        activation="gelu",  # a kink would let float32 and float64 take different sides of it
        batch_first=True,
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
