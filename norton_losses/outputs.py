"""What ``explain`` returns: the loss, what it was made of, and numbers for a training log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from norton_losses._numerics import is_traced, masked_mean
from norton_losses.contrastive import Pairs
from norton_losses.sequence_measures.measure import MeasureOutput
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.sinkhorn import TransportPlan


class _Output:
    """A result whose repr is short: that of all its tensors would be pages long."""

    loss: Tensor

    def __repr__(self) -> str:
        loss = "no value" if is_traced(self.loss) else f"{self.loss.item():.4f}"
        return f"{type(self).__name__}(loss={loss})"


@dataclass(frozen=True, eq=False, repr=False)
class VideoParagraphOutput(_Output):
    """The loss, with its gradient, and what it was made of, detached.

    With a process group the second B is that of the text of all processes, padded alike.

    Attributes:
        loss: ().
        similarity: (B, B, N, M), of every clip with every caption; 0 where one is absent.
        scores: (B, B), the measure of every video with every paragraph, a mean per match.
        logits: (B, B), what the softmaxes see.
        plan: the transport behind the scores, or None if the measure is not a transport.
        alignment: (B, B, N, M), the path behind the scores, computed when it is read; or None if
            the measure has none.
        bucket_value: p (), or None without a bucket.
        temperature: ().
        clip_mask: (B, N), bool, the clips that took part.
        caption_mask: (B, M), bool, the captions that took part.
        frame_mask: (B, N, F), bool, the frames that took part; None where a similarity came
            ready-made.
        word_mask: (B, M, W), bool, the words that took part, of this process; or None.
        block: what the similarity gave, with its gradient.
        measured: what the measure gave, with its gradient.
    """

    loss: Tensor
    block: SimilarityBlock
    measured: MeasureOutput
    logits: Tensor
    temperature: Tensor
    frame_mask: Tensor | None = None
    word_mask: Tensor | None = None

    @property
    def similarity(self) -> Tensor:
        return self.block.values.detach()

    @property
    def scores(self) -> Tensor:
        return self.measured.score.detach()

    @property
    def plan(self) -> TransportPlan | None:
        plan = self.measured.plan
        return None if plan is None else plan.detach()

    @property
    def alignment(self) -> Tensor | None:
        path = self.measured.alignment
        return None if path is None else path.detach()

    @property
    def bucket_value(self) -> Tensor | None:
        value = self.measured.bucket_value
        return None if value is None else value.detach()

    @property
    def clip_mask(self) -> Tensor:
        return self.block.clip_mask

    @property
    def caption_mask(self) -> Tensor:
        return self.block.caption_mask

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        r"""Plain numbers for a log; reading them makes the host wait for the GPU, once.

        ``loss``, ``temperature``, ``similarity_min`` and ``similarity_max`` of valid pairs; of a
        transport ``plan_entropy`` :math:`-\sum Q \log Q` in nats, a mean over videos with their own
        paragraphs, and ``marginal_error``, the largest of all pairs; of a bucket its value p
        ``bucket_value``, and ``bucket_mass``, the share of the clips' and captions' mass that it
        took, a mean over videos with their own paragraphs. How many took part, of this process:
        ``videos`` that have a valid paragraph, ``clips``, ``captions``, ``frames``, ``words``.

        Example:
            >>> import torch
            >>> from norton_losses import NortonVideoParagraphLoss
            >>> out = NortonVideoParagraphLoss().explain(torch.eye(4)[None], torch.eye(4)[None])
            >>> numbers = out.diagnostics()
            >>> numbers["similarity_min"], numbers["similarity_max"]
            (0.0, 1.0)
        """
        lo, hi = _extremes(self.similarity, self.block.valid)
        numbers = {
            "loss": self.loss,
            "temperature": self.temperature,
            "similarity_min": lo,
            "similarity_max": hi,
        }
        captions = self.caption_mask[self.block.own]
        present = self.clip_mask.any(-1) & captions.any(-1)
        counted = {
            "videos": present,
            "clips": self.clip_mask,
            "captions": captions,
            "frames": self.frame_mask,
            "words": self.word_mask,
        }
        numbers |= {name: mask.sum() for name, mask in counted.items() if mask is not None}
        plan, bucket_value = self.plan, self.bucket_value
        if plan is not None:
            index = torch.arange(len(present), device=present.device)
            own = plan[index, self.block.own]
            numbers["plan_entropy"] = masked_mean(own.entropy, present, 0)
            numbers["marginal_error"] = plan.marginal_error.amax()
            if plan.problem.has_bucket and bucket_value is not None:
                # Clips and captions hold a mass of 1 together; each unit of the core takes two.
                to_bucket = 1 - 2 * own.core.sum((-2, -1))
                numbers["bucket_value"] = bucket_value
                numbers["bucket_mass"] = masked_mean(to_bucket, present, 0)
        return _plain(numbers)


@dataclass(frozen=True, eq=False, repr=False)
class ClipCaptionOutput(_Output):
    """The loss, with its gradient, and what it was made of, detached.

    With a process group rows are the pairs of this process, and columns those of all, padded alike.

    Attributes:
        loss: ().
        logits: (K, K), rows are clips, columns captions; None with ``chunk_rows``, which holds no
            K x K tensor.
        targets: (K, K), what the softmaxes are drawn to; 0 where a pair is not valid; None with
            ``chunk_rows``.
        plan: the transport behind the targets, or None with ``beta=0``.
        pairs: which rows are paired with which columns.
        mask: (K,), bool, the pairs that took part.
        temperature: (), what the dot products or cosines were divided by; None where the logits
            came ready-made.
    """

    loss: Tensor
    logits: Tensor | None
    targets: Tensor | None
    plan: TransportPlan | None
    pairs: Pairs
    temperature: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        return self.pairs.rows

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        r"""Plain numbers for a log; reading them makes the host wait for the GPU, once.

        ``loss``, ``temperature``; ``logit_min`` and ``logit_max`` of valid pairs, unless
        ``chunk_rows`` held none of them; of a transport ``faulty_negative_mass``
        :math:`1 - \sum_i Q_{ii}`, the share of its mass off the diagonal, ``plan_entropy``
        :math:`-\sum Q \log Q` in nats, and ``marginal_error``; ``pairs``, how many took part. With
        a process group mass and pairs are those of this process's clips, and entropy and error are
        left out, so that one process may log.

        Example:
            >>> import torch
            >>> from norton_losses import ClipCaptionOTLoss
            >>> clips = torch.eye(3)[[0, 0, 2]]             # clips 0 and 1 are the same
            >>> numbers = ClipCaptionOTLoss(temperature=0.05).explain(clips, clips).diagnostics()
            >>> round(numbers["faulty_negative_mass"], 3)
            0.333
        """
        numbers = {"loss": self.loss, "pairs": self.mask.sum()}
        if self.temperature is not None:
            numbers["temperature"] = self.temperature
        if self.logits is not None:
            valid = self.mask[:, None] & self.pairs.columns
            numbers["logit_min"], numbers["logit_max"] = _extremes(self.logits, valid)
        if self.plan is not None:
            plan = self.plan

            def own_mass(rows: slice, scores: Tensor) -> Tensor:
                own = self.pairs.own[rows, None]
                return plan.log_rows(rows, scores).gather(1, own).exp().sum()

            on_diagonal = torch.stack(plan.problem.map_rows(own_mass)).sum()
            total = plan.problem.log_mu.exp().sum()
            numbers["faulty_negative_mass"] = total - on_diagonal
            if self.pairs.shard.alone:  # others would have to be asked, and may not log at all
                numbers["plan_entropy"] = plan.entropy
                numbers["marginal_error"] = plan.marginal_error
        return _plain(numbers)


@dataclass(frozen=True, eq=False, repr=False)
class NortonOutput(_Output):
    """The loss, with its gradient, and both of its terms explained.

    Attributes:
        loss: (), ``clip_caption.loss + weight * video_paragraph.loss``.
        video_paragraph: the video-paragraph term.
        clip_caption: the clip-caption term.
    """

    loss: Tensor
    video_paragraph: VideoParagraphOutput
    clip_caption: ClipCaptionOutput

    def __getattr__(self, name: str) -> Any:
        terms = {"video_paragraph": VideoParagraphOutput, "clip_caption": ClipCaptionOutput}
        found = [
            f".{term}.{name}"
            for term, kind in terms.items()
            if not name.startswith("_")
            and (name in kind.__dataclass_fields__ or hasattr(kind, name))
        ]
        remedy = f"; read {' or '.join(found)}" if found else ""
        raise AttributeError(f"NortonOutput has no {name}{remedy}")

    def diagnostics(self) -> dict[str, float]:
        """Plain numbers of both terms for a log, under the names of the terms.

        Example:
            >>> import torch
            >>> from norton_losses import NortonLoss
            >>> tokens = torch.randn(2, 4, 3, 8)
            >>> numbers = NortonLoss().explain(tokens, tokens).diagnostics()
            >>> for name in list(numbers)[:3]:
            ...     print(name)
            loss
            video_paragraph/loss
            video_paragraph/temperature
        """
        numbers = {"loss": self.loss.item()}
        for term in ("video_paragraph", "clip_caption"):
            for name, value in getattr(self, term).diagnostics().items():
                numbers[f"{term}/{name}"] = value
        return numbers


def _extremes(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid value; 0 where there is none."""
    lo = values.masked_fill(~valid, torch.inf).amin()
    hi = values.masked_fill(~valid, -torch.inf).amax()
    return lo.where(valid.any(), 0), hi.where(valid.any(), 0)


def _plain(numbers: dict[str, Tensor]) -> dict[str, float]:
    # On one device: a temperature may stay on the CPU while tokens do not.
    device = numbers["loss"].device
    together = torch.stack([n.double().to(device) for n in numbers.values()]).cpu()
    return {name: number.item() for name, number in zip(numbers, together, strict=True)}
