"""NortonLoss on the similarities of a transformers XCLIPModel, which compares clips with texts.

``python -m examples.integrations.xclip_similarity``. X-CLIP changes the features of a text for each
clip it is compared with, so there are no tokens of a text alone; its logits take their place.

| of a batch                                            | of ``NortonLoss.from_similarity()``    |
| ----------------------------------------------------- | -------------------------------------- |
| pixel_values (B, N, F, 3, H, W), input_ids (B, N, W): | similarity (B, B, N, N), cosines       |
| logits_per_video (B * N, B * N) without their scale   |                                        |
| which clips and captions are no padding, (B, N)       | clip_mask, caption_mask; None: all     |
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import XCLIPConfig, XCLIPModel

from examples.integrations.made_up import SIZE, filmed
from norton_losses import NortonLoss, parameter_groups
from norton_losses.retrieval import RetrievalOutput

VIDEO = {"image_size": 32, "num_frames": 4, "mit_hidden_size": 48, "mit_intermediate_size": 96}


def make_batch(videos: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    pixels, words = filmed(g, videos, 6)
    last = (words > 0).sum(-1, keepdim=True) - 1
    return pixels, words.scatter(-1, last, 41)  # X-CLIP reads a caption at its highest id


def similarities(model: Any, pixels: Tensor, words: Tensor) -> Tensor:
    b, n = words.shape[:2]
    ids = words.flatten(0, 1)
    out = model(ids, pixels.flatten(0, 1), attention_mask=(ids > 0).long())
    cosines = out.logits_per_video / model.logit_scale.exp()  # <- the loss has its own temperatures
    return cosines.view(b, n, b, n).transpose(1, 2)  # <- [b, c, i, j]: clip i of b, caption j of c


def main(steps: int = 41, videos: int = 8) -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    config = XCLIPConfig(text_config=SIZE, vision_config=SIZE | VIDEO, projection_dim=48)
    model, loss = XCLIPModel(config), NortonLoss.from_similarity()  # <- called with similarities
    both = nn.ModuleList([model, loss])  # <- the loss has a temperature to train, without decay
    optimizer = torch.optim.AdamW(parameter_groups(both, 0.01), lr=3e-3)
    for step in range(steps):
        value = loss(similarities(model, *make_batch(videos, g)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {value.item():.6f}")
    with torch.no_grad():
        scores = loss.score(similarities(model, *make_batch(24, g)))  # <- (videos, paragraphs)
    print(RetrievalOutput.from_scores(scores))


if __name__ == "__main__":
    main()
