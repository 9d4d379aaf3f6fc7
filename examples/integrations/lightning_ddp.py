"""NortonLoss in a LightningModule, with negatives of all processes and diagnostics in the log.

``python -m examples.integrations.lightning_ddp`` trains on two processes, which Lightning starts,
wraps in DDP and gives each its part of the batches; all of them retrieve in the end.

| of a batch                                             | in ``Segments``          |
| ------------------------------------------------------ | ------------------------ |
| frames through the video tower, frame_mask (B, N, F)   | (B, N, F, D) of video    |
| words through the text tower, word_mask (B, N, W)      | (B, N, W, D) of text     |
"""

import sys

import lightning
import torch

from examples.handwritten_howto.corpus import Corpus, make_corpus
from examples.handwritten_howto.towers import Towers
from examples.integrations.howto_batches import howto_batches
from norton_losses import NortonLoss, parameter_groups
from norton_losses.retrieval import retrieve


class LitTowers(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers()
        self.loss = NortonLoss(process_group="world")  # <- in the module: its temperature trains

    def training_step(self, batch: Corpus, index: int) -> torch.Tensor:
        out = self.loss.explain(*self.towers(batch))  # <- on every process, or on none
        if index % 10 == 0:
            self.print(f"step {index}  loss {out.loss.item():.6f}")
            self.log_dict(out.diagnostics(), rank_zero_only=True)
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self, 0.01), lr=3e-3)  # <- tau does not decay


def main(processes: int = 2, videos: int = 640, batch_videos: int = 16) -> None:
    lightning.seed_everything(0)
    model = LitTowers()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, howto_batches(videos, batch_videos // processes))
    with torch.no_grad():
        sides = model.towers(make_corpus(100, "test", seed=2))
    model.print(retrieve(model.loss, *sides, process_group="world", progress=False))  # <- shared


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
