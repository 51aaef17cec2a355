"""What every source of captioned images gives: a plan of shards, and the samples of one of them.

First station of the flow: sources -> shards. A source is opened once, in the job, where all errors about the data as a whole
are raised as one line. It then travels to the tasks, small: pickled, it leaves its plan behind, and each task gets one
`ShardPlan`. Samples are a pure function of (config, source bytes, plan), so who reads them, when and where does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from pyarrow import fs

from pipeline import storage
from pipeline.sample import Rejected, Sample, ShardPlan


class Source(Protocol):
    digest: str  # sha256 of everything that determines the samples, besides the config
    facts: dict[str, Any]  # JSON: what was drawn or decided once for the whole data set, e.g. held-out combinations
    plan: tuple[ShardPlan, ...]  # fixed by config and source bytes

    def read(self, plan: ShardPlan) -> Iterator[Sample | Rejected]:
        """One item for each input of the plan, in order."""


def check_folder(data: str | None, source: str, wanted: str) -> None:
    """ValueError unless `data` is a folder; `wanted` says what must be in it, and what to do where it is not."""
    if not data:
        raise ValueError(f"{source} needs --data, {wanted}; none was given")
    filesystem, name = storage.resolve(data)
    kind = filesystem.get_file_info(name).type
    if kind == fs.FileType.NotFound:
        raise ValueError(f"--data {data} does not exist: check the path; {source} needs {wanted}")
    if kind == fs.FileType.File:
        raise ValueError(f"--data {data} is a file: give the folder that holds it; {source} needs {wanted}")


def contents(folder: str) -> str:
    """What a folder holds, for messages."""
    names = storage.listing(folder)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "nothing"


def cut_into_shards(split: str, count: int, samples_per_shard: int, rows: tuple[Any, ...] = ()) -> list[ShardPlan]:
    """Plans for a split of `count` inputs; all but the last hold samples_per_shard."""
    starts = range(0, count, samples_per_shard)
    digits = max(5, len(str(len(starts) - 1)))  # names sort as numbers do
    plans = []
    for number, start in enumerate(starts):
        stop = min(start + samples_per_shard, count)
        plans.append(ShardPlan(f"{split}-{number:0{digits}d}", split, start, stop, rows[start:stop]))
    return plans


def random_words(purpose: str, seed: int, start: int, rows: int, width: int) -> np.ndarray:
    """(rows, width) uint64, rows start, start + 1, ... of an endless table named by (purpose, seed); width is a multiple of 4.

    Philox is a function of a counter, so a row costs the same wherever it lies and does not depend on how the table is
    cut into shards. Raw words are used because NumPy guarantees them to stay as they are between its versions.
    """
    assert width % 4 == 0, width  # Philox makes 4 words for each value of its counter
    key = int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:16], "little")
    return np.random.Philox(key=key, counter=start * width // 4).random_raw(rows * width).reshape(rows, width)


def below(words: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """uint64 words -> int64 uniform in 0 <= i < limit (limit below 2^32)."""
    return ((words >> np.uint64(32)) * np.asarray(limit, np.uint64) >> np.uint64(32)).astype(np.int64)


def shuffled(purpose: str, seed: int, count: int) -> np.ndarray:
    """A permutation of range(count), a function of (purpose, seed, count)."""
    return np.argsort(random_words(purpose, seed, 0, -(-count // 4), 4).ravel()[:count], kind="stable")
