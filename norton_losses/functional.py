"""Functional forms of the stages, for models that already have similarities or logits."""

from norton_losses.clip_caption import clip_caption_loss
from norton_losses.contrastive import symmetric_cross_entropy
from norton_losses.fusion import minmax
from norton_losses.prompt_bucket import bucket_problem, bucket_threshold
from norton_losses.sequence_measures import (
    caption_average,
    dynamic_time_warping,
    entropic_score,
    kept_clips,
    ordered_alignment,
    transport_score,
)
from norton_losses.token_similarity import soft_maximum
from norton_losses.video_paragraph import video_paragraph_loss

__all__ = [
    "bucket_problem",
    "bucket_threshold",
    "caption_average",
    "clip_caption_loss",
    "dynamic_time_warping",
    "entropic_score",
    "kept_clips",
    "minmax",
    "ordered_alignment",
    "soft_maximum",
    "symmetric_cross_entropy",
    "transport_score",
    "video_paragraph_loss",
]
