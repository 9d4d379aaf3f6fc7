"""Noise-robust optimal-transport losses for long video-language learning.

The data's way through the package, a file for each step::

    segments > token_similarity > prompt_bucket > sinkhorn > sequence_measures > contrastive > loss
               Eq. (5)            Eq. (6)         Eq. (2-3)                      Eq. (4)

``video_paragraph`` walks it whole; ``clip_caption`` goes from embeddings through sinkhorn to
contrastive, Eq. (7-8); ``norton`` adds the two, Eq. (1). Rows are clips, columns are captions, and
masks are True where valid.
"""

from norton_losses import functional, sinkhorn
from norton_losses.clip_caption import ClipCaptionOTLoss
from norton_losses.contrastive import Temperature
from norton_losses.fusion import AbstractTokenSimilarity
from norton_losses.gradient_cache import cached_step
from norton_losses.norton import NortonLoss
from norton_losses.outputs import ClipCaptionOutput, NortonOutput, VideoParagraphOutput
from norton_losses.prompt_bucket import PromptBucket
from norton_losses.scalar_state import parameter_groups
from norton_losses.segments import Segments
from norton_losses.sequence_measures import (
    AbstractAlignment,
    AbstractSequenceMeasure,
    BackgroundFiltered,
    CaptionAverage,
    DynamicTimeWarping,
    MeasureOutput,
    OrderedAlignment,
    TransportMeasure,
)
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.sinkhorn import (
    AbstractProblem,
    AbstractSinkhorn,
    AutoSinkhorn,
    GeomLossSinkhorn,
    KeOpsSinkhorn,
    PointCloudProblem,
    POTSinkhorn,
    Support,
    TorchSinkhorn,
    TransportPlan,
    TransportProblem,
    TritonSinkhorn,
)
from norton_losses.token_similarity import MaxSimilarity, MeanSimilarity, SoftMaximumSimilarity
from norton_losses.video_paragraph import NortonVideoParagraphLoss

__version__ = "0.1.0"

__all__ = [
    "AbstractAlignment",
    "AbstractProblem",
    "AbstractSequenceMeasure",
    "AbstractSinkhorn",
    "AbstractTokenSimilarity",
    "AutoSinkhorn",
    "BackgroundFiltered",
    "CaptionAverage",
    "ClipCaptionOTLoss",
    "ClipCaptionOutput",
    "DynamicTimeWarping",
    "GeomLossSinkhorn",
    "KeOpsSinkhorn",
    "MaxSimilarity",
    "MeanSimilarity",
    "MeasureOutput",
    "NortonLoss",
    "NortonOutput",
    "NortonVideoParagraphLoss",
    "OrderedAlignment",
    "POTSinkhorn",
    "PointCloudProblem",
    "PromptBucket",
    "Segments",
    "SimilarityBlock",
    "SoftMaximumSimilarity",
    "Support",
    "Temperature",
    "TorchSinkhorn",
    "TransportMeasure",
    "TransportPlan",
    "TransportProblem",
    "TritonSinkhorn",
    "VideoParagraphOutput",
    "cached_step",
    "functional",
    "parameter_groups",
    "sinkhorn",
]
