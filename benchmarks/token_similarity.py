"""Soft-maximum similarity of all clips with all captions, Eq. (5): the hot spot of the method.

All forms compute what the released code computes (alpha 1, sums, padded outer tokens counted), from
unit tokens; the whole Module normalises them, and adds the cosine of their means.

The floor is the matrix products alone, of valid tokens alone, on the CPU in the tiles of the
fused form: one product forward; four with the backward pass, which computes the first again. It is
in the inputs' dtype, for those as well whose operands are narrower.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import naive
from benchmarks.harness.work import (
    PASSES,
    Claim,
    Contender,
    Inputs,
    Mode,
    Prepared,
    Size,
    Work,
    compiled,
    function,
    prepared,
)
from benchmarks.inputs import tokens
from norton_losses import Segments, SoftMaximumSimilarity
from norton_losses.kernels import ChunkedSoftMaximum

FRAMES, WORDS = 18, 32
FUSED, KEPT, HALF = "fused", "fused, scores kept", "fused, bfloat16 operands"
MODULE, DEFINITION = "SoftMaximumSimilarity", 'implementation="reference"'
NAIVE, COMPILED = "naive", "torch.compile of naive"
ONE, FOUR = "1 matrix product", "4 matrix products"
TILE = 1024  # tokens on each side of a tile
CUDA_TILE = 16384  # enough to fill a GPU, whose kernel has tiles of its own
LARGEST = 1024  # clips in a batch of the paper

HEAVIEST: tuple[Mode, ...] = ("forward+backward",)


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [work(6, 16, frames=3, words=5, ragged=ragged) for ragged in (False, True)]
    if size == "quick":
        main = [work(128, 256), work(128, 256, ragged=True)]
        by_clips = [sweep("K", clips, 256) for clips in (32, 64, 128, 256)]
        by_width = [sweep("D", 64, width) for width in (64, 256, 1024)]
        return main + by_clips + by_width
    main = [work(256, 768), work(256, 768, ragged=True)]
    largest = [largest_work(ragged=ragged) for ragged in (False, True)]
    by_clips = [sweep("K", clips, 256) for clips in (128, 256, 512, 1024, 2048, 4096)]
    by_width = [sweep("D", 128, width) for width in (64, 256, 512, 1024)]
    return main + largest + by_clips + by_width


def largest_work(*, ragged: bool) -> Work:
    """A batch of the paper, and what was set out to be reached on it."""
    claims = [
        Claim(FUSED, FOUR, "times the floor", at_most=1.35 if ragged else 1.2),
        Claim(FUSED, NAIVE, "faster", at_least=3.8 if ragged else 1.5),
        Claim(FUSED, None, "peak memory", at_most=300e6),
    ]
    if ragged:
        claims += [
            Claim(MODULE, None, "peak memory", at_most=600e6),
            Claim(HALF, FUSED, "faster", at_least=1.8),
        ]
    return work(LARGEST, 768, ragged=ragged, modes=HEAVIEST, claims=claims)


def sweep(parameter: str, clips: int, width: int) -> Work:
    """Ragged lengths, as a batch has them."""
    return work(clips, width, ragged=True, sweep=parameter, modes=HEAVIEST)


def work(
    clips: int,
    width: int,
    *,
    frames: int = FRAMES,
    words: int = WORDS,
    ragged: bool = False,
    sweep: str | None = None,
    modes: tuple[Mode, ...] = PASSES,
    claims: list[Claim] | None = None,
) -> Work:
    def inputs() -> Inputs:
        return tokens(clips, frames, words, width, ragged=ragged)

    of_products = 4.0 * clips * frames * clips * words  # bytes of the token tensor
    contenders = [
        function(FUSED, "ours", fused(save_scores=False)),
        function(NAIVE, "naive", unfused, bytes_needed=3 * of_products),
        Contender(ONE, "floor", one_product, modes=("forward", "no-grad")),
        Contender(FOUR, "floor", four_products, modes=HEAVIEST),
    ]
    if sweep is None:
        # Operands and products are rounded to 8 bits, where float32 has 24.
        contenders += [function(HALF, "ours", fused(operand_dtype=torch.bfloat16), slack=3000.0)]
    if sweep is None and ragged:
        exact = prepared_by(whole_by_blocks)
        contenders += [function(MODULE, "ours", whole, reference=exact)]
    if sweep is None and clips < LARGEST:
        kept = fused(save_scores=True)
        contenders += [
            function(KEPT, "ours", kept, modes=HEAVIEST, bytes_needed=of_products),
            function(DEFINITION, "ours", definition, bytes_needed=5 * of_products),
            compiled(COMPILED, unfused, bytes_needed=3 * of_products),
        ]
    kind = "ragged" if ragged else "full"
    name = f"{clips} clips, D {width}, {kind} lengths"
    return Work(
        f"{name}, against {sweep}" if sweep else name,
        {"K": clips, "F": frames, "W": words, "D": width, "lengths": kind},
        inputs,
        contenders,
        prepared_by(by_blocks),
        modes=modes,
        sweep=sweep,
        value_tolerance=5e-6,
        gradient_tolerance=5e-5,
        claims=claims or [],
    )


def prepared_by(definition: Callable[..., Tensor]) -> Callable[[Inputs], Prepared]:
    return lambda made: prepared(definition, made)


def fused(**options: object) -> Callable[..., Tensor]:
    """Both directions, from tokens that have unit norm already."""
    similarity = module(implementation=ChunkedSoftMaximum(**options))  # pyright: ignore

    def compute(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
        by_frame, by_word = similarity.directions(*sides(video, text, frame_mask, word_mask))
        return (by_frame[0, 0] + by_word[0, 0]) / 2

    return compute


def whole(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    return module()(*sides(video, text, frame_mask, word_mask))[0, 0]


def definition(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    both = module(implementation="reference").directions(*sides(video, text, frame_mask, word_mask))
    return (both[0][0, 0] + both[1][0, 0]) / 2


def sides(
    video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor
) -> tuple[Segments, Segments]:
    """All clips as those of one video."""
    return Segments(video[None], frame_mask[None]), Segments(text[None], word_mask[None])


def module(**options: object) -> SoftMaximumSimilarity:
    return SoftMaximumSimilarity(1.0, exponential="sum", count_padding=True, **options)  # pyright: ignore


def unfused(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    by_frame, by_word = naive.soft_maximum(video, text, frame_mask, word_mask)
    return (by_frame + by_word) / 2


def by_blocks(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    by_frame, by_word = naive.soft_maximum_by_blocks(video, text, frame_mask, word_mask)
    return (by_frame + by_word) / 2


def whole_by_blocks(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    clips, captions = naive.masked_mean(video, frame_mask), naive.masked_mean(text, word_mask)
    cosine = normalize(clips, dim=-1) @ normalize(captions, dim=-1).mT
    units = normalize(video, dim=-1), normalize(text, dim=-1)
    return (0.5 * cosine + by_blocks(*units, frame_mask, word_mask)) / 1.5


def one_product(made: Inputs) -> Prepared:
    tiles = _tiles(made)

    def forward() -> None:
        for rows, columns, product in tiles:
            torch.mm(rows, columns.T, out=product)

    return Prepared(forward)


def four_products(made: Inputs) -> Prepared:
    tiles = _tiles(made)
    gradients = {t.data_ptr(): torch.zeros_like(t) for pair in tiles for t in pair[:2]}

    def forward_and_backward() -> None:
        for rows, columns, product in tiles:
            torch.mm(rows, columns.T, out=product)
        for rows, columns, product in tiles:
            torch.mm(rows, columns.T, out=product)
            gradients[rows.data_ptr()].addmm_(product, columns)
            gradients[columns.data_ptr()].addmm_(product.T, rows)

    return Prepared(forward_and_backward)


def _tiles(made: Inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Valid frames and valid words, tile by tile, and the one buffer for their products."""
    video = made["video"].detach()[made["frame_mask"]]
    text = made["text"].detach()[made["word_mask"]]
    side = CUDA_TILE if text.is_cuda else TILE
    buffer = text.new_empty(side * side)
    return [
        (rows, columns, buffer[: len(rows) * len(columns)].view(len(rows), len(columns)))
        for columns in text.split(side)
        for rows in video.split(side)
    ]
