"""NortonLoss in place of open_clip's ClipLoss, called by open_clip's own train_one_epoch.

open_clip trains the model's ``logit_scale`` and no parameter of a loss: the clip-caption term takes
that scale, from 1 / 0.2, our start, and the other keeps a temperature of its own, 0.1, fixed.

| argument                                              | in ``Segments.from_flat``             |
| ----------------------------------------------------- | ------------------------------------- |
| image_features (K, D), one frame of each of K clips   | tokens (K, D) of video                |
| text_features (K, D), of their captions               | tokens (K, D) of text                 |
"""

from types import SimpleNamespace
from typing import Any

import torch
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg  # pyright: ignore[reportMissingImports]
from open_clip_train.params import parse_args  # pyright: ignore[reportMissingImports]
from open_clip_train.train import train_one_epoch  # pyright: ignore[reportMissingImports]
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.integrations.made_up import filmed
from norton_losses import ClipCaptionOTLoss, NortonLoss, Segments
from norton_losses.retrieval import retrieve


class OpenClipLoss(nn.Module):
    def __init__(self, counts: int) -> None:
        super().__init__()
        self.counts = counts  # <- how many clips each video has, one video after another
        self.loss = NortonLoss(clip_caption=ClipCaptionOTLoss(temperature=None))  # <- takes a scale

    def forward(self, image_features, text_features, logit_scale, output_dict=False) -> Any:
        sides = (Segments.from_flat(side, self.counts) for side in (image_features, text_features))
        loss = self.loss(*sides, logit_scale=logit_scale)  # <- exponentiated by the model
        return {"norton_loss": loss} if output_dict else loss


def main(videos: int = 740) -> None:
    clips, words = filmed(torch.manual_seed(0), 6 * videos)
    pixels = clips[:, 0]  # one frame of each
    loader: Any = DataLoader(TensorDataset(pixels[600:], words[600:]), 96)  # <- 16 whole videos
    loader.num_batches, loader.num_samples = len(loader), len(loader.dataset)
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    vision = CLIPVisionCfg(layers=1, width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(layers=1, width=64, context_length=8, vocab_size=41, pool_type="last")
    model = CLIP(64, vision, text, init_logit_scale=1.61, output_dict=True)  # <- log(1 / 0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    args = parse_args(["--precision", "fp32", "--log-every-n-steps", "10", "--skip-scheduler"])
    vars(args).update(device="cpu", rank=0, world_size=1, distill=False, wandb=False)
    writer = SimpleNamespace(add_scalar=lambda name, value, step: print(step, name, value))
    loss = OpenClipLoss(counts=6)
    train_one_epoch(model, data, loss, 0, optimizer, None, None, None, args, writer)
    with torch.no_grad():
        images, texts, _ = model(pixels[:600], words[:600]).values()
    print(retrieve(loss.loss, images.view(100, 6, -1), texts.view(100, 6, -1), progress=False))


if __name__ == "__main__":
    main()
