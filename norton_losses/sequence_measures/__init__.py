"""How well a video matches a paragraph, from the similarities of their clips and captions.

``similarity (Bv, Bt, N, M), masks -> (Bv, Bt)``, a mean per match, so that one measure can take
another's place.
"""

from norton_losses.sequence_measures.alignment import AbstractAlignment, AlignmentOutput
from norton_losses.sequence_measures.background import BackgroundFiltered, background_mask
from norton_losses.sequence_measures.caption_average import CaptionAverage, caption_average
from norton_losses.sequence_measures.dynamic_time_warping import (
    DynamicTimeWarping,
    dynamic_time_warping,
)
from norton_losses.sequence_measures.judging_alone import check_measure, judging_alone
from norton_losses.sequence_measures.names import MEASURES, measure_named
from norton_losses.sequence_measures.ordered_alignment import OrderedAlignment, ordered_alignment
from norton_losses.sequence_measures.transport import (
    TransportMeasure,
    TransportOutput,
    entropic_score,
    transport_score,
)

__all__ = [
    "MEASURES",
    "AbstractAlignment",
    "AlignmentOutput",
    "BackgroundFiltered",
    "CaptionAverage",
    "DynamicTimeWarping",
    "OrderedAlignment",
    "TransportMeasure",
    "TransportOutput",
    "background_mask",
    "caption_average",
    "check_measure",
    "dynamic_time_warping",
    "entropic_score",
    "judging_alone",
    "measure_named",
    "ordered_alignment",
    "transport_score",
]
