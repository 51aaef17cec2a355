"""Two models side by side: by how much they differ, and whether that is more than noise.

It comes after evaluation. Both models were measured on the same held-out images with the same noise, so they are compared
image by image and query by query: what makes an image hard for both cancels, and a small gain shows. jobs.compare prints the
differences of systems; jobs.retrain decides by them whether a newly trained model (the challenger) is better than the one in
use (the champion), and no worse in anything. Plain numbers in, gaps or a decision and its reason out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.retrieval import figures_of, resamples
from pipeline.evaluation.tally import Tally, deviations
from pipeline.evaluation.values import Values

# Figures of an evaluation, all better when larger, that a challenger must not lose. Those that are missing do not count.
GUARDS = (
    "drawn/one_digit/seen/right",
    "drawn/one_digit/held_out/right",
    "drawn/two_digits/seen/right",
    "drawn/two_digits/held_out/right",
    "retrieval/r_at_1",
    "ssi/mean",
    "ssi/sharpened/mean",
)


@dataclass(frozen=True)
class Gap:
    """One model minus another (challenger minus champion), with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


def paired_gap(champion: np.ndarray, challenger: np.ndarray) -> Gap:
    """Values of the same images (n,) under both -> the mean difference; its interval is infinite for one image."""
    if champion.shape != challenger.shape or not len(champion):
        raise ValueError(f"{len(challenger)} values of one model for {len(champion)} of the other: same images?")
    tally = Tally.of(challenger - champion)
    return Gap(tally.mean, tally.mean - tally.half_width, tally.mean + tally.half_width)


def ranking_gaps(
    first: np.ndarray, other: np.ndarray, candidates: int, *, seed: int = 0, draws: int = 1_000
) -> dict[str, Gap]:
    """Places (Q, 2) of the true image for the same queries under both -> differences of R@k and of the median rank.

    Intervals are of a bootstrap that draws the same queries for both. Choice: of medians it is the difference that is taken,
    as it stands between two rows of a table, not the median of the differences.
    """
    if first.shape != other.shape:
        raise ValueError(f"{len(other)} queries of one system, {len(first)} of the other: same captions?")
    (names, measure), (_, measure_other) = figures_of(first, candidates), figures_of(other, candidates)
    drawn = [measure_other(chosen) - measure(chosen) for chosen in resamples(len(first), seed, draws)]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    mean = measure_other(slice(None)) - measure(slice(None))
    return {name: Gap(*map(float, ends)) for name, *ends in zip(names, mean, low, high, strict=True)}


def value_gaps(first: Values, other: Values, figures: Mapping[str, float], seed: int = 0) -> dict[str, Gap]:
    """Of two evaluations with equal settings on one data set: the differences of all that both measured, other minus first.

    Bounds by image, rankings by query, similarities by caption, the judge's verdicts by caption. `figures` of the first tell
    how many candidates a ranking had.
    """
    gaps = {}
    for name in sorted(first.keys() & other.keys()):
        mine, theirs = first[name], other[name]
        if name.startswith("retrieval/"):
            way = name.removesuffix("places")
            found = ranking_gaps(mine, theirs, round(figures[f"{way}candidates"]), seed=seed)
            gaps |= {f"{way}{figure}": gap for figure, gap in found.items()}
        elif name.startswith("ssi"):
            gaps[f"{name}/mean"] = paired_gap(mine.mean(1), theirs.mean(1))
        elif name.endswith("bound") or name.startswith("drawn/"):
            gaps[name] = paired_gap(mine.astype(float), theirs.astype(float))
    return gaps


def gap_of(champion: Mapping[str, float], challenger: Mapping[str, float], name: str) -> Gap:
    """Difference of a figure of two evaluations, as if they were independent: wider than it need be."""
    half = math.hypot(_half_width(champion, name), _half_width(challenger, name))
    mean = challenger[name] - champion[name]
    return Gap(mean, mean - half, mean + half)


def guard_gaps(champion: Mapping[str, float], challenger: Mapping[str, float]) -> dict[str, Gap]:
    """The guards that both evaluations have."""
    return {name: gap_of(champion, challenger, name) for name in GUARDS if name in champion and name in challenger}


def decide(bound: Gap, guards: Mapping[str, Gap]) -> tuple[bool, str]:
    """Whether to promote, and why: if the bound is better beyond its interval and no guard is worse beyond its own."""
    worse = [f"{name} {gap}" for name, gap in guards.items() if gap.high < 0]
    if not bound.low > 0:
        return (False, f"the bound is not better beyond its interval: {bound} nats an image")
    if worse:
        return (False, f"the bound is better by {bound} nats an image, but worse is {', '.join(worse)}")
    return (True, f"the bound is better by {bound} nats an image, and none of {len(guards)} guards is worse")


def _half_width(figures: Mapping[str, float], name: str) -> float:
    """Half of a figure's interval: from its standard error, or from the ends it is given with; 0 where neither is known."""
    if f"{name}_se" in figures:
        captions = f"{name.rpartition('/')[0]}/captions"  # of a group of judged ones: as few as four
        return deviations(figures.get(captions, math.inf)) * figures[f"{name}_se"]
    if f"{name}_low" in figures:
        return (figures[f"{name}_high"] - figures[f"{name}_low"]) / 2
    return 0.0
