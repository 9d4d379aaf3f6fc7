"""NortonLoss under Accelerate, with negatives of all processes.

``torchrun --standalone --nproc-per-node 2 -m examples.integrations.accelerate_two_processes`` on
CPUs, ``accelerate launch -m ...`` on GPUs. Accelerate wraps the module in DDP, and gives each
process its part of the batches.

| of a batch                                             | in ``Segments``          |
| ------------------------------------------------------ | ------------------------ |
| frames through the video tower, frame_mask (B, N, F)   | (B, N, F, D) of video    |
| words through the text tower, word_mask (B, N, W)      | (B, N, W, D) of text     |
"""

import sys

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from examples.handwritten_howto.corpus import Corpus, make_corpus
from examples.handwritten_howto.towers import Towers
from examples.integrations.howto_batches import howto_batches
from norton_losses import NortonLoss, parameter_groups
from norton_losses.retrieval import retrieve


class Model(nn.Module):
    def __init__(self, processes: int) -> None:
        super().__init__()
        self.towers = Towers()
        group = "world" if processes > 1 else None  # <- of one process Accelerate makes no group
        self.loss = NortonLoss(process_group=group)  # <- in the module: its temperature trains

    def forward(self, batch: Corpus) -> Tensor:
        return self.loss(*self.towers(batch))  # <- through DDP, which prepare() puts around it


def main(videos: int = 640, batch_videos: int = 16) -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    model = Model(accelerator.num_processes)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=3e-3)  # <- tau does not decay
    batches = howto_batches(videos, batch_videos // accelerator.num_processes)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for step, batch in enumerate(batches):
        loss = model(batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            accelerator.print(f"step {step}  loss {loss.item():.6f}")
    own = accelerator.unwrap_model(model)  # <- DDP has no own.loss.explain, .score
    with torch.no_grad():
        sides = own.towers(make_corpus(100, "test", seed=2).to(accelerator.device))
    group = own.loss.process_group
    accelerator.print(retrieve(own.loss, *sides, process_group=group, progress=False))
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
