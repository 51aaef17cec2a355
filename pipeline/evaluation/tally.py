"""Means that are measured in pieces: sums and counts travel between machines, and are divided once, at the end.

A mean of means would depend on how the work was cut; a sum of sums does not, and a ragged last block weighs what it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

K = TypeVar("K")


@dataclass(frozen=True)
class Tally:
    """How many values there were, their sum and the sum of their squares (float64)."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @staticmethod
    def of(values: Iterable) -> Tally:
        """Numbers, an array or a tensor of any shape."""
        array = np.asarray(values, dtype=np.float64)
        return Tally(array.size, float(array.sum()), float((array**2).sum()))

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the values (n - 1); nan for fewer than two."""
        if self.count < 2:
            return math.nan
        return math.sqrt(max(self.squares - self.total**2 / self.count, 0.0) / (self.count - 1))

    @property
    def error(self) -> float:
        """Standard error of the mean, for independent values."""
        return self.spread / math.sqrt(self.count) if self.count else math.nan


def merge(parts: Iterable[Mapping[K, Tally]]) -> dict[K, Tally]:
    """Add up tallies of the same name, in the order given."""
    merged: dict[K, Tally] = {}
    for part in parts:
        for name, tally in part.items():
            merged[name] = merged.get(name, Tally()) + tally
    return merged
