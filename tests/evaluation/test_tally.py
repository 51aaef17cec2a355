"""Means from sums and counts do not depend on how the values were cut into pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.tally import Tally, merge


@given(st.lists(st.floats(-3000, 3000), min_size=2, max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_however_the_values_are_cut_the_figures_are_those_of_all_of_them(values: list[float], cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    tally = sum((Tally.of(values[a:b]) for a, b in zip(ends, ends[1:], strict=False)), Tally())
    assert tally.count == len(values)
    assert tally.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert tally.spread == pytest.approx(np.std(values, ddof=1), abs=1e-3)
    assert tally.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-3)


def test_too_few_values_have_no_mean_or_spread() -> None:
    assert math.isnan(Tally().mean) and math.isnan(Tally().error)
    assert Tally.of([3]).mean == 3 and math.isnan(Tally.of([3]).spread)
    assert Tally.of([2.5] * 9).spread == 0


def test_tallies_of_the_same_name_are_added() -> None:
    merged = merge([{"a": Tally.of([1, 2]), "b": Tally.of([5])}, {"a": Tally.of([6])}])
    assert merged["a"].mean == 3 and merged["b"].count == 1
