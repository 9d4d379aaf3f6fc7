"""The clip-caption contrast, Eq. (7) and (8), with soft targets for faulty negatives.

``embeddings (K, D) -> logits -> transport -> targets -> symmetric cross-entropy``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, final

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
from norton_losses.contrastive import COLDEST, Groups, check_square, contrast
from norton_losses.loss import AbstractContrastiveLoss, LossInputs
from norton_losses.outputs import ClipCaptionOutput
from norton_losses.rectified_targets import rectified_targets
from norton_losses.segments import Segments
from norton_losses.sinkhorn import (
    AbstractSinkhorn,
    PointCloudProblem,
    TransportProblem,
    resolve,
)
from norton_losses.sinkhorn.problem import log_marginal

_FLOAT32_RANGE = 1e5  # of logits over epsilon


def clip_caption_loss(
    logits: Tensor,
    *,
    beta: float = 0.3,
    epsilon: float = 1.0,
    sinkhorn: str | AbstractSinkhorn = "auto",
    mask: Tensor | None = None,
    group_ids: Tensor | None = None,
) -> Tensor:
    r"""The clip-caption loss from logits that a model already has.

    .. math:: -\frac1K \sum_{ij} T_{ij} \big[ \log \mathrm{softmax}_j(l_{i \cdot})_j
              + \log \mathrm{softmax}_i(l_{\cdot j})_i \big], \quad T = (1 - \beta) I + \beta K Q

    with Q the transport plan of the logits at uniform marginals, without gradient. ``beta=0`` is
    InfoNCE, summed over both directions.

    Args:
        logits: l (K, K), floating, already divided by a temperature; rows are clips.
        beta: share of the target that follows the plan, in [0, 1].
        epsilon: strength of the entropy, in units of the logits.
        sinkhorn: a solver, or its name.
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
    check_fraction("beta", beta)
    check_positive("epsilon", epsilon)
    if mask is not None:
        check_mask("mask", mask, logits.shape[:1], logits)
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, logits.shape[:1], logits)
    if mask is None:
        mask = logits.new_ones(logits.shape[:1], dtype=torch.bool)
    pairs = _Pairs(mask, None if group_ids is None else Groups.of(group_ids))
    with full_precision(logits):
        logits = up_cast(logits, working_dtype(logits))
        targets = _Targets(beta, epsilon, resolve(sinkhorn), logit_bound=None)
        return _contrast_pairs(logits, pairs, targets).loss


class _Pairs(NamedTuple):
    """Which of K pairs take part, and which are not each other's negatives."""

    mask: Tensor  # (K,)
    groups: Groups | None


class _Targets(NamedTuple):
    """How targets are made.

    ``logit_bound`` is a bound on the logits' size, None if nothing is known: the transport is then
    carried out in float64, because logits that span 1e5 epsilons leave float32 no digit to tell
    them apart, and reading how far they do span would make the host wait for the GPU.
    """

    beta: float
    epsilon: float
    sinkhorn: AbstractSinkhorn
    logit_bound: float | None

    def transport_dtype(self, like: Tensor) -> torch.dtype:
        bound = self.logit_bound
        known = bound is not None and 2 * bound / self.epsilon <= _FLOAT32_RANGE
        return like.dtype if known else torch.float64


def _contrast_pairs(logits: Tensor, pairs: _Pairs, how: _Targets) -> ClipCaptionOutput:
    """Eq. (7) and (8), with all logits (K, K) held."""
    mask, groups = pairs
    candidates = mask[:, None] & mask[None, :]
    logits = logits.masked_fill(~candidates, 0)
    identity = torch.diag(mask).to(logits.dtype)
    plan, transported, duplicates = None, None, None
    if how.beta > 0:
        problem = TransportProblem.uniform(logits.detach(), mask, mask, how.epsilon)
        plan = how.sinkhorn.solve(problem.to(how.transport_dtype(logits)))
        transported = mask.sum() * plan.plan.to(logits.dtype)
    if groups is not None:
        duplicates = groups.duplicates()
        candidates = candidates & ~duplicates
    targets = rectified_targets(identity, transported, how.beta, duplicates)
    loss = contrast(logits, targets, mask, candidates)
    return ClipCaptionOutput(loss, logits.detach(), targets, plan, mask)


def _contrast_points(
    clips: Tensor, captions: Tensor, pairs: _Pairs, how: _Targets, chunk_rows: int
) -> ClipCaptionOutput:
    """The same of logits ``clips @ captions.T``, a block of rows at a time."""
    even = log_marginal(pairs.mask, clips.new_zeros(()))
    problem = PointCloudProblem(
        clips, captions, even, even, how.epsilon, chunk_rows=chunk_rows, check_values=False
    )
    plan = None
    if how.beta > 0:
        plan = how.sinkhorn.solve(problem.detach().to(how.transport_dtype(clips)))
    loss = chunked_cross_entropy(problem, plan, how.beta, *pairs)
    return ClipCaptionOutput(loss, None, None, plan, pairs.mask)


@final
class ClipCaptionOTLoss(AbstractContrastiveLoss[ClipCaptionOutput]):
    r"""Contrasts clips with captions; transport finds the negatives that are none.

    .. math:: L_{clip} = -\frac1K \sum_{ij} T_{ij} \big[ \log \mathrm{softmax}_j(l_{i \cdot})_j
              + \log \mathrm{softmax}_i(l_{\cdot j})_i \big], \quad T = (1 - \beta) I + \beta K Q

    with logits l the cosine of clip i and caption j over a temperature, and Q their transport plan
    at uniform marginals, without gradient: a caption that fits other clips too shares its target.

    It is called as the other losses, with two sides whose embeddings are compared, clip i of video
    b with caption i of paragraph b; a pair counts if both are there. Plain embeddings (K, D) of K
    pairs will do as well. ``group_ids`` are (B,), or (B, N) of the pairs, or (K,): pairs of the
    same group are duplicates, not negatives; with (B,) those of one sequence stay negatives.

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

    def __init__(
        self,
        beta: float = 0.3,
        *,
        epsilon: float = 1.0,
        sinkhorn: str | AbstractSinkhorn = "auto",
        normalize: bool = True,
        temperature: float | None = 0.07,
        learnable_temperature: bool = True,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(temperature, learnable_temperature)
        check_fraction("beta", beta)
        check_positive("epsilon", epsilon)
        check_count("chunk_rows", chunk_rows, optional=True)
        self.chunk_rows = chunk_rows
        self.beta = beta
        self.epsilon = epsilon
        self.sinkhorn = resolve(sinkhorn)
        self.normalize = normalize

    def read(self, video: Any, text: Any, group_ids: Any, logit_scale: Any) -> LossInputs:
        return super().read(_lifted(video), _lifted(text), group_ids, logit_scale)

    def check(self, inputs: LossInputs) -> None:
        self.check_logit_scale(inputs.logit_scale)
        clips, captions = inputs.video.mask, inputs.text.mask
        if clips.shape != captions.shape:
            raise ValueError(
                "clip i is paired with caption i, so there must be as many of each, got N = "
                f"{clips.shape[1]} clips and M = {captions.shape[1]} captions; group flat tokens "
                "(K, T, D) by Segments.from_flat(tokens, counts), or use "
                "NortonVideoParagraphLoss, which takes any N and M"
            )
        if inputs.group_ids is not None:
            shape = _shape_of_groups(inputs.group_ids, clips)
            check_group_ids("group_ids", inputs.group_ids, shape, clips)

    def evaluate(self, inputs: LossInputs) -> ClipCaptionOutput:
        mask = (inputs.video.mask & inputs.text.mask).flatten()  # (K,)
        clips, captions = (
            side.embeddings.flatten(0, 1) for side in (inputs.video, inputs.text)
        )  # (K, D)
        if self.normalize:
            clips, captions = unit(clips, mask), unit(captions, mask)
        else:
            absent = ~mask[:, None]
            clips, captions = clips.masked_fill(absent, 0), captions.masked_fill(absent, 0)
        scale = self.scale(inputs)
        bound = 1 / COLDEST if self.normalize and inputs.logit_scale is None else None
        how = _Targets(self.beta, self.epsilon, self.sinkhorn, bound)
        pairs = _Pairs(mask, _groups(inputs.group_ids, inputs.video.mask))
        if self.chunk_rows is None:
            out = _contrast_pairs(clips @ captions.T * scale, pairs, how)
        else:
            out = _contrast_points(clips * scale, captions, pairs, how, self.chunk_rows)
        return replace(out, temperature=1 / scale.detach())

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, epsilon={self.epsilon}, sinkhorn={self.sinkhorn}, "
            f"normalize={self.normalize}, chunk_rows={self.chunk_rows}"
        )


def _lifted(side: Segments | Tensor) -> Segments | Tensor:
    """Embeddings (K, D) as one sequence of K segments."""
    flat = isinstance(side, Tensor) and side.dim() == 2
    return side[None] if flat else side


def _shape_of_groups(group_ids: Any, mask: Tensor) -> tuple[int, ...]:
    """The layout of group ids that was meant: of sequences, of pairs, or of flat pairs."""
    b, n = mask.shape
    given = getattr(group_ids, "shape", None)
    if b == 1:
        return (1, n) if given == (1, n) else (n,)
    return (b,) if given == (b,) else (b, n)


def _groups(group_ids: Tensor | None, mask: Tensor) -> Groups | None:
    if group_ids is None:
        return None
    if group_ids.numel() == mask.numel():
        return Groups.of(group_ids.flatten())
    sequence = torch.arange(mask.shape[0], device=mask.device)[:, None].expand(mask.shape)
    return Groups(group_ids[:, None].expand(mask.shape).flatten(), sequence.flatten())
