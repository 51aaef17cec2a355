"""Pairs of decoded shards -> Batch: images to float, captions to padded word ids.

Captions become ids once, when a shard is opened, not each time a pair is drawn; images stay uint8 until they are in a
batch. NumPy does the work, not torch: its operations run in the thread that calls them, while torch's would start a
second pool of threads beside the one that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.sample import Batch, ShardRecord
from pipeline.text.vocabulary import PADDING, Vocabulary

if TYPE_CHECKING:
    from pipeline.shards.members import DecodedShard

Sentences = Callable[[Sequence[str]], np.ndarray]  # captions -> (len, S) float32 sentence vectors


@dataclass(frozen=True)
class OpenShard:
    """One decoded shard of n samples, ready to take pairs from."""

    keys: tuple[str, ...]
    images: np.ndarray  # (n, C, H, W) uint8
    sample: np.ndarray  # (pairs,) which sample a pair belongs to
    ids: np.ndarray  # the word ids of all pairs, one after the other
    ends: np.ndarray  # (pairs + 1,) pair i has ids[ends[i] : ends[i + 1]]
    captions: tuple[str, ...] | None  # of each pair, where sentence vectors are looked up

    @property
    def bytes(self) -> int:
        text = sum(map(len, self.keys)) + sum(map(len, self.captions or ()))
        objects = 60 * (len(self.keys) + len(self.captions or ()))  # what CPython adds to each string, about
        return self.images.nbytes + self.sample.nbytes + self.ids.nbytes + self.ends.nbytes + text + objects


def open_shard(
    decoded: DecodedShard,
    record: ShardRecord,
    vocabulary: Vocabulary,
    *,
    words: int = 0,
    first: bool = False,
    texts: bool = False,
) -> OpenShard:
    """Number the pairs of a shard (sample by sample, captions in their order) and look their words up.

    words: captions are cut to this many, 0: not at all. first: a sample has one pair, its first caption. texts: keep the
    captions as well.
    """
    counts = tuple(map(len, decoded.captions))
    assert counts == tuple(record.captions), (
        f"{record.name}: {counts[:5]}... captions read, {record.captions[:5]}... recorded"
    )
    if first:
        counts = (1,) * len(counts)
    captions = [text for texts, count in zip(decoded.captions, counts, strict=True) for text in texts[:count]]
    numbers = [vocabulary.numbers(caption)[: words or None] for caption in captions]
    return OpenShard(
        keys=tuple(decoded.keys),
        images=np.ascontiguousarray(decoded.images.transpose(0, 3, 1, 2)),
        sample=np.repeat(np.arange(len(counts)), counts),
        ids=np.fromiter(chain.from_iterable(numbers), np.int32),
        ends=np.cumsum([0, *map(len, numbers)]),
        captions=tuple(captions) if texts else None,
    )


class Draft:
    """A batch being filled, shard by shard, so that it never holds more than one of them in memory."""

    def __init__(self, rows: int) -> None:
        self.images: np.ndarray | None = None  # (rows, C, H, W) uint8
        self.keys = [""] * rows
        self.ids: list[np.ndarray] = [np.empty(0)] * rows
        self.captions = [""] * rows

    def take(self, rows: np.ndarray, shard: OpenShard, pairs: np.ndarray) -> None:
        """Fill the given rows (b,) with pairs (b,) of one shard."""
        if self.images is None:
            self.images = np.empty((len(self.keys), *shard.images.shape[1:]), np.uint8)
        samples = shard.sample[pairs]
        self.images[rows] = shard.images[samples]
        starts, ends = shard.ends[pairs], shard.ends[pairs + 1]
        lists = (array.tolist() for array in (rows, pairs, samples, starts, ends))
        for row, pair, sample, start, end in zip(*lists, strict=True):
            self.keys[row] = shard.keys[sample]
            self.ids[row] = shard.ids[start:end]
            if shard.captions is not None:
                self.captions[row] = shard.captions[pair]

    def batch(self, *, words: int = 0, sentences: Sentences | None = None, pin: bool = False) -> Batch:
        """All rows are filled: the Batch. words: width of the padded captions, 0: the longest. pin: page-locked memory,
        from which a copy to a GPU runs beside computation."""
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        keep = np.arange(words or lengths.max()) < lengths[:, None]  # (B, N)
        ids = np.full(keep.shape, PADDING, np.int64)
        ids[keep] = np.concatenate(self.ids)
        arrays = [np.divide(self.images, np.float32(255)), ids, keep]
        if sentences is not None:
            arrays.append(np.asarray(sentences(self.captions), np.float32))
        tensors = [torch.from_numpy(array).pin_memory() if pin else torch.from_numpy(array) for array in arrays]
        return Batch(
            tensors[0], tensors[1], tensors[2], tuple(self.keys), tensors[3] if sentences is not None else None
        )
