"""The order of training against a slow transcription of its definition, and the promises that runs rely on."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.loading.lanes
from pipeline.loading.lanes import Lanes, check_ranks

Pair = tuple[int, int]  # shard, pair inside it


def pairs_of(order: Lanes, step: int, rank: int = 0, ranks: int = 1) -> list[Pair]:
    shard, pair = order.rows(step, rank, ranks)
    return list(zip(shard.tolist(), pair.tolist(), strict=True))


def epoch_of(order: Lanes, epoch: int) -> list[Pair]:
    """All pairs of an epoch in the order of their positions."""
    return [pair for step in range(order.steps) for pair in pairs_of(order, epoch * order.steps + step)]


def numbers(n: int, seed: int, *place: int) -> list[int]:
    """The 64-bit numbers that NumPy's PCG64 makes for a seed and a place."""
    return np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=place)).random_raw(n).tolist()


def slow_epoch(counts: list[int], batch: int, lanes: int, seed: int, epoch: int) -> list[list[Pair]]:
    """The batches of an epoch, written down from the definition with lists and loops."""
    turn, *keys = numbers(1 + len(counts), seed, epoch)
    row: list[Pair] = []
    for _, shard in sorted(zip(keys, range(len(counts)), strict=True)):
        inside = numbers(counts[shard], seed, epoch, shard)
        row += [(shard, pair) for _, pair in sorted(zip(inside, range(counts[shard]), strict=True))]
    for _ in range(turn % len(row)):
        row.append(row.pop(0))
    length = len(row) // lanes
    queues = [row[lane * length : (lane + 1) * length] for lane in range(lanes)]
    positions = [queues[lane][offset] for offset in range(length) for lane in range(lanes)]
    return [positions[start : start + batch] for start in range(0, len(positions) - batch + 1, batch)]


@st.composite
def orders(draw) -> dict:
    """Small data sets that fill at least one batch; shards down to one pair or none, often fewer than lanes."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=15).filter(any))
    lanes = draw(st.integers(1, min(12, sum(counts))))
    batch = draw(st.integers(1, sum(counts) // lanes * lanes))
    return {"counts": counts, "lanes": lanes, "batch": batch, "seed": draw(st.integers(0, 2**40))}


def made(order: dict) -> Lanes:
    return Lanes(order["counts"], batch=order["batch"], lanes=order["lanes"], seed=order["seed"])


@given(orders(), st.integers(0, 5))
def test_batches_are_those_of_the_slow_transcription(case: dict, epoch: int) -> None:
    order, slow = made(case), slow_epoch(**case, epoch=epoch)
    assert order.steps == len(slow)
    assert [pairs_of(order, epoch * order.steps + k) for k in range(order.steps)] == slow


@given(orders(), st.integers(0, 5))
def test_no_pair_comes_twice_in_an_epoch_and_few_are_left_out(case: dict, epoch: int) -> None:
    order = made(case)
    seen = epoch_of(order, epoch)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= {(shard, pair) for shard, count in enumerate(case["counts"]) for pair in range(count)}
    assert order.left_out == sum(case["counts"]) - len(seen) < case["lanes"] + case["batch"]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=6, max_size=15), st.sampled_from([4, 8, 12]), st.integers(0, 40))
def test_ranks_share_the_same_global_batches_whatever_their_number(counts: list[int], lanes: int, step: int) -> None:
    order = Lanes([*counts, 12], batch=8, lanes=lanes, seed=7)
    whole = pairs_of(order, step)
    for ranks in (1, 2, 4):
        parts = [pairs_of(order, step, rank, ranks) for rank in range(ranks)]
        assert [parts[row % ranks][row // ranks] for row in range(8)] == whole


def test_a_rank_opens_the_shards_of_its_own_lanes_only() -> None:
    order = Lanes([10] * 16, batch=16, lanes=16, seed=0)  # a lane is as long as a shard: it lies in two at most
    for rank in range(4):
        shards = {shard for step in range(order.steps) for shard, _ in pairs_of(order, step, rank, 4)}
        assert len(shards) <= 2 * 16 // 4


def test_what_is_left_out_is_another_each_epoch() -> None:
    order = Lanes([5, 9, 1, 7, 11, 4], batch=8, lanes=4, seed=0)  # 37 pairs: 5 left out
    everything = {(shard, pair) for shard, count in enumerate(order.counts.tolist()) for pair in range(count)}
    left = [frozenset(everything - set(epoch_of(order, epoch))) for epoch in range(60)]
    assert {len(pairs) for pairs in left} == {order.left_out} == {5}
    assert len(set(left)) > 50
    assert frozenset.union(*left) == everything, "no pair is safe from it"


@pytest.mark.parametrize(
    "counts, lanes",
    [([600], 20), ([200] * 3, 20), ([30] * 20, 20), ([10] * 60, 20), ([1] * 600, 20), ([7, 300, 1, 92, 200], 8)],
    ids=["one shard", "fewer shards than lanes", "a shard a lane", "three shards a lane", "one-pair shards", "uneven"],
)
def test_the_place_of_a_pair_in_one_epoch_says_nothing_of_its_place_in_the_next(counts: list[int], lanes: int) -> None:
    order = Lanes(counts, batch=20, lanes=lanes, seed=3)
    places = []
    for epoch in range(41):
        at = {pair: place for place, pair in enumerate(epoch_of(order, epoch))}
        places.append([at.get((s, p), np.nan) for s, n in enumerate(counts) for p in range(n)])
    places = np.array(places)  # (epochs, pairs), nan where left out
    values = []
    for before, after in zip(places[:-1], places[1:], strict=True):
        both = ~np.isnan(before) & ~np.isnan(after)
        values.append(np.corrcoef(before[both], after[both])[0, 1])
    # Pairs of a shard move together, so one epoch's value is as noisy as if there were fewer pairs; the mean is not.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 0.05


def test_a_pair_is_anywhere_in_an_epoch_equally_often() -> None:
    order = Lanes([40, 3, 25, 60, 12], batch=10, lanes=10, seed=1)  # 140 pairs, none left out
    thirds = np.zeros((140, 3))
    for epoch in range(300):
        for place, (shard, pair) in enumerate(epoch_of(order, epoch)):
            thirds[[0, 40, 43, 68, 128][shard] + pair, 3 * place // 140] += 1
    # 300 epochs: 100 a third expected, standard deviation 8.2
    assert np.abs(thirds - 100).max() < 45


def test_neighbours_in_one_epoch_are_not_neighbours_in_the_next() -> None:
    order = Lanes([50] * 20, batch=20, lanes=20, seed=0)
    together = []
    for epoch in range(2):
        batches = [pairs_of(order, epoch * order.steps + k) for k in range(order.steps)]
        together.append({couple for batch in batches for couple in itertools.combinations(sorted(batch), 2)})
    assert len(together[0]) == 50 * 190  # couples in 50 batches of 20, of 499,500 possible: 181 in both by chance
    assert len(together[0] & together[1]) < 250


def test_seeds_epochs_and_shards_have_orders_of_their_own() -> None:
    def first(seed: int, epoch: int) -> list[Pair]:
        return epoch_of(Lanes([40] * 4, batch=40, lanes=4, seed=seed), epoch)

    orders = [tuple(first(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    order = Lanes([30] * 30, batch=30, lanes=1, seed=0)
    rows = epoch_of(order, 0)
    inside = {tuple(pair for shard, pair in rows if shard == one) for one in range(30)}
    assert len(inside) == 30
    assert tuple(dict.fromkeys(shard for shard, _ in rows)) not in inside, "shard 0's order is not that of the shards"


def test_a_fresh_process_deals_the_same_order(project_root: Path) -> None:
    code = """
import hashlib
from pipeline.loading.lanes import Lanes
order = Lanes([17, 4, 90, 33], batch=12, lanes=4, seed=5)
print(hashlib.sha256(b"".join(part.tobytes() for step in range(40) for part in order.rows(step, 1, 2))).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    order = Lanes([17, 4, 90, 33], batch=12, lanes=4, seed=5)
    here = hashlib.sha256(b"".join(part.tobytes() for step in range(40) for part in order.rows(step, 1, 2)))
    assert done.stdout.strip() == here.hexdigest()


def test_the_order_of_this_release_is_the_order_of_every_release() -> None:
    """Literal values: whoever changes them breaks the resuming of every run begun before."""
    order = Lanes([3, 5, 2], batch=4, lanes=2, seed=0)
    assert epoch_of(order, 0) == PINNED[0]
    assert epoch_of(order, 1) == PINNED[1]


PINNED = [
    [(0, 2), (1, 0), (0, 0), (1, 2), (0, 1), (1, 1), (1, 3), (2, 0)],
    [(2, 0), (1, 4), (2, 1), (1, 1), (1, 3), (0, 1), (1, 0), (0, 2)],
]


def test_seeking_far_ahead_deals_one_epoch_and_opens_its_shards_only(monkeypatch) -> None:
    asked: list[int] = []
    real = pipeline.loading.lanes._draw
    monkeypatch.setattr(pipeline.loading.lanes, "_draw", lambda n, *place: asked.append(n) or real(n, *place))
    for step in (0, 10**9):
        asked.clear()
        Lanes([100] * 1000, batch=20, lanes=20, seed=0).rows(step)
        assert asked[0] == 1001  # the shards of one epoch, then the pairs of those that the batch needs
        assert len(asked) <= 1 + 20 and set(asked[1:]) == {100}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 41}, "40 pairs do not fill a batch of 41 over 4 lanes; lower the batch to at most 40"),
        ({"lanes": 41}, "40 pairs do not fill a batch of 8 over 41 lanes; lower the lanes to at most 40"),
        ({"batch": 0}, "batch 0"),
        ({"lanes": 0}, "lanes 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_an_order_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lanes([30, 10], **{"batch": 8, "lanes": 4, "seed": 0, **change})


@pytest.mark.parametrize(
    "batch, lanes, rank, ranks, message",
    [
        (9, 4, 0, 2, "batch 9 over 4 lanes does not divide among 2 ranks"),
        (8, 3, 0, 2, "does not divide"),
        (8, 4, 2, 2, "rank 2 of 2"),
        (8, 4, 0, 0, "rank 0 of 0"),
        (8, 4, -1, 2, "rank -1"),
    ],
)
def test_ranks_that_do_not_divide_the_work_are_refused(batch, lanes, rank, ranks, message) -> None:
    check_ranks(8, 4, 1, 2)
    with pytest.raises(ValueError, match=message):
        check_ranks(batch, lanes, rank, ranks)
