"""A page of an audit that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from norton_losses.audit.output import AuditOutput

_SHOWN = 0.02  # the least P(caption j tells clip i) that is drawn


def write_report(output: AuditOutput, path: str | Path, title: str = "Alignment report") -> None:
    """Write the page: rates, a table of videos, and for each a picture of where its captions go.

    Captions stay text, whatever they hold: they are data of the page, and its policy runs one
    script alone and loads nothing.

    Args:
        output: of :func:`~norton_losses.audit.audit`.
        path: of the file, ending in .html.
        title: of the page.

    Raises:
        ValueError: another ending.

    Source: this library's own.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from norton_losses.audit import audit, write_report
        >>> videos = torch.randn(6, 4, 8)
        >>> out = audit("transport", videos, videos, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(out, f"{folder}/report.html")
        ...     Path(f"{folder}/report.html").read_text()[:15]
        '<!DOCTYPE html>'
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"the report must end in .html, got {path}")
    page = files("norton_losses.audit").joinpath("report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("SCRIPT-HASH", f"sha256-{digest}")
    # A `<` could end the block of data, or begin a comment in it.
    data = json.dumps(_data(output, title), allow_nan=False, separators=(",", ":"))
    page = page.replace('"DATA"', data.replace("<", "\\u003c"))
    path.write_text(page, encoding="utf-8")


def _data(output: AuditOutput, title: str) -> dict[str, Any]:
    videos, captions = output.videos, output.captions
    rows: list[dict[str, Any]] = []
    first = 0
    for number, tells in enumerate(output.tells):
        n, m = tells.shape
        of = slice(first, first + m)
        first += m
        linked: list[list[int]] = (tells >= _SHOWN).nonzero().tolist()  # pyright: ignore
        links = [[i, j, round(100 * tells[i, j].item())] for i, j in linked]
        lag = videos.lag[number].item()
        rows.append(
            {
                "clips": n,
                "own": _percent(videos.own[number]),
                "nowhere": _percent(videos.nowhere[number]),
                "unmatched": _percent(videos.unmatched_clips[number]),
                "lag": None if math.isnan(lag) else round(lag, 1),
                "drift": round(videos.drift[number].item(), 2),
                "jumps": int(videos.jumps[number]),
                "order": _percent(videos.in_order[number]),
                "put": captions.put[of].tolist(),  # pyright: ignore
                "lost": [_percent(share) for share in captions.nowhere[of]],
                "late": [round(late.item(), 1) for late in captions.late[of]],
                "seconds": [
                    None if late.isnan() else round(late.item(), 1)
                    for late in captions.late_seconds[of]
                ],
                "links": links,
                "texts": None if output.texts is None else output.texts[number],
            }
        )
    edges = list(range(-8, 9))
    late = captions.late[captions.nowhere < 0.5].round().clamp(edges[0], edges[-1]).long()
    return {
        "title": title,
        "captions": len(captions.clip),
        "rates": {name: [round(100 * v, 1) for v in rate] for name, rate in output.rates.items()},
        "histogram": (late - edges[0]).bincount(minlength=len(edges)).tolist(),  # pyright: ignore
        "first": edges[0],
        "videos": rows,
    }


def _percent(share: Any) -> int:
    return round(100 * share.item())
