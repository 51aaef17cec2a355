"""Ranks and recalls, against every order that ties allow."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from pipeline.evaluation.retrieval import found_within, ranks, summary


def test_places_match_the_slow_way_also_with_ties() -> None:
    scores = np.random.default_rng(0).integers(0, 4, size=(7, 30)).astype(float)  # few values: many ties
    truth = np.arange(7) * 4
    slow = [
        [sum(s > row[t] for s in row), sum(s == row[t] for s in row) - 1] for row, t in zip(scores, truth, strict=True)
    ]
    assert ranks(scores, truth).tolist() == slow


def test_recall_is_the_mean_over_all_orders_of_equal_candidates() -> None:
    scores = np.array([3.0, 1, 2, 2, 2, 0])
    truth = 3
    for k in range(1, 7):
        hits = []
        for order in permutations(range(6)):
            best = sorted(order, key=lambda j: -scores[j])  # stable: ties stay in the order of the permutation
            hits.append(best.index(truth) < k)
        assert found_within(ranks(scores[None], np.array([truth])), k)[0] == pytest.approx(np.mean(hits))


def test_equal_scores_give_chance_wherever_the_truth_stands() -> None:
    for place in (0, 50, 99):
        found = summary(ranks(np.zeros((9, 100)), np.full(9, place)), 100, draws=20)
        for name in ("r_at_1", "r_at_5", "r_at_10", "r_at_50", "median_rank"):
            assert found[name] == pytest.approx(found[f"chance/{name}"])


def test_a_perfect_and_a_hopeless_model() -> None:
    scores = -np.arange(20.0)[None].repeat(5, 0)
    best = summary(ranks(scores, np.zeros(5, int)), 20, draws=20)
    assert best["r_at_1"] == best["r_at_10"] == 1 and best["median_rank"] == 1
    worst = summary(ranks(scores, np.full(5, 19)), 20, draws=20)
    assert worst["r_at_10"] == 0 and worst["median_rank"] == 20
    assert "r_at_50" not in best  # of 20 candidates


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Queries of a model that is right 30 times in 100: how often the interval of a sample of 100 holds 0.3."""
    generator, inside = np.random.default_rng(1), 0
    for trial in range(100):
        places = np.stack([np.where(generator.random(100) < 0.3, 0, 50), np.zeros(100, int)], 1)
        found = summary(places, 100, seed=trial, draws=200)
        inside += found["r_at_1_low"] <= 0.3 <= found["r_at_1_high"]
        assert found["r_at_1_low"] <= found["r_at_1"] <= found["r_at_1_high"]
    assert 88 <= inside <= 99


def test_the_same_seed_gives_the_same_figures() -> None:
    places = ranks(np.random.default_rng(3).normal(size=(40, 100)), np.zeros(40, int))
    assert summary(places, 100, seed=4) == summary(places, 100, seed=4) != summary(places, 100, seed=5)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
        ranks(np.array([[0.0, np.nan], [1, 2]]), np.zeros(2, int))
