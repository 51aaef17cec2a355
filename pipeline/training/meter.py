"""Means and speed of a training loop, for the metrics and for the line that a person watches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAY_EVERY_S = 5.0


class Meter:
    """Counts and times the steps of one call of a loop, from step `step` of `steps`, each on a global batch of `batch`.

    headline: a line's words for the means since the line before.
    """

    def __init__(self, steps: int, batch: int, step: int, headline: Callable[[dict[str, float]], str]):
        self.last, self.batch, self.first, self.headline = steps, batch, step, headline
        self.steps = 0
        self.waited = 0.0  # seconds without a batch to work on
        self._away = 0.0  # seconds in saving and validation
        self._start = self._said = time.perf_counter()
        self._logged, self._shown = _Mean(), _Mean()

    def add(self, values: dict[str, float]) -> None:
        """What one more step measured, means over its global batch."""
        self.steps += 1
        self._logged.add(values)
        self._shown.add(values)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this block does not count as training."""
        start = time.perf_counter()
        yield
        self._away += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        return max(1e-9, time.perf_counter() - self._start - self._away)

    @property
    def images_per_s(self) -> float:
        return self.steps * self.batch / self.seconds

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        return self._logged.take()

    def speed(self) -> dict[str, float]:
        return {"train/images_per_s": self.images_per_s, "train/waiting_for_data": self.waited / self.seconds}

    def line(self, last: bool = False) -> str | None:
        """The progress line, about every five seconds and at the end; None in between."""
        now = time.perf_counter()
        if not last and now - self._said < SAY_EVERY_S:
            return None
        self._said = now
        step = self.first + self.steps
        left = (self.last - step) * self.batch / self.images_per_s
        speed = f"{self.images_per_s:.4g} images/s"
        return f"step {step}/{self.last}, {speed}, {self.headline(self._shown.take())}, {duration(left)} left"


class _Mean:
    """Running means by name."""

    def __init__(self) -> None:
        self.sums, self.count = Counter(), 0

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] += value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, and a fresh start."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = Counter(), 0
        return means


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"
