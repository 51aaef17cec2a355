"""A mean, its spread and its error: against Python's own statistics."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.tally import Tally


@given(st.lists(st.floats(-3000, 3000), min_size=2, max_size=40))
def test_the_figures_are_the_textbooks(values: list[float]) -> None:
    tally = Tally.of(values)
    assert tally.count == len(values)
    assert tally.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert tally.spread == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert tally.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-6)


def test_too_few_values_have_no_mean_or_spread() -> None:
    assert math.isnan(Tally.of([]).mean) and math.isnan(Tally.of([]).error)
    assert Tally.of([3]).mean == 3 and math.isnan(Tally.of([3]).spread)
    assert Tally.of([2.5] * 9).spread == 0
