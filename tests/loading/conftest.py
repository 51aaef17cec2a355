"""Data sets in memory: what is in a shard is known here, and every shard that is opened is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.sample import Manifest, ShardRecord
from pipeline.shards.members import DecodedShard
from pipeline.text.vocabulary import Vocabulary


class Shelf:
    """A data set whose shards are made when they are read; `opened` has the name of each one that was."""

    def __init__(self, captions: Sequence[Sequence[int]], *, size: int = 4, channels: int = 1, split: str = "train"):
        """captions: for each shard, how many captions each of its samples has."""
        random = np.random.default_rng(0)
        self.opened: list[str] = []
        self.shards: dict[str, DecodedShard] = {}
        records, number = [], 0
        for index, counts in enumerate(captions):
            name = f"{split}-{index:05}.tar"
            numbers = range(number, number + len(counts))
            number += len(counts)
            texts = tuple(
                tuple(f"sample s{n} says {' '.join(['so'] * (c % 3 + n % 2))} c{c}" for c in range(count))
                for n, count in zip(numbers, counts, strict=True)
            )
            images = random.integers(0, 256, (len(counts), size, size, channels), dtype=np.uint8)
            keys, sources = tuple(f"{n:06}" for n in numbers), tuple(f"number {n}" for n in numbers)
            self.shards[name] = DecodedShard(keys, images, texts, sources)
            records.append(ShardRecord(name, split, len(counts), sum(counts), tuple(counts), bytes=0, sha256=""))
        self.manifest = Manifest("nowhere", tuple(records), size, channels, digest="")
        self.vocabulary = Vocabulary.build(text for _, _, text in self.pairs())

    def read(self, record: ShardRecord) -> DecodedShard:
        self.opened.append(record.name)
        shard = self.shards[record.name]
        return dataclasses.replace(shard, images=shard.images.copy())

    def pairs(self) -> list[tuple[str, np.ndarray, str]]:
        """Key, image (H, W, C) and caption of every pair, sample by sample."""
        return [
            (key, image, caption)
            for shard in self.shards.values()
            for key, image, captions in zip(shard.keys, shard.images, shard.captions, strict=True)
            for caption in captions
        ]


@pytest.fixture
def shelf() -> Callable[..., Shelf]:
    return Shelf
