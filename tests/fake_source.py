"""A source of noise images whose troubles are files in a folder, so that tests can make and mend them while tasks run."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.sample import Rejected, Sample, ShardPlan

WORDS = "a red green dog cat sits on the grass , two one and Ünïcode".split()


class FakeSource:
    """Shards of `per_shard` inputs of size x size x channels; every input is a function of its split and position."""

    facts = {"made": "up"}

    def __init__(
        self,
        folder: str | Path,
        shards: dict[str, int] | None = None,
        per_shard: int = 7,
        size: int = 8,
        channels: int = 1,
    ) -> None:
        self.folder, self.per_shard, self.size, self.channels = str(folder), per_shard, size, channels
        self.plan = tuple(
            ShardPlan(f"{split}-{i:05}", split, i * per_shard, (i + 1) * per_shard - (i == 0))
            for split, count in (shards or {"train": 3, "val": 1, "test": 1}).items()
            for i in range(count)
        )
        self.digest = hashlib.sha256(b"fake").hexdigest()
        Path(folder).mkdir(parents=True, exist_ok=True)

    def trouble(self, kind: str, place: str) -> Path:
        """The file that makes trouble of a kind at a key or in a shard."""
        return Path(self.folder, f"{kind}.{place}")

    def calls(self) -> list[str]:
        """Keys in the order in which they were read, by all processes."""
        path = Path(self.folder, "calls")
        return path.read_text().split() if path.exists() else []

    def starts(self) -> list[str]:
        """Names of shards in the order in which a process began to read them."""
        path = Path(self.folder, "starts")
        return path.read_text().split() if path.exists() else []

    def forget_calls(self) -> None:
        Path(self.folder, "calls").unlink(missing_ok=True)
        Path(self.folder, "starts").unlink(missing_ok=True)

    def read(self, plan: ShardPlan) -> Iterator[Sample | Rejected]:
        with open(Path(self.folder, "starts"), "a") as log:
            log.write(f"{plan.name}\n")
        if self.trouble("slow", plan.name).exists():
            time.sleep(float(self.trouble("slow", plan.name).read_text()))
        if self.trouble("broken", plan.name).exists():
            raise OSError(5, "the disk makes noises")
        if self.trouble("full", plan.name).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.trouble("wrong", plan.name).exists():
            raise TypeError("a mistake in the program")
        for number in range(plan.start, plan.stop):
            key = f"{plan.split}-{number:06}"
            with open(Path(self.folder, "calls"), "a") as log:  # short appends are whole
                log.write(f"{key}\n")
            if self.trouble("killed", key).exists():
                self.trouble("killed", key).unlink()  # once
                os.kill(os.getpid(), signal.SIGKILL)
            yield self.item(plan.split, number, key)

    def item(self, split: str, number: int, key: str) -> Sample | Rejected:
        random = np.random.default_rng((number, len(split)))
        texts = tuple(" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(random.integers(1, 5)))
        if self.trouble("rejected", key).exists():
            return Rejected(key, f"{key}.jpg", split, self.trouble("rejected", key).read_text(), texts, 640, 480)
        image = random.integers(0, 256, (self.size, self.size, self.channels), dtype=np.uint8)
        return Sample(key, image, texts, f"{key}.jpg", split, (640, 480 + number))

    def samples(self, plan: ShardPlan) -> list[Sample | Rejected]:
        """What `read` gives, without troubles and traces."""
        numbers = range(plan.start, plan.stop)
        return [self.item(plan.split, number, f"{plan.split}-{number:06}") for number in numbers]
