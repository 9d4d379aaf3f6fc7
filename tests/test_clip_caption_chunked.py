"""The clip-caption loss by blocks of rows is the clip-caption loss."""

from __future__ import annotations

import pytest
import torch

from conftest import HAS_GEOMLOSS, HAS_KEOPS, HAS_POT
from norton_losses import ClipCaptionOTLoss, GeomLossSinkhorn, Segments, TorchSinkhorn

K, D = 23, 6


def embeddings(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    clips, captions = (torch.randn(K, D, generator=g, dtype=torch.float64) for _ in range(2))
    return clips.to(dtype).requires_grad_(), captions.to(dtype).requires_grad_()


def loss_and_gradients(loss: ClipCaptionOTLoss, mask: torch.Tensor | None = None, **options):
    clips, captions = embeddings()
    video = clips if mask is None else Segments(clips[None], mask=mask[None])
    value = loss(video, captions, **options)
    return value, *torch.autograd.grad(value, [clips, captions, *loss.parameters()])


@pytest.mark.parametrize("chunk_rows", [1, 5, K, 100])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_values_and_gradients_are_the_same(chunk_rows, beta, masked, grouped) -> None:
    options = {}
    if masked:
        options["mask"] = torch.arange(K) % 4 != 1
    if grouped:
        options["group_ids"] = torch.arange(K) // 3
    for settings in ({}, {"normalize": False, "temperature": None}):
        whole = ClipCaptionOTLoss(beta, **settings).double()
        chunked = ClipCaptionOTLoss(beta, chunk_rows=chunk_rows, **settings).double()
        pairs = zip(
            loss_and_gradients(chunked, **options),
            loss_and_gradients(whole, **options),
            strict=True,
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_nothing_valid_is_zero_with_zero_gradients() -> None:
    loss = ClipCaptionOTLoss(chunk_rows=4).double()
    value, *gradients = loss_and_gradients(loss, mask=torch.zeros(K).bool())
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("grouped", [False, True])
def test_a_column_of_no_candidates_makes_no_nan_on_the_way_back(grouped: bool) -> None:
    """An absent pair's column has none in any block; with groups, one may have some in others."""
    mask = torch.arange(K) % 4 != 1
    options = {"group_ids": torch.arange(K) // 4} if grouped else {}
    with torch.autograd.detect_anomaly(check_nan=True):
        loss_and_gradients(ClipCaptionOTLoss(chunk_rows=4).double(), mask=mask, **options)


def test_garbage_in_masked_pairs_has_no_effect() -> None:
    mask = torch.arange(K) < 15
    loss = ClipCaptionOTLoss(chunk_rows=4).double()
    clean = loss_and_gradients(loss, mask=mask)[0]
    clips, captions = embeddings()
    dirty = clips.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    value = loss(Segments(dirty[None], mask=mask[None]), captions)
    assert torch.equal(value, clean)
    assert torch.autograd.grad(value, dirty)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_gives_a_float32_loss(dtype: torch.dtype) -> None:
    values = [ClipCaptionOTLoss(chunk_rows=rows)(*embeddings(dtype)) for rows in (4, None)]
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(*values)


def test_explain_holds_no_matrix_and_still_has_the_plan() -> None:
    out = ClipCaptionOTLoss(chunk_rows=4).explain(*embeddings(torch.float32))
    assert out.logits is None
    assert out.targets is None
    assert out.plan is not None
    assert out.plan.marginal_error < 0.2
    assert out.plan.plan.shape == (K, K)
    with pytest.raises(ValueError, match="chunk_rows must be a whole number of at least 1, got 0"):
        ClipCaptionOTLoss(chunk_rows=0)


@pytest.mark.skipif(not HAS_POT, reason="POT is not installed")
def test_a_solver_of_matrices_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="POTSinkhorn cannot.*use TorchSinkhorn or KeOpsSinkhorn"):
        ClipCaptionOTLoss(sinkhorn="pot", chunk_rows=4)(*embeddings())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_KEOPS, reason="KeOps or a C++ compiler is not installed")
def test_keops_serves_it_and_names_it_where_it_cannot() -> None:
    exact = loss_and_gradients(ClipCaptionOTLoss(sinkhorn=TorchSinkhorn(domain="log")).double())
    ours = loss_and_gradients(ClipCaptionOTLoss(sinkhorn="keops", chunk_rows=4).double())
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"ClipCaptionOTLoss\(chunk_rows=\.\.\.\)"):
        ClipCaptionOTLoss(sinkhorn="keops")(*embeddings())


@pytest.mark.skipif(not HAS_GEOMLOSS, reason="GeomLoss is not installed")
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_geomloss_serves_it(chunk_rows: int | None) -> None:
    settings = {"temperature": 0.5, "chunk_rows": chunk_rows}
    exact = loss_and_gradients(ClipCaptionOTLoss(sinkhorn=TorchSinkhorn(1000), **settings).double())
    ours = loss_and_gradients(ClipCaptionOTLoss(sinkhorn=GeomLossSinkhorn(), **settings).double())
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_small_losses_of_large_logits_keep_their_digits() -> None:
    tokens = torch.eye(K)
    for settings in ({"temperature": 0.01}, {"normalize": False, "temperature": None}):
        whole = ClipCaptionOTLoss(0.0, **settings)(30 * tokens, tokens)
        chunked = ClipCaptionOTLoss(0.0, chunk_rows=5, **settings)(30 * tokens, tokens)
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiles_without_a_graph_break() -> None:
    loss = ClipCaptionOTLoss(chunk_rows=9, sinkhorn=TorchSinkhorn(3))
    clips, captions = embeddings(torch.float32)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips, captions), loss(clips, captions))


@pytest.mark.parametrize("epsilon", [0.5, 0.2, 0.02, 2.1e-3])
def test_a_small_epsilon_keeps_its_digits(epsilon: float) -> None:
    torch.manual_seed(0)
    clips = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    captions = clips + 0.3 * torch.randn(40, 8)
    options = {"epsilon": epsilon, "temperature": 0.01}
    expected = ClipCaptionOTLoss(**options)(clips.double(), captions.double()).item()
    for chunk_rows in (None, 7):
        found = ClipCaptionOTLoss(chunk_rows=chunk_rows, **options)(clips, captions).item()
        assert found == pytest.approx(expected, rel=1e-5)
