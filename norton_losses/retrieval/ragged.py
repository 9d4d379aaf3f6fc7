"""Sequences of different lengths, held without padding, and padded batches of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from norton_losses._numerics import unit, up_cast, working_dtype
from norton_losses.flat_segments import Array, as_tensor, flatten_list
from norton_losses.segments import Segments

SEGMENTS = 1 << 11  # of a group, padding included, unless one sequence alone has more

Sequences: TypeAlias = Segments | Tensor | NDArray[Any] | Sequence[Array | Sequence[Array]]


@dataclass(frozen=True, eq=False)
class Ragged:
    """The valid segments (clips or captions) of all sequences, one after another."""

    tokens: Tensor  # (K, T, D), or (K, D)
    counts: Tensor  # (B,), on the CPU
    token_mask: Tensor | None  # (K, T)
    embeddings: Tensor | None  # (K, D'), of Segments

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def dtype(self) -> torch.dtype:
        """Of scores, float32 at least."""
        return working_dtype(self.tokens, self.embeddings)

    def groups(self, batch_size: int) -> list[Tensor]:
        """Indices in groups of like length, with little to pad and less than SEGMENTS in each."""
        lengths, order = self.counts.sort(stable=True)
        groups: list[Tensor] = []
        start = 0
        for end, longest in enumerate([*lengths.tolist(), SEGMENTS]):  # pyright: ignore
            size = end - start
            if size and (size == batch_size or (size + 1) * longest > SEGMENTS):
                groups.append(order[start:end])
                start = end
        return groups

    def batch(self, indices: Tensor, device: torch.device | str) -> Segments:
        """The sequences of these indices (b,), on a device."""
        counts = self.counts[indices]
        starts = (self.counts.cumsum(0) - self.counts)[indices]
        places = (starts - counts.cumsum(0) + counts).repeat_interleave(counts)
        rows = (places + torch.arange(len(places), device="cpu")).to(self.tokens.device)
        token_mask, embeddings = (
            None if part is None else part[rows].to(device)
            for part in (self.token_mask, self.embeddings)
        )
        tokens = self.tokens[rows].to(device)
        return Segments.from_flat(tokens, counts, token_mask, embeddings=embeddings)

    def pooled(self, name: str) -> Ragged:
        """Embeddings of unit norm in place of tokens: what a measure of cosines compares."""
        embeddings = self.tokens if self.embeddings is None else self.embeddings
        if embeddings.dim() != 2:
            raise ValueError(
                f"a measure compares one embedding for each clip and caption, and {name} have "
                "several tokens; pass a loss, which brings a token similarity, pool them, or pass "
                "Segments, whose embeddings are the mean of their tokens"
            )
        units = unit(up_cast(embeddings, working_dtype(embeddings)))
        return Ragged(units, self.counts, None, None)


def read_ragged(name: str, segment: str, given: Sequences) -> Ragged:
    """What a user passed as ``name``, sequences of ``segment``; each of them must have one."""
    if isinstance(given, (Tensor, np.ndarray)):
        given = Segments(as_tensor(given))
    if isinstance(given, Segments):
        ragged = _valid_segments(given)
    else:
        tokens, counts, token_mask = flatten_list(name, given)
        if token_mask is not None and not (kept := token_mask.any(-1)).all():
            sequence = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
            counts = sequence[kept.cpu()].bincount(minlength=len(counts))
            tokens, token_mask = tokens[kept], token_mask[kept]
        ragged = Ragged(tokens.detach(), counts, token_mask, None)
    if not len(ragged):
        raise ValueError(f"{name} must hold one sequence at least, got none")
    empty: list[int] = (ragged.counts == 0).nonzero()[:, 0].tolist()  # pyright: ignore
    if empty:
        shown = ", ".join(f"{name}[{i}]" for i in empty[:3]) + ", ..." * (len(empty) > 3)
        raise ValueError(
            f"each of {name} must have one {segment} at least, got none in {len(empty)} of "
            f"{len(ragged)}: {shown}; leave them out, and pass truth=..., the index of the "
            "paragraph of each video that is left"
        )
    for part, mask in ((ragged.tokens, ragged.token_mask), (ragged.embeddings, None)):
        if part is not None:
            _check_finite(name, part, mask, ragged.counts)
    return ragged


def _valid_segments(given: Segments) -> Ragged:
    """The valid segments of all sequences, without the gaps of absent ones."""
    mask, counts = given.mask, given.mask.sum(-1).cpu()
    whole = bool(mask.all())

    def valid(part: Tensor) -> Tensor:
        return part.detach().flatten(0, 1) if whole else part.detach()[mask]

    tokens = valid(given.tokens)
    single = tokens.shape[1] == 1
    embeddings = valid(given.embeddings) if given.has_embeddings or not single else None
    if single:
        return Ragged(tokens[:, 0], counts, None, embeddings)
    return Ragged(tokens, counts, valid(given.token_mask), embeddings)


def _check_finite(name: str, part: Tensor, mask: Tensor | None, counts: Tensor) -> None:
    if torch.stack(part.aminmax()).isfinite().all():  # NaN is both; without a copy of all of it
        return
    bad = ~part.isfinite()
    if mask is not None:
        bad &= mask[..., None]
    if bad.any():
        segment = int(bad.flatten(1).any(1).int().argmax())
        number = int((counts.cumsum(0) <= segment).sum())
        raise ValueError(
            f"{name}[{number}] must be finite, got NaN or infinite entries; look at what made "
            "them, or leave it out"
        )
