"""Captions with their neighbours: what skip-thought encoders learn from. No image is read.

A caption's neighbours are the other captions of its image (models/skipthought.py); which of them it comes with is drawn anew
each time. The order of the captions is that of lanes.py, so here too a step is the whole position, and the global batch does
not depend on the number of ranks. The batches have no pixels: images is (B, 0), words and keep are (B, 2, N).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

import numpy as np
import torch

from pipeline.loading.lanes import Lanes, check_ranks
from pipeline.sample import Batch, Manifest
from pipeline.shards.manifest import status_rows
from pipeline.shards.write import ACCEPTED
from pipeline.text.vocabulary import Vocabulary


def stream_neighbours(
    manifest: Manifest,
    vocabulary: Vocabulary,
    split: str = "train",
    *,
    batch: int,
    lanes: int,
    seed: int,
    step: int = 0,
    rank: int = 0,
    ranks: int = 1,
    words: int = 0,
    log: Callable[[str], None] | None = None,
    **_: object,
) -> Iterator[Batch]:
    """This rank's rows of global batch `step` and those after it, without end; arguments as of stream.stream."""
    check_ranks(batch, lanes, rank, ranks)
    pairs = Pairs(groups_of(manifest, split), vocabulary, words)
    order = Lanes([len(pairs)], batch=batch, lanes=lanes, seed=seed)
    if log:
        log(f"{split}: {len(pairs)} captions, {pairs.alone} of them without a neighbour")
    for now in count(step):
        # apart from the keys of lanes.py, which are (epoch,) and (epoch, shard)
        drawn = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(now, 0, 0))).random_raw(batch)
        yield pairs.batch(order.rows(now, rank, ranks)[1], drawn[rank::ranks])


def ordered_neighbours(
    manifest: Manifest,
    vocabulary: Vocabulary,
    split: str,
    *,
    batch: int,
    start: int = 0,
    limit: int = 0,
    words: int = 0,
    **_: object,
) -> Iterator[Batch]:
    """The first caption of each image and the one after it, in order; arguments as of stream.ordered."""
    pairs = Pairs(groups_of(manifest, split), vocabulary, words)
    firsts = np.unique(pairs.first)[start : start + limit if limit else None]
    for at in range(0, len(firsts), batch):
        rows = firsts[at : at + batch]
        yield pairs.batch(rows, np.zeros(len(rows), np.uint64))


def groups_of(manifest: Manifest, split: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Key and captions of each sample of a split, in order."""
    for block in status_rows(manifest.folder, ["split", "status", "key", "captions"]):
        columns = (block[name] for name in ("split", "status", "key", "captions"))
        for where, status, key, captions in zip(*columns, strict=True):
            if where == split and status == ACCEPTED:
                yield key, tuple(captions)


class Pairs:
    """All captions of a split as word ids, and which of them belong together."""

    def __init__(self, groups: Iterable[tuple[str, tuple[str, ...]]], vocabulary: Vocabulary, words: int = 0) -> None:
        self.keys, self.ids, first, size = [], [], [], []
        for key, captions in groups:
            first += [len(self.ids)] * len(captions)
            size += [len(captions)] * len(captions)
            self.keys += [key] * len(captions)
            self.ids += [np.array(vocabulary.numbers(caption)[: words or None], np.int32) for caption in captions]
        self.first, self.size = np.array(first), np.array(size)  # of each caption's image: its first caption, how many

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def alone(self) -> int:
        return int((self.size == 1).sum())

    def neighbours(self, captions: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Captions (b,) by number, random numbers (b,) -> of each another caption of its image; itself where there is none."""
        size, first = self.size[captions], self.first[captions]
        others = np.maximum(size - 1, 1).astype(np.uint64)
        further = 1 + (drawn % others).astype(np.int64)
        return first + (captions - first + further) % size

    def batch(self, captions: np.ndarray, drawn: np.ndarray) -> Batch:
        rows = np.stack([captions, self.neighbours(captions, drawn)], axis=1)  # (b, 2)
        lengths = np.array([[len(self.ids[one]) for one in row] for row in rows])
        keep = np.arange(lengths.max()) < lengths[..., None]
        words = np.zeros(keep.shape, np.int64)
        words[keep] = np.concatenate([self.ids[one] for one in rows.flat])
        keys = tuple(self.keys[one] for one in captions)
        return Batch(torch.empty(len(rows), 0), torch.from_numpy(words), torch.from_numpy(keep), keys)
