"""Alignment of clips and captions in order, DTW and OTAM; and retrieval by every measure.

The size of YouCookII's test: 436 videos with as many paragraphs, 3 to 16 clips and captions. The
naive form is a loop over cells within one over pairs; the other writes the loop over cells once, of
all pairs. The floor is one pass over the similarities. Of smooth DTW the peers are ddtw's compiled
loops, which take lengths, and tslearn's, which take pairs of equal lengths.

Retrieval is of whole corpora, from embeddings: there the naive form holds all similarities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness.work import (
    Claim,
    Contender,
    Inputs,
    Prepared,
    Size,
    Work,
    function,
    prepared,
)
from benchmarks.inputs import corpus, ragged_similarity
from norton_losses import CaptionAverage, DynamicTimeWarping, OrderedAlignment, TransportMeasure
from norton_losses.retrieval import retrieve

LOOP, CELLS = "loop over pairs and cells", "loop over cells, all pairs at once"
SMOOTHING = 0.1
PEERS = ("ddtw", "tslearn")
# The measure, its naive loop, and its definition by cells.
KINDS = {
    "DynamicTimeWarping": (DynamicTimeWarping, naive.warping_score, naive.warping_of_all_pairs),
    "OrderedAlignment": (OrderedAlignment, naive.ordered_score, naive.ordering_of_all_pairs),
}


def works(size: Size) -> list[Work]:
    if size == "smoke":
        aligned = [alignment(name, 5) for name in KINDS]
        return [*aligned, *(smooth(name, 4) for name in KINDS), retrieval(6, 3, 8)]
    if size == "quick":
        aligned = [alignment(name, 109) for name in KINDS]
        return [*aligned, *(smooth(name, 48) for name in KINDS), retrieval(300, 8, 128)]
    faster = tuple(Claim(name, LOOP, "faster", at_least=50.0) for name in KINDS)
    aligned = [alignment(n, 436, (c,)) for n, c in zip(KINDS, faster, strict=True)]
    largest = 1.5e9
    peaks = tuple(Claim(name, None, "peak memory", at_most=largest) for name in retrievers())
    first = tuple(Claim("DynamicTimeWarping", peer, "faster", at_least=1.0) for peer in PEERS)
    smoothed = smooth("DynamicTimeWarping", 436, first), smooth("OrderedAlignment", 436)
    return [*aligned, *smoothed, retrieval(2000, 8, 512, peaks)]


def alignment(name: str, videos: int, claims: tuple[Claim, ...] = ()) -> Work:
    kind, score, of_all_pairs = KINDS[name]
    entries = float(videos * 16) ** 2
    return Work(
        f"{name} of {videos} x {videos} pairs, 3-16 clips and captions",
        {"B": videos, "N": 16},
        lambda: ragged_similarity(videos, 16, 3, differentiable=False),
        (
            function(name, "ours", kind()),
            function(LOOP, "naive", partial(naive.looped_alignment, score=score)),
            function(CELLS, "naive", of_all_pairs, bytes_needed=12 * entries),
            floor(),
        ),
        lambda made: prepared(of_all_pairs, made),
        modes=("no-grad",),
        value_tolerance=1e-6,
        claims=claims,
    )


def smooth(name: str, videos: int, claims: tuple[Claim, ...] = ()) -> Work:
    kind, _, of_all_pairs = KINDS[name]
    soft = partial(of_all_pairs, smoothing=SMOOTHING)
    entries = float(videos * 16) ** 2
    return Work(
        f"{name}, smoothing {SMOOTHING}, of {videos} x {videos} pairs, 3-16 clips and captions",
        {"B": videos, "N": 16},
        lambda: ragged_similarity(videos, 16, 3),
        (
            function(name, "ours", kind(SMOOTHING)),
            function(CELLS, "naive", soft, bytes_needed=60 * entries),
            *(peers() if name == "DynamicTimeWarping" else ()),
            floor(),
        ),
        lambda made: prepared(soft, made),
        modes=("forward", "forward+backward"),
        value_tolerance=1e-6,
        claims=claims,
    )


def peers() -> list[Contender]:
    computed = ddtw_warping, tslearn_warping
    return [
        function(name, "peer", compute, needs=name, device="cpu", compiles=True)
        for name, compute in zip(PEERS, computed, strict=True)
    ]


def ddtw_warping(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
    """All pairs in one batch; its module gives their mean, and what it averages is used."""
    from ddtw import dDTW  # pyright: ignore

    clips, captions = pair_lengths(similarity, clip_mask, caption_mask)
    module: Any = dDTW(
        min_function="softmin", gamma=SMOOTHING, normalization="none", backend="cpu_numba",
        dtype_float=similarity.dtype,
    )  # fmt: skip
    distances: list[Tensor] = []
    of_pairs = module.compute_dDTW

    def kept(*inputs: Any) -> Tensor:
        distances.append(of_pairs(*inputs))
        return distances[0]

    module.compute_dDTW = kept
    module(C=(1 - similarity).flatten(0, 1), list_N=clips, list_M=captions)
    return -(distances[0] / (clips + captions)).view(similarity.shape[:2])


def tslearn_warping(similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor) -> Tensor:
    """A batch for each pair of lengths."""
    from tslearn.metrics import SoftDTWLossPyTorch  # pyright: ignore

    module: Any = SoftDTWLossPyTorch(SMOOTHING, dist_func=lambda costs, _: costs.clone())
    clips, captions = pair_lengths(similarity, clip_mask, caption_mask)
    order = (clips * (similarity.shape[3] + 1) + captions).argsort()
    sizes = torch.stack([clips, captions], -1)[order].unique_consecutive(dim=0, return_counts=True)
    costs = (1 - similarity).flatten(0, 1)[order].split(sizes[1].tolist())
    scores = [
        -module(part[:, :n, :m], part[:, :n, :m]) / (n + m)
        for part, (n, m) in zip(costs, sizes[0].tolist(), strict=True)
    ]
    return torch.cat(scores)[order.argsort()].view(similarity.shape[:2]).to(similarity.dtype)


def pair_lengths(
    similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """How many clips and captions each pair has, (Bv * Bt,)."""
    shape = similarity.shape[:2]
    counts = clip_mask.sum(-1)[:, None], caption_mask.sum(-1)[None]
    clips, captions = (count.expand(shape).flatten() for count in counts)
    return clips, captions


def retrieval(videos: int, length: int, width: int, claims: tuple[Claim, ...] = ()) -> Work:
    """The definitions go by twenty videos; so many pairs at once would be large in float64.

    That of transport is our own measure in float64: its naive form takes minutes on a CPU, and has
    its gate in the suite of Sinkhorn backends.
    """
    valid = torch.ones(videos, length, dtype=torch.bool)
    whole: dict[str, Callable[[Tensor], Tensor]] = {
        "transport": TransportMeasure(bucket=None),
        "dtw": lambda s: naive.warping_of_all_pairs(s, valid[: len(s)], valid),
        "otam": lambda s: naive.ordering_of_all_pairs(s, valid[: len(s)], valid),
        "caption-average": naive.caption_average,
    }

    def at_once(measure: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda videos, paragraphs: measure(naive.cosines(videos, paragraphs))

    def by_video(made: Inputs, measure: Callable[[Tensor], Tensor]) -> Prepared:
        parts = made["videos"].split(20)

        def call() -> Tensor:
            return torch.cat([measure(naive.cosines(part, made["paragraphs"])) for part in parts])

        return Prepared(call)

    entries = float(videos * length) ** 2
    contenders: list[Contender] = []
    for name, measure in whole.items():
        reference = partial(by_video, measure=measure)
        ours = partial(score, measure=retrievers()[name])
        contenders.append(
            function(name, "ours", ours, against=f"{name}, all at once", reference=reference)
        )
        theirs = at_once(measure if name != "transport" else naive_transport)
        contenders.append(
            function(
                f"{name}, all at once",
                "naive",
                theirs,
                reference=reference,
                bytes_needed=24 * entries,
                # Minutes on a CPU: fifty steps on logarithms of all pairs.
                device="cuda" if name == "transport" and videos > 500 else None,
            )
        )
    return Work(
        f"retrieval of {videos} x {videos} videos of {length} clips, D {width}",
        {"B": videos, "N": length, "D": width},
        lambda: corpus(videos, length, width),
        contenders,
        lambda made: by_video(made, naive.caption_average),
        modes=("no-grad",),
        claims=claims,
    )


def retrievers() -> dict[str, torch.nn.Module]:
    return {
        "transport": TransportMeasure(bucket=None),
        "dtw": DynamicTimeWarping(),
        "otam": OrderedAlignment(),
        "caption-average": CaptionAverage(),
    }


def score(videos: Tensor, paragraphs: Tensor, measure: torch.nn.Module) -> Tensor:
    return retrieve(measure, videos, paragraphs, progress=False).scores


def naive_transport(similarity: Tensor) -> Tensor:
    """Without a bucket, at the default epsilon."""
    even = torch.full_like(similarity[..., 0], 1 / similarity.shape[-1]).log()
    u, v = naive.log_sinkhorn(similarity.mT, even, even, epsilon=0.05)
    plan = naive.log_plan(similarity.mT, u, v, epsilon=0.05).exp().mT
    return (plan * similarity).sum((-2, -1)) / plan.sum((-2, -1))


def floor() -> Contender:
    def once(made: Inputs) -> Prepared:
        entries = made["similarity"].detach()
        return Prepared(entries.sum)

    return Contender("one pass", "floor", once)
