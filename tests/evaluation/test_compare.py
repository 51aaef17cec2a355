"""The decision between two models: the interval against its closed form and its coverage, the rule case by case."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from pipeline.evaluation.compare import (
    GUARDS,
    Gap,
    decide,
    gap_of,
    guard_gaps,
    paired_gap,
    ranking_gaps,
    value_gaps,
)


def test_the_paired_interval_is_the_textbooks() -> None:
    champion, challenger = np.array([1.0, 5.0, 9.0, 2.0]), np.array([2.0, 5.5, 9.0, 4.0])
    differences = [1.0, 0.5, 0.0, 2.0]
    half = 3.182446 * statistics.stdev(differences) / 4**0.5  # Student's t, three degrees of freedom
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
    few = [paired_gap(*random.standard_normal((2, 4))) for _ in range(2_000)]
    for found in (gaps, few):
        assert 0.935 < np.mean([gap.low <= 0 <= gap.high for gap in found]) < 0.965
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
    assert gaps["ssi/mean"].high == pytest.approx(-0.1 + 1.959964 * 0.05)
    assert gaps["retrieval/r_at_1"].low == pytest.approx(-0.3 - (0.15**2 + 0.1**2) ** 0.5)
    assert gap_of({"x": 1.0}, {"x": 3.0}, "x") == Gap(2.0, 2.0, 2.0)
    four = {"drawn/a/right": 0.5, "drawn/a/right_se": 0.1, "drawn/a/captions": 4.0}
    assert gap_of(four, {"drawn/a/right": 0.4}, "drawn/a/right").high == pytest.approx(-0.1 + 3.182446 * 0.1)


def rankings(seed: int, queries: int = 60, candidates: int = 20) -> np.ndarray:
    """Places of the true image, some of them tied."""
    random = np.random.default_rng(seed)
    higher = random.integers(0, candidates - 3, queries)
    return np.stack([higher, random.integers(0, 3, queries) * (random.random(queries) < 0.3)], axis=1)


def test_a_ranking_s_interval_is_that_of_a_bootstrap_written_as_a_loop() -> None:
    first, other, draws = rankings(1), rankings(2), 200

    def figures(places: list[tuple[int, int]]) -> list[float]:
        """R@1, R@5, R@10 and median rank, one query at a time; ties count by their chance."""
        found = [
            statistics.fmean(max(0, min(1, (k - higher) / (same + 1))) for higher, same in places) for k in (1, 5, 10)
        ]
        return [*found, statistics.median(higher + same / 2 + 1 for higher, same in places)]

    pairs, random, differences = list(zip(first.tolist(), other.tolist(), strict=True)), np.random.default_rng(7), []
    for _ in range(draws):
        drawn = [pairs[i] for i in random.integers(60, size=60)]
        mine, theirs = (figures([pair[side] for pair in drawn]) for side in (0, 1))
        differences.append([b - a for a, b in zip(mine, theirs, strict=True)])
    gaps = ranking_gaps(first, other, 20, seed=7, draws=draws)
    assert list(gaps) == ["r_at_1", "r_at_5", "r_at_10", "median_rank"]
    whole = [b - a for a, b in zip(figures(first.tolist()), figures(other.tolist()), strict=True)]
    for column, (gap, mean) in enumerate(zip(gaps.values(), whole, strict=True)):
        sorted_column = sorted(row[column] for row in differences)
        low, high = (np.interp(share * (draws - 1), range(draws), sorted_column) for share in (0.025, 0.975))
        assert (gap.mean, gap.low, gap.high) == pytest.approx((mean, low, high), abs=1e-12)


def test_what_is_hard_for_both_rankings_cancels() -> None:
    first = rankings(3, 400, 60)
    better = np.maximum(first - [3, 0], 0)
    gap = ranking_gaps(first, better, 60)["r_at_10"]
    alone = [ranking_gaps(np.full_like(first, 59), places, 60)["r_at_10"] for places in (first, better)]
    assert gap.low > 0 and gap.high - gap.low < 0.6 * (alone[1].high - alone[1].low + alone[0].high - alone[0].low)


VALUES = {
    "test/bound": np.array([-3.0, -5.0, -4.5]),
    "test/kl": np.array([1.0, 1.0, 1.0]),
    "retrieval/places": rankings(4),
    "ssi": np.array([[0.1, 0.3], [0.5, 0.7]]),
    "drawn/one_digit/seen/right": np.array([True, False, True, True]),
    "drawn/one_digit/seen/places": np.array([True, True, True, True]),
}
RANKED = {"retrieval/candidates": 20.0}


def test_a_system_and_itself_differ_by_exactly_nothing() -> None:
    gaps = value_gaps(VALUES, {name: value.copy() for name, value in VALUES.items()}, RANKED)
    assert set(gaps) == {
        "test/bound",
        *(f"retrieval/{name}" for name in ("r_at_1", "r_at_5", "r_at_10", "median_rank")),
        "ssi/mean",
        "drawn/one_digit/seen/right",
        "drawn/one_digit/seen/places",
    }
    assert {(gap.mean, gap.low, gap.high) for gap in gaps.values()} == {(0.0, 0.0, 0.0)}


def test_similarities_are_paired_by_caption_and_what_one_lacks_has_no_gap() -> None:
    other = {"ssi": VALUES["ssi"] + [[0.1, 0.3], [0.0, 0.0]], "retrieval/places": rankings(5)[:9]}
    gap = value_gaps(VALUES, {"ssi": other["ssi"]}, RANKED)
    assert set(gap) == {"ssi/mean"}
    half = 12.7062 * statistics.stdev([0.2, 0.0]) / 2**0.5
    assert (gap["ssi/mean"].mean, gap["ssi/mean"].high) == pytest.approx((0.1, 0.1 + half))
    with pytest.raises(ValueError, match="9 queries of one system, 60 of the other"):
        value_gaps(VALUES, other, RANKED)
