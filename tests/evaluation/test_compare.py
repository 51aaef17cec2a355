"""The decision between two models: the interval against its closed form and its coverage, the rule case by case."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from pipeline.evaluation.compare import GUARDS, Gap, decide, gap_of, guard_gaps, paired_gap


def test_the_paired_interval_is_the_textbooks() -> None:
    champion, challenger = np.array([1.0, 5.0, 9.0, 2.0]), np.array([2.0, 5.5, 9.0, 4.0])
    differences = [1.0, 0.5, 0.0, 2.0]
    half = 1.96 * statistics.stdev(differences) / 4**0.5
    gap = paired_gap(champion, challenger)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.875, 0.875 - half, 0.875 + half))
    assert paired_gap(challenger, champion).mean == -gap.mean


def test_what_is_hard_for_both_cancels() -> None:
    random = np.random.default_rng(0)
    hard = 100 * random.standard_normal(400)  # spread between images, which a gain of 1 would drown in
    gap = paired_gap(hard, hard + 1 + 0.5 * random.standard_normal(400))
    assert 0.9 < gap.low < 1 < gap.high < 1.1


def test_the_interval_holds_no_gain_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(1)
    gaps = [paired_gap(*random.standard_normal((2, 200))) for _ in range(2_000)]
    held = np.mean([gap.low <= 0 <= gap.high for gap in gaps])
    assert 0.935 < held < 0.965
    # so a model that is no better is promoted once in forty retrainings
    assert np.mean([decide(gap, {})[0] for gap in gaps]) == pytest.approx(0.025, abs=0.012)


def test_one_image_and_other_images_decide_nothing() -> None:
    assert not decide(paired_gap(np.zeros(1), np.ones(1)), {})[0]
    for shapes in ((3, 4), (0, 0)):
        with pytest.raises(ValueError, match="same images"):
            paired_gap(*(np.zeros(n) for n in shapes))


@pytest.mark.parametrize(
    ("bound", "guard", "promoted", "said"),
    [
        ((1, 0.5, 1.5), (0, -1, 1), True, "none of 1 guards is worse"),
        ((1, -0.1, 2.1), (0, -1, 1), False, "not better beyond its interval: +1 (-0.1 to +2.1)"),
        ((-1, -1.5, -0.5), (5, 4, 6), False, "not better"),
        ((1, 0.5, 1.5), (-3, -5, -1), False, "worse is ssi/mean -3 (-5 to -1)"),
        ((1, 0.5, 1.5), (-3, -7, 1), True, "none"),
        ((0, 0, 0), (0, 0, 0), False, "not better"),
        ((float("nan"),) * 3, (0, 0, 0), False, "not better"),
    ],
)
def test_better_beyond_the_interval_and_nothing_worse_beyond_its_own(bound, guard, promoted: bool, said: str) -> None:
    promote, why = decide(Gap(*bound), {"ssi/mean": Gap(*guard)})
    assert promote is promoted and said in why and "\n" not in why


def test_guards_take_the_uncertainty_that_the_evaluation_gives() -> None:
    champion = {"ssi/mean": 0.5, "ssi/mean_se": 0.03, "retrieval/r_at_1": 0.4, "retrieval/r_at_1_low": 0.3}
    champion |= {"retrieval/r_at_1_high": 0.6, "test/bound": -9.0, "drawn/one_digit/seen/right": 0.9}
    challenger = {"ssi/mean": 0.4, "ssi/mean_se": 0.04, "retrieval/r_at_1": 0.1, "retrieval/r_at_1_low": 0.0}
    challenger |= {"retrieval/r_at_1_high": 0.2, "test/bound": -8.0}
    gaps = guard_gaps(champion, challenger)
    assert set(gaps) == {"ssi/mean", "retrieval/r_at_1"} and set(gaps) < set(GUARDS)
    assert gaps["ssi/mean"].high == pytest.approx(-0.1 + 1.96 * 0.05)
    assert gaps["retrieval/r_at_1"].low == pytest.approx(-0.3 - (0.15**2 + 0.1**2) ** 0.5)
    assert gap_of({"x": 1.0}, {"x": 3.0}, "x") == Gap(2.0, 2.0, 2.0)
