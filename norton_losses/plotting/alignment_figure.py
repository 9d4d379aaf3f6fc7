"""Plots of transport plans and alignments (``pip install 'norton-losses[plot]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from norton_losses._arrays import Array, as_numpy
from norton_losses._optional import require
from norton_losses.sinkhorn import TransportPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_LABEL = 44  # characters
_MOST_TICKS = 24
_CELL, _LEAST, _MOST = 0.3, 2.2, 9.0  # inches


def plot_alignment(
    plan: TransportPlan | Array,
    similarity: Array | None = None,
    *,
    clip_mask: Array | None = None,
    caption_mask: Array | None = None,
    clips: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    truth: Array | None = None,
    title: str | None = None,
) -> Figure:
    """Draw which clips a video's captions go to, and what the prompt bucket takes.

    Time runs to the right, captions are read from top to bottom. Of a transport plan a cell shows
    the share of the caption's mass, so that a row sums to 1 with its cell of the bucket, at the
    right; the bottom row is the share of each clip's mass that goes to the bucket, in per cent.

    Args:
        plan: of one pair, such as ``out.plan[video, paragraph]``; or an array (N, M), such as an
            ``alignment[video, paragraph]`` of :class:`~norton_losses.DynamicTimeWarping`.
        similarity: (N, M), drawn beside it; None means the one that a transport plan was solved
            for, and none beside an array.
        clip_mask: (N,), bool, the clips to draw; None means those that the plan knows as present.
        caption_mask: (M,), bool, the captions to draw; None as for clips.
        clips: N labels; None means their numbers.
        captions: M labels; None means their numbers.
        truth: (N, M), bool, pairs to put a frame around.
        title: of the whole figure.

    Returns:
        A matplotlib ``Figure``, to save, show or hand to a logger. Nothing is shown, and pyplot's
        state is left alone.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: neither a plan nor an array.
        ValueError: the plan of a whole batch, shapes or numbers of labels that do not fit, nothing
            left to draw.

    Source: the figures of transport plans of Lin et al., ICLR 2024, in this library's own form.

    Example:
        >>> import torch
        >>> from norton_losses import TransportMeasure
        >>> from norton_losses.plotting import plot_alignment
        >>> out = TransportMeasure().explain(torch.eye(4)[None, None])
        >>> figure = plot_alignment(out.plan[0, 0], captions=["wash", "cut", "stir", "serve"])
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['similarity', 'transport plan, bucket at 1.00']
    """
    figures, patches = (
        require(f"matplotlib.{name}", "plot_alignment", "matplotlib 3.7", "plot")
        for name in ("figure", "patches")
    )
    drawing = _read(plan, similarity)
    n, m = drawing.core.shape
    rows, columns = drawing.clip_mask, drawing.caption_mask
    if clip_mask is not None:
        rows = rows & _read_array("clip_mask", clip_mask, (n,), np.bool_)
    if caption_mask is not None:
        columns = columns & _read_array("caption_mask", caption_mask, (m,), np.bool_)
    if not (rows.any() and columns.any()):
        raise ValueError(
            f"there must be a clip and a caption to draw, got {rows.sum()} of {n} clips and "
            f"{columns.sum()} of {m} captions; look at the masks"
        )
    clip_labels = _labels("clips", clips, n, rows)
    caption_labels = _labels("captions", captions, m, columns)
    framed = None
    if truth is not None:
        truth = _read_array("truth", truth, (n, m), np.bool_)
        framed = _seen("truth", truth, rows, columns)

    core = _seen("plan", drawing.core, rows, columns)
    with_bucket = core
    if drawing.of_clips is not None and drawing.of_captions is not None:
        with_bucket = np.pad(core, (0, 1), constant_values=np.nan)
        with_bucket[-1, :-1] = drawing.of_clips[rows]
        with_bucket[:-1, -1] = drawing.of_captions[columns]
        caption_labels.append("bucket")
    panels: list[tuple[str, NDArray[Any], list[str]]] = []
    if drawing.similarity is not None:
        seen = _seen("similarity", drawing.similarity, rows, columns)
        # An empty row in place of the bucket's, so that both panels have their captions in line.
        beside = np.pad(seen, ((0, len(with_bucket) - len(core)), (0, 0)), constant_values=np.nan)
        panels.append(("similarity", beside, clip_labels))
    bucket = ["bucket"] if with_bucket is not core else []
    panels.append((drawing.name, with_bucket, [*clip_labels, *bucket]))
    height = min(max(_CELL * len(with_bucket), _LEAST), _MOST) + 1.2
    width = min(max(_CELL * with_bucket.shape[1], _LEAST), _MOST) + 1.2
    letters = max(len(label) for label in caption_labels)
    figure: Any = figures.Figure(
        figsize=(width * len(panels) + 0.07 * letters, height), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, values, labels) in zip(axes, panels, strict=True):
        limits = {} if name == "similarity" else {"vmin": 0.0, "vmax": max(1.0, core.max())}
        image = axis.imshow(values, cmap="magma", aspect="auto", interpolation="nearest", **limits)
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("clips, in their order in time", fontsize=8)
        _ticks(axis.xaxis, labels, thinned=clips is None, turned=clips is not None)
        _ticks(axis.yaxis, caption_labels, thinned=captions is None)
        axis.tick_params(labelleft=axis is axes[0])
        if framed is not None:
            _frame(axis, framed, patches.Rectangle)
    if bucket:
        _mark_bucket(axes[-1], with_bucket)
    if framed is not None:
        patch = patches.Patch(facecolor="none", edgecolor="cyan", linewidth=1.6, label="true pair")
        legend = figure.legend(handles=[patch], loc="outside lower left", fontsize=8)
        legend.get_frame().set_facecolor("0.35")
        legend.get_texts()[0].set_color("white")
    if title is not None:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


@dataclass(frozen=True, eq=False)
class _Drawing:
    """The arrays to draw of one pair; rows are clips, as everywhere."""

    name: str
    core: NDArray[Any]  # (N, M)
    clip_mask: NDArray[np.bool_]  # (N,)
    caption_mask: NDArray[np.bool_]  # (M,)
    similarity: NDArray[Any] | None = None  # (N, M)
    of_clips: NDArray[Any] | None = None  # (N,), what the bucket takes of each
    of_captions: NDArray[Any] | None = None  # (M,)


def _read(plan: TransportPlan | Array, similarity: Array | None) -> _Drawing:
    if isinstance(plan, TransportPlan):
        return _read_plan(plan, similarity)
    core = _read_array("plan", plan, None, np.number)
    if similarity is not None:
        similarity = _read_array("similarity", similarity, core.shape, np.number)
    n, m = core.shape
    return _Drawing("alignment", core, np.ones((n,), np.bool_), np.ones((m,), np.bool_), similarity)


def _read_plan(plan: TransportPlan, similarity: Array | None) -> _Drawing:
    problem = plan.problem
    scores, transported, mu, nu = (
        as_numpy(t) for t in (problem.scores, plan.plan, problem.log_mu.exp(), problem.log_nu.exp())
    )
    if scores.ndim != 2:
        raise ValueError(
            f"plan must be of one pair, got a batch of shape {scores.shape[:-2]}; index it, as in "
            "plan[video, paragraph]"
        )
    mu, nu = mu.clip(np.finfo(mu.dtype).tiny), nu.clip(np.finfo(nu.dtype).tiny)
    rows: Any = as_numpy(plan.log_u.isfinite())
    columns: Any = as_numpy(plan.log_v.isfinite())
    name, of_clips, of_captions = "transport plan", None, None
    if problem.has_bucket:
        name = f"transport plan, bucket at {scores[-1, -1]:.2f}"
        of_clips, of_captions = (transported / mu[:, None])[:-1, -1], (transported / nu)[-1, :-1]
        scores, transported, nu = scores[:-1, :-1], transported[:-1, :-1], nu[:-1]
        rows, columns = rows[:-1], columns[:-1]
    if similarity is not None:
        scores = _read_array("similarity", similarity, scores.shape, np.number)
    return _Drawing(name, transported / nu, rows, columns, scores, of_clips, of_captions)


def _seen(
    name: str, of_pair: NDArray[Any], rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> NDArray[Any]:
    """What is drawn of (N, M): captions downwards, clips to the right."""
    seen = np.swapaxes(of_pair[rows][:, columns], 0, 1)
    if not np.isfinite(seen).all():
        raise ValueError(f"{name} must be finite where it is drawn, got NaN or infinite entries")
    return seen


def _mark_bucket(axis: Any, values: NDArray[Any]) -> None:
    """Set off the last row and column, and write into them what they hold, in per cent."""
    m, n = values.shape
    axis.axhline(m - 1.5, color="white", linewidth=2)
    axis.axvline(n - 1.5, color="white", linewidth=2)
    if max(m, n) > _MOST_TICKS:
        return  # numbers would run into each other
    for j, i in product(range(m), range(n)):
        if (j == m - 1) != (i == n - 1):
            color = "black" if values[j, i] > 0.6 else "white"
            text = f"{100 * values[j, i]:.0f}"
            axis.text(i, j, text, color=color, fontsize=7, ha="center", va="center")


def _ticks(axis: Any, labels: Sequence[str], *, thinned: bool, turned: bool = False) -> None:
    """Labels beside an axis; numbers are thinned out where they are many, words never."""
    step = -(-len(labels) // _MOST_TICKS) if thinned else 1
    places = [i for i in range(len(labels)) if i % step == 0 or labels[i] == "bucket"]
    kept = [labels[i] for i in places]
    options: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    if turned:
        options |= {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(places, labels=kept, **options)


def _frame(axis: Any, framed: NDArray[np.bool_], rectangle: Any) -> None:
    for j, i in np.argwhere(framed):
        cell = (i - 0.5, j - 0.5), 1, 1
        axis.add_patch(rectangle(*cell, fill=False, edgecolor="cyan", linewidth=1.6))


def _labels(
    name: str, given: Sequence[str] | None, count: int, kept: NDArray[np.bool_]
) -> list[str]:
    """Labels of what is drawn, not too long."""
    labels = [str(i) for i in range(count)] if given is None else [str(label) for label in given]
    if len(labels) != count:
        raise ValueError(f"{name} must be {count} labels, absent ones included, got {len(labels)}")
    short = [x if len(x) <= _LONGEST_LABEL else x[: _LONGEST_LABEL - 1] + "…" for x in labels]
    return [label for label, there in zip(short, kept, strict=True) if there]


def _read_array(
    name: str, array: Array, shape: tuple[int, ...] | None, kind: type[np.generic]
) -> NDArray[Any]:
    values = as_numpy(array)
    if values.dtype == object:
        raise TypeError(
            f"{name} must be an array (N, M), or a TransportPlan such as "
            f"out.plan[video, paragraph], got {type(array).__name__}"
        )
    wanted = "(N, M)" if shape is None else str(shape)
    if (values.ndim != 2) if shape is None else (values.shape != shape):
        raise ValueError(f"{name} must have shape {wanted} for one pair, got {values.shape}")
    if not np.issubdtype(values.dtype, kind):
        raise ValueError(f"{name} must be {kind.__name__.strip('_')}, got {values.dtype}")
    return values
