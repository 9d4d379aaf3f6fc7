"""The picture of one noisy video: similarity, transport plan, bucket mass and true alignment."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from examples.handwritten_howto.corpus import Corpus, sentence
from examples.handwritten_howto.towers import Towers
from norton_losses import NortonLoss


@torch.no_grad()
def draw_alignment(
    towers: Towers, loss: NortonLoss, corpus: Corpus, video: int, path: Path
) -> None:
    """Draw one video of a noisy held-out corpus; the bucket's value is that of the corpus."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frames, words = towers(corpus)
    out = loss.explain(
        frames, words, frame_mask=corpus.frame_mask, word_mask=corpus.word_mask
    ).video_paragraph
    assert out.plan is not None
    similarity = out.similarity[video, video].numpy()
    steps = similarity.shape[0]
    plan = 2 * steps * out.plan.plan[video, video].numpy()  # 1: all of a clip's mass
    truth = corpus.truth[video].numpy()
    clips = [f"clip {i}" for i in range(steps)]
    captions = [sentence(caption) for caption in corpus.words[video]]

    figure, axes = plt.subplots(1, 3, figsize=(15, 6.4), constrained_layout=True)
    panels = (
        ("Similarity of clips and captions", similarity, clips, captions),
        (
            "Transport plan; last row and column: the bucket",
            plan,
            [*clips, "bucket"],
            [*captions, "bucket"],
        ),
        ("True alignment (empty: about nothing)", truth, clips, captions),
    )
    for axis, (title, values, rows, columns) in zip(axes, panels, strict=True):
        shown = axis.imshow(values, cmap="magma", vmax=1 if values is plan else None)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        if values is not truth:
            figure.colorbar(shown, ax=axis, shrink=0.7)
    for i, j in zip(*truth.nonzero(), strict=True):
        for axis in axes[:2]:
            axis.plot(j, i, "s", markersize=13, markerfacecolor="none", markeredgecolor="cyan")
    figure.suptitle("One noisy held-out video; cyan squares: the true pairs", fontsize=12)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def first_shifted(corpus: Corpus) -> int:
    """The first video in which a caption comes early or late."""
    diagonal = torch.eye(corpus.truth.shape[-1], dtype=torch.bool)
    return int((corpus.truth & ~diagonal).flatten(1).any(1).int().argmax())
