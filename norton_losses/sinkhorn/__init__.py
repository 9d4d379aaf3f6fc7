"""Optimal transport: a :class:`TransportProblem` goes in, a :class:`TransportPlan` comes out."""

from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.pot_sinkhorn import POTSinkhorn
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem, TransportProblem
from norton_losses.sinkhorn.select import resolve
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.torch_sinkhorn import TorchSinkhorn

__all__ = [
    "AbstractSinkhorn",
    "POTSinkhorn",
    "PointCloudProblem",
    "Problem",
    "Support",
    "TorchSinkhorn",
    "TransportPlan",
    "TransportProblem",
    "resolve",
]
