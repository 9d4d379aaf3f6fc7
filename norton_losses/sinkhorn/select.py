"""From the name of a solver to the solver: the only place that knows the names."""

from __future__ import annotations

from norton_losses.sinkhorn.pot_sinkhorn import POTSinkhorn
from norton_losses.sinkhorn.solver import AbstractSinkhorn
from norton_losses.sinkhorn.torch_sinkhorn import TorchSinkhorn

_SOLVERS: dict[str, type[AbstractSinkhorn]] = {
    "auto": TorchSinkhorn,
    "torch": TorchSinkhorn,
    "pot": POTSinkhorn,
}


def resolve(sinkhorn: str | AbstractSinkhorn) -> AbstractSinkhorn:
    """The solver itself, or the one of that name with its default settings.

    ``"auto"`` never depends on what else is installed. A name never falls back to another: it
    works or raises.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a solver.
        ImportError: the package behind the name is not installed.

    Example:
        >>> from norton_losses.sinkhorn import resolve
        >>> resolve("torch").iterations
        50
    """
    if isinstance(sinkhorn, AbstractSinkhorn):
        return sinkhorn
    if not isinstance(sinkhorn, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"sinkhorn must be a name or a solver object, got {type(sinkhorn).__name__}; "
            f"pass one of {list(_SOLVERS)} or for example TorchSinkhorn(100)"
        )
    if sinkhorn not in _SOLVERS:
        raise ValueError(
            f"sinkhorn must be one of {list(_SOLVERS)} or a solver object, got {sinkhorn!r}"
        )
    return _SOLVERS[sinkhorn]()
