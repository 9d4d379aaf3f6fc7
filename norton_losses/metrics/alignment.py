"""Metrics of HTM-Align: whether captions are placed right in time, and found alignable."""

from __future__ import annotations

import numpy as np

from norton_losses._arrays import Array, check_labels, check_scores


def alignment_recall(
    similarity: Array, start: Array, end: Array, alignable: Array | None = None
) -> float:
    r"""Share of captions whose most similar second lies in their true window.

    .. math:: \operatorname{mean}_j \big[ \lfloor s_j \rfloor \le \operatorname{argmax}_t S_{tj}
              \le \lceil e_j \rceil \big]

    over captions that can be aligned. A tie counts as the share of its seconds that lie there. Of
    several videos take the mean weighted by their alignable captions.

    Args:
        similarity: S (T, M), of each second, or clip, with each caption.
        start: s (M,), where a caption's window begins, in units of rows.
        end: e (M,), where it ends.
        alignable: (M,), bool, captions that the video shows at all; None means all.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN, a window that ends before it begins, nothing to
            align.

    Source: HTM-Align, Han et al., CVPR 2022.

    Example:
        >>> from norton_losses.metrics import alignment_recall
        >>> similarity = [[0.9, 0.1], [0.2, 0.3], [0.1, 0.8]]    # 3 seconds, 2 captions
        >>> alignment_recall(similarity, start=[0.2, 0.0], end=[0.9, 0.8])
        0.5
    """
    similarity = check_scores("similarity", similarity, 2)
    seconds, captions = similarity.shape
    first, last = (check_scores(name, value, 1) for name, value in (("start", start), ("end", end)))
    for name, value in (("start", first), ("end", last)):
        if value.shape != (captions,):
            raise ValueError(f"{name} must have shape ({captions},), got {value.shape}")
    if (last < first).any():
        worst = int((last < first).argmax())
        raise ValueError(
            f"a window must not end before it begins, and that of caption {worst} is "
            f"[{first[worst]}, {last[worst]}]"
        )
    asked = np.ones(captions, dtype=bool)
    if alignable is not None:
        asked = check_labels("alignable", alignable, (captions,))
    if not asked.any():
        raise ValueError(
            "alignable must mark one caption at least, got none; leave the video out of the mean"
        )
    second = np.arange(seconds, dtype=np.int64)[:, None]
    window = (np.floor(first) <= second) & (second <= np.ceil(last))
    top = similarity == similarity.max(0)
    return float(((top & window).sum(0) / top.sum(0))[asked].mean())


def alignability_auc(scores: Array, alignable: Array) -> float:
    """Area under the ROC curve of scores that separate alignable captions from others.

    The chance that a random alignable caption scores above a random other one; ties count half.

    Args:
        scores: (M,), for HTM-Align the largest similarity of each caption, ``similarity.max(0)``,
            of the captions of all videos in a row.
        alignable: (M,), bool.

    Returns:
        0.5 for chance, 1 at best.

    Raises:
        ValueError: shapes that differ, NaN, captions of one kind only.

    Source: HTM-Align, Han et al., CVPR 2022; the statistic of Mann and Whitney.

    Example:
        >>> from norton_losses.metrics import alignability_auc
        >>> alignability_auc([0.9, 0.4, 0.6, 0.1], [True, True, False, False])
        0.75
    """
    values = check_scores("scores", scores, 1)
    labels = check_labels("alignable", alignable, values.shape)
    if labels.all() or not labels.any():
        raise ValueError(
            f"alignable must mark some captions and not others, got {labels.sum()} of {len(labels)}"
        )
    others = np.sort(values[~labels])
    below = np.searchsorted(others, values[labels], side="left")
    up_to = np.searchsorted(others, values[labels], side="right")
    return float((below + up_to).mean() / (2 * len(others)))
