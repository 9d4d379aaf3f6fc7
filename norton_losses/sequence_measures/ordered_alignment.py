"""Ordered alignment (OTAM): each side told in order along the other, free before and after."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from norton_losses.sequence_measures.alignment import AbstractAlignment, smallest


def ordered_distance(
    costs: Tensor, clips: Tensor, captions: Tensor, smoothing: float = 0.0
) -> Tensor:
    """D (P,) of P pairs in both directions: captions along the clips, and clips along the captions.

    Args:
        costs: C (N, M, P), floating.
        clips, captions: (P,), how many of each a pair has, 1 at least.
        smoothing: of the minimum.
    """
    captions_in_clips = _one_way(costs, clips, captions, smoothing)
    return captions_in_clips + _one_way(costs.transpose(0, 1), captions, clips, smoothing)


def _one_way(costs: Tensor, clips: Tensor, captions: Tensor, smoothing: float) -> Tensor:
    """D, caption by caption: between the free columns all clips of one depend on the one before.

    The column of zeros before the first caption, and that after a pair's last, are not written out:
    a path enters from the one and leaves into the other at any clip.
    """
    n, m, pairs = costs.shape
    free = costs.new_zeros(pairs)
    outside = costs.new_full((1, pairs), torch.inf)

    first = [costs[0, 0]]
    for a in range(1, n):
        first.append(costs[a, 0] + smallest((free, first[-1], free), smoothing))
    column = last = torch.stack(first)  # (N, P)
    for b in range(1, m):
        diagonal = torch.cat([outside, column[:-1]])  # D[a-1, b-1]
        column = costs[:, b] + smallest((diagonal, column), smoothing)
        last = torch.where(captions > b, column, last)

    left = distances = last[0]
    for a in range(1, n):
        left = smallest((last[a - 1], left, last[a]), smoothing)
        distances = torch.where(clips > a, left, distances)
    return distances


def ordered_alignment(
    similarity: Tensor,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    r"""Minus the cost of telling a paragraph along a video, and the reverse, per clip and caption.

    With C = 1 - S between two columns of zeros, :math:`D_{a,0} = 0` and :math:`D_{0,b}` the sum of
    the first clip's costs,

    .. math:: D_{ab} = C_{ab} + \min(D_{a-1,b-1}, D_{a,b-1}), \quad
              A = -\frac{D(C) + D(C^\top)}{n + m}

    and :math:`D_{a-1,b}` takes part in the minimum at the first caption and in the last column. So
    each caption is matched with one clip, in order, and clips before the first match and after the
    last cost nothing; in D of the transpose captions do, and every clip is matched. With
    ``smoothing`` :math:`\gamma` above 0 the minimum is
    :math:`-\gamma \log \sum \exp(-\cdot / \gamma)`, smooth in S.

    Args:
        similarity: S (Bv, Bt, N, M), floating; clips and captions in their order in time.
        clip_mask: (Bv, N) or (Bv, Bt, N), bool, True where valid; None means all. The others leave
            no gap.
        caption_mask: (Bt, M) or (Bv, Bt, M), bool, True where valid; None means all.
        smoothing: gamma, 0 or above, in units of similarity.

    Returns:
        (Bv, Bt), float32 or wider; 0 where the video or the paragraph is absent. Where
        ``smoothing`` is 0 the gradient follows one of the best paths.

    Raises:
        ValueError: a wrong rank, masks of another shape, ``smoothing`` below 0.
        TypeError: a similarity that is not floating, masks that are not bool.

    Source: Cao et al., CVPR 2020 (OTAM).

    Example:
        >>> import torch
        >>> from norton_losses.functional import ordered_alignment
        >>> late = torch.eye(5)[None, None, :, 2:]        # three captions, told along clips 2 to 4
        >>> ordered_alignment(late)                       # two clips of five find no caption
        tensor([[-0.2500]])
    """
    return OrderedAlignment(smoothing)(similarity, clip_mask, caption_mask)


@final
class OrderedAlignment(AbstractAlignment):
    r"""Tells captions along clips, free before and after: see :func:`ordered_alignment`.

    The alignment that :meth:`explain` returns counts both directions, so a pair that both agree on
    has 2.

    Args:
        smoothing: gamma, 0 or above, in units of similarity.

    Raises:
        ValueError: ``smoothing`` below 0.

    Source: Cao et al., CVPR 2020 (OTAM).

    Example:
        >>> import torch
        >>> from norton_losses import OrderedAlignment
        >>> similarity = torch.tensor([[[[0.1, 0.0], [0.9, 0.2], [0.1, 0.8]]]])   # clip 0: nothing
        >>> OrderedAlignment().explain(similarity).alignment[0, 0]
        tensor([[1., 0.],
                [2., 0.],
                [0., 2.]])
    """

    def distance(self, costs: Tensor, clips: Tensor, captions: Tensor) -> Tensor:
        return ordered_distance(costs, clips, captions, self.smoothing)
