"""The order of training: which pair stands where, as a pure function of (pairs of each shard, seed, epoch, step).

A pair is one caption with its image. Reading (stream.py) follows this order and adds nothing to it, so the place in the
data is one integer, the step; a checkpoint needs no other, and no tar is opened to find a place.

An epoch of P pairs, batch B, L lanes:
    1. the shards in an order drawn from (seed, epoch), the pairs inside each in one drawn from (seed, epoch, shard), make
       a row of P pairs; it is rotated by a number drawn from (seed, epoch), so that a pair is as likely at any place;
    2. the row is cut into L lanes of P // L pairs each, so a batch mixes L places of the data set while a reader keeps
       only about L shards open;
    3. position p is lane p mod L at offset p // L; batch k is the positions kB ... (k + 1)B - 1.
Rank r of W takes rows r, r + W, ... of every batch. W divides B and L, so these are the lanes that are r mod W, whatever
W is: the global batch never depends on the number of ranks.

Left out of an epoch: the end of the row, fewer than L pairs, and the last batch that is not full, fewer than B. They are
others each epoch, every pair as likely. Source: ours; what is wrong with others' order is told in ray issue 37633.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class Lanes:
    """The endless order of one split. Immutable, and safe to ask from several threads."""

    def __init__(self, pairs: Sequence[int], *, batch: int, lanes: int, seed: int) -> None:
        """pairs: pairs of each shard, in the manifest's order; batch is global."""
        if batch < 1 or lanes < 1 or seed < 0:
            raise ValueError(f"batch {batch}, lanes {lanes} and seed {seed}: at least 1, 1 and 0 are allowed")
        self.counts = np.asarray(pairs, dtype=np.int64)
        self.pairs = int(self.counts.sum())
        self.batch, self.lanes, self.seed = batch, lanes, seed
        self.length = self.pairs // lanes  # pairs of a lane
        self.steps = self.length * lanes // batch  # batches of an epoch
        if self.steps == 0:
            lower = f"batch to at most {self.length * lanes}" if self.length else f"lanes to at most {self.pairs}"
            raise ValueError(
                f"{self.pairs} pairs do not fill a batch of {batch} over {lanes} lanes; "
                f"lower the {lower}, or shard more samples"
            )
        self._deal = lru_cache(maxsize=2)(self._deal)  # two: read-ahead crosses the border between epochs
        self._inside = lru_cache(maxsize=4 * lanes)(self._inside)  # the shards now open, at the pace lanes change them

    @property
    def left_out(self) -> int:
        """Pairs of an epoch in no batch, fewer than lanes + batch; which ones differs from epoch to epoch."""
        return self.pairs - self.steps * self.batch

    def rows(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Shard (b,) and pair inside it (b,) of each row this rank takes of global step `step`, b = batch / ranks."""
        epoch, batch = divmod(step, self.steps)
        position = np.arange(batch * self.batch + rank, (batch + 1) * self.batch, ranks)
        order, ends, turn = self._deal(epoch)
        place = position % self.lanes * self.length + position // self.lanes  # in the rotated row
        place = (place + turn) % self.pairs
        slot = np.searchsorted(ends, place, side="right")
        shard = order[slot]
        pair = place - (ends[slot] - self.counts[shard])
        for one in np.unique(shard):
            mine = shard == one
            pair[mine] = self._inside(epoch, int(one))[pair[mine]]
        return shard, pair

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Shards (S,) in this epoch's order, where each ends (S,) in the row of pairs, and by how much the row is rotated."""
        drawn = _draw(len(self.counts) + 1, self.seed, epoch)
        order = np.argsort(drawn[1:], kind="stable")
        return order, self.counts[order].cumsum(), int(drawn[0]) % self.pairs

    def _inside(self, epoch: int, shard: int) -> np.ndarray:
        """Pairs of a shard (n,) in this epoch's order."""
        return np.argsort(_draw(int(self.counts[shard]), self.seed, epoch, shard), kind="stable")


def check_ranks(batch: int, lanes: int, rank: int, ranks: int) -> None:
    """Every rank has as many rows, and lanes of its own; else ValueError."""
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks}: ranks are 0 to {ranks - 1}")
    if batch % ranks or lanes % ranks:
        raise ValueError(
            f"batch {batch} over {lanes} lanes does not divide among {ranks} ranks; make both multiples of {ranks}"
        )


def _draw(n: int, seed: int, *place: int) -> np.ndarray:
    """(n,) uint64, a function of the seed and a place, e.g. (epoch, shard). Sorting by them is a permutation.

    Not `Generator.permutation`: NumPy keeps seed sequences and raw bit streams as they are for good, but not what it makes
    of them, and a resumed run may have a newer NumPy.
    """
    # Not SeedSequence((seed, *place)): it pads with zeros, so (1, 2) and (1, 2, 0) would be the same stream.
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)).random_raw(n)
