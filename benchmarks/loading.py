"""How fast one process reads training batches, cold and from memory, beside the floor of each.

    python -m benchmarks.loading [--samples 8192] [--repeats 5]

Shards of 512 random images (stored PNGs, so content does not matter) are written to a temporary folder: 32x32x3 with five
captions an image as COCO has them, 60x60x1 with one. Batch 100, 20 lanes, 512 MiB of cache. Each row is the median over
repeats that alternate between the rows, in samples per second: of wall time, and of CPU time over all threads, which
says more on a machine that others use too. A sample is a row of a batch: image and caption.

    floor, decode   read_shard: file, sha256, tar, PNG, json; images, each once
    cold, images    ordered: every image once with its first caption; nothing was decoded before
    cold, epoch     stream: the first epoch, every pair once
    floor, memcpy   gather of 100 random images from one array, uint8 to float32, transposed, nothing else
    cached, epoch   stream: the second epoch

Seen on 2 cores of a Xeon in November 2026, 7 repeats, samples per CPU second with 1 thread (others used the machine too:
wall time was twice the CPU time):

                    32x32x3   60x60x1
    floor, decode    43,800    42,100
    cold, images     22,700    24,000
    cold, epoch      45,200    22,500
    floor, memcpy   467,000   653,500
    cached, epoch   135,200   153,300

Cold, what is not decoding or batching is splitting captions into words, 10 us each. Cached, it is the work for each row in
Python (its key and its words) and copying 20 small groups of rows instead of one large one. To the rows of a step far
ahead: 3 ms for 83,000 images, 13 ms for 100,000 shards.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.loading.lanes import Lanes
from pipeline.loading.stream import ordered, stream
from pipeline.sample import Manifest, Sample, ShardPlan
from pipeline.shards.members import read_shard
from pipeline.shards.write import write_shard
from pipeline.text.vocabulary import Vocabulary

SHARD = 512  # samples
ORDER = {"batch": 100, "lanes": 20, "seed": 0}
WORDS = [f"word{number}" for number in range(5000)]


class Random:
    """Random images with captions of 8 to 14 words."""

    def __init__(self, size: int, channels: int, captions: int) -> None:
        self.size, self.channels, self.captions = size, channels, captions

    def read(self, plan: ShardPlan) -> Iterator[Sample]:
        random = np.random.default_rng(plan.start)
        images = random.integers(0, 256, (len(plan), self.size, self.size, self.channels), dtype=np.uint8)
        for number, image in zip(range(plan.start, plan.stop), images, strict=True):
            texts = (" ".join(random.choice(WORDS, random.integers(7, 14))) + "." for _ in range(self.captions))
            yield Sample(f"{number:09}", image, tuple(texts), f"random {number}", "train")


def written(folder: str, samples: int, size: int, channels: int, captions: int) -> Manifest:
    source = Random(size, channels, captions)
    plans = [ShardPlan(f"train-{at // SHARD:05}", "train", at, at + SHARD) for at in range(0, samples, SHARD)]
    records = tuple(write_shard(folder, plan, source).record for plan in plans)
    return Manifest(folder, records, size, channels, digest="")


def measure(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple[float, float]]:
    """Samples per second of wall and of CPU time, medians over repeats; a way returns the samples it went through."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            samples = way()
            rates[name].append((samples / (time.perf_counter() - wall), samples / (time.process_time() - cpu)))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in rates.items()}


def ways_to_read(manifest: Manifest, vocabulary: Vocabulary, threads: int) -> dict[str, Callable[[], int]]:
    steps = Lanes([record.pairs for record in manifest.shards], **ORDER).steps
    shape = (manifest.size, manifest.size, manifest.channels)
    everything = np.zeros((sum(record.samples for record in manifest.shards), *shape), np.uint8)
    endless = stream(manifest, vocabulary, **ORDER, threads=threads)
    for _ in itertools.islice(endless, steps):
        pass  # from here on it is cached

    def decode() -> int:
        return sum(len(read_shard(f"{manifest.folder}/{one.name}", one, shape=shape)) for one in manifest.shards)

    def memcpy() -> int:
        for _ in range(200):
            rows = everything[np.random.randint(len(everything), size=100)]
            np.divide(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)), np.float32(255))
        return 200 * 100

    def cold_images() -> int:
        return sum(map(len, ordered(manifest, vocabulary, "train", batch=100, threads=threads)))

    def cold_epoch() -> int:
        return sum(map(len, itertools.islice(stream(manifest, vocabulary, **ORDER, threads=threads), steps)))

    def cached_epoch() -> int:
        return sum(map(len, itertools.islice(endless, steps)))

    return {
        "floor, decode": decode,
        "cold, images": cold_images,
        "cold, epoch": cold_epoch,
        "floor, memcpy": memcpy,
        "cached, epoch": cached_epoch,
    }


def seek_ms(shards: int) -> float:
    """Time to the rows of a batch far into training, over shards of 512 images with 5 captions."""
    Lanes([1], batch=1, lanes=1, seed=0).rows(0)  # NumPy imports its random part on first use
    start = time.perf_counter()
    Lanes([5 * SHARD] * shards, **ORDER).rows(10**7)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8192, help="images of each data set")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for size, channels, captions in ((32, 3, 5), (60, 1, 1)):
        with tempfile.TemporaryDirectory() as folder:
            manifest = written(folder, options.samples, size, channels, captions)
            for threads in (1, 2):
                rates = measure(ways_to_read(manifest, Vocabulary.build(WORDS), threads), options.repeats)
                print(
                    f"\n{size}x{size}x{channels}, {captions} captions, {threads} threads   samples/s   per CPU second"
                )
                for name, (wall, cpu) in rates.items():
                    print(f"  {name:<32}{wall:>18,.0f}{cpu:>17,.0f}")
    print(
        f"\nto a step far ahead: {seek_ms(163):.1f} ms for 83,000 images, {seek_ms(100_000):.1f} ms for 100,000 shards"
    )


if __name__ == "__main__":
    main()
