"""Metrics of retrieval, alignment and segmentation: arrays of numpy or torch in, floats out.

They are computed in float64. Tied scores count as they would on average over random orders, so that
a constant score gives chance level; only recall at k compares the mean rank of a tie with k.
"""

from norton_losses.metrics.alignment import alignability_auc, alignment_recall
from norton_losses.metrics.frames import average_windows, frame_accuracy
from norton_losses.metrics.ranking import (
    invert_truth,
    median_rank,
    multiple_choice_accuracy,
    recall_at,
    retrieval_ranks,
)

__all__ = [
    "alignability_auc",
    "alignment_recall",
    "average_windows",
    "frame_accuracy",
    "invert_truth",
    "median_rank",
    "multiple_choice_accuracy",
    "recall_at",
    "retrieval_ranks",
]
