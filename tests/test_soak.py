"""Random calls of the losses: a finite answer with finite gradients, or an error that helps.

``make soak`` makes many more of them than the test suite does: set NORTON_SOAK to their number.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from norton_losses import (
    BackgroundFiltered,
    CaptionAverage,
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MaxSimilarity,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    OrderedAlignment,
    PromptBucket,
    Segments,
    SoftMaximumSimilarity,
    TorchSinkhorn,
    TransportMeasure,
)

CALLS = int(os.environ.get("NORTON_SOAK", "750"))  # of each of the two tests
soaked = settings(
    max_examples=CALLS,
    deadline=None,
    derandomize="NORTON_SOAK" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
numbers = lambda lo, hi: st.floats(lo, hi, allow_nan=False)  # noqa: E731


@st.composite
def similarities(draw: st.DrawFn) -> Any:
    shared = {
        "pooled_weight": draw(st.sampled_from([0, 0.5, 3])),
        "rescale": draw(st.sampled_from([None, None, "minmax"])),
    }
    kind = draw(st.sampled_from(["soft", "soft", "max", "mean"]))
    if kind == "mean":
        return MeanSimilarity(**shared)
    shared["implementation"] = draw(st.sampled_from(["auto", "chunked", "reference"]))
    if kind == "max":
        return MaxSimilarity(**shared)
    shared |= {
        "exponential": draw(st.sampled_from(["mean", "sum"])),
        "count_padding": draw(st.booleans()),
    }
    return SoftMaximumSimilarity(draw(st.sampled_from([1e-3, 0.02, 0.1, 1.0, 30.0])), **shared)


@st.composite
def transports(draw: st.DrawFn) -> TransportMeasure:
    objective = draw(st.sampled_from(["similarity", "entropic"]))
    kind = draw(st.sampled_from(["none", "ratio", "value", "learned"]))
    gradient = draw(st.sampled_from(["detached", "implicit", "unrolled"]))
    bucket: Any = None
    if kind == "ratio":
        bucket = draw(numbers(0, 1))
    elif kind == "value":
        bucket = PromptBucket(value=draw(numbers(-2, 2)))
    elif kind == "learned":
        bucket = PromptBucket(learnable=True)
        objective = "entropic" if gradient == "detached" else objective
    tolerance = draw(st.sampled_from([None, 1e-4]))
    solver = TorchSinkhorn(draw(st.integers(1, 60)), plan_gradient=gradient, tolerance=tolerance)
    return TransportMeasure(
        draw(st.sampled_from([1e-3, 0.01, 0.05, 1.0, 50.0])),
        bucket,
        draw(st.sampled_from([solver, solver, "auto"])) if kind != "learned" else solver,
        conserve_mass=draw(st.booleans()),
        objective=objective,
    )


@st.composite
def measures(draw: st.DrawFn) -> Any:
    smoothing = draw(st.sampled_from([0.0, 1e-3, 0.1, 5.0]))
    others = [CaptionAverage(), DynamicTimeWarping(smoothing), OrderedAlignment(smoothing)]
    measure = draw(st.one_of(transports(), transports(), st.sampled_from(others)))
    filtered = draw(st.sampled_from([None, None, 0.1, 1.3, 9.0]))
    return measure if filtered is None else BackgroundFiltered(measure, filtered)


@st.composite
def video_losses(draw: st.DrawFn) -> NortonVideoParagraphLoss:
    return NortonVideoParagraphLoss(
        draw(similarities()),
        draw(measures()),
        temperature=draw(st.sampled_from([0.01, 0.1, 1.0])),
        learnable_temperature=draw(st.booleans()),
        scale_by_length=draw(st.booleans()),
    )


@st.composite
def clip_losses(draw: st.DrawFn) -> ClipCaptionOTLoss:
    return ClipCaptionOTLoss(
        draw(st.sampled_from([0.0, 0.3, 1.0])),
        epsilon=draw(st.sampled_from([2e-3, 0.1, 1.0, 100.0])),
        normalize=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.01, 0.2, 1.0])),
        chunk_rows=draw(st.sampled_from([None, None, 1, 3])),
    )


@st.composite
def losses(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["videos", "videos", "clips", "both", "released", "paper"]))
    if kind == "videos":
        return draw(video_losses())
    if kind == "clips":
        return draw(clip_losses())
    if kind == "both":
        return NortonLoss(draw(video_losses()), draw(clip_losses()), weight=draw(numbers(0, 5)))
    return NortonLoss.released() if kind == "released" else NortonLoss.paper()


@st.composite
def sides(draw: st.DrawFn, b: int, n: int, d: int, *, wide: bool) -> tuple[Segments, Tensor]:
    """A side, and its leaf; what is masked holds anything."""
    t, dtype = draw(st.integers(1, 4)), draw(st.sampled_from(DTYPES))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["random", "random", "random", "constant", "zero", "equal"]))
    tokens = torch.randn(b, n, t, d, generator=made, dtype=torch.float64)
    if kind != "random":
        tokens = {"constant": tokens[:1, :1, :1], "zero": 0 * tokens, "equal": tokens[:1]}[kind]
        tokens = tokens.expand(b, n, t, d).clone()
    largest = 4 if dtype == torch.float16 else 18
    tokens *= 10.0 ** draw(st.integers(-largest if wide else -2, largest if wide else 1))
    mask = torch.rand(b, n, t, generator=made) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    garbage = draw(st.sampled_from([0.0, torch.nan, torch.inf, -torch.inf]))
    leaf = tokens.to(dtype).masked_fill(~mask[..., None], garbage)
    if draw(st.booleans()):
        leaf = leaf.transpose(1, 2).contiguous().transpose(1, 2)
    leaf.requires_grad_()
    whole = torch.rand(b, n, generator=made) < draw(st.sampled_from([0.5, 1.0]))
    return Segments(leaf, mask, mask=draw(st.sampled_from([None, whole]))), leaf


@pytest.mark.slow
@soaked
@given(st.data())
def test_valid_calls_have_finite_answers(data: st.DataObject) -> None:
    loss = data.draw(losses(), "loss")
    b, n, d = (data.draw(st.integers(1, high), name) for name, high in zip("bnd", (4, 5, 6)))  # noqa: B905
    both = isinstance(loss, NortonVideoParagraphLoss)
    m = data.draw(st.integers(1, 5), "m") if both else n
    wide = all(getattr(part, "normalize", True) for part in loss.modules())
    (video, frames), (text, words) = (
        data.draw(sides(b, size, d, wide=wide), name) for name, size in (("v", n), ("t", m))
    )
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=b, max_size=b), "ids"))
    out = loss.explain(video, text, group_ids=data.draw(st.sampled_from([None, ids]), "grouped"))
    out.loss.backward()
    assert out.loss.isfinite(), out.loss
    assert out.loss.dtype in (torch.float32, torch.float64)
    for side, leaf in ((video, frames), (text, words)):
        if leaf.grad is not None:
            assert leaf.grad.isfinite().all()
            assert not leaf.grad[~side.token_mask].any()
    for parameter in loss.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert all(np.isfinite(number) for number in out.diagnostics().values())
    if hasattr(loss, "score"):
        range_ = (-1.0, 1.0) if "minmax" in repr(loss) else None
        scores = loss.score(video, text, similarity_range=range_)
        present = video.mask.any(-1)[:, None] & text.mask.any(-1)
        assert scores[present].isfinite().all()
        assert (scores[~present] == -torch.inf).all()


MISTAKES: dict[str, Any] = {
    "none": lambda side: None,
    "string": lambda side: "video",
    "number": lambda side: 3,
    "list": lambda side: [1.0, 2.0],
    "numpy": lambda side: side.tokens.detach().float().numpy(),
    "integers": lambda side: side.tokens.detach().nan_to_num(0, 0, 0).long(),
    "complex": lambda side: torch.complex(*[side.tokens.detach().float()] * 2),
    "tuple": lambda side: (side.tokens, side.token_mask),
    "one dimension": lambda side: side.tokens.flatten(),
    "five dimensions": lambda side: side.tokens[None],
    "other width": lambda side: side.tokens.detach().repeat(1, 1, 1, 2),
    "other batch": lambda side: side.tokens.detach().repeat(2, 1, 1, 1),
    "no videos": lambda side: side.tokens.detach()[:0],
    "no segments": lambda side: side.tokens.detach()[:, :0],
    "no tokens": lambda side: side.tokens.detach()[:, :, :0],
    "no width": lambda side: side.tokens.detach()[..., :0],
    "a mask of numbers": lambda side: Segments(side.tokens, side.token_mask.float()),
    "a mask of another shape": lambda side: Segments(side.tokens, side.token_mask[:, :, :0]),
    "a mask that is a list": lambda side: Segments(side.tokens, side.token_mask.tolist()),
    "a mask of segments": lambda side: Segments(side.tokens, side.mask),
    "embeddings of tokens": lambda side: Segments(side.tokens, embeddings=side.tokens),
    "counts of strings": lambda side: Segments.from_flat(side.tokens.flatten(0, 1), ["2"]),
    "counts of another sum": lambda side: Segments.from_flat(side.tokens.flatten(0, 1), [77]),
    "negative counts": lambda side: Segments.from_flat(side.tokens.flatten(0, 1), [-1, 1]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ids of a string": {"group_ids": "ids"},
    "ids of a list": {"group_ids": [0, 1]},
    "ids of another number": {"group_ids": torch.zeros(77, dtype=torch.long)},
    "floating ids": {"group_ids": torch.zeros(2)},
    "ids of three dimensions": {"group_ids": torch.zeros(1, 1, 1, dtype=torch.long)},
    "a scale below 0": {"logit_scale": -2.0},
    "a scale of a string": {"logit_scale": "2"},
    "scales": {"logit_scale": torch.ones(3)},
    "a mask beside the sides": {"clip_mask": torch.ones(1, 1, dtype=torch.bool)},
}


@pytest.mark.slow
@soaked
@given(st.data())
def test_mistakes_are_errors_that_help(data: st.DataObject) -> None:
    loss = data.draw(losses(), "loss")
    (video, _), (text, _) = (data.draw(sides(2, 3, 4, wide=False), name) for name in "vt")
    mistake = data.draw(st.sampled_from([*MISTAKES, *OPTIONS]))
    first = data.draw(st.booleans(), "first")

    def call() -> None:
        if mistake in OPTIONS:
            loss(video, text, **OPTIONS[mistake])
            return
        wrong = MISTAKES[mistake](video)
        loss(wrong, text) if first else loss(video, wrong)

    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert len(str(error.value)) > 20


SETTINGS: list[Any] = [None, "x", "", (), (1, 2), [0.1], True, -1, 0, 2.5, 1j, torch.nan, torch.inf]
# A setting, and which of these it takes.
BUILT: dict[str, tuple[Any, list[Any]]] = {
    "alpha": (SoftMaximumSimilarity, [2.5]),
    "pooled_weight": (lambda v: SoftMaximumSimilarity(pooled_weight=v), [0, 2.5]),
    "rescale": (lambda v: SoftMaximumSimilarity(rescale=v), [None]),
    "exponential": (lambda v: SoftMaximumSimilarity(exponential=v), []),
    "implementation": (lambda v: SoftMaximumSimilarity(implementation=v), []),
    "epsilon": (TransportMeasure, [2.5]),
    "bucket": (lambda v: TransportMeasure(bucket=v), [None, 0]),
    "sinkhorn": (lambda v: TransportMeasure(sinkhorn=v), []),
    "objective": (lambda v: TransportMeasure(objective=v), []),
    "ratio": (PromptBucket, [0]),
    "value": (lambda v: PromptBucket(value=v), [None, -1, 0, 2.5]),
    "smoothing": (DynamicTimeWarping, [0, 2.5]),
    "clips_per_caption": (lambda v: BackgroundFiltered(CaptionAverage(), v), [2.5]),
    "filtered measure": (BackgroundFiltered, []),
    "iterations": (TorchSinkhorn, []),
    "tolerance": (lambda v: TorchSinkhorn(tolerance=v), [None, 2.5]),
    "domain": (lambda v: TorchSinkhorn(domain=v), []),
    "plan_gradient": (lambda v: TorchSinkhorn(plan_gradient=v), []),
    "beta": (ClipCaptionOTLoss, [0]),
    "epsilon of logits": (lambda v: ClipCaptionOTLoss(epsilon=v), [2.5]),
    "temperature": (lambda v: ClipCaptionOTLoss(temperature=v), [None]),
    "chunk_rows": (lambda v: ClipCaptionOTLoss(chunk_rows=v), [None]),
    "process_group": (lambda v: ClipCaptionOTLoss(process_group=v), [None]),
    "similarity": (NortonVideoParagraphLoss, [None]),
    "measure": (lambda v: NortonVideoParagraphLoss(measure=v), [None]),
    "temperature of videos": (lambda v: NortonVideoParagraphLoss(temperature=v), [None]),
    "gather": (lambda v: NortonVideoParagraphLoss(gather=v), []),
    "video_paragraph": (NortonLoss, [None]),
    "clip_caption": (lambda v: NortonLoss(clip_caption=v), [None]),
    "weight": (lambda v: NortonLoss(weight=v), [0, 2.5]),
}


@pytest.mark.parametrize("name", BUILT)
def test_settings_are_checked_when_they_are_made(name: str) -> None:
    make, accepted = BUILT[name]
    for setting in SETTINGS:
        if any(type(setting) is type(taken) and setting == taken for taken in accepted):
            make(setting)
            continue
        with pytest.raises((TypeError, ValueError)) as error:
            make(setting)
        assert len(str(error.value)) > 20
