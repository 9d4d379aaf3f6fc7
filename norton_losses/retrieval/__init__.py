"""Retrieval between videos and paragraphs, thousands of both, in bounded memory.

``python -m norton_losses.retrieval features.npz`` does it from the shell.
"""

from norton_losses.retrieval.feature_file import Features, load_features, save_features
from norton_losses.retrieval.output import RetrievalMetrics, RetrievalOutput, retrieval_table
from norton_losses.retrieval.retrieve import retrieve

__all__ = [
    "Features",
    "RetrievalMetrics",
    "RetrievalOutput",
    "load_features",
    "retrieval_table",
    "retrieve",
    "save_features",
]
