"""Optimal transport: a :class:`TransportProblem` goes in, a :class:`TransportPlan` comes out.

``problem, point_cloud -> auto (names) -> one file a solver -> plan``; solvers that take steps do so
by ``iteration``, in ``log_domain``, ``scaling_domain`` or ``blockwise``.
"""

from norton_losses.sinkhorn.auto import AutoSinkhorn, Selection, resolve, select
from norton_losses.sinkhorn.geomloss_sinkhorn import GeomLossSinkhorn
from norton_losses.sinkhorn.iteration import Scalings
from norton_losses.sinkhorn.keops_sinkhorn import KeOpsSinkhorn
from norton_losses.sinkhorn.plan import TransportPlan
from norton_losses.sinkhorn.point_cloud import PointCloudProblem
from norton_losses.sinkhorn.pot_sinkhorn import POTSinkhorn
from norton_losses.sinkhorn.problem import AbstractProblem, TransportProblem
from norton_losses.sinkhorn.solver import AbstractSinkhorn, Support
from norton_losses.sinkhorn.torch_sinkhorn import TorchSinkhorn
from norton_losses.sinkhorn.triton_sinkhorn import TritonSinkhorn

__all__ = [
    "AbstractProblem",
    "AbstractSinkhorn",
    "AutoSinkhorn",
    "GeomLossSinkhorn",
    "KeOpsSinkhorn",
    "POTSinkhorn",
    "PointCloudProblem",
    "Scalings",
    "Selection",
    "Support",
    "TorchSinkhorn",
    "TransportPlan",
    "TransportProblem",
    "TritonSinkhorn",
    "resolve",
    "select",
]
