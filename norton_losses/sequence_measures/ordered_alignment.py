"""Ordered temporal alignment (OTAM): matching in order, with free beginning and end."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from norton_losses.sequence_measures.alignment import AbstractAlignment, cost_factor, largest_sum
from norton_losses.sequence_measures.alignment_operator import MEASURES


@final
class OrderedAlignment(AbstractAlignment):
    r"""Minus the cost of matching captions to clips in order, and the reverse, per segment.

    With C = 1 - S between two columns of zeros, :math:`D_{a,0} = 0` and :math:`D_{0,b}` the sum of
    the first clip's costs,

    .. math:: D_{ab} = C_{ab} + \min(D_{a-1,b-1}, D_{a,b-1}), \quad
              A = -\frac{D(C) + D(C^\top)}{n + m}

    and :math:`D_{a-1,b}` takes part in the minimum at the first caption and in the last column. So
    each caption is matched with one clip, in order, and clips before the first match and after the
    last cost nothing; in D of the transpose captions do, and every clip is matched. With
    ``smoothing`` :math:`\gamma` above 0 the minimum is
    :math:`-\gamma \log \sum \exp(-\cdot / \gamma)`, smooth in S; at 0 the gradient follows one of
    the best paths. The path counts both directions: a match that both agree on has 2.

    Args:
        smoothing: gamma, 0 or within [1e-12, 1e12], in units of similarity.

    Raises:
        ValueError: ``smoothing`` below 0 or beyond that range.

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
        factor = cost_factor(self.smoothing)
        scaled, smooth = costs * factor, self.smoothing > 0
        captions_in_clips = _one_way(scaled, clips, captions, smooth)
        turned = scaled.transpose(0, 1)
        return (captions_in_clips + _one_way(turned, captions, clips, smooth)) / factor


def _one_way(scaled: Tensor, clips: Tensor, captions: Tensor, smooth: bool) -> Tensor:
    """Best sums, caption by caption: between the free columns all of one depend on the one before.

    The column of zeros before the first caption, and that after a pair's last, are not written out:
    a path enters from the one and leaves into the other at any clip.
    """
    n, _, pairs = scaled.shape
    free = scaled.new_zeros(pairs)
    outside = scaled.new_full((1, pairs), -torch.inf)

    # Unbound once: the gradient of a column taken by itself is as large as all costs.
    of_first, *of_others = scaled.unbind(1)
    entry, *entries = of_first.unbind()
    first = [entry]
    for cell in entries:
        first.append(cell + largest_sum((free, first[-1], free), smooth))
    column = last = torch.stack(first)  # (N, P)
    for b, cells in enumerate(of_others, 1):
        diagonal = torch.cat([outside, column[:-1]])  # D[a-1, b-1]
        column = cells + largest_sum((diagonal, column), smooth)
        last = torch.where(captions > b, column, last)

    left = sums = last[0]
    for a in range(1, n):
        left = largest_sum((last[a - 1], left, last[a]), smooth)
        sums = torch.where(clips > a, left, sums)
    return sums


MEASURES["OrderedAlignment"] = OrderedAlignment


def ordered_alignment(
    similarity: Tensor,
    clip_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Score (Bv, Bt) of similarities (Bv, Bt, N, M) by :class:`OrderedAlignment`.

    Example:
        >>> import torch
        >>> from norton_losses.functional import ordered_alignment
        >>> late = torch.eye(5)[None, None, :, 2:]        # three captions, told along clips 2 to 4
        >>> ordered_alignment(late)                       # two clips of five find no caption
        tensor([[-0.2500]])
    """
    return OrderedAlignment(smoothing)(similarity, clip_mask, caption_mask)
