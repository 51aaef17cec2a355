"""Shards -> batches: the endless training stream, started at any step, and the ordered reading of a split for evaluation.

Threads prepare the next batches while the caller uses one. A batch takes its rows from shards that are decoded once and
kept, so where a split fits `cache_mib` every epoch after the first is a gather from memory. Memory is bounded by
cache_mib, one shard a thread and the batches read ahead. Which rows a batch has is decided in lanes.py alone: threads,
cache and timing change when a batch is ready, never what is in it.

WebDataset's own reader loads the same tars (a test shows it), but it decodes sample by sample, splits shards among ranks
as they come, so ranks differ in length, and finds its place again by reading from the start.

Choice: captions of every length are trained on (`train.words` may cut them); the authors leave out those of under 7 and of 30 or more words.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from pipeline import storage
from pipeline.loading.batching import Draft, OpenShard, Sentences, open_shard
from pipeline.loading.lanes import Lanes, check_ranks
from pipeline.sample import Batch, Manifest, ShardRecord
from pipeline.shards.members import DecodedShard, read_shard

if TYPE_CHECKING:
    from pipeline.text.vocabulary import Vocabulary

Read = Callable[[ShardRecord], DecodedShard]
Rows = tuple[np.ndarray, np.ndarray]  # shard (b,) and pair of it (b,) of each row of a batch
THREADS = "loading"  # how our threads are called
MIB = 2**20


def stream(
    manifest: Manifest,
    vocabulary: Vocabulary,
    split: str = "train",
    *,
    batch: int,
    lanes: int,
    seed: int,
    step: int = 0,
    rank: int = 0,
    ranks: int = 1,
    words: int = 0,
    threads: int = 1,
    ahead: int = 8,
    cache_mib: float = 512,
    sentences: Sentences | None = None,
    pin: bool = False,
    log: Callable[[str], None] | None = None,
    read: Read | None = None,
) -> Iterator[Batch]:
    """This rank's rows of global batch `step`, `step + 1`, ... without end; row j is row rank + j * ranks of the batch.

    batch: rows of a global batch. words: width of the captions, 0: the longest of these rows. ahead: batches prepared in
    advance. sentences: captions -> (n, S) sentence vectors. pin: page-locked memory, for a GPU. log: takes a line at the
    start of each epoch. read: decodes the shard of a record. Closing the iterator, or dropping it, ends its threads.
    """
    records = _records(manifest, split)
    check_ranks(batch, lanes, rank, ranks)
    order = Lanes([record.pairs for record in records], batch=batch, lanes=lanes, seed=seed)
    if step < 0:
        raise ValueError(f"training starts at step 0 or later, not at {step}")
    shard_bytes = max(record.samples for record in records) * manifest.size**2 * manifest.channels
    open_mib = min(lanes // ranks, len(records)) * shard_bytes / MIB
    if log and open_mib > cache_mib:
        log(
            f"{open_mib:.3g} MiB of shards are in use at once, {cache_mib:g} are kept in memory: they are decoded again and "
            "again; lower train.lanes"
        )
    reader = _Reader(manifest, records, vocabulary, words, False, cache_mib, sentences, pin, read)
    rows = (order.rows(one, rank, ranks) for one in count(step))
    return _logged(reader.batches(rows, threads, ahead), order, split, step, log)


def ordered(
    manifest: Manifest,
    vocabulary: Vocabulary,
    split: str,
    *,
    batch: int,
    start: int = 0,
    limit: int = 0,
    words: int = 0,
    threads: int = 1,
    ahead: int = 4,
    cache_mib: float = 64,
    sentences: Sentences | None = None,
    pin: bool = False,
    read: Read | None = None,
) -> Iterator[Batch]:
    """Each image of a split once, with its first caption, in the order of the manifest; the last batch has what is left.

    start, limit: only rows start ... start + limit - 1 (limit 0: to the end), so that workers share a split; no shard outside
    of them is opened. The rest as in `stream`.
    """
    records = _records(manifest, split)
    if batch < 1 or start < 0 or limit < 0:
        raise ValueError(f"batch {batch}, start {start} and limit {limit}: at least 1, 0 and 0 are allowed")
    ends = np.cumsum([record.samples for record in records])
    stop = min(int(ends[-1]), start + limit) if limit else int(ends[-1])

    def rows(first: int) -> Rows:
        place = np.arange(first, min(first + batch, stop))
        shard = np.searchsorted(ends, place, side="right")
        return shard, place - np.concatenate([[0], ends])[shard]

    reader = _Reader(manifest, records, vocabulary, words, True, cache_mib, sentences, pin, read)
    return reader.batches(map(rows, range(start, stop, batch)), threads, ahead)


def _records(manifest: Manifest, split: str) -> tuple[ShardRecord, ...]:
    if not (records := manifest.split(split)):
        known = sorted({shard.split for shard in manifest.shards})
        raise ValueError(f"{manifest.folder} has no {split!r} shards; it has {', '.join(known) or 'none at all'}")
    return records


def _logged(
    batches: Iterator[Batch], order: Lanes, split: str, step: int, log: Callable[[str], None] | None
) -> Iterator[Batch]:
    """The same batches, with a line as each epoch begins."""
    with contextlib.closing(batches):
        for now, batch in zip(count(step), batches, strict=False):
            epoch, place = divmod(now, order.steps)
            if log and (now == step or place == 0):
                log(
                    f"{split} epoch {epoch} from batch {place} of {order.steps}: {order.pairs} pairs, "
                    f"{order.left_out} of them left out this time, they do not fill a batch of {order.batch}"
                )
            yield batch


def _read(manifest: Manifest, record: ShardRecord) -> DecodedShard:
    path = storage.join(manifest.folder, record.name)
    return read_shard(path, record, shape=(manifest.size, manifest.size, manifest.channels))


class _Reader:
    """What is needed to make a batch from its rows."""

    def __init__(
        self,
        manifest: Manifest,
        records: tuple[ShardRecord, ...],
        vocabulary: Vocabulary,
        words: int,
        first: bool,  # a sample's first caption only
        cache_mib: float,
        sentences: Sentences | None,
        pin: bool,
        read: Read | None,
    ) -> None:
        self.records, self.vocabulary, self.words, self.first = records, vocabulary, words, first
        self.sentences, self.pin = sentences, pin
        self.read = read or partial(_read, manifest)
        self.cache = ShardCache(self.open, int(cache_mib * MIB))

    def open(self, shard: int) -> OpenShard:
        """Read and decode a shard; an error names it."""
        record = self.records[shard]
        try:
            options = {"words": self.words, "first": self.first, "texts": self.sentences is not None}
            return open_shard(self.read(record), record, self.vocabulary, **options)
        except (ValueError, OSError) as error:
            if record.name in str(error):
                raise
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(f"{record.name}: {error}") from error
        except Exception as error:
            error.add_note(f"while opening {record.name}")
            raise

    def batch(self, rows: Rows) -> Batch:
        shard, pair = rows
        draft, missing = Draft(len(shard)), set(shard.tolist())
        while missing:
            one, opened = self.cache.any_of(missing)
            mine = np.flatnonzero(shard == one)
            draft.take(mine, opened, pair[mine])
            missing.remove(one)
        return draft.batch(words=self.words, sentences=self.sentences, pin=self.pin)

    def batches(self, plan: Iterable[Rows], threads: int, ahead: int) -> Iterator[Batch]:
        """The batches of a plan in its order, up to `ahead` of them made in advance. An error comes where its batch would."""
        if threads < 1 or ahead < 1:
            raise ValueError(f"{threads} threads read {ahead} batches ahead: at least 1 of each is needed")
        return self._batches(plan, threads, max(ahead, threads))

    def _batches(self, plan: Iterable[Rows], threads: int, ahead: int) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(threads, thread_name_prefix=THREADS)
        made: deque[Future[Batch]] = deque()
        try:
            for rows in plan:
                made.append(pool.submit(self.batch, rows))
                if len(made) == ahead:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            self.cache.stop()
            # A forgotten stream may be collected by one of its own threads, which cannot wait for itself.
            ours = threading.current_thread().name.startswith(THREADS)
            pool.shutdown(wait=not ours, cancel_futures=True)


class ShardCache:
    """Decoded shards by number, the most recently used ones up to a number of bytes, shared by threads.

    The last one is kept whatever its size. No shard is decoded by two threads at a time.
    """

    def __init__(self, open_one: Callable[[int], OpenShard], limit: int) -> None:
        self.open_one, self.limit, self.bytes = open_one, limit, 0
        self.kept: OrderedDict[int, OpenShard] = OrderedDict()
        self.opening: set[int] = set()
        self.stopped = False
        self.changed = threading.Condition()

    def any_of(self, wanted: Set[int]) -> tuple[int, OpenShard]:
        """One of the wanted shards, the first to be had: one that is kept, else one that nobody is decoding.

        So threads whose batches need the same shards share the decoding, and wait only for what is being decoded.
        """
        with self.changed:
            while True:
                if self.stopped:
                    raise CancelledError
                if (shard := next((one for one in wanted if one in self.kept), None)) is not None:
                    self.kept.move_to_end(shard)
                    return shard, self.kept[shard]
                if (shard := next((one for one in wanted if one not in self.opening), None)) is not None:
                    self.opening.add(shard)
                    break
                self.changed.wait()
        try:
            opened = self.open_one(shard)
            self._keep(shard, opened)
            return shard, opened
        finally:
            with self.changed:
                self.opening.remove(shard)
                self.changed.notify_all()

    def _keep(self, shard: int, opened: OpenShard) -> None:
        with self.changed:
            if self.stopped:
                return
            self.kept[shard] = opened
            self.bytes += opened.bytes
            while self.bytes > self.limit and len(self.kept) > 1:
                self.bytes -= self.kept.popitem(last=False)[1].bytes

    def stop(self) -> None:
        """Forget all shards. Threads that ask for one get CancelledError, so closing waits for those being decoded only."""
        with self.changed:
            self.stopped = True
            self.kept.clear()
            self.changed.notify_all()
