"""``python -m norton_losses``: which Sinkhorn backends work here, and how to mend the others."""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import PackageNotFoundError, version

import torch

import norton_losses
from norton_losses.sinkhorn import PointCloudProblem, TransportProblem, resolve, select


def report() -> str:
    """The table, and what ``"auto"`` chooses for the two problems of the paper."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no CUDA device"
    lines = [
        f"norton_losses {norton_losses.__version__}, torch {torch.__version__}, {name}",
        "",
        f"{'backend':<10}{'version':<16}{'works':<7}why not, and how to mend it",
    ]
    for backend in ("torch", "pot", "geomloss", "keops", "triton"):
        failure = _failure(backend, device)
        works = "no" if failure else "yes"
        lines.append(f"{backend:<10}{_version(backend):<16}{works:<7}{failure}".rstrip())
    lines += ["", f'"auto" on {device}:']
    for work, problem in _problems_of_the_paper(device).items():
        choice = select(problem)
        lines.append(f"  {work}: {choice.solver.__name__}, since {choice.reason}")
    return "\n".join(lines)


def _failure(backend: str, device: str) -> str:
    """Why this backend fails on a tiny problem; empty if it works."""
    even = torch.full((2,), 0.5, device=device).log()
    points = torch.eye(2, device=device)
    explicit = TransportProblem(points, even, even, epsilon=1.0)
    cloud = PointCloudProblem(points, points, even, even, epsilon=1.0)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # KeOps tells that it compiles
            solver = resolve(backend)
            only_points = solver.supports(cloud).ok and not solver.supports(explicit).ok
            plan = solver.solve(cloud if only_points else explicit)
    except Exception as error:  # the table shows any failure
        return " ".join(str(error).split())
    return "" if plan.converged else "it found a wrong plan of a 2 x 2 problem; please report this"


def _problems_of_the_paper(device: str) -> dict[str, TransportProblem]:
    def problem(*shape: int, has_bucket: bool) -> TransportProblem:
        scores, side = (torch.zeros(s, device=device) for s in (shape, shape[:-1]))
        return TransportProblem(scores, side, side, 0.1, has_bucket=has_bucket, check_values=False)

    return {
        "video-paragraph, 128 x 128 problems of 8 x 8 and the bucket": problem(
            128, 128, 9, 9, has_bucket=True
        ),
        "clip-caption, one problem of 1024 x 1024": problem(1024, 1024, has_bucket=False),
    }


def _version(backend: str) -> str:
    try:
        return version("pykeops" if backend == "keops" else backend)
    except PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    print(report())
