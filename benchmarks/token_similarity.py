"""Soft-maximum similarity of all clips with all captions, Eq. (5): the hot spot of the method.

All forms compute what the released code computes (alpha 1, sums, padded outer tokens counted), from
unit tokens. The floor is the matrix products alone, of valid tokens alone, tile by tile into one
small buffer: one product forward; four with the backward pass, which recomputes the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness.work import (
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
from norton_losses.functional import soft_maximum

FRAMES, WORDS = 18, 32
OURS, NAIVE, COMPILED = "soft_maximum", "naive", "torch.compile of naive"
TILE_BYTES = 4 << 20


def works(size: Size) -> list[Work]:
    if size == "smoke":
        return [work(6, 16, frames=3, words=5, ragged=ragged) for ragged in (False, True)]
    heaviest: tuple[Mode, ...] = ("forward+backward",)
    if size == "quick":
        main = [work(128, 256), work(128, 256, ragged=True)]
        by_clips = [work(clips, 256, sweep="K", modes=heaviest) for clips in (32, 64, 128, 256)]
        by_width = [work(64, width, sweep="D", modes=heaviest) for width in (64, 256, 1024)]
        return main + by_clips + by_width
    main = [work(256, 768), work(256, 768, ragged=True)]
    largest = [work(1024, 768, ragged=True, modes=heaviest)]
    by_clips = [work(clips, 256, sweep="K", modes=heaviest) for clips in (64, 128, 256, 512)]
    by_width = [work(128, width, sweep="D", modes=heaviest) for width in (64, 256, 512, 1024)]
    return main + largest + by_clips + by_width


def work(
    clips: int,
    width: int,
    *,
    frames: int = FRAMES,
    words: int = WORDS,
    ragged: bool = False,
    sweep: str | None = None,
    modes: tuple[Mode, ...] = ("forward", "forward+backward", "no-grad"),
) -> Work:
    def inputs() -> Inputs:
        return tokens(clips, frames, words, width, ragged=ragged)

    of_products = 4.0 * clips * frames * clips * words  # bytes of the token tensor
    multiplications = 2.0 * valid_products(inputs() if ragged else None, clips, frames, words)
    contenders = [
        function(OURS, "ours", ours, bytes_needed=5 * of_products),
        function(NAIVE, "naive", unfused, bytes_needed=3 * of_products),
    ]
    if sweep is None:
        contenders += [compiled(COMPILED, unfused, bytes_needed=3 * of_products)]
    contenders += [
        Contender("1 matrix product", "floor", one_product, modes=("forward", "no-grad")),
        Contender("4 matrix products", "floor", four_products, modes=("forward+backward",)),
    ]
    kind = "ragged" if ragged else "full"
    name = f"{clips} clips, D {width}, {kind} lengths"
    return Work(
        f"{name}, against {sweep}" if sweep else name,
        {"K": clips, "F": frames, "W": words, "D": width, "lengths": kind},
        inputs,
        contenders,
        lambda made: prepared(by_blocks, made),
        modes=modes,
        sweep=sweep,
        value_tolerance=5e-6,
        gradient_tolerance=5e-5,
        flops=4 * multiplications * width,
        bytes=2 * 4.0 * clips * (frames + words) * width + 8.0 * clips**2,
    )


def ours(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    similarity = soft_maximum(
        video[None],
        text[None],
        frame_mask=frame_mask[None],
        word_mask=word_mask[None],
        alpha=1.0,
        exponential="sum",
        count_padding=True,
    )
    return similarity[0, 0]


def unfused(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    by_frame, by_word = naive.soft_maximum(video, text, frame_mask, word_mask)
    return (by_frame + by_word) / 2


def by_blocks(video: Tensor, text: Tensor, frame_mask: Tensor, word_mask: Tensor) -> Tensor:
    by_frame, by_word = naive.soft_maximum_by_blocks(video, text, frame_mask, word_mask)
    return (by_frame + by_word) / 2


def valid_products(made: Inputs | None, clips: int, frames: int, words: int) -> float:
    if made is None:
        return float(clips * frames * clips * words)
    return float(made["frame_mask"].sum() * made["word_mask"].sum())


def one_product(made: Inputs) -> Prepared:
    video, text, product = _tiled(made)

    def forward() -> None:
        for rows in video:
            torch.mm(rows, text.T, out=product[: len(rows)])

    return Prepared(forward)


def four_products(made: Inputs) -> Prepared:
    video, text, product = _tiled(made)
    by_rows, by_text = torch.empty_like(video[0]), torch.empty_like(text)

    def forward_and_backward() -> None:
        for _pass in range(2):  # the backward pass recomputes the first product
            for rows in video:
                torch.mm(rows, text.T, out=product[: len(rows)])
        for rows in video:
            torch.mm(product[: len(rows)], text, out=by_rows[: len(rows)])
            torch.mm(product[: len(rows)].T, rows, out=by_text)

    return Prepared(forward_and_backward)


def _tiled(made: Inputs) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Valid frames by tiles, valid words, and a buffer for one tile of products."""
    video = made["video"].detach()[made["frame_mask"]]
    text = made["text"].detach()[made["word_mask"]]
    rows = max(TILE_BYTES // (len(text) * text.element_size()), 1)
    return video.split(rows), text, text.new_empty(min(rows, len(video)), len(text))
