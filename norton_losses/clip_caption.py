"""The clip-caption contrast, Eq. (7) and (8), with soft targets for faulty negatives.

``embeddings (K, D) -> logits -> transport -> targets -> symmetric cross-entropy``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from norton_losses._checks import (
    check_count,
    check_fraction,
    check_group_ids,
    check_mask,
    check_positive,
)
from norton_losses._numerics import full_precision, unit, up_cast, working_dtype
from norton_losses.clip_caption_chunked import chunked_cross_entropy
from norton_losses.contrastive import COLDEST, Groups, Pairs, check_square, contrast
from norton_losses.distributed import ProcessGroup, Shard
from norton_losses.loss import AbstractContrastiveLoss, LossInputs
from norton_losses.outputs import ClipCaptionOutput
from norton_losses.rectified_targets import rectified_targets
from norton_losses.segments import Segments
from norton_losses.sinkhorn import (
    AbstractProblem,
    AbstractSinkhorn,
    PointCloudProblem,
    TransportPlan,
    TransportProblem,
    resolve,
)


@final
class ClipCaptionOTLoss(AbstractContrastiveLoss[ClipCaptionOutput]):
    r"""Contrasts clips with captions, with soft targets for faulty negatives found by transport.

    .. math:: L_{clip} = -\frac1K \sum_{ij} T_{ij} \big[ \log \mathrm{softmax}_j(l_{i \cdot})_j
              + \log \mathrm{softmax}_i(l_{\cdot j})_i \big], \quad T = (1 - \beta) I + \beta K Q

    with logits l the cosine of clip i and caption j over a temperature, and Q their transport plan
    at uniform marginals, without gradient. Where a caption also fits other clips, they share its
    target.

    Clip i of video b is paired with caption i of paragraph b: their embeddings are compared, and a
    pair counts if both are there. Embeddings (K, D) of K pairs are taken as well. ``group_ids`` of
    sequences, (B,): pairs of different sequences of one group are not each other's negatives.
    ``group_ids`` of pairs, (B, N) or (B * N,): no pairs of one group are.

    Args:
        beta: share of the target that follows the plan, in [0, 1]; 0 is InfoNCE, summed over both
            directions.
        epsilon: strength of the entropy, in units of the logits.
        sinkhorn: a solver, or its name, see :func:`norton_losses.sinkhorn.resolve`.
        normalize: take cosines; False takes raw dot products.
        temperature: the start of tau, in [0.01, 1]; None means 1, and lets ``forward`` take a
            ``logit_scale`` from outside.
        learnable_temperature: whether tau is trained: then hand ``loss.parameters()`` to the
            optimiser.
        chunk_rows: rows of logits that exist at a time, forward and backward; None holds all
            (K, K) of them. The transport then goes by rows too, with a solver of point clouds:
            torch, KeOps or GeomLoss. The loss is the same.
        process_group: the processes whose captions are negatives too, as of
            :class:`~norton_losses.NortonVideoParagraphLoss`; the transport is over all of them,
            which torch alone solves.

    Raises:
        ValueError: ``beta`` outside [0, 1], ``epsilon`` not above 0, a temperature out of range,
            ``chunk_rows`` below 1, or a solver that does not serve the problem.

    Source: Eq. (7) and (8) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import ClipCaptionOTLoss
        >>> loss = ClipCaptionOTLoss(beta=0.3)
        >>> clips, captions = torch.randn(16, 32, requires_grad=True), torch.randn(16, 32)
        >>> loss(clips, captions).backward()
        >>> clips.grad.shape
        torch.Size([16, 32])
    """

    by_embeddings = True

    def __init__(
        self,
        beta: float = 0.3,
        *,
        epsilon: float = 1.0,
        sinkhorn: str | AbstractSinkhorn = "auto",
        normalize: bool = True,
        temperature: float | None = 0.2,
        learnable_temperature: bool = True,
        chunk_rows: int | None = None,
        process_group: ProcessGroup = None,
    ) -> None:
        super().__init__(temperature, learnable_temperature, process_group)
        check_fraction("beta", beta)
        check_positive("epsilon", epsilon)
        check_count("chunk_rows", chunk_rows, optional=True)
        self.chunk_rows = chunk_rows
        self.beta = beta
        self.epsilon = epsilon
        self.sinkhorn = resolve(sinkhorn)
        self.normalize = normalize
        self.check_group(process_group)

    def check_group(self, process_group: ProcessGroup) -> None:
        """Raise unless the transport can be shared out among the processes of a group."""
        support = self.sinkhorn.supports_shards()
        if process_group is not None and self.beta > 0 and not support.ok:
            raise ValueError(
                f"{type(self.sinkhorn).__name__} cannot solve the transport of a process_group: "
                f"{support.reason}"
            )

    def read(
        self, video: Any, text: Any, group_ids: Any, logit_scale: Any, **options: bool
    ) -> LossInputs:
        return super().read(_lifted(video), _lifted(text), group_ids, logit_scale, **options)

    def check(self, inputs: LossInputs) -> None:
        self.check_logit_scale(inputs.logit_scale)
        clips, captions = inputs.video.mask, inputs.text.mask
        if clips.shape != captions.shape:
            remedy = (
                "group flat tokens (K, T, D) by Segments.from_flat(tokens, counts); where videos "
                "really have other numbers of clips than captions, use NortonVideoParagraphLoss, "
                "or give what is missing an empty entry"
            )
            frames = inputs.video.tokens.shape[2]
            if frames > 1 and frames == captions.shape[1]:
                remedy = "if the tokens of video are (B, F, N, D), give their .transpose(1, 2)"
            raise ValueError(
                "clip i is paired with caption i, so there must be as many of each, got N = "
                f"{clips.shape[1]} clips and M = {captions.shape[1]} captions; {remedy}"
            )
        if inputs.group_ids is not None:
            _check_group_ids(inputs.group_ids, clips)

    def evaluate(self, inputs: LossInputs) -> ClipCaptionOutput:
        video, text, shard = inputs.video, inputs.text, inputs.shard
        sequences = shard.own(len(video), text.mask.device)
        valid = video.mask & text.mask[sequences, : video.mask.shape[1]]
        place = torch.arange(valid.shape[1], device=valid.device)
        pairs = Pairs(
            valid.flatten(),
            shard.gather(valid, 2).flatten(),
            (sequences[:, None] * text.mask.shape[1] + place).flatten(),
            _groups(inputs.group_ids, valid, shard),
            shard,
        )
        clips, captions = (
            unit(points, mask) if self.normalize else points.masked_fill(~mask[:, None], 0)
            for points, mask in (
                (video.embeddings.flatten(0, 1), pairs.rows),  # (n, D)
                (text.embeddings.flatten(0, 1), pairs.columns),  # (K, D)
            )
        )
        bound = 1 / COLDEST if self.normalize and inputs.logit_scale is None else None
        scale = self.scale(inputs.logit_scale, inputs.video.tokens, shard)
        if self.chunk_rows is None:
            out = self.of_logits(clips @ captions.T * scale, pairs, bound)
        else:
            out = self._of_points(clips * scale, captions, pairs, bound)
        return replace(out, temperature=1 / scale.detach())

    def of_logits(self, logits: Tensor, pairs: Pairs, bound: float | None) -> ClipCaptionOutput:
        """The loss of logits (n, K) that are no larger than ``bound``, where one is known."""
        candidates = pairs.rows[:, None] & pairs.columns
        logits = logits.masked_fill(~candidates, 0)
        problem = TransportProblem(
            logits.detach(), *pairs.marginals(logits.dtype), self.epsilon,
            shard=pairs.shard, check_values=False,
        )  # fmt: skip
        plan = self._plan(problem, bound)
        transported = None if plan is None else pairs.columns.sum() * plan.plan.to(logits.dtype)
        duplicates = None if pairs.groups is None else pairs.groups.duplicates(pairs.own)
        if duplicates is not None:
            candidates = candidates & ~duplicates
        identity = pairs.identity().to(logits.dtype)
        targets = rectified_targets(identity, transported, self.beta, duplicates)
        loss = contrast(logits, targets, pairs.rows, candidates, pairs.own, pairs.shard)
        return ClipCaptionOutput(loss, logits.detach(), targets, plan, pairs)

    def _of_points(
        self, clips: Tensor, captions: Tensor, pairs: Pairs, bound: float | None
    ) -> ClipCaptionOutput:
        """The same of logits ``clips @ captions.T``, a block of rows at a time."""
        problem = PointCloudProblem(
            clips, captions, *pairs.marginals(clips.dtype), self.epsilon,
            chunk_rows=self.chunk_rows, shard=pairs.shard, check_values=False,
        )  # fmt: skip
        plan = self._plan(problem.detach(), bound)
        loss = chunked_cross_entropy(problem, plan, self.beta, pairs)
        return ClipCaptionOutput(loss, None, None, plan, pairs)

    def _plan(self, problem: AbstractProblem, bound: float | None) -> TransportPlan | None:
        """The transport of logits; reading their range would make the host wait for the GPU."""
        if self.beta == 0:
            return None
        spread = None if bound is None else 2 * bound
        return self.sinkhorn.solve(self.sinkhorn.with_digits(problem, spread))

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, epsilon={self.epsilon}, sinkhorn={self.sinkhorn}, "
            f"normalize={self.normalize}, chunk_rows={self.chunk_rows}"
        )


def clip_caption_loss(
    logits: Tensor,
    *,
    beta: float = 0.3,
    epsilon: float = 1.0,
    sinkhorn: str | AbstractSinkhorn = "auto",
    mask: Tensor | None = None,
    group_ids: Tensor | None = None,
) -> Tensor:
    """The loss of :class:`ClipCaptionOTLoss` from logits that a model already has.

    Args:
        logits: l (K, K), floating, already divided by a temperature; rows are clips.
        beta: as of :class:`ClipCaptionOTLoss`.
        epsilon: as of :class:`ClipCaptionOTLoss`.
        sinkhorn: as of :class:`ClipCaptionOTLoss`.
        mask: (K,), bool, the valid pairs; None means all.
        group_ids: (K,), integer. Pairs of the same group are duplicates, not negatives: the plan is
            solved with them, then they leave the softmax and the targets, rows keep their sum.

    Returns:
        (), float32 or wider; 0 with zero gradients where no pair is valid.

    Raises:
        ValueError: logits that are not square, ``beta`` outside [0, 1], ``epsilon`` not above 0.
        TypeError: logits that are not floating, a mask that is not bool.

    Source: Eq. (7) and (8) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses.functional import clip_caption_loss
        >>> logits = 10 * torch.eye(3)
        >>> logits[0, 1] = 10.0                            # caption 1 tells clip 0 as well
        >>> round(clip_caption_loss(logits, beta=0.0).item(), 3)
        0.462
    """
    check_square("logits", logits)
    if mask is None:
        mask = logits.new_ones(logits.shape[:1], dtype=torch.bool)
    check_mask("mask", mask, logits.shape[:1], logits)
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, logits.shape[:1], logits)
    groups = None if group_ids is None else Groups.of(group_ids)
    loss = ClipCaptionOTLoss(beta, epsilon=epsilon, sinkhorn=sinkhorn, temperature=None)
    with full_precision(logits):
        logits = up_cast(logits, working_dtype(logits))
        return loss.of_logits(logits, Pairs.alone(mask, groups), bound=None).loss


def _lifted(side: Segments | Tensor) -> Segments | Tensor:
    """Embeddings (K, D) as one sequence of K segments; all else unchanged."""
    flat = isinstance(side, Tensor) and side.dim() == 2
    return side[None] if flat else side


def _check_group_ids(group_ids: Any, mask: Tensor) -> None:
    b, n = mask.shape
    shape = tuple(getattr(group_ids, "shape", (b,)))
    if shape not in ((b,), (b, n), (b * n,)):
        allowed = f"{(n,)}" if b == 1 else f"{(b,)}, {(b, n)} or {(b * n,)}"
        raise ValueError(
            f"group_ids must have shape {allowed}, got {shape}; give one for each sequence (B,), "
            "or one for each pair (B, N), padded ones included"
        )
    check_group_ids("group_ids", group_ids, shape, mask)


def _groups(group_ids: Tensor | None, mask: Tensor, shard: Shard) -> Groups | None:
    """Of the pairs of all processes; ids are of sequences (B,), or of pairs (B, N)."""
    if group_ids is None:
        return None
    if group_ids.numel() == mask.numel():
        member = torch.arange(mask.numel(), device=mask.device)
        return Groups(group_ids.view(mask.shape), member.view(mask.shape)).gathered(shard)
    sequence = torch.arange(mask.shape[0], device=mask.device)[:, None].expand(mask.shape)
    return Groups(group_ids[:, None].expand(mask.shape), sequence).gathered(shard)
