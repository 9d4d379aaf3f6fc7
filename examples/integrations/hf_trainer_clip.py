"""NortonLoss on a transformers CLIPModel or SiglipModel, trained by transformers.Trainer.

``python -m examples.integrations.hf_trainer_clip``; ``main(folder, "siglip")`` is SigLIP, whose
bias drops out of a softmax. A ``compute_loss_func`` would see no masks, and not train tau.

| of a batch                                      | in ``Segments``                          |
| ----------------------------------------------- | ---------------------------------------- |
| pixel_values (B, N, F, 3, H, W): pooled frames  | (B, N, F, D) of video                    |
| input_ids, attention_mask: last_hidden_state    | (B, N, W, D) of text, and its token_mask |
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from examples.integrations.made_up import SIZE, filmed
from norton_losses import NortonLoss, Segments, parameter_groups
from norton_losses.retrieval import retrieve


def make_batch(videos: Any) -> dict[str, Tensor]:
    pixels, words = filmed(torch.Generator().manual_seed(videos[0]), len(videos), 6)
    return {"pixel_values": pixels, "input_ids": words, "attention_mask": (words > 0).long()}


class Model(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.loss = clip, NortonLoss()  # <- in it: tau trains, is saved and resumed

    def encode(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        frames = self.clip.get_image_features(pixel_values.flatten(0, 2)).pooler_output
        read = self.clip.text_model(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        project = getattr(self.clip.text_model, "head", None) or self.clip.text_projection
        words = project(read.last_hidden_state).unflatten(0, input_ids.shape[:2])
        return frames.unflatten(0, pixel_values.shape[:3]), Segments(words, attention_mask.bool())

    def forward(self, return_loss: bool = True, **batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(*self.encode(**batch))}  # <- return_loss lets Trainer evaluate it


def main(folder: str, kind: str = "clip", videos: Any = range(900)) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config=SIZE, vision_config=SIZE | {"image_size": 32})
    model = Model(AutoModel.from_config(config))
    adamw = torch.optim.AdamW(parameter_groups(model, 0.01), lr=3e-3)  # <- tau does not decay
    options: Any = {"max_steps": 60, "logging_steps": 10, "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(folder, remove_unused_columns=False, **options)  # <- for **batch
    trainer = Trainer(model, args, make_batch, videos[100:], videos[:96], optimizers=(adamw, None))
    trainer.train()
    trainer.evaluate()
    print(retrieve(model.loss, *model.encode(**make_batch(range(100))), progress=False))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(place)
