"""Measures by name, for the shell and for haste; resolved here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from norton_losses._checks import check_choice
from norton_losses._typing import SequenceMeasure
from norton_losses.sequence_measures.caption_average import CaptionAverage
from norton_losses.sequence_measures.dynamic_time_warping import DynamicTimeWarping
from norton_losses.sequence_measures.ordered_alignment import OrderedAlignment
from norton_losses.sequence_measures.transport import TransportMeasure

MEASURES: dict[str, Callable[[], SequenceMeasure]] = {
    "transport": TransportMeasure,
    "dtw": DynamicTimeWarping,
    "otam": OrderedAlignment,
    "caption-average": CaptionAverage,
}


def measure_named(name: str) -> SequenceMeasure:
    """The measure of that name with its defaults.

    Raises:
        ValueError: an unknown name; the text lists those there are.
    """
    check_choice("measure", name, list(MEASURES))
    return MEASURES[name]()
