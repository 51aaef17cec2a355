"""What all sources share: random numbers that lie in a table, permutations, plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.source import below, cut_into_shards, random_words, shuffled


@given(st.integers(0, 2**40), st.integers(0, 30), st.integers(0, 30), st.sampled_from([4, 8, 12]))
def test_a_row_does_not_depend_on_where_reading_starts(start: int, before: int, rows: int, width: int) -> None:
    long = random_words("table", 1, start, before + rows, width)
    assert (random_words("table", 1, start + before, rows, width) == long[before:]).all()


def test_tables_differ_by_purpose_and_seed_and_stay_as_they_are() -> None:
    tables = [random_words(purpose, seed, 0, 100, 4) for purpose in ("a", "b") for seed in (0, 1, 2**40)]
    assert len({table.tobytes() for table in tables}) == 6
    # NumPy promises the raw words of its bit generators; data sets rest on it
    assert random_words("pinned", 3, 5, 1, 4)[0].tolist() == [
        11096353283398665547,
        14067871907652988618,
        995829574956831166,
        1736828900711204903,
    ]


@given(st.integers(1, 2**31), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_numbers_below_a_limit_are_its_share_of_the_word(limit: int, words: list[int]) -> None:
    drawn = below(np.array(words, np.uint64), limit)
    assert drawn.tolist() == [(word >> 32) * limit >> 32 for word in words]
    assert 0 <= drawn.min() and drawn.max() < limit


def test_numbers_below_a_limit_are_uniform_and_independent_between_columns() -> None:
    drawn = below(random_words("uniform", 0, 0, 100_000, 4), 10)
    counts = np.stack([np.bincount(column, minlength=10) for column in drawn.T])
    assert (np.square(counts - 10_000) / 10_000).sum(
        axis=1
    ).max() < 28  # chi squared, 9 degrees: above 27.9 once in 1,000
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.015


@given(st.integers(0, 300), st.integers(0, 5))
def test_shuffling_gives_each_number_once(count: int, seed: int) -> None:
    order = shuffled("order", seed, count)
    assert sorted(order.tolist()) == list(range(count))
    assert (shuffled("order", seed, count) == order).all()
    assert count < 20 or (shuffled("order", seed + 1, count) != order).any()


@given(st.integers(1, 100), st.integers(1, 30))
def test_plans_cover_a_split_in_order_once(count: int, size: int) -> None:
    plans = cut_into_shards("val", count, size, tuple(range(count)))
    assert [row for plan in plans for row in plan.rows] == list(range(count))
    assert all(plan.rows == tuple(range(plan.start, plan.stop)) for plan in plans)
    assert [len(plan) for plan in plans[:-1]] == [size] * (len(plans) - 1) and 1 <= len(plans[-1]) <= size
    assert [plan.name for plan in plans] == [f"val-{number:05d}" for number in range(len(plans))]


def test_names_of_plans_sort_in_their_order_also_beyond_a_hundred_thousand() -> None:
    names = [plan.name for plan in cut_into_shards("train", 100_002, 1)]
    assert names == sorted(names), "shards are ordered by name"


@pytest.mark.parametrize("start", [0, 7])
def test_rows_are_philox_counters(start: int) -> None:
    """Written with the generator's own jump instead of its counter."""
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"table/1").digest()[:16], "little")
    generator = np.random.Philox(key=key)
    generator.random_raw(start * 8)
    assert (random_words("table", 1, start, 3, 8).ravel() == generator.random_raw(24)).all()
