"""Optimal transport: a :class:`TransportProblem` goes in, a :class:`TransportPlan` comes out.

``problem -> select -> solver (a file each) -> plan``, with the iteration itself in ``domains`` and
``streaming``, and the gradient of a plan in ``plan_gradient``.
"""

from norton_losses.sinkhorn.geomloss_sinkhorn import GeomLossSinkhorn
from norton_losses.sinkhorn.keops_sinkhorn import KeOpsSinkhorn
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.pot_sinkhorn import POTSinkhorn
from norton_losses.sinkhorn.problem import PointCloudProblem, Problem, TransportProblem
from norton_losses.sinkhorn.select import AutoSinkhorn, Selection, resolve, select
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.torch_sinkhorn import TorchSinkhorn
from norton_losses.sinkhorn.triton_sinkhorn import TritonSinkhorn

__all__ = [
    "AbstractSinkhorn",
    "AutoSinkhorn",
    "GeomLossSinkhorn",
    "KeOpsSinkhorn",
    "POTSinkhorn",
    "PointCloudProblem",
    "Problem",
    "Selection",
    "Support",
    "TorchSinkhorn",
    "TransportPlan",
    "TransportProblem",
    "TritonSinkhorn",
    "resolve",
    "select",
]
