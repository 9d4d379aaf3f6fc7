"""NortonLoss on the towers of a transformers CLIPModel, trained by transformers.Trainer.

``python -m examples.integrations.hf_trainer_clip``. A ``compute_loss_func`` sees no inputs, hence
no masks, and would not train the temperature. For SigLIP the same works, with ``text_model.head``
in place of ``text_projection``: its bias drops out of a softmax.

| of a batch                                      | in ``Segments``                          |
| ----------------------------------------------- | ---------------------------------------- |
| pixel_values (B, N, F, 3, H, W): pooled frames  | (B, N, F, D) of video                    |
| input_ids (B, N, W): last_hidden_state          | (B, N, W, D) of text                     |
| attention_mask (B, N, W)                        | token_mask of text, bool: True if valid  |
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PrinterCallback, Trainer, TrainingArguments

from norton_losses import NortonLoss, Segments, parameter_groups
from norton_losses.retrieval import retrieve

SIZE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
LOOKS = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make_batch(videos: Any) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(videos[0])
    steps = torch.randint(40, (len(videos), 6, 1), generator=g)  # what each of 6 clips shows
    pixels = LOOKS[steps] + torch.randn(len(videos), 6, 4, 3, 32, 32, generator=g)
    words = (1 + steps) * (torch.arange(8) < 2 + steps % 7)  # captions of 2 to 8 words
    return {"pixel_values": pixels, "input_ids": words, "attention_mask": (words > 0).long()}


class Model(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.loss = clip, NortonLoss()  # <- in it: tau trains, is saved and resumed

    def encode(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        frames = self.clip.get_image_features(pixel_values.flatten(0, 2)).pooler_output
        read = self.clip.text_model(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        words = self.clip.text_projection(read.last_hidden_state).unflatten(0, input_ids.shape[:2])
        return frames.unflatten(0, pixel_values.shape[:3]), Segments(words, attention_mask.bool())

    def forward(self, return_loss: bool = True, **batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(*self.encode(**batch))}  # <- return_loss lets Trainer evaluate it


def main(folder: str) -> None:
    torch.manual_seed(0)
    model = Model(CLIPModel(CLIPConfig(text_config=SIZE, vision_config=SIZE | {"image_size": 32})))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=3e-3)  # <- tau does not decay
    options: Any = {"max_steps": 60, "logging_steps": 10, "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(folder, remove_unused_columns=False, **options)  # <- for **batch
    sets: Any = {"train_dataset": range(100, 900), "eval_dataset": range(96)}
    trainer = Trainer(model, args, make_batch, **sets, optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for log in trainer.state.log_history[:-1]:
        print(f"step {log['step']}  loss {log['loss']:.6f}")
    print(f"eval  loss {trainer.evaluate()['eval_loss']:.6f}")
    with torch.no_grad():
        print(retrieve(model.loss, *model.encode(**make_batch(range(100))), progress=False))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(place)
