"""A trained model evaluated: retrieval by several measures, recalls, and a picture of a video.

``python -m examples.integrations.evaluate_and_plot [alignment.png]`` trains for a moment, and draws
the video that finds its paragraph worst.

| of the test set                                        | in ``Segments``          |
| ------------------------------------------------------ | ------------------------ |
| frames through the video tower, frame_mask (B, N, F)   | (B, N, F, D) of video    |
| words through the text tower, word_mask (B, N, W)      | (B, N, W, D) of text     |
"""

import sys

import torch

from examples.handwritten_howto.corpus import make_corpus
from examples.handwritten_howto.towers import Towers
from examples.handwritten_howto.training import train
from norton_losses import NortonLoss
from norton_losses.metrics import retrieval_ranks
from norton_losses.plotting import plot_alignment
from norton_losses.retrieval import retrieval_table, retrieve


def main(picture: str = "alignment.png", steps: int = 100) -> None:
    torch.manual_seed(0)
    towers, loss = Towers(), NortonLoss()
    train(towers, loss, make_corpus(500, "train", seed=1), seed=0, steps=steps)
    test = make_corpus(200, "test", seed=2)
    with torch.no_grad():
        video, text = towers.eval()(test)  # <- all of the test set; retrieve() scores it by tiles
    found = {
        "NortonLoss": retrieve(loss, video, text, progress=False),  # <- frames and words
        "transport": retrieve("transport", video, text, progress=False),  # <- their means
        "dtw": retrieve("dtw", video, text, progress=False),
    }
    print(retrieval_table(found))
    ranks = retrieval_ranks(found["NortonLoss"].scores)
    worst = [int(ranks.argmax())]
    with torch.no_grad():
        # A single video has no negatives: its loss is 0, and its plan is what is asked for.
        out = loss.eval().explain(video[worst], text[worst]).video_paragraph
    assert out.plan is not None
    title = f"video {worst[0]}, rank {ranks.max():g}"
    figure = plot_alignment(out.plan[0, 0], truth=test.truth[worst[0]], title=title)
    figure.savefig(picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "alignment.png")
