"""Type aliases that several signatures share."""

from __future__ import annotations

from typing import Literal, TypeAlias

Exponential: TypeAlias = Literal["mean", "sum"]
Rescale: TypeAlias = Literal["minmax"] | None
Range: TypeAlias = tuple[float, float]
TransportObjective: TypeAlias = Literal["similarity", "entropic"]
PlanGradient: TypeAlias = Literal["detached", "implicit", "unrolled"]
Gather: TypeAlias = Literal["all", "chunked"]
SinkhornDomain: TypeAlias = Literal["auto", "scaling", "stabilized", "log"]
