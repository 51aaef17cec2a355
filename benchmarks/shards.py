"""How fast shards are written and read, each figure beside the floors below it; memory at ten times the data; 100,000 shards.

    OMP_NUM_THREADS=1 python -m benchmarks.shards --mnist DATA/mnist --coco DATA/coco [--shards 20] [--tasks 100000]

Seen on 2 quiet cores of a Xeon, 2026-11-22, medians of 7. Samples per CPU second (the last two rows: of wall time, with the
start of a shard and the disk in it):

                                             MNIST captions 60x60x1    COCO photographs to 32x32x3
    floor: source alone (draw, or decode)                   119,700                            547
    floor: sha256 alone                                     213,700                        365,700
    floor: write files alone                                670,000                        204,200
    png, json and tar in memory                             104,300                        115,400
    write_shard without the source                           63,400                         23,400
    write_shard, source to closed tar                        42,700                            537
    write_shard, 1 process, wall                             32,100                            479
    write_shard, 2 processes, wall                           60,100 (1.88 times)               932 (1.95 times)

A sample of MNIST captions takes 23 us: 8 to draw, 8 for PNG, JSON and headers (2 of them are the checksums that PNG
demands), 3 to 5 for sha256, 2 to hand 5.6 KB to the kernel, the rest for the record. Compressed pixels would save half
of what depends on bytes and cost 25 us more.

                                  32x32x3   60x60x1
    floor: read files and sha256  298,500   285,500
    read_shard                     58,800    56,700
    read_shard, verify=False       69,600    68,000
    WebDataset + cv2.imdecode      19,000    18,500
    read_shard, 2 processes: 2.05 and 1.97 times the samples of one

Memory of a process that writes and reads 5 shards of 512 samples, 32x32x3: 77 MiB; 50 shards: 77 MiB. A dry run of the
driver over 100,000 shards: 470 tasks/s, 172 MiB before and 196 MiB at most. What the driver does itself takes a shard of
512 inputs 2.5 ms to find it done, 4 ms to merge its rows, and 4 KB of samples.parquet and 2 KB of manifest.parquet; for
100,000 shards that is 11 minutes and, with the caption counts of 51 million samples in memory, about 0.5 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.sample import Sample, ShardPlan, ShardRecord
from pipeline.shards.members import read_shard, tar_of
from pipeline.shards.write import FinishedShard, _entry, write_shard
from pipeline.sources import open_source

REPEATS = 7


class Noise:
    """Random images from memory: what is left is the cost of the format."""

    def __init__(self, size: int, channels: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (512, size, size, channels), dtype=np.uint8)

    def read(self, plan: ShardPlan):
        for i in range(plan.start, plan.stop):
            yield Sample(f"train-{i:08}", self.images[i % 512], ("the digit 3 is on the left .",), str(i), "train")


def row(name: str, samples: int, way: Callable[[], object]) -> None:
    """Print samples a second, of CPU and of wall time: the best of the repeats, as others disturb."""
    way()
    rates = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        way()
        rates.append((samples / (time.process_time() - cpu), samples / (time.perf_counter() - wall)))
    cpu, wall = map(max, zip(*rates, strict=True))
    print(f"  {name:<44} {cpu:>10,.0f} {wall:>10,.0f}", flush=True)


def processes(name: str, samples: int, work: Callable[[int], None], count: int) -> None:
    """Print samples a second of wall time, the best of the repeats, of `count` processes that each do the same work."""
    context = multiprocessing.get_context("fork")
    rates = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        running = [context.Process(target=work, args=(number,)) for number in range(count)]
        for process in running:
            process.start()
        for process in running:
            process.join()
        rates.append(count * samples / (time.perf_counter() - began))
    print(f"  {f'{name}, {count} process' + 'es' * (count > 1):<44} {'':>10} {max(rates):>10,.0f}", flush=True)


def writing(title: str, source, plans: Sequence[ShardPlan], folder: str) -> None:
    print(f"\n{title}: samples/s {'of CPU time':>42} {'of wall':>10}")
    samples = sum(map(len, plans))
    drawn = [list(source.read(plan)) for plan in plans]
    contents = [tar_of(entry[1] for entry in map(_entry, items)) for items in drawn]
    print(f"  {sum(map(len, contents)) / samples:,.0f} bytes a sample in the tar")
    row("floor: source alone (draw, or decode)", samples, lambda: [list(source.read(plan)) for plan in plans])
    row("floor: sha256 alone", samples, lambda: [hashlib.sha256(content).digest() for content in contents])
    row("floor: write files alone", samples, lambda: [Path(folder, "floor").write_bytes(one) for one in contents])
    row(
        "floor: write files and wait for the disk",
        samples,
        lambda: [flush(Path(folder, "floor"), one) for one in contents],
    )
    row("png, json and tar in memory", samples, lambda: [tar_of(e[1] for e in map(_entry, s)) for s in drawn])
    row("write_shard without the source", samples, lambda: write_all(folder, plans, Given(plans, drawn)))
    row("write_shard, source to closed tar", samples, lambda: write_all(folder, plans, source))
    for count in (1, 2):
        work = lambda number: write_all(f"{folder}/{number}", plans, source)  # noqa: E731
        processes("write_shard", samples, work, count)


def flush(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Given:
    """Samples that were drawn before, so that a shard costs its writing alone."""

    def __init__(self, plans: Sequence[ShardPlan], items: list[list[Sample]]) -> None:
        self.items = {plan.name: items for plan, items in zip(plans, items, strict=True)}

    def read(self, plan: ShardPlan) -> list[Sample]:
        return self.items[plan.name]


def write_all(folder: str, plans: Sequence[ShardPlan], source) -> None:
    for plan in plans:
        write_shard(folder, plan, source)


def reading(size: int, channels: int, shards: int, folder: str) -> None:
    print(f"\nreading {size}x{size}x{channels}: samples/s {'of CPU time':>35} {'of wall':>10}")
    plans = [ShardPlan(f"train-{i:05}", "train", 512 * i, 512 * i + 512) for i in range(shards)]
    source = Noise(size, channels)
    records = [write_shard(folder, plan, source).record for plan in plans]
    paths = [f"{folder}/{record.name}" for record in records]

    def read(verify: bool) -> None:
        for path, record in zip(paths, records, strict=True):
            read_shard(path, record, verify=verify)

    def webdataset() -> None:
        import cv2
        import webdataset

        for sample in webdataset.WebDataset(paths, shardshuffle=False):
            cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_UNCHANGED)

    samples = 512 * shards
    row("floor: read files alone", samples, lambda: [Path(path).read_bytes() for path in paths])
    row("floor: read files and sha256", samples, lambda: [hashlib.sha256(Path(p).read_bytes()) for p in paths])
    row("read_shard", samples, lambda: read(True))
    row("read_shard, verify=False", samples, lambda: read(False))
    row("WebDataset + cv2.imdecode", samples, webdataset)
    for count in (1, 2):
        processes("read_shard", samples, lambda number: read(True), count)


def memory(shards: int, folder: str) -> None:
    """Peak memory of a fresh process that writes some shards, and of one that writes ten times as many."""
    print("\nmemory of a process that writes and reads shards of 512 samples, 32x32x3")
    for count in (shards, 10 * shards):
        context = multiprocessing.get_context("spawn")
        pipe, there = context.Pipe()
        process = context.Process(target=_memory, args=(there, folder, count))
        process.start()
        before, after = pipe.recv()
        process.join()
        print(f"  {count:>4} shards: {before:.0f} MiB before, {after:.0f} MiB at most", flush=True)


def _memory(pipe, folder: str, shards: int) -> None:
    source = Noise(32, 3)
    before = peak_mib()
    for i in range(shards):
        record = write_shard(folder, ShardPlan(f"train-{i:05}", "train", 512 * i, 512 * i + 512), source).record
        read_shard(f"{folder}/{record.name}", record)
    pipe.send((before, peak_mib()))


def peak_mib() -> float:
    """Peak of this process's own memory; getrusage also counts that of its parent before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def nothing(folder: str, plan: ShardPlan, source) -> FinishedShard:
    """A task that does no work: what is left is what the driver and Ray need."""
    return FinishedShard(ShardRecord(plan.name, plan.split, 512, 512, (), 0, ""), (), ())


def scheduling(tasks: int) -> None:
    """A dry run of the driver: all tasks are started and looked at, none writes."""
    import ray

    from pipeline.on_ray.build import Outcome, run_tasks

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False)
    plans = [ShardPlan(f"train-{i:06}", "train", 512 * i, 512 * i + 512) for i in range(tasks)]
    before = peak_mib()
    began = time.perf_counter()
    run_tasks(nothing, "unused", plans, None, Outcome(0, {}), lambda line: None)
    seconds = time.perf_counter() - began
    after = peak_mib()
    print(
        f"\ndry run of {tasks:,} shards: {tasks / seconds:,.0f} tasks/s, {seconds:,.0f} s, driver {before:.0f} MiB",
        end="",
    )
    print(f" before, {after:.0f} MiB at most", flush=True)
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of the IDX files; without it scikit-learn's digits are drawn")
    parser.add_argument("--coco", help="folder in COCO's layout")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        kind = "mnist" if arguments.mnist else "digits"
        drawn = open_source(DatasetConfig(source=kind, train=512 * arguments.shards), arguments.mnist)
        writing(f"{kind} captions 60x60x1", drawn, [p for p in drawn.plan if p.split == "train"], folder)
        if arguments.coco:
            photos = open_source(DatasetConfig(source="coco", size=32, channels=3), arguments.coco)
            writing("COCO 32x32x3", photos, photos.plan, folder)
        reading(32, 3, arguments.shards, folder)
        reading(60, 1, arguments.shards, folder)
        memory(max(1, arguments.shards // 4), folder)
    if arguments.tasks:
        scheduling(arguments.tasks)


if __name__ == "__main__":
    main()
