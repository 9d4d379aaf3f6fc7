"""Pictures of alignments, for which matplotlib must be installed (the extra ``plot``)."""

from norton_losses.plotting.alignment_figure import plot_alignment

__all__ = ["plot_alignment"]
