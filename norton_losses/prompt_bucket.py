"""The alignable prompt bucket, Eq. (6): one extra row and column that absorb what matches nothing.

``similarity (..., N, M) -> TransportProblem (..., N+1, M+1)``
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from norton_losses._checks import check_fraction, check_similarity
from norton_losses._typing import Range
from norton_losses.distributed import ONE_PROCESS
from norton_losses.scalar_state import ScalarState
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.sinkhorn.problem import TransportProblem, log_marginal


@final
class PromptBucket(ScalarState):
    r"""Adds a row, a column and their corner, all of value p, which absorb what matches nothing.

    With n valid clips and m valid captions, each of them has mass 1/(n+m), the bucket's row m/(n+m)
    and its column n/(n+m): everything may go to the bucket. Its value p is the k-th smallest of the
    K similarities :math:`S_{ii}` of clip i with caption i of the same sequence, both valid, with
    :math:`k = \max(1, \lfloor r K \rfloor)`; 0 where there is none.

    Args:
        ratio: r in [0, 1]. About this share of the aligned pairs is less similar than p. Entropy
            spreads the mass of the others too, so the bucket takes more than that share.
        value: a fixed p in place of the quantile, in units of similarity.
        learnable: add ``offset``, a parameter that starts at 0, to the quantile or the fixed value.
            It is moved by the gradient of the plan, or by that of the entropic objective:
            :class:`~norton_losses.TransportMeasure` refuses it where there is neither.

    Raises:
        ValueError: ``ratio`` outside [0, 1], ``value`` not finite; when called with a ratio, videos
            and paragraphs that differ in number.

    Source: Eq. (6) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import PromptBucket, SimilarityBlock, TorchSinkhorn
        >>> similarity = torch.tensor([[0.9, 0.1], [0.1, -0.5]])[None, None]   # 1 fits nothing
        >>> problem = PromptBucket(value=0.3)(SimilarityBlock(similarity), epsilon=0.05)
        >>> (4 * TorchSinkhorn().solve(problem).core).round(decimals=1)[0, 0]
        tensor([[1., 0.],
                [0., 0.]])
    """

    offset: nn.Parameter | None

    def __init__(
        self, ratio: float = 0.3, *, value: float | None = None, learnable: bool = False
    ) -> None:
        super().__init__()
        check_fraction("ratio", ratio)
        if value is not None:
            check_similarity("value", value)
        self.ratio = ratio
        self.value = value
        self.offset = None
        if learnable:
            self.hold("offset", 0.0, learnable=True)

    def forward(self, block: SimilarityBlock, epsilon: float) -> TransportProblem:
        """The transport problem (Bv, Bt, N+1, M+1) of a block, rows are clips.

        Its ``bucket_value`` is p (), whose only gradient is that of ``offset``.
        """
        if not isinstance(block, SimilarityBlock):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"block must be a SimilarityBlock, got {type(block).__name__}; write "
                "SimilarityBlock(similarity, clip_mask, caption_mask)"
            )
        p = self.value if self.value is not None else _quantile(block, self.ratio)
        if self.offset is not None:
            # A number on the CPU would do, but its gradient is summed where the similarities are.
            offset = self.offset.reshape(())
            if not block.shard.alone:
                offset = block.shard.replicated(offset.to(block.raw.device))
            p = p + offset
        return _augmented(block, p, epsilon, self._score_range(block.bounds))

    def _score_range(self, bounds: Range | None) -> Range | None:
        """The range of the scores with the bucket in it, from that of the similarity."""
        if bounds is None or self.offset is not None:
            return None
        # The quantile lies within the bounds, or is 0 where no aligned pair is valid.
        p = 0.0 if self.value is None else self.value
        return min(bounds[0], p), max(bounds[1], p)

    def extra_repr(self) -> str:
        start = f"ratio={self.ratio}" if self.value is None else f"value={self.value}"
        return start if self.offset is None else f"{start}, offset={self.shown()}"


def bucket_threshold(
    similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor, ratio: float
) -> Tensor:
    """The quantile p (), detached, of similarities (B, B, N, M): see :class:`PromptBucket`.

    Example:
        >>> import torch
        >>> from norton_losses.functional import bucket_threshold
        >>> similarity = torch.diag(torch.tensor([0.1, 0.9, 0.5, 0.7]))[None, None]
        >>> valid = torch.ones(1, 4, dtype=torch.bool)
        >>> bucket_threshold(similarity, valid, valid, ratio=0.5)
        tensor(0.5000)
    """
    check_fraction("ratio", ratio)
    return _quantile(SimilarityBlock(similarity, clip_mask, caption_mask), ratio)


def bucket_problem(
    similarity: Tensor,
    p: Tensor | float,
    clip_mask: Tensor,
    caption_mask: Tensor,
    epsilon: float,
    *,
    score_range: Range | None = None,
) -> TransportProblem:
    """Similarities (Bv, Bt, N, M) with a bucket of value p: see :class:`PromptBucket`.

    Args:
        similarity: (Bv, Bt, N, M), floating.
        p: the value of the bucket, in units of similarity.
        clip_mask: (Bv, N) or (Bv, Bt, N), bool.
        caption_mask: (Bt, M) or (Bv, Bt, M), bool.
        epsilon: strength of the entropy, in units of similarity.
        score_range: ``(lo, hi)`` that similarity and p are known to lie in, if anything is.

    Example:
        >>> import torch
        >>> from norton_losses.functional import bucket_problem
        >>> valid = torch.ones(1, 2, dtype=torch.bool)
        >>> problem = bucket_problem(torch.zeros(1, 1, 2, 2), 0.3, valid, valid, epsilon=0.1)
        >>> problem.scores[0, 0]
        tensor([[0.0000, 0.0000, 0.3000],
                [0.0000, 0.0000, 0.3000],
                [0.3000, 0.3000, 0.3000]])
    """
    block = SimilarityBlock(similarity, clip_mask, caption_mask)
    if not isinstance(p, Tensor):
        check_similarity("p", p)
    elif p.numel() != 1:
        raise ValueError(
            f"p must be a single number, got shape {tuple(p.shape)}; a bucket has one value"
        )
    else:
        p = p.reshape(())
    return _augmented(block, p, epsilon, score_range)


def _quantile(block: SimilarityBlock, ratio: float) -> Tensor:
    videos, paragraphs = block.raw.shape[:2]
    if block.shard.alone and videos != paragraphs:
        raise ValueError(
            "a bucket with a ratio needs video b aligned with paragraph b, got "
            f"{videos} videos and {paragraphs} paragraphs; use PromptBucket(value=...), or no "
            "bucket"
        )
    # Of each video with its own paragraph, clip i with caption i: (B, min(N, M)).
    row = torch.arange(videos, device=block.raw.device)
    aligned, valid = (
        block.shard.gather(cells[row, block.own].diagonal(dim1=1, dim2=2), leading=2).flatten()
        for cells in (block.raw.detach(), block.valid)
    )
    ranked = aligned.masked_fill(~valid, torch.inf).sort().values
    count = valid.sum()
    # float64, as floats of Python are: 0.3 * 10 must not become 2.9999998.
    k = (ratio * count.double()).long().clamp(min=1)
    p = ranked.gather(0, (k - 1)[None]).squeeze(0)
    return torch.where(count > 0, p, 0)


def _augmented(
    block: SimilarityBlock, p: Tensor | float, epsilon: float, score_range: Range | None
) -> TransportProblem:
    bv, bt, n, m = block.raw.shape
    scores = block.raw.new_ones(bv, bt, n + 1, m + 1) * p
    scores[..., :n, :m] = block.values

    clips, captions = (count.to(scores.dtype) for count in block.counts)  # (Bv, Bt)
    present = (clips > 0) & (captions > 0)
    total = (clips + captions).clamp(min=1)
    row_mask = block.clips & present[..., None]  # (Bv, Bt, N)
    column_mask = block.captions & present[..., None]  # (Bv, Bt, M)
    log_clips, log_captions = (clips / total).log(), (captions / total).log()
    bucket_row = log_captions.masked_fill(~present, -torch.inf)
    bucket_column = log_clips.masked_fill(~present, -torch.inf)
    return TransportProblem(
        scores,
        torch.cat([log_marginal(row_mask, log_clips), bucket_row[..., None]], dim=-1),
        torch.cat([log_marginal(column_mask, log_captions), bucket_column[..., None]], dim=-1),
        epsilon,
        score_range=score_range,
        has_bucket=True,
        shard=ONE_PROCESS,
        check_values=False,
    )
