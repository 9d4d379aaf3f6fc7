"""One modality of a batch: the clips of videos, or the captions of paragraphs.

A video is a sequence of clips, and a clip holds frames; a paragraph is a sequence of captions, and
a caption holds words. To the code both are sequences of segments of tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # no public module has it

from norton_losses._checks import check_device, check_floating, check_mask, check_shape
from norton_losses._numerics import masked_mean, up_cast, working_dtype
from norton_losses.flat_segments import Array, FlatSegments, flatten_list, mask_of_counts, pad_rows


@final
class Segments:
    """Tokens of N segments in each of B sequences: what a loss takes, one for each modality.

    What is masked has no effect, whatever it holds. ``len(segments)`` is B, ``segments[index]``
    takes some of the sequences, and ``to`` and ``pin_memory`` are those of a tensor, so that data
    loaders and trainers move it as they move tensors.

    Args:
        tokens: (B, N, T, D), floating, any norm; or (B, N, D), one token a segment.
        token_mask: (B, N, T), bool, True where valid; None means all. Not with 3-d tokens.
        mask: (B, N), bool, True where valid; None means all. A segment without a valid token is
            absent all the same.
        embeddings: (B, N, D'), floating, one vector a segment; None means the mean of its valid
            tokens.

    Attributes:
        tokens: (B, N, T, D), with T = 1 where the tokens given were 3-d.
        token_mask: (B, N, T), bool, False in absent segments.
        mask: (B, N), bool, the segments that take part.
        embeddings: (B, N, D').

    Raises:
        ValueError: shapes or devices that do not fit each other; the text names the remedy.
        TypeError: tokens that are not floating, masks that are not bool.

    Example:
        >>> import torch
        >>> from norton_losses import Segments
        >>> frame_mask = torch.ones(2, 8, 4, dtype=torch.bool)
        >>> frame_mask[1, 5:] = False                       # the second video has five clips
        >>> Segments(torch.randn(2, 8, 4, 16), frame_mask).mask.sum(-1)
        tensor([8, 5])
    """

    tokens: Tensor
    token_mask: Tensor
    mask: Tensor
    _embeddings: Tensor | None
    _single: bool  # the tokens given were 3-d

    def __init__(
        self,
        tokens: Tensor,
        token_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> None:
        _check_tokens("tokens", tokens)
        if tokens.dim() == 3 and token_mask is not None:
            raise ValueError(
                "token_mask describes tokens (B, N, T, D), got tokens of shape "
                f"{tuple(tokens.shape)}, one for each segment; pass mask instead or, if these are "
                "flat segments (K, T, D), Segments.from_flat(tokens, counts, token_mask)"
            )
        _check_beside(tokens, 2, token_mask, embeddings)
        if mask is not None:
            check_mask("mask", mask, tokens.shape[:2], tokens)
        self.tokens, self._embeddings = tokens, embeddings
        self._complete(token_mask, mask)

    @classmethod
    def from_flat(
        cls,
        tokens: Tensor,
        counts: int | Tensor | Sequence[int],
        token_mask: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
    ) -> Segments:
        """Group flat segments, as datasets and encoders give them, into sequences.

        Args:
            tokens: (K, T, D), floating, the segments of the first sequence, then those of the
                second, and so on; or (K, D), one token a segment. Gradients flow.
            counts: (B,), integer, how many segments belong to each sequence, K in all; or one
                number, the same for all.
            token_mask: (K, T), bool, True where valid; None means all. Not with (K, D).
            embeddings: (K, D'), floating; None means the mean of the valid tokens.

        Raises:
            ValueError: counts of another sum than K, shapes that do not fit.
            TypeError: tokens that are not floating, counts that are not whole numbers.

        Example:
            >>> import torch
            >>> from norton_losses import Segments
            >>> Segments.from_flat(torch.randn(7, 4, 16), counts=[5, 2]).mask.sum(-1)
            tensor([5, 2])
        """
        single = isinstance(tokens, Tensor) and tokens.dim() == 2  # pyright: ignore[reportUnnecessaryIsInstance]
        _check_embedded("tokens", tokens)
        check_floating("tokens", tokens, "(K, D)" if single else "(K, T, D)")
        if single and token_mask is not None:
            raise ValueError(
                f"token_mask describes tokens (K, T, D), got tokens of shape {tuple(tokens.shape)},"
                " one for each segment; leave it out"
            )
        _check_beside(tokens, 1, token_mask, embeddings)
        mask = mask_of_counts(counts, tokens.shape[0])
        mask = None if mask is None else mask.to(tokens.device)

        def grouped(rows: Tensor | None) -> Any:
            if rows is None:
                return None
            if mask is None:
                return rows.view(-1, counts, *rows.shape[1:])  # pyright: ignore
            return pad_rows(rows, mask)

        made = cls.__new__(cls)
        made.tokens, made._embeddings = grouped(tokens), grouped(embeddings)
        made._complete(grouped(token_mask), mask)
        return made

    @classmethod
    def from_list(
        cls,
        sequences: Sequence[Array | Sequence[Array]],
        *,
        embeddings: Sequence[Array] | None = None,
    ) -> Segments:
        """Pad sequences of different lengths, as a collate function does.

        Args:
            sequences: for each sequence an array of torch or numpy, (n, T, D), or (n, D) with one
                token a segment; or a list of n arrays (T, D), each with a T of its own.
            embeddings: for each sequence an array (n, D'); None means the mean of the tokens.

        Raises:
            ValueError: no sequence, or shapes that do not fit each other; the text says which.
            TypeError: what is neither array nor list, arrays that are not floating.

        Example:
            >>> import torch
            >>> from norton_losses import Segments
            >>> videos = [torch.randn(3, 4, 16), [torch.randn(frames, 16) for frames in (2, 6)]]
            >>> Segments.from_list(videos).token_mask.sum(-1)
            tensor([[4, 4, 4],
                    [2, 6, 0]])
        """
        flat = flatten_list("sequences", sequences)
        if embeddings is None:
            return cls.from_flat(*flat)
        vectors = flatten_list("embeddings", embeddings)
        if not torch.equal(vectors.counts, flat.counts):
            wanted, got = ([int(n) for n in side.counts] for side in (flat, vectors))
            raise ValueError(f"embeddings must have a row for each segment, {wanted}, got {got}")
        return cls.from_flat(*flat, embeddings=vectors.tokens)

    def flat(self) -> FlatSegments:
        """The segments one after another, without padding: the inverse of :meth:`from_flat`.

        A segment that is absent but stands before a valid one keeps its place, with a token mask of
        False, so that clips and captions that were paired stay so. Embeddings are left out. The
        host waits for the GPU.

        Example:
            >>> import torch
            >>> from norton_losses import Segments
            >>> segments = Segments.from_flat(torch.randn(7, 4, 16), [5, 2])
            >>> tokens, counts, token_mask = segments.flat()
            >>> tokens.shape, counts
            (torch.Size([7, 4, 16]), tensor([5, 2]))
        """
        kept = self.mask.flip(-1).cumsum(-1).flip(-1) > 0  # up to the last valid segment
        tokens, counts, token_mask = self.tokens[kept], kept.sum(-1), self.token_mask[kept]
        if self._single and token_mask.all():
            return FlatSegments(tokens[:, 0], counts, None)
        return FlatSegments(tokens, counts, token_mask)

    @property
    def embeddings(self) -> Tensor:
        if self._embeddings is not None:
            return self._embeddings
        tokens = up_cast(self.tokens, working_dtype(self.tokens))
        if tokens.shape[2] == 1:
            return tokens[:, :, 0].masked_fill(~self.mask[..., None], 0)
        return masked_mean(tokens, self.token_mask[..., None], dim=2)

    @property
    def has_embeddings(self) -> bool:
        """Whether the embeddings were given, rather than computed from the tokens."""
        return self._embeddings is not None

    @property
    def working_dtype(self) -> torch.dtype:
        """Of tokens and embeddings together, float32 at least."""
        return working_dtype(self.tokens, self._embeddings)

    def working(self, dtype: torch.dtype) -> Segments:
        """The same in the working precision, with embeddings: the form that the stages take."""
        given = None if self._embeddings is None else up_cast(self._embeddings, dtype)
        # Their mean is that of the cast tokens: two casts would give two gradients, whose sum could
        # overflow, while that of one saturates.
        wide = self.with_tokens(up_cast(self.tokens, dtype), given)
        return wide.with_tokens(wide.tokens, wide.embeddings)

    def with_tokens(self, tokens: Tensor, embeddings: Tensor | None = None) -> Segments:
        """The same segments with other tokens, unchecked, and other embeddings or their mean."""
        return _unflatten((tokens, self.token_mask, self.mask, embeddings), self._single)

    def zeroed(self) -> Segments:
        """The same with zeros where masked, and with embeddings."""
        tokens = self.tokens.masked_fill(~self.token_mask[..., None], 0)
        return self.with_tokens(tokens, self.embeddings.masked_fill(~self.mask[..., None], 0))

    def to(self, *args: Any, **kwargs: Any) -> Segments:
        """Moved as :meth:`torch.Tensor.to` does; a dtype is that of tokens and embeddings."""
        target = self.tokens.new_empty(0).to(*args, **kwargs)
        if not target.is_floating_point():
            raise TypeError(f"tokens must stay floating, got {target.dtype}; pass a float dtype")
        device = target.device
        non_blocking, copy = (kwargs.get(name, False) for name in ("non_blocking", "copy"))

        def moved(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return tensor.to(*args, **kwargs)
            return tensor.to(device, non_blocking=non_blocking, copy=copy)

        return self._map(moved)

    def pin_memory(self, *args: Any) -> Segments:
        """In page-locked memory, as :meth:`torch.Tensor.pin_memory` does."""
        return self._map(lambda tensor: tensor.pin_memory(*args))

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: Any) -> Segments:
        """Some of the sequences, by any index of one dimension; a number gives a batch of one."""
        if isinstance(index, (tuple, str, bool)) or index is None:
            raise TypeError(
                "sequences are taken by one number, slice, list or tensor, got "
                f"{index!r}; index .tokens for clips and frames"
            )
        if isinstance(index, list):
            index = torch.as_tensor(index) if index else slice(0)
        if getattr(index, "ndim", None) == 0 or isinstance(index, int):
            number = operator.index(index)
            if not -len(self) <= number < len(self):
                raise IndexError(f"there are {len(self)} sequences, got index {number}")
            index = slice(number, number + 1 or None)
        elif getattr(index, "ndim", 1) != 1:
            raise TypeError(f"an index of sequences must have one dimension, got {index.ndim}")
        return self._map(lambda tensor: tensor[index])

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Tensor, name):
            raise AttributeError(
                f"Segments has no {name}, which is of tensors; read .tokens.{name}, or move and "
                "cast all of it by .to(...)"
            )
        raise AttributeError(f"Segments has no {name}")

    def __repr__(self) -> str:
        b, n, t, d = self.tokens.shape
        dtype, device = self.tokens.dtype, self.tokens.device
        return f"Segments(B={b}, N={n}, T={t}, D={d}, dtype={dtype}, device={str(device)!r})"

    def _complete(self, token_mask: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Make the masks, and give 3-d tokens their fourth dimension."""
        self._single = self.tokens.dim() == 3
        if self._single:
            self.tokens = self.tokens[:, :, None]
        if token_mask is None:
            token_mask = self.tokens.new_ones(self.tokens.shape[:3], dtype=torch.bool)
        self.token_mask = token_mask if mask is None else token_mask & mask[..., None]
        self.mask = self.token_mask.any(-1)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Segments:
        tensors, single = _flatten(self)
        return _unflatten([None if t is None else function(t) for t in tensors], single)


# pyright: reportPrivateUsage=false
def read_pair(
    video: Segments | Tensor, text: Segments | Tensor, *, by_embeddings: bool = False
) -> tuple[Segments, Segments]:
    """Both sides of a loss, checked against each other, in one working precision.

    ``by_embeddings`` means that tokens are not compared: they may differ in width.
    """
    video, text = as_segments("video", video), as_segments("text", text)
    check_device("text", text.tokens, video.tokens)
    if not by_embeddings:
        _check_widths("width D", video.tokens, text.tokens)
    dtype = torch.promote_types(video.working_dtype, text.working_dtype)
    video, text = video.working(dtype), text.working(dtype)
    _check_widths("width of embeddings", video.embeddings, text.embeddings)
    return video, text


def or_absent(side: Any) -> Any:
    """A side of a batch as it is; where it has no segment at all, one that is absent.

    That has the effect of none, and leaves what it was made from in the graph.
    """
    tokens, embeddings = side, None
    if isinstance(side, Segments):
        tokens, embeddings = side.tokens, side._embeddings
    known = isinstance(tokens, Tensor) and tokens.dim() in (3, 4) and tokens.is_floating_point()
    if not known or tokens.shape[:2].numel():
        return side

    sequences = max(len(tokens), 1)

    def absent(empty: Tensor) -> Tensor:
        return empty.new_zeros(sequences, 1, empty.shape[-1]) + empty.sum()

    made = absent(tokens)
    mask = torch.zeros(sequences, 1, dtype=torch.bool, device=made.device)
    embeddings = None if embeddings is None else absent(embeddings)
    return Segments(made, mask=mask, embeddings=embeddings)


def as_segments(name: str, given: Segments | Tensor) -> Segments:
    """A side of a batch, of which a tensor is valid throughout."""
    if isinstance(given, Segments):
        made = given
    else:
        _check_tokens(name, given)
        made = Segments.__new__(Segments)
        made.tokens, made._embeddings = given, None
        made._complete()
    if made.tokens.shape[0] == 0:  # not by len(), which fixes the size for torch.export
        raise ValueError(f"{name} must hold one sequence at least, got none; skip empty batches")
    return made


def _check_tokens(name: str, tokens: object) -> None:
    """Raise unless tokens are floating (B, N, T, D) or (B, N, D); errors name common mistakes."""
    if not isinstance(tokens, Tensor):
        remedy = "convert it by torch.as_tensor"
        if isinstance(tokens, FlatSegments):
            remedy = "group it by Segments.from_flat(*flat)"
        elif isinstance(tokens, (list, tuple)):
            remedy = "pad sequences by Segments.from_list"
        raise TypeError(
            f"{name} must be a torch.Tensor (B, N, T, D) or (B, N, D), or a Segments, got "
            f"{type(tokens).__name__}; {remedy}"  # pyright: ignore
        )
    if tokens.dim() == 2:
        raise ValueError(
            f"{name} must have shape (B, N, T, D) or (B, N, D), got {tuple(tokens.shape)}; group "
            "flat segments (K, D) into sequences by Segments.from_flat(tokens, counts)"
        )
    _check_embedded(name, tokens)
    if tokens.dim() > 4:
        raise ValueError(
            f"{name} must have 4 dimensions (B, N, T, D), got {tuple(tokens.shape)}; pixels go "
            "through an encoder first, and patches are merged with frames by .flatten(2, -2)"
        )
    _check_sequences(name, tokens, "(B, N, D)" if tokens.dim() == 3 else "(B, N, T, D)")


def _check_sequences(name: str, tensor: Tensor, layout: str) -> None:
    """As :func:`check_floating`, of sequences of which there may be none: see :func:`or_absent`."""
    if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[0] == 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        tensor = tensor.new_empty(1, *tensor.shape[1:])
    check_floating(name, tensor, layout)


def _check_embedded(name: str, tokens: object) -> None:
    if isinstance(tokens, Tensor) and not tokens.is_floating_point():
        raise TypeError(
            f"{name} must be a floating tensor, got {tokens.dtype}; if these are token ids, embed "
            "them first, if pixels, encode them, else call .float()"
        )


def _check_beside(
    tokens: Tensor, leading: int, token_mask: Tensor | None, embeddings: Tensor | None
) -> None:
    """Check mask and embeddings against tokens with 2 leading dimensions (B, N), or 1, (K,)."""
    if token_mask is not None:
        if isinstance(token_mask, Tensor) and token_mask.dim() == leading:  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "a mask of whole segments (B, N) is mask=..."
            if leading == 1:
                remedy = "leave absent segments out of tokens and counts"
            raise ValueError(
                f"token_mask must have an entry for each token, {tuple(tokens.shape[:-1])}, got "
                f"shape {tuple(token_mask.shape)}; {remedy}"
            )
        check_mask("token_mask", token_mask, tokens.shape[: leading + 1], tokens)
    if embeddings is not None:
        _check_sequences("embeddings", embeddings, "(B, N, D)" if leading == 2 else "(K, D)")
        check_shape("embeddings", embeddings, (*tokens.shape[:leading], embeddings.shape[-1]))
        check_device("embeddings", embeddings, tokens)


def _check_widths(what: str, video: Tensor, text: Tensor) -> None:
    if video.shape[-1] != text.shape[-1]:
        raise ValueError(
            f"video and text must share their {what}, got {video.shape[-1]} and {text.shape[-1]}; "
            "project one of them first (ready similarities (B, B, N, M) go to "
            "norton_losses.functional.video_paragraph_loss)"
        )


def _flatten(segments: Segments) -> tuple[list[Any], bool]:
    tensors = [segments.tokens, segments.token_mask, segments.mask, segments._embeddings]
    return tensors, segments._single


def _unflatten(tensors: Iterable[Any], single: bool) -> Segments:
    made = Segments.__new__(Segments)
    made.tokens, made.token_mask, made.mask, made._embeddings = tensors
    made._single = single
    return made


def _flatten_with_names(segments: Segments) -> tuple[list[Any], bool]:
    tensors, single = _flatten(segments)
    names = (pytree.GetAttrKey(n) for n in ("tokens", "token_mask", "mask", "embeddings"))
    return [*zip(names, tensors, strict=True)], single


pytree.register_pytree_node(
    Segments,
    _flatten,
    _unflatten,
    serialized_type_name="norton_losses.Segments",
    flatten_with_keys_fn=_flatten_with_names,
)
