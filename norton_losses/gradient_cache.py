# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""One step over a batch that is too large to encode at once: the gradient cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from norton_losses._numerics import padded_to
from norton_losses._random import RandomState
from norton_losses.distributed import Shard
from norton_losses.segments import Segments, as_segments, or_absent

Sides: TypeAlias = "tuple[Segments | Tensor, Segments | Tensor]"


def cached_step(
    encode: Callable[[Any], Sides],
    loss: Callable[..., Tensor],
    batches: Sequence[Any],
    *,
    module: nn.Module | None = None,
    **options: Any,
) -> Tensor:
    r"""Forward and backward pass of a loss over several batches as if they were one.

    .. math:: \frac{\partial L}{\partial \theta} = \sum_c \frac{\partial z_c}{\partial \theta}
              \frac{\partial L}{\partial z_c}

    Each batch c is encoded to its tokens :math:`z_c` without a graph, the loss is taken of all of
    them together, and each is then encoded once more, with a graph, to which the gradient of its
    tokens is handed. So all batches are negatives of each other, gradients are those of one large
    batch, and the activations of one batch exist at a time; encoding takes one more forward pass.
    Random numbers, as of dropout, are the same in both passes. What a forward pass changes, such
    as the running statistics of a batch norm, is changed twice, and batch statistics are those of
    one batch.

    Args:
        encode: from a batch to video and text, as the loss takes them.
        loss: a loss of this package, with a ``process_group`` or without.
        batches: what ``encode`` is called with, one after another.
        module: the DistributedDataParallel or FSDP2 module that ``encode`` calls, if there is one:
            its gradients are then reduced once, in the end. The loss stays outside of it; with a
            ``process_group``, its temperatures get the same gradient on all processes. FSDP2 sees
            plain tensors alone: let the module return tokens, and make Segments in ``encode``.
            All processes must have as many batches, of which some may be empty; and where a batch
            has no gradient, such as that of a frozen tower, it must have none on all of them.
        **options: other arguments of the loss, such as ``group_ids`` of all sequences.

    Returns:
        The loss (), detached; gradients are added to ``.grad`` as by ``backward``.

    Raises:
        ValueError: no batch, or batches whose tokens differ in width or in having embeddings.
        RuntimeError: another process has failed.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
    2021.

    Example:
        >>> import torch
        >>> from norton_losses import NortonLoss, cached_step
        >>> layer = torch.nn.Linear(16, 8)
        >>> batches = [(torch.randn(2, 4, 3, 16), torch.randn(2, 4, 5, 16)) for _ in range(3)]
        >>> encode = lambda batch: (layer(batch[0]), layer(batch[1]))
        >>> cached_step(encode, NortonLoss(), batches).shape          # of six videos
        torch.Size([])
        >>> layer.weight.grad.shape
        torch.Size([8, 16])
    """
    shard = Shard.of(getattr(loss, "process_group", None))
    with shard.failing_together():
        if not len(batches):
            raise ValueError("batches must hold one batch at least, got none; skip the step")
    states: list[RandomState] = []
    encoded: list[Sides] = []
    with torch.no_grad():
        for batch in batches:
            states.append(RandomState())
            encoded.append(encode(batch))
    # Autocast keeps weights that it has cast, and those cast without a graph would have none.
    torch.clear_autocast_cache()
    after = RandomState()
    with shard.failing_together():
        read = [_sides(sides, loss) for sides in encoded]
        video, text = (_joined([sides[place] for sides in read]) for place in (0, 1))
    del encoded, read
    value = loss(video.segments, text.segments, **options)
    value.backward()

    def again(number: int, *, synced: bool) -> bool:
        """Encode a batch with a graph and go back through it; whether anything had a gradient."""
        with _reducing(module, synced):
            states[number].restore()
            sides = _sides(encode(batches[number]), loss)
            pairs = [
                pair
                for whole, side in zip((video, text), sides, strict=True)
                for pair in whole.parts(number, side)
            ]
            if pairs:
                tensors, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(tensors, gradients)
        return bool(pairs)

    last_with_gradient = None
    for number in range(len(batches)):
        synced = number == len(batches) - 1
        if again(number, synced=synced):
            last_with_gradient = number
        elif synced and last_with_gradient is not None and module is not None:
            # Nothing of the last batch has a gradient, and gradients are still to be reduced.
            for side in (video, text):
                side.forget_gradients()
            again(last_with_gradient, synced=True)
    after.restore()
    return value.detach()


class _Joined:
    """Sides of several batches as one, a leaf of the loss, and the gradients of each part."""

    def __init__(self, tokens: Tensor, segments: Segments, shapes: list[torch.Size]) -> None:
        self.tokens, self.segments, self.shapes = tokens, segments, shapes
        self.embeddings = segments.embeddings if segments.has_embeddings else None

    def forget_gradients(self) -> None:
        for leaf in (self.tokens, self.embeddings):
            if leaf is not None and leaf.grad is not None:
                leaf.grad = torch.zeros_like(leaf)

    def parts(self, number: int, side: Segments) -> list[tuple[Tensor, Tensor]]:
        """Tensors of a batch that was encoded once more, and their gradients."""
        first = sum(shape[0] for shape in self.shapes[:number])
        b, n, t = self.shapes[number]
        found: list[tuple[Tensor, Tensor]] = []
        if self.tokens.grad is not None:
            found.append((side.tokens, self.tokens.grad[first : first + b, :n, :t]))
        if self.embeddings is not None and self.embeddings.grad is not None:
            found.append((side.embeddings, self.embeddings.grad[first : first + b, :n]))
        return [(tensor, gradient) for tensor, gradient in found if tensor.requires_grad]


def _joined(sides: Sequence[Segments]) -> _Joined:
    widths = {(side.tokens.shape[-1], side.has_embeddings) for side in sides}
    if len(widths) > 1:
        raise ValueError(
            "all batches must have tokens of the same width, and embeddings all or none, got "
            f"(width, has embeddings) of {sorted(widths)}"
        )
    shapes = [side.token_mask.shape for side in sides]
    n, t = (max(shape[d] for shape in shapes) for d in (1, 2))

    def together(tensors: list[Tensor], leading: int) -> Tensor:
        parts = [padded_to(x, (len(x), n, t)[:leading]) for x in tensors]
        return torch.cat(parts).detach()  # an encoder may give what it made before

    tokens = together([side.tokens for side in sides], 3).requires_grad_()
    token_mask = together([side.token_mask for side in sides], 3)
    embeddings = None
    if sides[0].has_embeddings:
        embeddings = together([side.embeddings for side in sides], 2).requires_grad_()
    return _Joined(tokens, Segments(tokens, token_mask, embeddings=embeddings), shapes)


def _reducing(module: Any, synced: bool) -> AbstractContextManager[Any]:
    """Whether a module reduces its gradients in this backward pass."""
    if hasattr(module, "set_requires_gradient_sync"):  # of FSDP2
        module.set_requires_gradient_sync(synced)
        return nullcontext()
    if module is None or synced:
        return nullcontext()
    return module.no_sync()


def _sides(given: Sides, loss: Any) -> tuple[Segments, Segments]:
    """Both sides; pairs (K, D) are those of one sequence, for a loss that takes them."""
    pairs = getattr(loss, "by_embeddings", False)

    def read(name: str, side: Segments | Tensor) -> Segments:
        if pairs and isinstance(side, Tensor) and side.dim() == 2:
            side = side[None]
        if isinstance(side, Tensor) and side.dim() > 2 and not len(side):
            return Segments(side)  # a batch without a sequence, which adds none to the others
        return side if isinstance(side, Segments) else as_segments(name, or_absent(side))

    video, text = given
    return read("video", video), read("text", text)
