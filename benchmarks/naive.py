"""What one writes first: the forms that every ratio divides by.

They keep the structure of the released implementation, whose token tensor is whole, whose Sinkhorn
loop runs on logarithms over all pairs, and through which autograd goes as it comes. Written from
the equations; clips are rows, sequences have full length, and every clip and caption has a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize
from torch.utils.checkpoint import checkpoint

STEPS = 50  # of every Sinkhorn loop, as in the paper


def soft_maximum(
    video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both halves of Eq. (5), (K, L) each, from unit tokens (K, F, D) and (L, W, D).

    A masked product is 0. Its exponential, 1, is taken off again where it is summed; the padded
    tokens of the outer sums stay in, as released.
    """
    products = torch.einsum("kfd,lwd->klfw", video, text)  # all of them, (K, L, F, W)
    products = products * (frame_mask[:, None, :, None] & word_mask[None, :, None, :])
    exponentials = (products / alpha).exp()
    padded_frames, padded_words = (~frame_mask).sum(-1), (~word_mask).sum(-1)
    best_word = (exponentials.sum(3) - padded_words[None, :, None]).log() * alpha  # (K, L, F)
    best_frame = (exponentials.sum(2) - padded_frames[:, None, None]).log() * alpha  # (K, L, W)
    frames, words = frame_mask.sum(-1), word_mask.sum(-1)
    return best_word.sum(2) / frames[:, None], best_frame.sum(2) / words[None, :]


def soft_maximum_by_blocks(
    video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """:func:`soft_maximum`, eight clips at a time, each forgotten until the backward pass.

    What the gate can afford in float64 at any number of clips.
    """
    parts = [
        checkpoint(soft_maximum, clips, text, mask, word_mask, alpha, use_reentrant=False)
        for clips, mask in zip(video.split(8), frame_mask.split(8), strict=True)
    ]
    return torch.cat([frames for frames, _ in parts]), torch.cat([words for _, words in parts])


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Of the valid tokens, (..., T, D) -> (..., D)."""
    return (tokens * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True)


def minmax(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def log_sinkhorn(
    scores: Tensor, log_mu: Tensor, log_nu: Tensor, epsilon: float, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Eq. (3) on logarithms, all problems at once."""
    kernel = scores / epsilon
    u, v = torch.zeros_like(log_mu), torch.zeros_like(log_nu)
    for _ in range(steps):
        u = log_mu - torch.logsumexp(kernel + v[..., None, :], -1)
        v = log_nu - torch.logsumexp(kernel + u[..., :, None], -2)
    return u, v


def log_plan(scores: Tensor, u: Tensor, v: Tensor, epsilon: float) -> Tensor:
    return scores / epsilon + u[..., :, None] + v[..., None, :]


def with_bucket(similarity: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (6): (..., n, m) -> scores (..., n + 1, m + 1) and both log-marginals."""
    batch, (n, m) = similarity.shape[:-2], similarity.shape[-2:]
    scores = torch.cat([similarity, p.expand(*batch, n, 1)], -1)
    scores = torch.cat([scores, p.expand(*batch, 1, m + 1)], -2)
    each = torch.full((), -math.log(n + m), dtype=similarity.dtype, device=similarity.device)
    log_mu = torch.cat([each.expand(*batch, n), (each + math.log(m)).expand(*batch, 1)], -1)
    log_nu = torch.cat([each.expand(*batch, m), (each + math.log(n)).expand(*batch, 1)], -1)
    return scores, log_mu, log_nu


def bucket_value(similarity: Tensor, ratio: float = 0.3) -> Tensor:
    """The quantile of the originally aligned pairs, from (B, B, N, N)."""
    aligned = torch.diagonal(torch.diagonal(similarity), dim1=0, dim2=1).flatten()
    return aligned.kthvalue(int(ratio * len(aligned))).values.detach()


def transport_scores(
    similarity: Tensor, epsilon: float = 0.1, ratio: float = 0.3, differentiate: bool = False
) -> Tensor:
    """Mass-conserving score (B, B) of all pairs of sequences, from (B, B, N, N).

    Captions are updated first, as released. The plan carries gradient only if asked.
    """
    n, m = similarity.shape[-2:]
    scores, log_nu, log_mu = with_bucket(similarity.mT, bucket_value(similarity, ratio))
    with torch.set_grad_enabled(differentiate and torch.is_grad_enabled()):
        u, v = log_sinkhorn(scores, log_nu, log_mu, epsilon)
        plan = log_plan(scores, u, v, epsilon).exp().mT[..., :n, :m]
        plan = plan / plan.sum((-1, -2), keepdim=True)
    return (plan * similarity).sum((-1, -2))


def looped_transport_scores(similarity: Tensor, epsilon: float = 0.1, ratio: float = 0.3) -> Tensor:
    """The same by ``ot.sinkhorn``, one pair of sequences after the other."""
    n, m = similarity.shape[-2:]
    with torch.no_grad():
        scores, log_nu, log_mu = with_bucket(similarity.mT, bucket_value(similarity, ratio))
        plan = looped_sinkhorn(
            scores.flatten(0, 1), log_nu.flatten(0, 1), log_mu.flatten(0, 1), epsilon
        )
        plan = plan.view_as(scores).to(similarity).mT[..., :n, :m]
        plan = plan / plan.sum((-1, -2), keepdim=True)
    return (plan * similarity).sum((-1, -2))


def looped_sinkhorn(scores: Tensor, log_mu: Tensor, log_nu: Tensor, epsilon: float) -> Tensor:
    """Plans (P, n, m) in float64, one problem after the other.

    ``ot.sinkhorn`` updates columns first, so it is given the transposed problem.
    """
    import ot

    mu, nu = log_mu.double().exp().cpu().numpy(), log_nu.double().exp().cpu().numpy()
    cost = -scores.double().mT.cpu().numpy()
    settings = {"numItermax": STEPS, "stopThr": 0.0, "warn": False}
    plans = [
        np.asarray(ot.sinkhorn(b, a, c, epsilon, **settings))
        for a, b, c in zip(mu, nu, cost, strict=True)
    ]
    return torch.from_numpy(np.stack(plans)).mT


def contrast(logits: Tensor) -> Tensor:
    """Eq. (4): cross-entropy to the diagonal, both directions."""
    own = torch.arange(len(logits), device=logits.device)
    return cross_entropy(logits, own) + cross_entropy(logits.mT, own)


def video_paragraph(scores: Tensor, length: int, temperature: float = 0.07) -> Tensor:
    """Eq. (4) from the scores of :func:`transport_scores`."""
    return contrast(scores * length / temperature)


def clip_caption(logits: Tensor, beta: float = 0.3, epsilon: float = 1.0) -> Tensor:
    """Eq. (7) and (8), the plan without gradient; ``beta=0`` solves nothing."""
    targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if beta > 0:
        with torch.no_grad():
            marginal = logits.new_full((len(logits),), -math.log(len(logits)))
            u, v = log_sinkhorn(logits, marginal, marginal, epsilon)
            plan = log_plan(logits, u, v, epsilon).exp() * len(logits)
        targets = (1 - beta) * targets + beta * plan
    both = log_softmax(logits, 1) + log_softmax(logits, 0)
    return -(targets * both).sum() / len(logits)


def as_sequences(similarity: Tensor, length: int) -> Tensor:
    """(K, K) -> (B, B, N, N)."""
    return similarity.unflatten(1, (-1, length)).unflatten(0, (-1, length)).transpose(1, 2)


def released_loss(
    video: Tensor,
    text: Tensor,
    frame_mask: Tensor,
    word_mask: Tensor,
    *,
    by_blocks: bool = False,
) -> Tensor:
    """Eq. (1) as released, from tokens (B, N, F, D) and (B, N, W, D) of any norm.

    The fused similarity is min-max rescaled part by part; ``by_blocks`` spares the memory that
    the materialised form is known for.
    """
    length = video.shape[1]
    video, text, frame_mask, word_mask = (
        tensor.flatten(0, 1) for tensor in (video, text, frame_mask, word_mask)
    )
    unit_video, unit_text = normalize(video, dim=-1), normalize(text, dim=-1)
    halves = soft_maximum_by_blocks if by_blocks else soft_maximum
    parts = halves(unit_video, unit_text, frame_mask, word_mask)
    return from_parts(parts, video, text, frame_mask, word_mask, length)


def mean_pooled_loss(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    """:func:`released_loss` with means of token products in place of the soft maximum."""
    length = video.shape[1]
    video, text, frame_mask, word_mask = (
        tensor.flatten(0, 1) for tensor in (video, text, frame_mask, word_mask)
    )
    clips = masked_mean(normalize(video, dim=-1), frame_mask)
    captions = masked_mean(normalize(text, dim=-1), word_mask)
    mean = clips @ captions.mT
    return from_parts((mean, mean), video, text, frame_mask, word_mask, length)


def from_parts(
    parts: tuple[Tensor, Tensor],
    video: Tensor,
    text: Tensor,
    frame_mask: Tensor,
    word_mask: Tensor,
    length: int,
) -> Tensor:
    clips, captions = masked_mean(video, frame_mask), masked_mean(text, word_mask)
    cosine = normalize(clips, dim=-1) @ normalize(captions, dim=-1).mT
    tokens = (minmax(parts[0]) + minmax(parts[1])) / 2
    similarity = as_sequences((0.5 * minmax(cosine) + tokens) / 1.5, length)
    return clip_caption(clips @ captions.mT) + 0.1 * video_paragraph(
        transport_scores(similarity), length
    )


def warping_score(costs: np.ndarray) -> float:
    """One pair, cell after cell: costs (n, m)."""
    n, m = costs.shape
    distances = np.empty((n, m))
    for a in range(n):
        for b in range(m):
            if a and b:
                before = min(distances[a - 1, b - 1], distances[a - 1, b], distances[a, b - 1])
            elif a:
                before = distances[a - 1, b]
            else:
                before = distances[a, b - 1] if b else 0.0
            distances[a, b] = costs[a, b] + before
    return -distances[-1, -1] / (n + m)


def ordered_score(costs: np.ndarray) -> float:
    """One pair, both ways, cell after cell: costs (n, m)."""
    return -(_ordered_distance(costs) + _ordered_distance(costs.T)) / sum(costs.shape)


def _ordered_distance(costs: np.ndarray) -> float:
    n, m = costs.shape
    padded = np.pad(costs, ((0, 0), (1, 1)))
    distances = np.zeros((n, m + 2))
    for a in range(n):
        for b in range(1, m + 2):
            if not a:
                before = distances[0, b - 1]
            elif b in (1, m + 1):
                before = min(distances[a - 1, b - 1], distances[a - 1, b], distances[a, b - 1])
            else:
                before = min(distances[a - 1, b - 1], distances[a, b - 1])
            distances[a, b] = padded[a, b] + before
    return distances[-1, -1]


def looped_alignment(
    similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor, score: Callable[..., float]
) -> Tensor:
    """A double loop over cells within one over pairs: what one writes first."""
    costs = 1 - similarity.detach().cpu().numpy()
    clips, captions = clip_mask.sum(-1).tolist(), caption_mask.sum(-1).tolist()
    scores = [
        [score(costs[v, t, :n, :m]) for t, m in enumerate(captions)] for v, n in enumerate(clips)
    ]
    return similarity.new_tensor(scores)


def smallest(candidates: list[Tensor], smoothing: float) -> Tensor:
    if smoothing == 0:
        return torch.stack(candidates).amin(0)
    return -smoothing * torch.logsumexp(-torch.stack(candidates) / smoothing, 0)


def warping_of_all_pairs(
    similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cell after cell, all pairs (Bv, Bt) together, padding computed and not read."""
    *_, n, m = similarity.shape
    cells: dict[tuple[int, int], Tensor] = {}
    for a in range(n):
        for b in range(m):
            before = [cells[c] for c in ((a - 1, b - 1), (a - 1, b), (a, b - 1)) if c in cells]
            cost = 1 - similarity[..., a, b]
            cells[a, b] = cost + smallest(before, smoothing) if before else cost
    clips, captions = clip_mask.sum(-1)[:, None], caption_mask.sum(-1)[None]
    table = torch.stack(list(cells.values()), -1)  # (Bv, Bt, n * m)
    last = ((clips - 1) * m + captions - 1)[..., None]
    return -table.gather(-1, last).squeeze(-1) / (clips + captions)


def ordering_of_all_pairs(
    similarity: Tensor, clip_mask: Tensor, caption_mask: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Both ways, cell after cell, all pairs (Bv, Bt) together."""
    clips, captions = clip_mask.sum(-1)[:, None], caption_mask.sum(-1)[None]
    clips, captions = (count.expand(similarity.shape[:2]) for count in (clips, captions))
    costs = 1 - similarity
    distance = _ordering(costs, clips, captions, smoothing)
    return -(distance + _ordering(costs.mT, captions, clips, smoothing)) / (clips + captions)


def _ordering(costs: Tensor, clips: Tensor, captions: Tensor, smoothing: float) -> Tensor:
    *_, n, m = costs.shape
    free = torch.zeros_like(costs[..., 0, 0])
    cells: dict[tuple[int, int], Tensor] = {(a, 0): free for a in range(n)}
    for a in range(n):
        for b in range(1, m + 1):
            steps = [(a - 1, b - 1), (a, b - 1)] + [(a - 1, b)] * (b == 1)
            before = [cells[c] for c in steps if c in cells]
            cells[a, b] = costs[..., a, b - 1] + smallest(before, smoothing)
    table = torch.stack([cells[a, b] for a in range(n) for b in range(1, m + 1)], -1)
    table = table.unflatten(-1, (n, m))
    index = (captions - 1)[..., None, None].expand(*captions.shape, n, 1)
    last = table.gather(-1, index).squeeze(-1)  # (..., n), the last caption of each pair
    closing = [last[..., 0]]
    for a in range(1, n):
        closing.append(smallest([last[..., a - 1], closing[-1], last[..., a]], smoothing))
    return torch.stack(closing, -1).gather(-1, (clips - 1)[..., None]).squeeze(-1)


def caption_average(similarity: Tensor) -> Tensor:
    return similarity.amax(-2).mean(-1)


def cosines(videos: Tensor, paragraphs: Tensor) -> Tensor:
    """Similarity (Bv, Bt, N, M) of embeddings (Bv, N, D) and (Bt, M, D), all of it at once."""
    return torch.einsum("and,bmd->abnm", normalize(videos, dim=-1), normalize(paragraphs, dim=-1))
