"""Captions with their neighbours: every pair is one of the same image, and ranks, steps and restarts change nothing."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.loading import neighbours
from pipeline.loading.neighbours import Pairs, ordered_neighbours, stream_neighbours
from pipeline.sample import Manifest
from pipeline.text.vocabulary import Vocabulary

GROUPS = [
    (f"image-{n}", tuple(f"picture{n} says{c} " + "so " * (c + n % 3) for c in range(1 + n % 5))) for n in range(40)
]
VOCABULARY = Vocabulary.build(text for _, texts in GROUPS for text in texts)
MANIFEST = Manifest("nowhere", (), 4, 1, "")


@pytest.fixture(autouse=True)
def groups(monkeypatch):
    monkeypatch.setattr(neighbours, "groups_of", lambda manifest, split: iter(GROUPS))


def texts(words: torch.Tensor, keep: torch.Tensor) -> list[str]:
    return [" ".join(VOCABULARY.words[i] for i in row[kept].tolist()) for row, kept in zip(words, keep)]


def batches(count: int, **options):
    made = stream_neighbours(MANIFEST, VOCABULARY, **{"batch": 10, "lanes": 2, "seed": 3, **options})
    return list(islice(made, count))


def test_each_pair_is_a_caption_and_another_one_of_its_image_or_itself_where_it_is_alone():
    own = {key: {text.strip() for text in captions} for key, captions in GROUPS}
    for batch in batches(30):
        assert (
            batch.words.shape == batch.keep.shape and batch.words.shape[:2] == (10, 2) and batch.images.shape == (10, 0)
        )
        assert (batch.words[~batch.keep] == 0).all()
        first, second = texts(batch.words[:, 0], batch.keep[:, 0]), texts(batch.words[:, 1], batch.keep[:, 1])
        for key, caption, neighbour in zip(batch.keys, first, second):
            assert caption in own[key] and neighbour in own[key]
            assert caption != neighbour or len(own[key]) == 1


def test_an_epoch_has_each_caption_once_and_another_epoch_other_neighbours():
    steps = sum(len(captions) for _, captions in GROUPS) // 10
    seen = [{}, {}]
    for epoch, part in enumerate((batches(steps), batches(steps, step=steps))):
        for batch in part:
            pairs = zip(texts(batch.words[:, 0], batch.keep[:, 0]), texts(batch.words[:, 1], batch.keep[:, 1]))
            for caption, neighbour in pairs:
                assert caption not in seen[epoch]
                seen[epoch][caption] = neighbour
    assert all(len(part) == steps * 10 for part in seen)
    both = seen[0].keys() & seen[1].keys()
    assert 10 < sum(seen[0][caption] != seen[1][caption] for caption in both) < len(both)


def test_all_neighbours_are_as_likely():
    pairs = Pairs(GROUPS, VOCABULARY)
    first = int(np.flatnonzero(pairs.size == 5)[0])
    drawn = np.random.default_rng(0).integers(0, 2**63, 4000).astype(np.uint64)
    for caption in range(first, first + 5):
        chosen = pairs.neighbours(np.full(4000, caption), drawn)
        assert set(chosen) == set(range(first, first + 5)) - {caption}
        assert np.unique(chosen, return_counts=True)[1].min() > 900


def test_ranks_share_a_batch_and_a_later_start_goes_on_with_the_same_ones():
    whole = batches(6)
    late = batches(2, step=4)
    for one, other in zip(whole[4:], late):
        assert torch.equal(one.words, other.words) and one.keys == other.keys
    halves = [batches(6, rank=rank, ranks=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves):
        for rank, part in enumerate(parts):
            assert part.keys == batch.keys[rank::2]
            for place in (0, 1):
                assert texts(part.words[:, place], part.keep[:, place]) == texts(
                    batch.words[rank::2, place], batch.keep[rank::2, place]
                )


def test_in_order_each_image_comes_once_with_its_first_two_captions():
    found = list(ordered_neighbours(MANIFEST, VOCABULARY, "val", batch=16))
    assert [len(batch) for batch in found] == [16, 16, 8]
    assert [key for batch in found for key in batch.keys] == [key for key, _ in GROUPS]
    part = list(ordered_neighbours(MANIFEST, VOCABULARY, "val", batch=16, start=7, limit=3))[0]
    assert part.keys == ("image-7", "image-8", "image-9")
    assert texts(part.words[:, 1], part.keep[:, 1]) == [GROUPS[n][1][min(1, n % 5)].strip() for n in (7, 8, 9)]


def test_long_captions_are_cut():
    assert max(batch.words.shape[2] for batch in batches(30, words=3)) == 3
