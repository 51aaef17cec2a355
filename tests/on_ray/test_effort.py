"""What training cost is the sum over its parts, and lost work counts once: with clocks that the test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.on_ray import effort as module
from pipeline.on_ray.effort import Effort
from pipeline.on_ray.train import train_worker
from pipeline.training.ranks import ALONE
from tests.on_ray.test_lapgan import order_of
from tests.processes import run_ranks


class Clock:
    """Wall clock at `wall`, processor clock at half of it."""

    def __init__(self) -> None:
        self.wall = 100.0

    def monotonic(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.wall / 2


def test_a_lost_part_counts_once_and_a_new_training_from_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    first = Effort(str(tmp_path), 0, ALONE)
    clock.wall += 10
    first.keep()
    clock.wall += 6
    first.keep()
    clock.wall += 50  # never kept: the worker dies, and its successor starts much later
    second = Effort(str(tmp_path), 7, ALONE)
    clock.wall += 4
    second.keep()
    assert second.spent == {"seconds": 20, "cpu_seconds": 10}
    assert Effort(str(tmp_path), 0, ALONE).spent == {"seconds": 0, "cpu_seconds": 0}


def test_the_longest_rank_is_the_time_and_all_ranks_are_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    class Three:
        first = True

        def gather(self, mine: list[float]) -> list[list[float]]:
            return [mine, [3.0, 2.5], [9.0, 4.0]]

    monkeypatch.setattr(module, "time", clock)
    effort = Effort(str(tmp_path), 0, Three())
    clock.wall += 4
    effort.keep()
    assert effort.spent == {"seconds": 9, "cpu_seconds": 8.5}


def test_training_says_what_it_cost_over_its_interruptions(dataset: str, tmp_path: Path) -> None:
    spent = []
    for steps in (4, 6, 6):
        results = run_ranks(2, train_worker, order_of(tmp_path, dataset, steps))
        assert results[0]["cpu_seconds"] == results[1]["cpu_seconds"] and results[0]["parameters"] > 1_000
        spent.append((results[0]["seconds"], results[0]["cpu_seconds"]))
    assert spent[0] < spent[1] == spent[2] and spent[0] > (0, 0)
