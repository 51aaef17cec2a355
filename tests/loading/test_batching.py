"""Pairs of decoded shards become what the models take, as one would write it down pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.loading.batching import Draft, open_shard


@pytest.fixture
def opened(shelf):
    """A set of two colour shards, both opened, and its pairs shard by shard."""
    data = shelf([[1, 3, 2], [2, 1]], size=5, channels=3)
    records = data.manifest.shards
    shards = [open_shard(data.read(record), record, data.vocabulary, texts=True) for record in records]
    pairs = data.pairs()
    return data, shards, [pairs[:6], pairs[6:]]


def test_every_pair_has_its_own_image_key_and_caption(opened) -> None:
    data, shards, pairs = opened
    draft = Draft(9)
    draft.take(np.array([0, 2, 4, 6, 7, 8]), shards[0], np.array([5, 0, 1, 2, 3, 4]))  # rows in any order
    draft.take(np.array([5, 1, 3]), shards[1], np.array([0, 1, 2]))
    batch = draft.batch(sentences=lambda captions: np.array([[len(text)] for text in captions]))
    expected = [pairs[s][p] for s, p in [(0, 5), (1, 1), (0, 0), (1, 2), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4)]]
    assert batch.keys == tuple(key for key, _, _ in expected)
    ids, keep = data.vocabulary.encode([text for _, _, text in expected])
    assert torch.equal(batch.words, ids) and torch.equal(batch.keep, keep)
    assert batch.sentence.tolist() == [[len(text)] for _, _, text in expected]
    for row, (_, image, _) in enumerate(expected):
        for y, x, c in np.ndindex(image.shape):
            assert batch.images[row, c, y, x] == np.float32(image[y, x, c]) / np.float32(255)
    assert batch.images.shape == (9, 3, 5, 5) and batch.images.is_contiguous()
    kinds = [tensor.dtype for tensor in (batch.images, batch.words, batch.keep, batch.sentence)]
    assert kinds == [torch.float32, torch.int64, torch.bool, torch.float32]


def test_black_is_0_and_white_is_1(shelf) -> None:
    data = shelf([[1]])
    decoded = data.read(data.manifest.shards[0])
    decoded.images[0, :, :2], decoded.images[0, :, 2:] = 0, 255
    draft = Draft(1)
    draft.take(np.array([0]), open_shard(decoded, data.manifest.shards[0], data.vocabulary), np.array([0]))
    assert draft.batch().images.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("words", [1, 4, 30])
def test_a_fixed_number_of_words_cuts_and_pads_to_it(opened, words: int) -> None:
    data, _, pairs = opened
    record = data.manifest.shards[0]
    draft = Draft(6)
    draft.take(np.arange(6), open_shard(data.read(record), record, data.vocabulary, words=words), np.arange(6))
    batch = draft.batch(words=words)
    ids, keep = data.vocabulary.encode([text for _, _, text in pairs[0]], words)
    assert batch.words.shape == (6, words)
    assert torch.equal(batch.words, ids) and torch.equal(batch.keep, keep)


def test_the_width_is_that_of_the_longest_caption_in_the_batch_not_in_the_shard(opened) -> None:
    data, shards, pairs = opened
    lengths = [len(text.split()) for _, _, text in pairs[0]]
    shortest = int(np.argmin(lengths))
    assert lengths[shortest] < max(lengths)
    draft = Draft(1)
    draft.take(np.array([0]), shards[0], np.array([shortest]))
    assert draft.batch().words.shape == (1, lengths[shortest])


def test_only_first_captions_make_a_pair_of_every_sample(opened) -> None:
    data, _, pairs = opened
    record = data.manifest.shards[0]
    shard = open_shard(data.read(record), record, data.vocabulary, first=True, texts=True)
    assert shard.sample.tolist() == [0, 1, 2]
    assert shard.captions == (pairs[0][0][2], pairs[0][1][2], pairs[0][4][2])  # the samples have 1, 3 and 2 captions


def test_a_shard_whose_captions_are_not_the_recorded_ones_is_a_broken_promise(shelf) -> None:
    data = shelf([[1, 3], [2, 2]])
    with pytest.raises(AssertionError, match="train-00001.tar"):
        open_shard(data.read(data.manifest.shards[0]), data.manifest.shards[1], data.vocabulary)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_pinned_batches_have_the_same_content(opened) -> None:
    _, shards, _ = opened
    draft = Draft(3)
    draft.take(np.arange(3), shards[0], np.arange(3))
    plain, pinned = draft.batch(), draft.batch(pin=True)
    assert pinned.images.is_pinned() and pinned.words.is_pinned() and not plain.images.is_pinned()
    assert torch.equal(plain.images, pinned.to("cuda").images.cpu())
