"""NortonLoss with the call of MMPT's losses (VideoCLIP, VLM), whose clips come flat.

``python -m examples.integrations.mmpt_criterion``. ``NortonLoss.released()`` has the numbers of the
authors' code; ``NortonLoss()`` is the better start for a model that is not trained yet.

| argument                                  | in ``Segments``                                 |
| ----------------------------------------- | ----------------------------------------------- |
| video_outputs, text_outputs (K, T, D)     | tokens (B, N, T, D)                             |
| video_mask_outputs, text_mask_outputs     | token_mask, True where valid                    |
| pooled_video, pooled_text (K, D)          | embeddings (B, N, D)                            |
"""

import torch
from torch import Tensor, nn

from examples.integrations.made_up import flat_outputs
from norton_losses import NortonLoss, Segments
from norton_losses.retrieval import retrieve


class NortonCriterion(nn.Module):
    def __init__(self, clips_per_video: int, loss: NortonLoss) -> None:
        super().__init__()
        self.clips_per_video, self.loss = clips_per_video, loss

    def side(self, side: str, outputs: dict[str, Tensor]) -> Segments:
        return Segments.from_flat(
            outputs[f"{side}_outputs"],
            self.clips_per_video,  # <- so many clips of a video after another
            outputs[f"{side}_mask_outputs"].bool(),  # <- MMPT's masks are 1 where valid
            embeddings=outputs[f"pooled_{side}"],
        )

    def forward(self, **outputs: Tensor) -> Tensor:
        return self.loss(self.side("video", outputs), self.side("text", outputs))


def main(steps: int = 31) -> None:
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Linear(32, 64), nn.Linear(32, 64)])
    criterion = NortonCriterion(8, NortonLoss.released())
    optimizer = torch.optim.Adam(towers.parameters(), lr=3e-3)
    for step in range(steps):
        loss = criterion(**flat_outputs(towers, 16 * 8, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {loss.item():.6f}")
    with torch.no_grad():
        test = flat_outputs(towers, 100 * 8, seed=steps)
    sides = (criterion.side(side, test) for side in ("video", "text"))
    print(retrieve("transport", *sides, progress=False))  # <- released() rescales over the batch


if __name__ == "__main__":
    main()
