"""NortonLoss on the embeddings of a transformers PeVideoModel, of ragged videos that come flat.

``python -m examples.integrations.pe_video``, with timm. The model's own loss (transformers 5.24)
multiplies logits by labels of 0 and 1, so that negatives get no gradient: off the diagonal
``torch.autograd.grad(out.loss, out.logits_video_text)`` is 0, at a logit scale of 0 and of 5.

| of a batch                                         | in ``Segments.from_flat``           |
| -------------------------------------------------- | ----------------------------------- |
| pixel_values_videos (K, F, 3, H, W): video_embeds  | (K, D) of video, one token a clip   |
| input_ids (K, W): text_video_embeds                | (K, D) of text                      |
| how many of the K clips each video has             | counts of both                      |
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PeVideoConfig, PeVideoModel

from examples.integrations.made_up import filmed
from norton_losses import NortonLoss, Segments, parameter_groups
from norton_losses.retrieval import retrieve

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
TINY = {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 4}
VISION = {"architecture": "vit_pe_core_tiny_patch16_384", "num_labels": 64, "model_args": TINY}


def make_batch(videos: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.randint(4, 8, (videos,), generator=g)
    return *filmed(g, int(counts.sum())), counts


def encode(model: Any, pixels: Tensor, words: Tensor, counts: Tensor) -> tuple[Segments, Segments]:
    out = model(words, pixels, attention_mask=(words > 0).long())  # <- it has no get_..._features()
    video = Segments.from_flat(out.video_embeds, counts)  # <- the clips of one video after another
    return video, Segments.from_flat(out.text_video_embeds, counts)  # <- a caption for each clip


def main(steps: int = 31, videos: int = 12) -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    config = PeVideoConfig(text_config=SIZE, video_config=SIZE | {"vision_config": VISION})
    model, loss = PeVideoModel(config), NortonLoss()  # <- in place of return_loss=True
    both = nn.ModuleList([model, loss])  # <- the loss has a temperature to train, without decay
    optimizer = torch.optim.AdamW(parameter_groups(both, 0.01), lr=1e-3)
    for step in range(steps):
        value = loss(*encode(model, *make_batch(videos, g)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {value.item():.6f}")
    with torch.no_grad():
        print(retrieve(loss, *encode(model.eval(), *make_batch(100, g)), progress=False))


if __name__ == "__main__":
    main()
