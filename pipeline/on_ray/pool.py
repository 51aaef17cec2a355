"""Workers that keep something heavy in memory, take blocks of work, and may die.

A block is a pure function of its arguments and of what the workers were made from. So it does not matter which worker does it,
how many there are, or whether it is done again: a lost worker is replaced and its block goes back to the others.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

TRIES = 3  # times a block is given to a worker that then dies, before it is taken for the cause
PROGRESS_S = 10.0
Log = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """A piece of work: a method of the worker and what it is given."""

    method: str
    given: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.method}({', '.join(str(value)[:40] for value in self.given)})"


class _Actor:
    """Holds a worker. It is made in `start`, so that its errors come back as errors and not as a dead actor."""

    def start(self, make: Callable[[], Any]) -> None:
        self.worker = make()

    def work(self, block: Block) -> Any:
        return getattr(self.worker, block.method)(*block.given)


class Pool:
    """`with Pool(make, workers=2) as pool: results = pool.run({"name": [Block(...), ...]})`."""

    def __init__(self, make: Callable[[], Any], *, workers: int, gpu: bool = False, log: Log = print) -> None:
        self.make, self.workers, self.log = make, workers, log
        self.kind = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=0)(_Actor)
        self.idle: list[Any] = []
        self.busy: dict[ray.ObjectRef, tuple[Any, tuple[str, int] | None]] = {}  # None: it is being started
        self.lost = 0

    def __enter__(self) -> Pool:
        for _ in range(self.workers):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            ray.kill(actor)
        self.idle, self.busy = [], {}

    def run(self, work: Mapping[str, Sequence[Block]]) -> dict[str, list[Any]]:
        """All results by name, in the order of their blocks. An error inside a block is raised as it is."""
        results: dict[str, list[Any]] = {name: [None] * len(blocks) for name, blocks in work.items()}
        waiting = deque((name, place) for name, blocks in work.items() for place in range(len(blocks)))
        tries: dict[tuple[str, int], int] = {}
        left, shown = len(waiting), time.monotonic()
        total = left
        while left:
            while waiting and self.idle:
                at, actor = waiting.popleft(), self.idle.pop()
                self.busy[actor.work.remote(work[at[0]][at[1]])] = actor, at
            ready, _ = ray.wait(list(self.busy), num_returns=1, timeout=PROGRESS_S)
            for reference in ready:
                actor, at = self.busy.pop(reference)
                try:
                    result = ray.get(reference)
                except (RayActorError, OutOfMemoryError) as error:
                    self._replace(error)
                    if at is not None:
                        tries[at] = tries.get(at, 0) + 1
                        if tries[at] == TRIES:
                            raise _given_up(f"{work[at[0]][at[1]]} ended {TRIES} workers", error) from error
                        waiting.appendleft(at)
                    continue
                except RayTaskError as error:
                    self.idle.append(actor)
                    if isinstance(error.cause, ValueError | OSError):  # of the input: one line is enough
                        raise error.cause from None
                    raise
                self.idle.append(actor)
                if at is not None:
                    results[at[0]][at[1]] = result
                    left -= 1
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                started = len(self.idle) + sum(at is not None for _, at in self.busy.values())
                self.log(
                    f"{total - left} of {total} blocks done" if started else "waiting for the first worker to start"
                )
        return results

    def _start(self) -> None:
        actor = self.kind.remote()
        self.busy[actor.start.remote(self.make)] = actor, None

    def _replace(self, error: RayActorError | OutOfMemoryError) -> None:
        self.lost += 1
        self.log(f"lost a worker ({loss(error)}): starting another")
        if self.lost > TRIES * self.workers:
            raise _given_up(f"lost {self.lost} workers", error) from error
        self._start()


def loss(error: RayError) -> str:
    """Why Ray lost a process, in one line; of a full memory it says fifty."""
    if isinstance(error, OutOfMemoryError):
        used = re.search(r"was (\S+) used / (\S+) limit", str(error))
        return "the memory of its machine was full" + (f", {used[1]} of {used[2]}" if used else "")
    return " ".join(str(error).split())[:120]


def _given_up(words: str, error: RayError) -> Exception:
    """A full memory is the user's to mend, and one line; what else ends workers again and again is a fault of ours."""
    if isinstance(error, OutOfMemoryError):
        return OSError(
            f"{words}: {loss(error)}; end other programs or ask for fewer workers, then type the command again"
        )
    return RuntimeError(f"{words}: see their logs")
