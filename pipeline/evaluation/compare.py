"""Champion or challenger: whether a newly trained model is better than the one in use, and no worse in anything.

It comes after evaluation and decides about the registry. Both models were measured on the same held-out images with the same
noise, so their bounds are compared image by image: what makes an image hard for both cancels, and a small gain shows.
Plain numbers in, a decision and its reason out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.tally import Tally

# Two-sided 95 %, by the normal distribution. Choice: no correction for a few images, hundreds are meant to be held out.
DEVIATIONS = 1.96
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
    """Challenger minus champion, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


def paired_gap(champion: np.ndarray, challenger: np.ndarray) -> Gap:
    """Values of the same images (n,) under both -> the mean difference; its interval is infinite for one image."""
    if champion.shape != challenger.shape or not len(champion):
        raise ValueError(
            f"{len(challenger)} values of the challenger for {len(champion)} of the champion: same images?"
        )
    tally = Tally.of(challenger - champion)
    half = DEVIATIONS * tally.error if tally.count > 1 else math.inf
    return Gap(tally.mean, tally.mean - half, tally.mean + half)


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
        return DEVIATIONS * figures[f"{name}_se"]
    if f"{name}_low" in figures:
        return (figures[f"{name}_high"] - figures[f"{name}_low"]) / 2
    return 0.0
