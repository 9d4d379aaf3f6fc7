"""A batch larger than memory: its parts encoded one after another, compared all at once.

``python -m examples.integrations.gradcache``. Gradient accumulation is another objective: there
each part is contrasted with itself alone. ``cached_step`` gives the loss and the gradients of the
whole batch, with the activations of one part, for one more forward pass.

| of a part                                              | in ``Segments``          |
| ------------------------------------------------------ | ------------------------ |
| frames through the video tower, frame_mask (B, N, F)   | (B, N, F, D) of video    |
| words through the text tower, word_mask (B, N, W)      | (B, N, W, D) of text     |
"""

import torch

from examples.handwritten_howto.corpus import make_corpus
from examples.handwritten_howto.towers import Towers
from examples.integrations.howto_batches import howto_batches
from norton_losses import NortonLoss, cached_step
from norton_losses.retrieval import retrieve


def main(videos: int = 640, part_videos: int = 4, parts: int = 4) -> None:
    torch.manual_seed(0)
    towers, loss = Towers(), NortonLoss()
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=3e-3)
    batches = list(howto_batches(videos, part_videos))
    for step in range(len(batches) // parts):
        optimizer.zero_grad()
        whole = batches[step * parts : (step + 1) * parts]
        value = cached_step(towers, loss, whole)  # <- in place of loss(*towers(batch)).backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {value.item():.6f}")
    with torch.no_grad():
        print(retrieve(loss, *towers(make_corpus(100, "test", seed=2)), progress=False))


if __name__ == "__main__":
    main()
