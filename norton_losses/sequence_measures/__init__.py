"""Sequence measures: scores of videos with paragraphs, from similarities of clips and captions.

``SimilarityBlock (Bv, Bt, N, M) -> measure -> MeasureOutput (Bv, Bt)``, a mean per match, so that
one measure can take another's place.
"""

from norton_losses.sequence_measures.alignment import AbstractAlignment
from norton_losses.sequence_measures.background import BackgroundFiltered, kept_clips
from norton_losses.sequence_measures.caption_average import CaptionAverage, caption_average
from norton_losses.sequence_measures.dynamic_time_warping import (
    DynamicTimeWarping,
    dynamic_time_warping,
)
from norton_losses.sequence_measures.measure import (
    AbstractSequenceMeasure,
    MeasureFunction,
    MeasureOutput,
    as_measure,
)
from norton_losses.sequence_measures.ordered_alignment import OrderedAlignment, ordered_alignment
from norton_losses.sequence_measures.transport import (
    TransportMeasure,
    entropic_score,
    transport_score,
)

__all__ = [
    "AbstractAlignment",
    "AbstractSequenceMeasure",
    "BackgroundFiltered",
    "CaptionAverage",
    "DynamicTimeWarping",
    "MeasureFunction",
    "MeasureOutput",
    "OrderedAlignment",
    "TransportMeasure",
    "as_measure",
    "caption_average",
    "dynamic_time_warping",
    "entropic_score",
    "kept_clips",
    "ordered_alignment",
    "transport_score",
]
