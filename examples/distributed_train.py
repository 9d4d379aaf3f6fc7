"""Train the towers of the handwritten how-to corpus on several processes, with negatives of all.

``torchrun --standalone --nproc-per-node 2 -m examples.distributed_train`` prints the loss of the
whole batch, which is that of one process with as many videos (``--nproc-per-node 1``). It runs on
CUDA with NCCL where there is a GPU for each process, else on the CPU with gloo. With
``--checkpoint`` it goes on where it was, and torchrun's ``--max-restarts`` brings it back when a
process dies: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 then, or the new processes may look for the
dead one (pytorch issue 135712).
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its functions would keep for ever
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from examples.handwritten_howto.corpus import Corpus, make_corpus
from examples.handwritten_howto.towers import Towers
from norton_losses import NortonLoss


class Model(nn.Module):
    """Towers and loss in one module, so that DDP takes care of all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers()
        self.loss = NortonLoss(process_group="world")

    def forward(self, batch: Corpus) -> Tensor:
        return self.loss(*self.towers(batch))


def main(
    arguments: Sequence[str] | None = None, on_step: Callable[[int], object] = lambda step: None
) -> None:
    """Train; ``on_step`` is called with the number of each step that begins."""
    options = _parse(arguments)
    on_cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if on_cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    try:
        _train(options, device, on_step)
        dist.barrier()  # a process that leaves early may take the connections of others with it
    finally:
        gc.collect()  # DDP, which holds the group: gloo's threads may not outlive the interpreter
        dist.destroy_process_group()


def _train(
    options: argparse.Namespace, device: torch.device, on_step: Callable[[int], object]
) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    if options.batch_videos < size:
        raise SystemExit(f"--batch-videos must be {size} at least, one for each process")
    corpus = make_corpus(options.videos, "train", seed=1)
    torch.manual_seed(0)  # the same weights everywhere
    model = DistributedDataParallel(Model().to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    begin = _load(options.checkpoint, model, optimizer, device)
    for step in range(begin, options.steps):
        on_step(step)
        # Every process draws the whole batch, and takes every size-th video of it.
        drawn = torch.Generator().manual_seed(step)
        videos = torch.randint(len(corpus), (options.batch_videos,), generator=drawn)
        loss = model(corpus[videos[rank::size]].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step}  loss {loss.item():.6f}", flush=True)
            if options.checkpoint is not None and (step + 1) % options.save_every == 0:
                _save(options.checkpoint, model, optimizer, step + 1)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(path)  # a process that dies here leaves the last one whole


def _load(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> int:
    """The step to begin with."""
    if path is None or not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location=device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m examples.distributed_train", description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--videos", type=int, default=2000, help="of the training corpus")
    parser.add_argument("--batch-videos", type=int, default=16, help="of all processes together")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from, seen by all hosts")
    parser.add_argument("--save-every", type=int, default=10, help="steps")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
