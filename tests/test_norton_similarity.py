"""The loss of similarities that a model brings along, against that of the tokens behind them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from norton_losses import (
    ClipCaptionOTLoss,
    DynamicTimeWarping,
    MeanSimilarity,
    NortonLoss,
    NortonVideoParagraphLoss,
    Segments,
    TransportMeasure,
)


def sides(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Segments, Segments]:
    g = torch.Generator().manual_seed(seed)
    made = torch.randn(2, 3, 4, 8, generator=g, dtype=dtype)
    masks = torch.rand(2, 3, 4, generator=g) < 0.8
    video, text = (Segments(t.requires_grad_(), mask=m) for t, m in zip(made, masks, strict=True))
    return video, text


def cosines(video: Segments, text: Segments) -> Tensor:
    units = (normalize(side.embeddings, dim=-1) for side in (video, text))
    return torch.einsum("bnd,cmd->bcnm", *units)


def by_tokens(**settings: object) -> NortonLoss:
    term = NortonVideoParagraphLoss(MeanSimilarity(), **settings)  # type: ignore[arg-type]
    return NortonLoss(term, weight=0.7)


@pytest.mark.parametrize("measure", [TransportMeasure(), DynamicTimeWarping(0.1)])
def test_values_and_gradients_are_those_of_the_tokens(measure: nn.Module) -> None:
    video, text = sides()
    groups = torch.tensor([0, 1, 0])
    expected = by_tokens(measure=measure).explain(video, text, group_ids=groups)
    loss = NortonLoss.from_similarity(NortonVideoParagraphLoss(measure=measure), weight=0.7)  # type: ignore[arg-type]
    found = loss.explain(cosines(video, text), video.mask, text.mask, group_ids=groups)
    torch.testing.assert_close(found.loss, expected.loss)
    assert found.video_paragraph.similarity.shape == (3, 3, 4, 4)
    leaves = video.tokens, text.tokens
    gradients = (torch.autograd.grad(out.loss, leaves) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    numbers, others = found.diagnostics(), expected.diagnostics()
    assert set(others) - set(numbers) == {"video_paragraph/frames", "video_paragraph/words"}
    for name, number in numbers.items():
        assert number == pytest.approx(others[name], abs=1e-9), name


def test_scores_are_those_of_the_tokens() -> None:
    video, text = sides()
    more = sides(1)[1]
    loss = NortonLoss.from_similarity()
    for side in (text, more[:2]):
        for value in (None, 0.2):
            torch.testing.assert_close(
                loss.score(cosines(video, side), video.mask, side.mask, bucket_value=value),
                by_tokens().score(video, side, bucket_value=value),
            )
    nothing = torch.zeros_like(text.mask)
    assert (loss.score(cosines(video, text), caption_mask=nothing) == -torch.inf).all()


def test_a_scale_from_outside() -> None:
    video, text = sides()
    terms = NortonVideoParagraphLoss(temperature=None), ClipCaptionOTLoss(temperature=None)
    loss = NortonLoss.from_similarity(*terms)
    of_tokens = NortonLoss(
        NortonVideoParagraphLoss(MeanSimilarity(), temperature=None),
        ClipCaptionOTLoss(temperature=None),
    )
    similarity, scale = cosines(video, text), torch.tensor(14.0)
    torch.testing.assert_close(
        loss(similarity, video.mask, text.mask, logit_scale=scale),
        of_tokens(video, text, logit_scale=scale),
    )
    with pytest.raises(ValueError, match="logit_scale replaces the temperature"):
        NortonLoss.from_similarity()(similarity, logit_scale=scale)
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        loss(similarity, logit_scale=-1.0)


def test_states_are_exchanged_and_temperatures_train() -> None:
    loss = NortonLoss.from_similarity(clip_caption=ClipCaptionOTLoss(temperature=0.5))
    NortonLoss().load_state_dict(loss.state_dict())
    loss.load_state_dict(NortonLoss().state_dict())
    assert loss.clip_caption.temperature is not None
    assert loss.clip_caption.temperature().item() == pytest.approx(0.2)
    loss(cosines(*sides())).backward()
    assert not loss.explain(cosines(*sides())).clip_caption.temperature.requires_grad
    (trained,) = (p for p in loss.parameters() if p.requires_grad)
    assert trained.grad is not None
    assert trained.grad.abs() > 0
    similarity = cosines(*sides())
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again(similarity) == loss(similarity)


@pytest.mark.parametrize("dirt", [99.0, torch.nan, torch.inf])
def test_what_is_masked_has_no_effect(dirt: float) -> None:
    video, text = sides()
    similarity = cosines(video, text).detach()
    absent = ~(video.mask[:, None, :, None] & text.mask[None, :, None])
    loss = NortonLoss.from_similarity(clip_caption=ClipCaptionOTLoss(temperature=0.1))
    values, gradients = [], []
    for filled in (similarity, similarity.masked_fill(absent, dirt)):
        leaves = filled.requires_grad_(), *(p for p in loss.parameters() if p.requires_grad)
        values.append(loss(filled, video.mask, text.mask))
        gradients.append(torch.autograd.grad(values[-1], leaves))
    assert values[0].equal(values[1])
    for clean, dirty in zip(*gradients, strict=True):
        assert clean.equal(dirty)


def test_half_precision() -> None:
    video, text = sides(dtype=torch.float32)
    similarity = cosines(video, text).detach()
    loss = NortonLoss.from_similarity()
    expected = loss(similarity, video.mask, text.mask)
    rounded = loss(similarity.bfloat16(), video.mask, text.mask)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0.05, atol=0.05)


def test_logits_are_no_cosines() -> None:
    similarity = cosines(*sides())
    with pytest.raises(ValueError, match=r"must be cosines, .*got 1\d.*divide them by the model's"):
        NortonLoss.from_similarity()(20 * similarity)
    with pytest.raises(ValueError, match=r"must be cosines, .*got 5"):
        NortonLoss.from_similarity()(similarity.clamp(max=0) - 4.5)
    with pytest.raises(ValueError, match="must be cosines"):
        NortonLoss.from_similarity().score(20 * similarity)
    free = NortonLoss.from_similarity(cosines=False)
    assert free(20 * similarity).isfinite()
    torch.testing.assert_close(free(similarity), NortonLoss.from_similarity()(similarity))


def test_numbers_a_little_beyond_one_are_cosines_that_were_rounded() -> None:
    loss = NortonLoss.from_similarity()
    assert loss(torch.full((2, 2, 3, 3), 1.01)).isfinite()
    with pytest.raises(ValueError, match=r"must be cosines, in \[-1, 1\], got 1.5"):
        loss(torch.full((2, 2, 3, 3), 1.5))


@pytest.mark.parametrize(
    ("cosines", "temperature", "scale", "epsilon", "dtype"),
    [
        (True, 0.2, None, 1.0, torch.float32),
        (True, 0.2, None, 0.1, torch.float64),  # 2 / 0.01 over epsilon, the coldest allowed
        (True, None, 2.0, 1.0, torch.float64),
        (True, None, None, 1.0, torch.float32),
        (False, 0.2, None, 1.0, torch.float64),
    ],
)
def test_clips_are_transported_in_the_precision_of_their_range(
    cosines: bool,
    temperature: float | None,
    scale: float | None,
    epsilon: float,
    dtype: torch.dtype,
) -> None:
    term = ClipCaptionOTLoss(temperature=temperature, epsilon=epsilon)
    loss = NortonLoss.from_similarity(clip_caption=term, cosines=cosines)
    plan = loss.explain(torch.rand(2, 2, 3, 3), logit_scale=scale).clip_caption.plan
    assert plan is not None
    assert plan.log_u.dtype == dtype


def test_similarities_of_any_size_keep_their_digits() -> None:
    similarity = 1e4 * torch.rand(3, 3, 4, 4)
    loss = NortonLoss.from_similarity(cosines=False)
    found, expected = loss(similarity), loss(similarity.double())
    torch.testing.assert_close(found, expected.float())


def test_bad_input() -> None:
    loss, similarity = NortonLoss.from_similarity(), torch.rand(3, 3, 4, 4)
    for wrong, message in (
        (similarity[:2], "as many videos as paragraphs"),
        (similarity[..., :3], "clip i is paired with caption i"),
        (similarity[0], "similarity must have 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(wrong)
    with pytest.raises(TypeError, match="similarity must be a floating tensor"):
        loss(similarity.long())
    with pytest.raises(ValueError, match=r"group_ids must have shape \(3,\)"):
        loss(similarity, group_ids=torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"^clip_mask must have shape \(3, 4\)"):
        loss(similarity, torch.ones(3, 3).bool())
    with pytest.raises(ValueError, match="chunk_rows=2 makes logits a few rows at a time"):
        NortonLoss.from_similarity(clip_caption=ClipCaptionOTLoss(chunk_rows=2))


def test_a_cold_scale_from_outside_is_not_that_of_the_own_temperature() -> None:
    """The range of logits, which decides the precision of their transport, is that of the term."""
    video, text = sides(dtype=torch.float32)
    own = ClipCaptionOTLoss(temperature=0.01, learnable_temperature=False)
    mixed = NortonLoss.from_similarity(NortonVideoParagraphLoss(temperature=None), own)
    alone = NortonLoss.from_similarity(NortonVideoParagraphLoss(temperature=0.5), own)
    similarity = cosines(video, text)
    found = mixed.explain(similarity, video.mask, text.mask, logit_scale=2.0).clip_caption
    expected = alone.explain(similarity, video.mask, text.mask).clip_caption
    assert found.loss.equal(expected.loss)
    assert found.targets.equal(expected.targets)
