"""Measures for retrieval, where a pair must be judged by itself and not by its batch."""

from __future__ import annotations

from norton_losses._typing import SequenceMeasure


def check_measure(measure: object) -> None:
    """A measure is an object to call, or None where there is a default."""
    if measure is None or (callable(measure) and not isinstance(measure, type)):
        return
    given = measure.__name__ if isinstance(measure, type) else repr(measure)
    raise TypeError(
        f"measure must be called with (similarity, clip_mask, caption_mask), got {given}; pass an "
        "object such as DynamicTimeWarping()"
    )


def judging_alone(measure: SequenceMeasure, bucket_value: float | None) -> SequenceMeasure:
    """The same measure with a fixed bucket or none, if it has a bucket: a ratio is of the batch.

    A measure has one if it has a method ``with_bucket(value)``.
    """
    with_bucket = getattr(measure, "with_bucket", None)
    if with_bucket is not None:
        return with_bucket(bucket_value)
    if bucket_value is not None:
        raise ValueError(
            f"bucket_value is for a TransportMeasure, and here is a {type(measure).__name__}; "
            "leave it out"
        )
    return measure
