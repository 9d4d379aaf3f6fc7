"""One modality of a batch: made of flat, ragged or padded tokens, moved, indexed, saved."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from conftest import TORCH
from norton_losses import (
    ClipCaptionOTLoss,
    NortonLoss,
    NortonVideoParagraphLoss,
    Segments,
    SoftMaximumSimilarity,
)

COUNTS = [3, 1, 4]
G = torch.Generator().manual_seed(0)
FLAT = torch.randn(8, 5, 6, generator=G, dtype=torch.float64)
TOKEN_MASK = torch.arange(5) < torch.tensor([5, 2, 1, 3, 4, 5, 1, 2])[:, None]


def parts(segments: Segments) -> list[Tensor]:
    return [segments.tokens, segments.token_mask, segments.mask, segments.embeddings]


def assert_same(ours: Segments, theirs: Segments) -> None:
    for a, b in zip(parts(ours), parts(theirs), strict=True):
        assert torch.equal(a, b)


class TestConstruction:
    def test_what_is_left_out_is_all_valid(self) -> None:
        tokens = torch.randn(2, 3, 4, 6)
        segments = Segments(tokens)
        assert segments.tokens is tokens
        assert segments.token_mask.shape == (2, 3, 4)
        assert segments.token_mask.all()
        assert segments.mask.all()
        torch.testing.assert_close(segments.embeddings, tokens.mean(2))

    def test_one_token_a_segment(self) -> None:
        tokens = torch.randn(2, 3, 6)
        segments = Segments(tokens)
        assert segments.tokens.shape == (2, 3, 1, 6)
        assert torch.equal(segments.embeddings, tokens)
        mask = torch.tensor([[True, True, False], [True, False, True]])
        tokens[~mask] = math.nan
        assert torch.equal(Segments(tokens, mask=mask).embeddings, tokens.nan_to_num(0.0))

    def test_a_segment_needs_a_valid_token_and_its_own_mask(self) -> None:
        token_mask = torch.ones(2, 3, 4, dtype=torch.bool)
        token_mask[0, 1] = False
        mask = torch.tensor([[True, True, True], [True, True, False]])
        segments = Segments(torch.randn(2, 3, 4, 6), token_mask, mask=mask)
        assert segments.mask.tolist() == [[True, False, True], [True, True, False]]
        assert not segments.token_mask[1, 2].any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_embeddings_are_the_mean_of_valid_tokens(self, dtype: torch.dtype) -> None:
        tokens = torch.randn(2, 3, 4, 6, generator=G).to(dtype)
        token_mask = torch.rand(2, 3, 4, generator=G) < 0.6
        token_mask[0, 0], token_mask[1, 0, 0] = False, True
        tokens[~token_mask] = math.nan
        found = Segments(tokens, token_mask).embeddings
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        for b, n in np.ndindex(2, 3):
            valid = tokens[b, n][token_mask[b, n]].to(found.dtype)
            expected = valid.mean(0) if len(valid) else torch.zeros(6, dtype=found.dtype)
            torch.testing.assert_close(found[b, n], expected)

    def test_zeroed_of_whatever_is_masked(self) -> None:
        tokens, embeddings = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6)
        mask = torch.tensor([[True, True, False], [True, False, False]])
        token_mask = (torch.rand(2, 3, 4) < 0.5) & mask[..., None]
        token_mask[..., 0] = mask
        clean = Segments(
            tokens.masked_fill(~token_mask[..., None], math.nan),
            token_mask,
            embeddings=embeddings.masked_fill(~mask[..., None], math.inf),
        ).zeroed()
        assert torch.equal(clean.tokens, tokens.masked_fill(~token_mask[..., None], 0))
        assert torch.equal(clean.embeddings, embeddings.masked_fill(~mask[..., None], 0))
        assert torch.equal(clean.mask, mask)

    def test_all_parts_are_on_one_device(self) -> None:
        tokens = torch.randn(2, 3, 5)
        with pytest.raises(ValueError, match="embeddings must be on cpu"):
            Segments(tokens, embeddings=torch.randn(2, 3, 4, device="meta"))

    def test_it_says_what_it_is(self) -> None:
        assert "B=2, N=3, T=4, D=6" in repr(Segments(torch.randn(2, 3, 4, 6)))


class TestFlat:
    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
    def test_groups_are_in_their_places(self, kind) -> None:
        segments = Segments.from_flat(FLAT, kind(COUNTS), TOKEN_MASK)
        assert segments.tokens.shape == (3, 4, 5, 6)
        start = 0
        for b, count in enumerate(COUNTS):
            assert torch.equal(segments.tokens[b, :count], FLAT[start : start + count])
            assert torch.equal(segments.token_mask[b, :count], TOKEN_MASK[start : start + count])
            assert not segments.mask[b, count:].any()
            assert segments.mask[b, :count].all()
            start += count

    def test_one_count_for_all_copies_nothing(self) -> None:
        segments = Segments.from_flat(FLAT, 4, TOKEN_MASK, embeddings=FLAT[:, 0, :3])
        assert_same(
            segments,
            Segments.from_flat(FLAT, [4, 4], TOKEN_MASK, embeddings=FLAT[:, 0, :3]),
        )
        assert segments.tokens.data_ptr() == FLAT.data_ptr()

    @pytest.mark.parametrize(
        "count", [np.int64(4), torch.tensor(4), np.array([4, 4], np.uint16)], ids=type
    )
    def test_one_count_may_be_of_an_array(self, count) -> None:
        assert_same(Segments.from_flat(FLAT, count), Segments.from_flat(FLAT, 4))

    @pytest.mark.parametrize("single", [False, True])
    @pytest.mark.parametrize("counts", [COUNTS, 2, [8], [0, 8, 0]])
    def test_flat_is_the_inverse(self, single: bool, counts) -> None:
        tokens = FLAT[:, 0] if single else FLAT
        segments = Segments.from_flat(tokens, counts, None if single else TOKEN_MASK)
        flat = segments.flat()
        assert torch.equal(flat.tokens, tokens)
        assert flat.counts.tolist() == ([2] * 4 if counts == 2 else counts)
        assert (flat.token_mask is None) if single else torch.equal(flat.token_mask, TOKEN_MASK)
        assert_same(Segments.from_flat(*flat), segments)

    @pytest.mark.parametrize("single", [False, True])
    def test_flat_keeps_absent_segments_in_their_places(self, single: bool) -> None:
        mask = torch.tensor([[True, False, True, False], [False, False, True, True], [False] * 4])
        tokens = torch.randn(3, 4, 6) if single else torch.randn(3, 4, 5, 6)
        segments = Segments(tokens, mask=mask)
        flat = segments.flat()
        assert flat.counts.tolist() == [3, 4, 0]
        assert torch.equal(Segments.from_flat(*flat).mask, mask)
        again = Segments.from_flat(*flat)
        assert torch.equal(again.tokens[mask], segments.tokens[mask])

    def test_pairs_stay_pairs_when_a_caption_is_empty(self) -> None:
        clips = torch.randn(2, 6, 3, 8)
        captions = [[clip[:2] for clip in video] for video in clips]
        captions[1][1] = captions[1][1][:0]
        video, text = Segments(clips), Segments.from_list(captions)
        loss = ClipCaptionOTLoss(beta=0.0)
        again = (Segments.from_flat(*side.flat()) for side in (video, text))
        torch.testing.assert_close(loss(*again), loss(video, text))

    def test_gradients_flow(self) -> None:
        flat = FLAT.clone().requires_grad_()
        embeddings = FLAT[:, 0].clone().requires_grad_()
        weights = torch.randn(3, 4, 5, 6, generator=G, dtype=torch.float64)
        segments = Segments.from_flat(flat, COUNTS, embeddings=embeddings)
        ((segments.tokens * weights).sum() + segments.embeddings.sum()).backward()
        assert torch.equal(flat.grad, weights[segments.mask])
        assert torch.equal(embeddings.grad, torch.ones_like(embeddings))

    def test_embeddings_follow(self) -> None:
        segments = Segments.from_flat(FLAT, COUNTS, embeddings=FLAT[:, 1])
        assert torch.equal(segments.embeddings[segments.mask], FLAT[:, 1])

    def test_three_lines_lead_from_encoders_to_a_loss(self) -> None:
        frames, words = torch.randn(8, 5, 6, requires_grad=True), torch.randn(8, 7, 6)
        video, text = Segments.from_flat(frames, COUNTS), Segments.from_flat(words, COUNTS)
        NortonLoss()(video, text).backward()
        assert frames.grad is not None
        assert frames.grad.any()

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Segments.from_flat(FLAT, [3, 4]), ValueError, "the sum 8 of .* got .* sum 7"),
            (lambda: Segments.from_flat(FLAT, [9, -1]), ValueError, "0 or above"),
            (lambda: Segments.from_flat(FLAT, [[4, 4]]), ValueError, r"shape \(B,\)"),
            (lambda: Segments.from_flat(FLAT, [4.0, 4.0]), TypeError, "counts must be whole"),
            (lambda: Segments.from_flat(FLAT, True), TypeError, "counts must be whole"),
            (lambda: Segments.from_flat(FLAT, None), TypeError, "counts must be whole"),
            (lambda: Segments.from_flat(FLAT, ["a"]), TypeError, "counts must be whole"),
            (
                lambda: Segments.from_flat(FLAT, [0, 3, 8]),
                ValueError,
                r"of offsets take \.diff\(\)",
            ),
            (lambda: Segments.from_flat(FLAT, 3), ValueError, "must divide the 8 .* got 3; pass"),
            (lambda: Segments.from_flat(FLAT, 0), ValueError, "must divide the 8 .* got 0; pass"),
            (lambda: Segments.from_flat(FLAT[None], 1), ValueError, r"3 dimensions \(K, T, D\)"),
            (lambda: Segments.from_flat(FLAT.long(), 1), TypeError, "token ids, embed them first"),
            (lambda: Segments.from_flat(FLAT[:, 0].long(), 1), TypeError, "embed them first"),
            (
                lambda: Segments.from_flat(FLAT, 1, TOKEN_MASK[:, 0]),
                ValueError,
                r"token_mask must have an entry for each token, \(8, 5\), got shape \(8,\)",
            ),
            (
                lambda: Segments.from_flat(FLAT, 1, TOKEN_MASK[:7]),
                ValueError,
                r"token_mask must have shape \(8, 5\), got \(7, 5\)",
            ),
            (
                lambda: Segments.from_flat(FLAT[:, 0], 1, TOKEN_MASK[:, 0]),
                ValueError,
                r"token_mask describes tokens \(K, T, D\).*leave it out",
            ),
            (
                lambda: Segments.from_flat(FLAT, 1, embeddings=FLAT[:4, 0]),
                ValueError,
                r"embeddings must have shape \(8, 6\), got \(4, 6\)",
            ),
        ],
    )
    def test_mistakes_are_named(self, make, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            make()


class TestList:
    def test_arrays_lists_and_both(self) -> None:
        whole = Segments.from_flat(FLAT, COUNTS, TOKEN_MASK)
        lengths = TOKEN_MASK.sum(-1).tolist()
        ragged = [tokens[:length] for tokens, length in zip(FLAT, lengths, strict=True)]
        lists = [ragged[:3], ragged[3:4], ragged[4:]]
        assert_same(
            Segments.from_list(lists),
            Segments(
                whole.tokens.masked_fill(~whole.token_mask[..., None], 0),
                whole.token_mask,
            ),
        )
        full = [FLAT[:3], FLAT[3:4].numpy(), list(FLAT[4:])]
        assert_same(Segments.from_list(full), Segments.from_flat(FLAT, COUNTS))
        single = [array[:, 0] for array in (FLAT[:3], FLAT[3:4].numpy(), FLAT[4:])]
        assert_same(Segments.from_list(single), Segments.from_flat(FLAT[:, 0], COUNTS))

    def test_embeddings(self) -> None:
        videos, vectors = [FLAT[:3], FLAT[3:]], [FLAT[:3, 0], FLAT[3:, 0].numpy()]
        segments = Segments.from_list(videos, embeddings=vectors)
        assert_same(segments, Segments.from_flat(FLAT, [3, 5], embeddings=FLAT[:, 0]))
        with pytest.raises(ValueError, match="embeddings must have a row for each segment"):
            Segments.from_list(videos, embeddings=vectors[::-1])

    def test_gradients_flow_and_dtypes_promote(self) -> None:
        first, second = (torch.randn(n, 6, requires_grad=True) for n in (2, 3))
        segments = Segments.from_list([first, second.double()])
        assert segments.tokens.dtype == torch.float64
        segments.tokens.sum().backward()
        assert torch.equal(first.grad, torch.ones(2, 6))

    def test_a_sequence_without_segments_is_absent(self) -> None:
        segments = Segments.from_list([FLAT[:2], FLAT[:0], []])
        assert segments.mask.sum(-1).tolist() == [2, 0, 0]
        single = Segments.from_list([[], FLAT[:2, 0]])
        assert_same(single, Segments.from_flat(FLAT[:2, 0], [0, 2]))

    @pytest.mark.parametrize(
        ("sequences", "error", "message"),
        [
            ([], ValueError, "sequences must hold one sequence at least, got none"),
            ([[], []], ValueError, "sequences must hold one segment at least, got none"),
            ("videos.npz", TypeError, "sequences must be a list with one array"),
            (FLAT, TypeError, "sequences must be a list .*got Tensor"),
            ([FLAT[0, 0]], ValueError, r"sequences\[0\] must have shape \(n, D\)"),
            ([FLAT[0], FLAT], ValueError, r"sequences\[1\] must have shape .* got \(8, 5, 6\)"),
            ([FLAT[0], list(FLAT)], ValueError, r"sequences\[1\] must be a list of arrays"),
            ([FLAT, FLAT[..., :3]], ValueError, r"got 6 in sequences\[0\] and 3 in sequences\[1\]"),
            ([FLAT.long()], TypeError, r"sequences\[0\] must be a floating .*embed token ids"),
            ([np.arange(6).reshape(2, 3)], TypeError, r"must be a floating array, got int64"),
            ([[FLAT[0], "b"]], TypeError, r"sequences\[0\] must be an array .*got str"),
            ([FLAT[:, 0], list(FLAT)], ValueError, r"sequences\[1\] must be a list of arrays"),
            ([None], TypeError, r"sequences\[0\] must be an array .*got NoneType"),
            ([list(FLAT[0])], ValueError, r"stack embeddings \(D,\) to \(n, D\)"),
        ],
    )
    def test_mistakes_are_named(self, sequences, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            Segments.from_list(sequences)


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Segments, Segments]:
    return tuple(Segments.from_list(list(side)) for side in zip(*items, strict=True))  # type: ignore[return-value]


class TestTravel:
    made = Segments.from_flat(FLAT, COUNTS, TOKEN_MASK, embeddings=FLAT[:, 0])
    bare = Segments(torch.randn(4, 3, 6))

    @pytest.mark.parametrize(
        "index",
        [
            slice(1, 3),
            [2, 0],
            torch.tensor([1, 1]),
            torch.tensor([True, False, True]),
            np.arange(2),
        ],
        ids=repr,
    )
    def test_some_of_the_sequences(self, index) -> None:
        some = self.made[index]
        for part, whole in zip(parts(some), parts(self.made), strict=True):
            assert torch.equal(part, whole[index])
        assert len(some) == 2

    def test_a_number_keeps_the_batch(self) -> None:
        for number in (0, 2, -1, -3):
            assert_same(self.made[number], self.made[[number]])
        assert [len(one) for one in self.made] == [1, 1, 1]
        for number in (np.int64(2), np.array(2), torch.tensor(2)):
            assert_same(self.made[number], self.made[2])
        assert len(self.made[[]]) == 0
        for number in (3, -4):
            with pytest.raises(IndexError, match=f"there are 3 sequences, got index {number}"):
                self.made[number]

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ((0, 1), r"got \(0, 1\); index .tokens for clips"),
            (None, "got None"),
            ("video", "got 'video'"),
            (torch.ones(3, 4, dtype=torch.bool), "must have one dimension, got 2"),
            ([[0], [1]], "must have one dimension, got 2"),
            (True, "got True"),
        ],
        ids=repr,
    )
    def test_clips_are_not_taken_by_an_index(self, index, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            self.made[index]

    @pytest.mark.parametrize("make", [NortonLoss, NortonVideoParagraphLoss, ClipCaptionOTLoss])
    def test_none_of_the_sequences_is_no_batch(self, make) -> None:
        with pytest.raises(ValueError, match="text must hold one sequence at least.*skip empty"):
            make()(self.bare, self.bare[:0])

    def test_to_a_device_and_a_dtype(self) -> None:
        for segments in (self.made, self.bare):
            moved = segments.to("meta", non_blocking=True)
            assert {part.device.type for part in parts(moved)} == {"meta"}
            half = segments.to(torch.float16)
            assert half.tokens.dtype == torch.float16
            assert half.mask.dtype == torch.bool
            assert torch.equal(half.mask, segments.mask)

    def test_tokens_stay_floating(self) -> None:
        with pytest.raises(TypeError, match="tokens must stay floating, got torch.int64"):
            self.made.to(torch.long)

    def test_to_copies_where_asked(self) -> None:
        same, copied = self.made.to("cpu"), self.made.to("cpu", copy=True)
        for ours, kept, new in zip(parts(self.made), parts(same), parts(copied), strict=True):
            assert kept is ours
            assert new.data_ptr() != ours.data_ptr()
            assert torch.equal(new, ours)

    def test_pickle_and_copies(self) -> None:
        for segments in (self.made, self.bare):
            for twin in (pickle.loads(pickle.dumps(segments)), copy.deepcopy(segments)):
                assert_same(twin, segments)
                assert torch.equal(twin.flat().tokens, segments.flat().tokens)

    def test_is_a_tree_of_tensors(self) -> None:
        leaves, tree = torch.utils._pytree.tree_flatten({"video": self.made})
        assert len(leaves) == 4
        assert_same(torch.utils._pytree.tree_unflatten(leaves, tree)["video"], self.made)

    @pytest.mark.slow
    def test_data_loaders_carry_it(self) -> None:
        data = [(torch.randn(n, 3, 6), torch.randn(n, 4, 6)) for n in (1, 2, 3, 4)]
        options = {"num_workers": 1, "multiprocessing_context": "spawn"}
        batches = list(DataLoader(data, 2, collate_fn=collate, **options))  # type: ignore[arg-type]
        assert [video.mask.sum(-1).tolist() for video, _ in batches] == [[1, 2], [3, 4]]
        assert torch.equal(batches[0][0].tokens[1], data[1][0])

    @pytest.mark.gpu
    def test_pinned_memory_moves_with_it(self) -> None:
        pinned = self.made.pin_memory()
        assert all(part.is_pinned() for part in parts(pinned))
        assert_same(pinned.to("cuda", non_blocking=True).to("cpu"), self.made)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it exports
    def test_scores_of_other_sizes_export(self) -> None:
        class Score(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.loss = NortonLoss()

            def forward(self, video: Tensor, text: Tensor) -> Tensor:
                return self.loss.score(video, text)

        score = Score()
        sizes = [
            {d: torch.export.Dim(f"{side}{d}", min=2, max=50) for d in range(3)} for side in "vt"
        ]
        given = torch.randn(2, 3, 4, 5), torch.randn(3, 4, 2, 5)
        program = torch.export.export(score, given, dynamic_shapes=tuple(sizes))
        others = torch.randn(4, 6, 3, 5), torch.randn(7, 2, 9, 5)
        torch.testing.assert_close(program.module()(*others), score(*others))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it exports
    @pytest.mark.slow
    @pytest.mark.skipif(TORCH < (2, 5), reason="torch 2.4 cannot export Segments")
    def test_a_loss_of_it_exports(self) -> None:
        loss = NortonVideoParagraphLoss()
        video, text = (Segments(torch.randn(3, 4, 2, 6), torch.rand(3, 4, 2) < 0.8) for _ in "vt")
        program = torch.export.export(loss, (video, text), strict=False)
        torch.testing.assert_close(program.module()(video, text), loss(video, text))


@pytest.mark.parametrize("make", [NortonLoss, NortonVideoParagraphLoss, ClipCaptionOTLoss])
def test_the_losses_are_called_alike(make) -> None:
    tokens = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 7, 6)
    loss = make()
    of_tensors = loss(*tokens)
    assert torch.equal(loss(*map(Segments, tokens)), of_tensors)
    assert torch.equal(loss(Segments(tokens[0]), tokens[1]), of_tensors)
    groups = torch.arange(3)
    torch.testing.assert_close(loss(*tokens, group_ids=groups), of_tensors)
    with pytest.raises(ValueError, match="logit_scale replaces the temperature"):
        loss(*tokens, logit_scale=20.0)


@pytest.mark.parametrize("make", [NortonVideoParagraphLoss, ClipCaptionOTLoss])
def test_a_scale_from_outside_takes_the_place_of_the_temperature(make) -> None:
    tokens = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 7, 6)
    own, free = make(temperature=0.05), make(temperature=None)
    torch.testing.assert_close(free(*tokens, logit_scale=20.0), own(*tokens))
    torch.testing.assert_close(free(*tokens), free(*tokens, logit_scale=1.0))
    assert not list(free.parameters())


def test_one_segments_serves_many_losses() -> None:
    """Nothing of one graph may stay in it."""
    frames = torch.randn(3, 4, 5, 6, requires_grad=True)
    video, text = Segments(frames), Segments(torch.randn(3, 4, 7, 6))
    for _ in range(2):
        NortonLoss()(video, text).backward()


def test_half_gradients_of_tokens_and_their_mean_saturate_together() -> None:
    # Of small tokens at the coldest temperatures both are beyond what float16 holds.
    frames = torch.tensor([[1.5, -0.3], [-2.2, 0.6], [-1.1, -1.4]], dtype=torch.float16)
    words = torch.tensor([[0, 0], [6e-5, 6e-4], [-5e-4, -2e-4]], dtype=torch.float16)
    words.requires_grad_()
    videos = NortonVideoParagraphLoss(SoftMaximumSimilarity(1e-3), temperature=0.01)
    loss = NortonLoss(videos, ClipCaptionOTLoss(temperature=0.01))
    loss(frames.view(3, 1, 1, 2), words.view(3, 1, 1, 2)).backward()
    assert words.grad is not None
    assert words.grad.isfinite().all()
    assert words.grad.abs().max() == torch.finfo(torch.float16).max
