"""The clip-caption contrast, Eq. (7) and (8): targets rectified where a negative is not one.

``embeddings (K, D) -> logits -> transport -> targets -> symmetric cross-entropy``
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from norton_losses._checks import (
    check_count,
    check_device,
    check_floating,
    check_fraction,
    check_group_ids,
    check_mask,
    check_positive,
    check_shape,
)
from norton_losses._numerics import full_precision, unit, up_cast, working_dtype
from norton_losses.clip_caption_chunked import chunked_cross_entropy, rectified_targets
from norton_losses.contrastive import (
    COLDEST,
    Temperature,
    check_square,
    other_members,
    symmetric_cross_entropy,
)
from norton_losses.outputs import ClipCaptionOutput
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
    with full_precision(logits):
        logits = up_cast(logits, working_dtype(logits))
        return explain_clip_caption(
            logits, beta, epsilon, resolve(sinkhorn), mask, group_ids, logit_bound=None
        ).loss


def explain_clip_caption(
    logits: Tensor,
    beta: float,
    epsilon: float,
    sinkhorn: AbstractSinkhorn,
    mask: Tensor | None,
    group_ids: Tensor | None,
    logit_bound: float | None,
) -> ClipCaptionOutput:
    """:func:`clip_caption_loss` and everything on the way to it.

    ``logit_bound`` is a bound on the logits' size, None if nothing is known: the transport is then
    carried out in float64, because logits that span 1e5 epsilons leave float32 no digit to tell
    them apart, and reading how far they do span would make the host wait for the GPU.
    """
    if mask is None:
        mask = logits.new_ones(len(logits), dtype=torch.bool)
    candidates = mask[:, None] & mask[None, :]
    logits = logits.masked_fill(~candidates, 0)
    identity = torch.diag(mask).to(logits.dtype)
    plan, transported, duplicates = None, None, None
    if beta > 0:
        bounds = None if logit_bound is None else (-logit_bound, logit_bound)
        problem = TransportProblem.uniform(logits.detach(), mask, mask, epsilon, score_range=bounds)
        plan = sinkhorn.solve(problem.to(_transport_dtype(logits, logit_bound, epsilon)))
        transported = mask.sum() * plan.plan.to(logits.dtype)
    if group_ids is not None:
        duplicates = other_members(group_ids)
        candidates = candidates & ~duplicates
    targets = rectified_targets(identity, transported, beta, duplicates)
    loss = symmetric_cross_entropy(logits, targets, anchors=mask, candidates=candidates)
    return ClipCaptionOutput(loss, logits.detach(), targets, plan, mask)


def explain_clip_caption_chunked(
    clips: Tensor,
    captions: Tensor,
    beta: float,
    epsilon: float,
    sinkhorn: AbstractSinkhorn,
    mask: Tensor | None,
    group_ids: Tensor | None,
    logit_bound: float | None,
    chunk_rows: int,
) -> ClipCaptionOutput:
    """:func:`explain_clip_caption` of logits ``clips @ captions.T``, by blocks of rows."""
    if mask is None:
        mask = clips.new_ones(len(clips), dtype=torch.bool)
    even = log_marginal(mask, clips.new_zeros(()))
    problem = PointCloudProblem(
        clips, captions, even, even, epsilon, chunk_rows=chunk_rows, check_values=False
    )
    plan = None
    if beta > 0:
        dtype = _transport_dtype(clips, logit_bound, epsilon)
        plan = sinkhorn.solve(problem.detach().to(dtype))
    loss = chunked_cross_entropy(problem, plan, beta, mask, group_ids)
    return ClipCaptionOutput(loss, None, None, plan, mask)


def _transport_dtype(like: Tensor, logit_bound: float | None, epsilon: float) -> torch.dtype:
    known = logit_bound is not None and 2 * logit_bound / epsilon <= _FLOAT32_RANGE
    return like.dtype if known else torch.float64


@final
class ClipCaptionOTLoss(nn.Module):
    r"""Contrasts clips with captions; transport finds the negatives that are none.

    .. math:: L_{clip} = -\frac1K \sum_{ij} T_{ij} \big[ \log \mathrm{softmax}_j(l_{i \cdot})_j
              + \log \mathrm{softmax}_i(l_{\cdot j})_i \big], \quad T = (1 - \beta) I + \beta K Q

    with logits l the cosine of clip i and caption j over a temperature, and Q their transport plan
    at uniform marginals, without gradient: a caption that fits other clips too shares its target.

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
        super().__init__()
        check_fraction("beta", beta)
        check_positive("epsilon", epsilon)
        check_count("chunk_rows", chunk_rows, optional=True)
        self.chunk_rows = chunk_rows
        self.beta = beta
        self.epsilon = epsilon
        self.sinkhorn = resolve(sinkhorn)
        self.normalize = normalize
        self.temperature = (
            None
            if temperature is None
            else Temperature(temperature, learnable=learnable_temperature)
        )

    def forward(
        self,
        clip_embeddings: Tensor,
        caption_embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        group_ids: Tensor | None = None,
        logit_scale: Tensor | float | None = None,
    ) -> Tensor:
        """The loss (), float32 or wider.

        Args:
            clip_embeddings: (..., D), floating; the leading dimensions are flattened to K pairs.
            caption_embeddings: (..., D), floating, entry i belongs to entry i of the clips.
            mask: (...), bool, the valid pairs; None means all.
            group_ids: (...), integer. Pairs of the same group are duplicates, not negatives.
            logit_scale: () multiplies the logits in place of this loss's temperature. It is already
                exponentiated: 1 / tau, not its logarithm.

        Raises:
            ValueError: shapes that differ; a ``logit_scale`` beside a temperature.
            TypeError: embeddings that are not floating, a mask that is not bool.
        """
        return self.explain(
            clip_embeddings,
            caption_embeddings,
            mask=mask,
            group_ids=group_ids,
            logit_scale=logit_scale,
        ).loss

    def explain(
        self,
        clip_embeddings: Tensor,
        caption_embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        group_ids: Tensor | None = None,
        logit_scale: Tensor | float | None = None,
    ) -> ClipCaptionOutput:
        """As :meth:`forward`, with logits, targets and plan beside the loss."""
        self.check_logit_scale(logit_scale)
        _check_embeddings(clip_embeddings, caption_embeddings, mask, group_ids)
        mask = None if mask is None else mask.flatten()
        group_ids = None if group_ids is None else group_ids.flatten()
        dtype = working_dtype(clip_embeddings, caption_embeddings)
        clips = up_cast(clip_embeddings, dtype).flatten(0, -2)  # (K, D)
        captions = up_cast(caption_embeddings, dtype).flatten(0, -2)  # (K, D)
        bound = 1 / COLDEST if self.normalize and logit_scale is None else None
        with full_precision(clip_embeddings):
            if self.normalize:
                clips, captions = unit(clips, mask), unit(captions, mask)
            elif mask is not None:
                clips = clips.masked_fill(~mask[:, None], 0)
                captions = captions.masked_fill(~mask[:, None], 0)
            if self.temperature is not None:
                logit_scale = 1 / self.temperature()
            if not isinstance(logit_scale, Tensor):
                logit_scale = clips.new_full((), 1.0 if logit_scale is None else logit_scale)
            scale = logit_scale.reshape(())
            settings = self.beta, self.epsilon, self.sinkhorn, mask, group_ids, bound
            if self.chunk_rows is None:
                out = explain_clip_caption(clips @ captions.T * scale, *settings)
            else:
                out = explain_clip_caption_chunked(
                    clips * scale, captions, *settings, self.chunk_rows
                )
        return replace(out, temperature=1 / scale.detach())

    def check_logit_scale(self, logit_scale: Tensor | float | None) -> None:
        """Raise unless ``logit_scale`` is a single number and the only temperature."""
        if logit_scale is None:
            return
        if self.temperature is not None:
            raise ValueError(
                "logit_scale replaces the temperature, and this loss has one of its own; build it "
                "with ClipCaptionOTLoss(temperature=None), or leave logit_scale out"
            )
        if not isinstance(logit_scale, Tensor):
            check_positive("logit_scale", logit_scale)
        elif logit_scale.numel() != 1:
            raise ValueError(
                "logit_scale must be a single number, already exponentiated, got shape "
                f"{tuple(logit_scale.shape)}; for CLIP models pass model.logit_scale.exp()"
            )

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, epsilon={self.epsilon}, sinkhorn={self.sinkhorn}, "
            f"normalize={self.normalize}, chunk_rows={self.chunk_rows}"
        )


def _check_embeddings(
    clip_embeddings: Tensor,
    caption_embeddings: Tensor,
    mask: Tensor | None,
    group_ids: Tensor | None,
) -> None:
    check_floating("clip_embeddings", clip_embeddings, "(..., K, D)")
    check_floating("caption_embeddings", caption_embeddings, "(..., K, D)")
    check_shape("caption_embeddings", caption_embeddings, clip_embeddings.shape)
    check_device("caption_embeddings", caption_embeddings, clip_embeddings)
    if mask is not None:
        check_mask("mask", mask, clip_embeddings.shape[:-1], clip_embeddings)
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, clip_embeddings.shape[:-1], clip_embeddings)
