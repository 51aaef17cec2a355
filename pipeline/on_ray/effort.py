"""What training cost: seconds, and processor seconds of all workers, up to the last checkpoint and kept beside it.

Systems are compared at equal compute, so a table that compares them has to say what they had. Steps that were lost with a
worker and done again count once; validation and the reading of shards count, the start of Ray and of the workers does not.
"""

from __future__ import annotations

import json
import time

from pipeline import storage
from pipeline.training.ranks import Ranks

EFFORT = "effort.json"


class Effort:
    """The cost of one stage's training, over its interruptions."""

    def __init__(self, folder: str, step: int, ranks: Ranks) -> None:
        """folder: of the stage; step: from which it goes on, 0: nothing was done before."""
        self._path, self._ranks = storage.join(folder, EFFORT), ranks
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}
        if step and storage.exists(self._path):
            self.spent = json.loads(storage.read_text(self._path))
        self._began = self._now()

    def keep(self) -> None:
        """Add what was spent since the last call; every rank calls it, after a checkpoint."""
        now = self._now()
        mine = [end - begin for begin, end in zip(self._began, now, strict=True)]
        everywhere, self._began = self._ranks.gather(mine), now
        self.spent["seconds"] += max(seconds for seconds, _ in everywhere)
        self.spent["cpu_seconds"] += sum(cpu_seconds for _, cpu_seconds in everywhere)
        if self._ranks.first:
            storage.publish_text(self._path, json.dumps(self.spent))

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()
