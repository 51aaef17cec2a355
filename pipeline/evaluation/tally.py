"""The mean of values and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tally:
    """How many values there were, their mean and their standard deviation (n - 1; nan for fewer than two)."""

    count: int
    mean: float
    spread: float

    @staticmethod
    def of(values: Iterable) -> Tally:
        """Numbers, an array or a tensor of any shape, in float64."""
        array = np.asarray(values, dtype=np.float64)
        mean = float(array.mean()) if array.size else math.nan
        return Tally(array.size, mean, float(array.std(ddof=1)) if array.size > 1 else math.nan)

    @property
    def error(self) -> float:
        """Standard error of the mean, for independent values."""
        return self.spread / math.sqrt(self.count) if self.count else math.nan

    @property
    def half_width(self) -> float:
        """Half of the mean's 95 % interval by Student's t; infinite where there are fewer than two values."""
        return deviations(self.count) * self.error if self.count > 1 else math.inf


def deviations(count: float) -> float:
    """How many standard errors of a mean of `count` values a two-sided 95 % interval reaches: 1.96 of many, 3.18 of four."""
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))
