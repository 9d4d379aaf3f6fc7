"""How good scores are: arrays of numpy or torch in, plain floats out, counted in float64.

Ties count as what they give on average, so that a constant score is as good as chance; recall at k
alone asks whether that mean place is among the first k.
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
