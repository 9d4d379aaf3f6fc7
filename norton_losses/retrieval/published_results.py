"""Retrieval as others published it, to stand beside one's own where the protocol is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# R@1, R@5, R@10 in per cent, of caption average, DTW and OTAM.
Row = tuple[str, tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Published:
    """Tables of one benchmark, and what to keep in mind beside them."""

    source: str
    tables: Mapping[str, tuple[Row, ...]]
    caution: str

    def __str__(self) -> str:
        lines = [f"published: {self.source}, paragraph -> video, R@1 / R@5 / R@10 in %"]
        lines.append(f"{'':24}{'caption-average':20}{'dtw':20}otam")
        for title, rows in self.tables.items():
            lines.append(f"{title}:")
            for model, *measures in rows:
                cells = "".join(f"{' / '.join(f'{r:.1f}' for r in m):20}" for m in measures)
                lines.append(f"  {model:22}{cells}".rstrip())
        return "\n".join([*lines, self.caution])


PUBLISHED = {
    "youcook2": Published(
        source="YouCookII, Lin et al., ICLR 2024",
        tables={
            "background removed": (
                ("VideoCLIP", (74.5, 94.5, 97.9), (56.0, 89.9, 96.3), (52.8, 89.2, 95.0)),
                ("TempCLR", (74.5, 94.6, 97.0), (83.5, 97.2, 99.3), (84.9, 97.9, 99.3)),
                ("Norton", (75.5, 95.0, 97.7), (88.7, 98.8, 99.5), (88.9, 98.4, 99.5)),
            ),
            "background kept": (
                ("VideoCLIP", (73.6, 94.7, 98.4), (55.7, 93.1, 98.9), (56.6, 92.8, 98.9)),
                ("TempCLR", (71.7, 94.5, 97.9), (70.4, 93.8, 97.9), (72.2, 94.5, 97.7)),
                ("Norton", (74.8, 94.7, 98.4), (76.1, 95.0, 97.7), (73.6, 94.7, 97.7)),
            ),
        },
        caution=(
            "Their evaluators of DTW and OTAM take costs of raw dot products, read padded pairs\n"
            "at another cell and scale costs by the longest pair; here are textbook recursions\n"
            "of cosines. With background they filter clips for DTW and OTAM alone."
        ),
    )
}
