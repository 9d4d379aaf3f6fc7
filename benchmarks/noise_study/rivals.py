"""Objectives of other work, and pieces of ours replaced, to compare with.

Every one is called as our losses are, ``loss(video, text)``, and has its own temperatures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from norton_losses import (
    AbstractSequenceMeasure,
    ClipCaptionOTLoss,
    MaxSimilarity,
    NortonLoss,
    Segments,
    Temperature,
)
from norton_losses.contrastive import HOTTEST, ClampWithReturn
from norton_losses.functional import clip_caption_loss


class MILNCE(nn.Module):
    r"""Contrast of clips with bags of captions near them in time (Miech et al., CVPR 2020).

    .. math:: -\log \frac{\sum_{|j - i| \le w} \exp(l_{ij})}{\sum_j \exp(l_{ij})}

    over clips i, and the same over captions. A window w of 0 is InfoNCE.
    """

    def __init__(self, temperature: float, window: int) -> None:
        super().__init__()
        self.temperature = Temperature(temperature)
        self.window = window

    def forward(self, video: Segments, text: Segments) -> Tensor:
        valid = video.mask & text.mask
        sequence, slot = valid.nonzero(as_tuple=True)
        clips, captions = (normalize(side.embeddings[valid], dim=-1) for side in (video, text))
        logits = clips @ captions.T / self.temperature()
        near = (slot[:, None] - slot).abs() <= self.window
        bag = near & (sequence[:, None] == sequence)
        inside = logits.masked_fill(~bag, -torch.inf)
        surprises = (logits.logsumexp(d) - inside.logsumexp(d) for d in (0, 1))
        return torch.stack(list(surprises)).sum(0).mean()


class TokenMaxContrast(nn.Module):
    """InfoNCE of similarities by the best token (FILIP, Yao et al., ICLR 2022).

    Mean embeddings may have a share in them, since it is they that every objective is judged by.
    """

    def __init__(self, temperature: float, pooled_weight: float) -> None:
        super().__init__()
        self.temperature = Temperature(temperature)
        self.similarity = MaxSimilarity(pooled_weight=pooled_weight)

    def forward(self, video: Segments, text: Segments) -> Tensor:
        values = self.similarity(video, text)  # (B, B, N, N)
        valid = (video.mask & text.mask).flatten()
        flat = values.transpose(1, 2).flatten(2).flatten(0, 1)  # (B * N, B * N)
        return clip_caption_loss(flat / self.temperature(), beta=0.0, mask=valid)


class SequenceContrast(nn.Module):
    """Contrast of sequences by an alignment in order, beside InfoNCE of clips (TempCLR, ICLR 2023).

    Negatives are other paragraphs and, if ``shuffled``, the video's own one with its captions in
    another order.
    """

    def __init__(
        self,
        measure: AbstractSequenceMeasure,
        temperature: float,
        scale: float,
        weight: float,
        shuffled: int = 0,
    ) -> None:
        super().__init__()
        self.infonce = ClipCaptionOTLoss(beta=0.0, temperature=temperature)
        self.measure, self.scale, self.weight, self.shuffled = measure, scale, weight, shuffled

    def forward(self, video: Segments, text: Segments) -> Tensor:
        clips, captions = (normalize(side.embeddings, dim=-1) for side in (video, text))
        similarity = torch.einsum("and,bmd->abnm", clips, captions)
        by_video = logits = self.scale * self.measure(similarity, video.mask, text.mask)
        own = torch.arange(len(logits))
        if self.shuffled:
            # Padding stays last, so that the mask of captions still fits.
            keys = torch.rand(self.shuffled, *text.mask.shape).masked_fill(~text.mask, 2.0)
            order = keys.argsort(-1).transpose(0, 1)  # (B, shuffled, M)
            others = similarity[own, own].unsqueeze(1).expand(-1, self.shuffled, -1, -1)
            index = order[:, :, None].expand_as(others)
            mask = text.mask[:, None].expand(order.shape)
            scores = self.measure(others.gather(-1, index), video.mask, mask)
            by_video = torch.cat([logits, self.scale * scores], dim=1)
        sequences = cross_entropy(by_video, own) + cross_entropy(logits.T, own)
        return self.infonce(video, text) + self.weight * sequences


class RampedWeight(nn.Module):
    """A NortonLoss whose video-paragraph term comes in over the first steps."""

    def __init__(self, loss: NortonLoss, steps: int) -> None:
        super().__init__()
        self.loss, self.steps, self.final = loss, steps, loss.weight
        self.step = 0

    def forward(self, video: Segments, text: Segments) -> Tensor:
        self.step += 1
        self.loss.weight = self.final * min(1.0, self.step / self.steps)
        return self.loss(video, text)


class Floored(nn.Module):
    """A learned temperature that cannot fall below a floor."""

    def __init__(self, start: float, floor: float) -> None:
        super().__init__()
        self.inner, self.floor = Temperature(start), floor

    def forward(self) -> Tensor:
        # As the bounds of a temperature: a plain clamp would never let it rise again.
        return ClampWithReturn.apply(self.inner(), self.floor, HOTTEST)  # pyright: ignore
