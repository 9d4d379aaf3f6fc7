"""Pictures of what the parts of the loss do, on held-out videos, after a short training.

``python -m examples.handwritten_howto.concepts docs/images``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from examples.handwritten_howto.corpus import Corpus, Noise, make_corpus, sentence
from examples.handwritten_howto.picture import first_shifted
from examples.handwritten_howto.towers import Towers
from examples.handwritten_howto.training import train
from norton_losses import ClipCaptionOTLoss, NortonLoss, SimilarityBlock, TransportMeasure
from norton_losses.plotting import plot_alignment

EPSILONS = (0.01, 0.1, 1.0)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.handwritten_howto.concepts")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    towers, loss = Towers(), NortonLoss()
    with torch.enable_grad():
        train(towers, loss, make_corpus(2000, "train", seed=1), seed=0, steps=options.steps)
    corpus = make_corpus(32, "test", seed=3)
    video = first_shifted(corpus)
    sides = towers(corpus)
    block = loss.video_paragraph.explain(*sides).block
    pictures = {
        "token_similarity": _of_tokens(corpus, video, *(side.tokens[video] for side in sides)),
        "epsilon": _of_epsilons(block, corpus, video),
        "without_bucket": _of_bucket(block, corpus, video, None),
        "with_bucket": _of_bucket(block, corpus, video, 0.3),
        "targets": _of_targets(towers, make_corpus(2, "test", noise=Noise.none(), seed=3)),
    }
    for name, figure in pictures.items():
        figure.savefig(options.folder / f"{name}.png", dpi=110)


def _of_tokens(corpus: Corpus, video: int, frames: Tensor, words: Tensor) -> Figure:
    """Cosines of the words and frames of the first true pair, with the frames themselves."""
    clip, caption = (int(i) for i in corpus.truth[video].nonzero()[0])
    seen, said = corpus.frame_mask[video, clip], corpus.word_mask[video, caption]
    units = (torch.nn.functional.normalize(t, dim=-1) for t in (frames[clip], words[caption]))
    cosines = torch.einsum("fd,wd->wf", *units)[said][:, seen]
    weights = (cosines / 0.1).softmax(1)
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    grid: Any = figure.add_gridspec(2, 2, height_ratios=(1, len(cosines)))
    labels = sentence(corpus.words[video, caption]).split()
    titles = "cosine of each word with each frame", "share of each frame in a word's soft maximum"
    for column, (title, values) in enumerate(zip(titles, (cosines, weights), strict=True)):
        shots = grid[0, column].subgridspec(1, int(seen.sum()), wspace=0.05)
        for place, shot in enumerate(corpus.frames[video, clip][seen]):
            axis = figure.add_subplot(shots[place])
            axis.imshow(shot.numpy(), cmap="gray_r")
            axis.set_axis_off()
        axis = figure.add_subplot(grid[1, column])
        _heat(figure, axis, title, values.numpy())
        axis.set_yticks(range(len(labels)), labels)
    return figure


def _of_epsilons(block: SimilarityBlock, corpus: Corpus, video: int) -> Figure:
    """The plan of one video at three strengths of the entropy, without a bucket."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, len(EPSILONS))
    for axis, epsilon in zip(axes, EPSILONS, strict=True):
        plan = TransportMeasure(epsilon, bucket=None).evaluate(block).plan
        assert plan is not None
        n = int(corpus.lengths[video])
        shares = plan.core[video, video][:n, :n] * n
        _heat(figure, axis, f"epsilon {epsilon}", shares.T.numpy())
        _frame(axis, corpus.truth[video][:n, :n].T.numpy())
        axis.set_xlabel("clips")
    axes[0].set_ylabel("captions")
    return figure


def _of_bucket(block: SimilarityBlock, corpus: Corpus, video: int, ratio: float | None) -> Figure:
    plan = TransportMeasure(bucket=ratio).evaluate(block).plan
    assert plan is not None
    return plot_alignment(
        plan[video, video],
        captions=[sentence(caption) for caption in corpus.words[video]],
        truth=corpus.truth[video],
        title="No bucket" if ratio is None else f"A bucket of ratio {ratio}",
    )


def _of_targets(towers: Towers, corpus: Corpus) -> Figure:
    """The transport of all clips and captions of a batch, and the targets that it mends."""
    out = ClipCaptionOTLoss(temperature=0.05).explain(*towers(corpus))
    assert out.plan is not None
    assert out.targets is not None
    valid = out.mask
    shares = out.plan.plan.reshape(out.targets.shape) * int(valid.sum())
    steps = corpus.clip_step.flatten()[valid]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    panels = ("transport plan", shares), ("targets, beta 0.3", out.targets)
    for axis, (title, values) in zip(axes, panels, strict=True):
        _heat(figure, axis, title, values[valid][:, valid].numpy())
        _frame(axis, (steps[:, None] == steps).numpy())
        axis.set_xlabel("captions of two videos")
    axes[0].set_ylabel("clips of two videos")
    return figure


def _heat(figure: Figure, axis: Any, title: str, values: np.ndarray) -> None:
    image = axis.imshow(values, cmap="magma", aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axis, shrink=0.8)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


def _frame(axis: Any, pairs: np.ndarray) -> None:
    """A frame around each pair that belongs together."""
    places: Sequence[Any] = np.argwhere(pairs)  # type: ignore[assignment]
    for row, column in places:
        box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="cyan")
        axis.add_patch(box)


if __name__ == "__main__":
    main()
