"""Memory-bounded and fused kernels, in torch and in Triton, and the objects that choose them."""

from norton_losses.kernels.dispatch import (
    AbstractSoftMaximum,
    AutoSoftMaximum,
    ChunkedSoftMaximum,
    ReferenceSoftMaximum,
    TritonSoftMaximum,
)

MAX_SIDE = 32
"""The most rows and columns of a problem that the small-Sinkhorn kernel holds, without a bucket."""

__all__ = [
    "AbstractSoftMaximum",
    "AutoSoftMaximum",
    "ChunkedSoftMaximum",
    "ReferenceSoftMaximum",
    "TritonSoftMaximum",
]
