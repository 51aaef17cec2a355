"""The stream gives what the order says, from any step, for any number of ranks and threads, and always ends well."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.loading.lanes import Lanes
from pipeline.loading.stream import THREADS, ShardCache, ordered, stream
from pipeline.sample import Batch

UNEVEN = [
    [1, 2],
    [3],
    [1] * 9,
    [2, 2, 5],
    [4, 1, 1, 1],
    [5, 5, 5],
]  # 46 pairs in 6 shards: over 4 lanes, 5 batches of 8 and 6 left

pytestmark = [
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]


def open_stream(data, **change) -> Iterator[Batch]:
    return stream(data.manifest, data.vocabulary, **{"batch": 8, "lanes": 4, "seed": 3, "read": data.read, **change})


def take(batches: Iterator[Batch], n: int) -> list[Batch]:
    taken = list(itertools.islice(batches, n))
    batches.close()
    return taken


def rows(batch: Batch) -> list[tuple]:
    """What each row holds, without the padding, whose width depends on the other rows."""
    return [
        (key, image.numpy().tobytes(), tuple(words[keep].tolist()))
        for key, image, words, keep in zip(batch.keys, batch.images, batch.words, batch.keep, strict=True)
    ]


def written_down(data, order: Lanes, step: int) -> list[tuple]:
    """The rows of a global batch by the order and the data set's list of pairs."""
    pairs, starts = data.pairs(), np.cumsum([0, *(record.pairs for record in data.manifest.shards)])
    wanted = []
    for shard, pair in zip(*order.rows(step), strict=True):
        key, image, caption = pairs[starts[shard] + pair]
        pixels = (image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
        ids, keep = data.vocabulary.encode([caption])
        wanted.append((key, pixels.tobytes(), tuple(ids[keep].tolist())))
    return wanted


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while our_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not our_threads()


@pytest.mark.parametrize(
    "captions, size, channels",
    [(UNEVEN, 4, 1), ([[30] * 2], 6, 3), ([[1]] * 40, 4, 3)],
    ids=["uneven shards", "one shard, fewer than lanes", "one-sample shards"],
)
def test_batches_are_those_of_the_order(shelf, captions, size: int, channels: int) -> None:
    data = shelf(captions, size=size, channels=channels)
    order = Lanes([record.pairs for record in data.manifest.shards], batch=8, lanes=4, seed=3)
    for step, batch in enumerate(take(open_stream(data), 2 * order.steps + 1)):
        assert rows(batch) == written_down(data, order, step)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_global_batches_are_the_same_for_any_number_of_ranks_and_threads(shelf, ranks: int, threads: int) -> None:
    data = shelf(UNEVEN)

    def slow_read(record):
        time.sleep(random.random() / 500)  # so that threads finish in any order
        return data.read(record)

    expected = [rows(batch) for batch in take(open_stream(data), 12)]
    parts = [
        take(open_stream(data, rank=rank, ranks=ranks, threads=threads, read=slow_read, cache_mib=cache), 12)
        for rank, cache in zip(range(ranks), itertools.cycle([512, 0]))
    ]
    for step, whole in enumerate(expected):
        assert [rows(parts[row % ranks][step])[row // ranks] for row in range(8)] == whole


def test_a_stream_begun_at_a_step_goes_on_as_the_unbroken_one(shelf) -> None:
    data = shelf(UNEVEN)
    unbroken = [rows(batch) for batch in take(open_stream(data), 16)]  # three epochs of 5 batches and one more
    for step in range(16):
        assert [rows(batch) for batch in take(open_stream(data, step=step), 16 - step)] == unbroken[step:]


def test_starting_late_opens_no_more_shards_than_starting_early(shelf) -> None:
    data = shelf([[2] * 5] * 50)  # 500 pairs in 50 shards, 62 batches an epoch

    def opened(step: int) -> int:
        data.opened.clear()
        take(open_stream(data, step=step, ahead=1), 1)
        return len(data.opened)

    for step in (0, 30, 61, 62, 10**12):
        assert opened(step) <= 2 * 4, "a lane's two pairs are in one shard, or at the border of two"


def test_an_epoch_has_no_pair_twice_and_says_what_it_leaves_out(shelf) -> None:
    data, lines = shelf(UNEVEN), []
    batches = take(open_stream(data, step=3, log=lines.append), 12)  # 2 of epoch 0, 5 of 1, 5 of 2
    for epoch in (batches[2:7], batches[7:12]):
        seen = Counter((key, words) for batch in epoch for key, _, words in rows(batch))
        assert max(seen.values()) == 1 and sum(seen.values()) == 40
    assert lines == [
        f"train epoch {epoch} from batch {place} of 5: 46 pairs, 6 of them left out this time, they do not fill a batch of 8"
        for epoch, place in ((0, 3), (1, 0), (2, 0))
    ]


def test_later_epochs_come_from_memory_and_threads_share_the_decoding(shelf) -> None:
    data = shelf([[2] * 5] * 12)
    take(open_stream(data, threads=4), 45)  # 3 epochs
    assert Counter(data.opened) == {record.name: 1 for record in data.manifest.shards}


def test_memory_is_the_cache_and_one_shard_a_thread(shelf) -> None:
    data = shelf([[2] * 5] * 30, size=40)  # 8 kB of pixels a shard
    alive: set[int] = set()
    most = 0

    def read(record):
        nonlocal most
        shard, number = data.read(record), len(data.opened)
        alive.add(number)
        weakref.finalize(shard.images, alive.discard, number)
        most = max(most, len(alive))
        return shard

    take(open_stream(data, lanes=8, threads=2, read=read, cache_mib=5 * 9 / 1024), 60)
    assert len(data.opened) > 100, "the cache is too small on purpose"
    assert 3 <= most <= 5 + 2 + 2  # kept, being used, being decoded
    assert not alive


def test_a_cache_too_small_for_the_open_shards_is_mentioned(shelf) -> None:
    data, lines = shelf([[2] * 5] * 30, size=40), []
    take(open_stream(data, cache_mib=0.01, log=lines.append), 1)
    assert "0.01 are kept in memory" in lines[0] and "epoch 0" in lines[1]


def test_a_cache_of_nothing_still_keeps_the_last_shard() -> None:
    class Opened:
        bytes = 10

    cache = ShardCache(lambda shard: Opened(), limit=0)
    first = cache.any_of({1})
    assert cache.any_of({1, 2}) == first, "what is there comes first"
    assert cache.any_of({2})[0] == 2 and list(cache.kept) == [2] and cache.bytes == 10


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    class Opened:
        bytes = 10

    cache = ShardCache(lambda shard: Opened(), limit=30)
    for shard in (1, 2, 3, 1, 4):
        cache.any_of({shard})
    assert sorted(cache.kept) == [1, 3, 4]


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("not a PNG"), "train-00003.tar: not a PNG"),
        (FileNotFoundError(2, "gone", "/data/train-00003.tar"), "/data/train-00003.tar"),
        (OSError("connection lost"), "train-00003.tar: connection lost"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "train-00003.tar: 'utf-8' codec"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("threads", [1, 4])
def test_an_unreadable_shard_ends_the_stream_at_the_batch_that_needs_it_and_is_named(
    shelf, error, expected: str, threads: int
) -> None:
    data = shelf(UNEVEN)
    order = Lanes([record.pairs for record in data.manifest.shards], batch=8, lanes=4, seed=3)
    needs = next(step for step in itertools.count() if 3 in order.rows(step)[0])

    def read(record):
        if record.name == "train-00003.tar":
            raise error
        return data.read(record)

    batches = open_stream(data, read=read, threads=threads)
    for step in range(needs):
        assert rows(next(batches)) == written_down(data, order, step)
    with pytest.raises((ValueError, OSError), match=expected):
        next(batches)
    assert not our_threads()
    assert next(batches, None) is None


def test_a_programming_error_keeps_its_type_and_tells_the_shard(shelf) -> None:
    def read(record):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug") as caught:
        next(open_stream(shelf(UNEVEN), read=read))
    assert caught.value.__notes__[0].startswith("while opening train-0000")


def test_closing_or_dropping_a_stream_ends_its_threads(shelf) -> None:
    data = shelf(UNEVEN)
    for end in (lambda batches: batches.close(), lambda batches: None):
        batches = open_stream(data, threads=3)
        next(batches)
        assert our_threads()
        end(batches)
        del batches
        gc.collect()
        assert not our_threads()


def test_closing_waits_for_the_shards_being_decoded_and_begins_no_other(shelf) -> None:
    data = shelf([[2] * 5] * 30)
    order = Lanes([record.pairs for record in data.manifest.shards], batch=8, lanes=4, seed=3)
    first = {data.manifest.shards[shard].name for shard in order.rows(0)[0]}
    reading, go, closed = threading.Semaphore(0), threading.Event(), threading.Event()

    def read(record):
        if record.name not in first:
            reading.release()
            assert go.wait(20)
        return data.read(record)

    batches = open_stream(data, read=read, threads=2, ahead=20)
    next(batches)
    for _ in range(2):
        assert reading.acquire(timeout=20)  # both threads are inside a read
    before = len(data.opened)
    closing = threading.Thread(target=lambda: (batches.close(), closed.set()))
    closing.start()
    assert not closed.wait(0.3)
    go.set()
    assert closed.wait(20)
    assert len(data.opened) == before + 2


def test_a_stream_in_a_reference_cycle_is_collected_by_whoever_comes_by(shelf) -> None:
    """Also by one of its own threads, which must not wait for itself."""
    data = shelf(UNEVEN)

    def read(record):
        gc.collect()
        return data.read(record)

    for _ in range(3):
        batches = open_stream(data, read=read, threads=2, cache_mib=0)
        next(batches)
        cycle = [batches]
        cycle.append(cycle)
        del batches, cycle
        time.sleep(0.02)


def test_a_process_that_ends_in_mid_stream_ends(project_root: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.path.insert(0, {str(project_root)!r})
from pipeline.loading.stream import stream
Shelf = runpy.run_path({str(Path(__file__).with_name("conftest.py"))!r})["Shelf"]
data = Shelf([[2] * 5] * 30)
batches = stream(data.manifest, data.vocabulary, batch=8, lanes=4, seed=0, threads=2, read=data.read)
print(len(next(batches)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_two_streams_at_once_do_not_mix(shelf) -> None:
    data, other = shelf(UNEVEN), shelf([[3] * 8] * 3, size=6)
    pairs = zip(open_stream(data), open_stream(other, seed=9), strict=False)
    both = list(itertools.islice(pairs, 10))
    assert [rows(a) for a, _ in both] == [rows(batch) for batch in take(open_stream(data), 10)]
    assert [rows(b) for _, b in both] == [rows(batch) for batch in take(open_stream(other, seed=9), 10)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "test"}, "nowhere has no 'test' shards; it has train"),
        ({"batch": 48}, "46 pairs do not fill a batch of 48 over 4 lanes"),
        ({"batch": 9, "ranks": 2}, "does not divide among 2 ranks"),
        ({"rank": 1}, "rank 1 of 1"),
        ({"step": -1}, "not at -1"),
        ({"threads": 0}, "0 threads"),
        ({"ahead": 0}, "0 batches ahead"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_the_first_batch(shelf, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(shelf(UNEVEN), **change)


# evaluation


def open_ordered(data, **change) -> Iterator[Batch]:
    options = {"split": "train", "batch": 4, "read": data.read, **change}
    return ordered(data.manifest, data.vocabulary, options.pop("split"), **options)


@pytest.mark.parametrize("threads", [1, 3])
def test_evaluation_reads_everything_once_in_order_and_the_last_batch_is_what_is_left(shelf, threads) -> None:
    data = shelf(UNEVEN)
    everything = list({key: (key, im, text) for key, im, text in reversed(data.pairs())}.values())  # the first captions
    everything.sort(key=lambda pair: pair[0])
    batches = list(open_ordered(data, threads=threads))
    assert [len(batch) for batch in batches] == [4] * (len(everything) // 4) + [len(everything) % 4]
    read = [row for batch in batches for row in rows(batch)]
    ids, keep = data.vocabulary.encode([text for _, _, text in everything])
    for row, (key, image, _), words, real in zip(read, everything, ids, keep, strict=True):
        assert row[0] == key and row[2] == tuple(words[real].tolist())
        assert row[1] == (image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32).tobytes()
    assert Counter(data.opened) == {record.name: 1 for record in data.manifest.shards if record.samples}


def test_workers_share_a_split_by_start_and_limit_and_open_their_own_shards_only(shelf) -> None:
    data = shelf([[2] * 6] * 5)
    whole = [row for batch in open_ordered(data) for row in rows(batch)]
    data.opened.clear()
    part = [row for batch in open_ordered(data, start=7, limit=10) for row in rows(batch)]
    assert part == whole[7:17]
    assert data.opened == ["train-00001.tar", "train-00002.tar"]
    assert [row for batch in open_ordered(data, start=25) for row in rows(batch)] == whole[25:]
    assert list(open_ordered(data, start=60)) == []
    assert sum(map(len, open_ordered(data, limit=10**6))) == len(whole)


def test_evaluation_batches_carry_sentence_vectors_of_their_captions(shelf) -> None:
    data = shelf(UNEVEN)
    batches = open_ordered(data, sentences=lambda texts: np.array([[len(t), 1] for t in texts], np.float32))
    lengths = torch.cat([batch.sentence for batch in batches])
    firsts = {key: text for key, _, text in reversed(data.pairs())}
    assert lengths.tolist() == [[len(firsts[key]), 1] for key in sorted(firsts)]


@pytest.mark.parametrize("change", [{"batch": 0}, {"start": -1}, {"limit": -1}, {"threads": 0}, {"split": "val"}])
def test_an_evaluation_that_cannot_be_read_is_refused(shelf, change: dict) -> None:
    with pytest.raises(ValueError):
        open_ordered(shelf(UNEVEN), **change)
