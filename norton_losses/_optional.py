"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, who: str, package: str, extra: str, instead: str = "") -> Any:
    """Import a module of this package or another; an ImportError names what to install.

    That is ``package``, a distribution and its oldest version, which ``extra`` installs for ``who``
    needs it; ``instead`` is an alternative that needs nothing more.
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except (ImportError, TypeError) as error:  # an older Triton does not know the kernels' options
        remedy = f"install it with pip install 'norton-losses[{extra}]'"
        remedy += f", or use {instead}, which needs nothing more" if instead else ""
        raise ImportError(f"{who} needs {package} or newer; {remedy}") from error
