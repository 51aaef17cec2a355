"""A source -> a finished data set, by Ray tasks: one task a shard, and only small results come back.

Whatever is killed, and whenever, a second run finishes the job: tasks publish whole files whose bytes depend on config and
source alone, and the driver asks the folder, not its memory, what is done. The manifest comes last. A data set is built by
one driver at a time, and others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.on_ray.pool import loss
from pipeline.sample import SPLITS, Manifest, ShardPlan, ShardRecord
from pipeline.shards.manifest import (
    MANIFEST,
    VOCABULARY,
    accepted_captions,
    commit,
    dataset_folder,
    datasets,
    describe,
    load_manifest,
    merge_samples,
    records,
)
from pipeline.shards.members import read_shard
from pipeline.shards.write import RECORDS, FinishedShard, fits, retry_shard, write_shard
from pipeline.sources.source import Source
from pipeline.text.vocabulary import Vocabulary

RETRIES = 3  # of a task that raised OSError or whose process died; for want of memory, see on_ray/connect.py
GIVE_UP = 10  # failed shards after which no new ones are started: it is not the shards
PROGRESS_S = 5.0
SHARDS_A_CHECK = 32  # verified by one task
Write = Callable[[str, ShardPlan, Source], FinishedShard]
Log = Callable[[str], None]


def build_dataset(config: DatasetConfig, source: Source, out: str, log: Log = print) -> Manifest:
    """Shard an opened source, on a running Ray; does only what is not done yet."""
    return build_shards(config, source, dataset_folder(out, config, source.digest), log)


def build_shards(config: DatasetConfig, source: Source, folder: str, log: Log = print) -> Manifest:
    """All shards of a source in `folder`, then the files beside them."""
    with _alone(folder, log):
        if (manifest := _finished(folder, log)) is not None:
            return manifest
        plans = _prepare(config, source, folder, log)
        todo, done = unfinished(folder, plans)
        if done.inputs:
            log(f"{len(plans) - len(todo):,} of {len(plans):,} shards are there from an earlier run")
        run_tasks(write_shard, folder, todo, source, done, log)
        return _finish(config, folder, plans, log)


def retry_rejected(config: DatasetConfig, source: Source, out: str, log: Log = print) -> Manifest:
    """Read the rejected inputs of a data set again, and write only the shards anew that they belong to.

    Mended files make another source, so another data set: it takes over what has not changed from the newest data set of
    the same config. The result is that of `build_dataset` on the source as it is now.
    """
    folder = dataset_folder(out, config, source.digest)
    others = list(datasets(out, config))
    if not others:
        raise ValueError(f"no data set of this config in {out} to retry: run the job without --retry-rejected first")
    before = folder if folder in others else others[0]
    with _alone(folder, log):
        plans = _prepare(config, source, folder, log)
        todo, done = unfinished(folder, plans)
        if before == folder:
            todo += [
                plan
                for plan, finished in zip(plans, records(folder, plans), strict=True)
                if plan not in todo and finished is not None and finished.record.skipped
            ]
            done = Outcome(0, {})
        log(f"retrying what was rejected in {before}: {len(todo):,} of {len(plans):,} shards are written")
        if todo:
            storage.delete(storage.join(folder, MANIFEST))  # not whole until the last of them is
        run_tasks(partial(retry_shard, before=before), folder, todo, source, done, log)
        return _finish(config, folder, plans, log)


def verify_dataset(manifest: Manifest, log: Log = print) -> dict[str, str]:
    """Shard name -> what is wrong with it, for each that is not whole, by tasks that read all of them."""
    blocks = [manifest.shards[i : i + SHARDS_A_CHECK] for i in range(0, len(manifest.shards), SHARDS_A_CHECK)]
    check = ray.remote(_check_shards).options(num_cpus=1, max_retries=RETRIES)
    started, shown, damaged = time.monotonic(), time.monotonic(), {}
    for number, reference in _in_order(partial(check.remote, manifest), blocks):
        try:
            damaged.update(ray.get(reference))
        except OutOfMemoryError as error:
            raise OSError(f"verifying ended: {loss(error)}; end other programs, then type the command again") from None
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            log(f"verified {number * SHARDS_A_CHECK:,}/{len(manifest.shards):,} shards, {len(damaged)} damaged")
    log(f"verified {len(manifest.shards):,} shards in {time.monotonic() - started:,.1f} s, {len(damaged)} damaged")
    return damaged


def _check_shards(manifest: Manifest, shards: Sequence[ShardRecord]) -> dict[str, str]:
    damaged = {}
    for shard in shards:
        try:
            shape = (manifest.size, manifest.size, manifest.channels)
            read_shard(storage.join(manifest.folder, shard.name), shard, shape=shape)
        except (OSError, ValueError) as error:
            damaged[shard.name] = " ".join(str(error).split())
    return damaged


def _in_order(start: Callable, blocks: Sequence) -> Iterator[tuple[int, ray.ObjectRef]]:
    """(number, task) in order, with a few tasks started ahead."""
    ahead, running = _in_flight(), []
    for number in range(len(blocks)):
        running += [start(block) for block in blocks[number + len(running) : number + ahead]]
        yield number, running.pop(0)


def _prepare(config: DatasetConfig, source: Source, folder: str, log: Log) -> list[ShardPlan]:
    """Make the folder, sweep what was left in it, and say what the source found odd; the plans by name."""
    for place in (folder, storage.join(folder, RECORDS)):
        storage.make_folder(place)
        if swept := storage.sweep(place):
            log(f"removed {len(swept)} unfinished files that a stopped run left in {place}")
    for warning in source.facts.get("warnings", ()):
        log(f"warning: {warning}")
    describe(folder, config, source.digest, source.facts)
    return sorted(source.plan, key=lambda plan: plan.name)


def _finished(folder: str, log: Log) -> Manifest | None:
    """The manifest, if it is there and sound and all its tars are there at their size."""
    if not storage.exists(storage.join(folder, MANIFEST)):
        return None
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        log(str(error))
        return None
    there = storage.sizes(folder)
    missing = [shard.name for shard in manifest.shards if there.get(shard.name) != shard.bytes]
    if missing:
        log(f"{folder}: {len(missing)} shards are gone or cut short ({', '.join(missing[:5])}); writing them again")
        return None
    log(f"{folder} is finished: {len(manifest.shards):,} shards")
    return manifest


@dataclass(frozen=True)
class Outcome:
    """What a task sends back."""

    inputs: int
    skipped: dict[str, int]  # reason -> rejected inputs
    failure: str = ""  # why the shard was not written, where trying again at once cannot help


def unfinished(folder: str, plans: Sequence[ShardPlan]) -> tuple[list[ShardPlan], Outcome]:
    """The plans whose shards are still to be written, and the sum of the others."""
    there, todo, inputs, skipped = storage.sizes(folder), [], 0, Counter()
    for plan, finished in zip(plans, records(folder, plans), strict=True):
        if finished is None or not fits(finished, plan) or there.get(finished.record.name, 0) != finished.record.bytes:
            todo.append(plan)
        else:
            inputs += len(plan)
            skipped.update(finished.record.skipped)
    return todo, Outcome(inputs, dict(skipped))


def run_tasks(write: Write, folder: str, todo: Sequence[ShardPlan], source: Source, done: Outcome, log: Log) -> None:
    """Write shards by tasks, few of them in flight; OSError names those that failed after their retries.

    A programming error stops everything at once, with its own traceback.
    """
    if not todo:
        return
    shared = ray.put(source)  # once, not with every task
    task = ray.remote(_write).options(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])
    in_flight, waiting, running, failed = _in_flight(), list(reversed(todo)), {}, {}
    progress = Progress(len(todo), sum(map(len, todo)), sum(done.skipped.values()), log)
    try:
        while running or (waiting and len(failed) < GIVE_UP):
            while waiting and len(running) < in_flight and len(failed) < GIVE_UP:
                plan = waiting.pop()
                running[task.remote(write, folder, plan, shared)] = plan
            ready, _ = ray.wait(list(running), num_returns=1, timeout=PROGRESS_S)
            for reference in ready:
                plan = running.pop(reference)
                outcome = _result(reference)
                if outcome.failure:
                    failed[plan.name] = outcome.failure
                progress.add(outcome)
            progress.show()
    finally:
        for reference in running:  # left only when something unforeseen was raised
            ray.cancel(reference, force=True)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(failed.items())[:GIVE_UP])
        raise OSError(
            f"{len(failed)} of {len(todo)} shards failed ({reasons}); {progress.shards} were written: "
            "mend the cause and run the job again, it does only what is missing"
        )
    progress.show(last=True)


def _in_flight() -> int:
    """Tasks to keep started: enough that no core waits for the driver."""
    return max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))


def _write(write: Write, folder: str, plan: ShardPlan, source: Source) -> Outcome:
    """The body of a task. A full disk is not tried again: it stays full."""
    try:
        finished = write(folder, plan, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Outcome(0, {}, f"no space left for {folder}")
        raise
    return Outcome(len(plan), dict(finished.record.skipped))


def _result(reference: ray.ObjectRef) -> Outcome:
    """What a task returned, or why it failed after its retries; programming errors are raised."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if not isinstance(error.cause, OSError | ValueError):
            raise
        return Outcome(0, {}, " ".join(str(error.cause).split()))
    except RayError as error:  # its process died again and again
        return Outcome(0, {}, loss(error))


class Progress:
    """One plain line every few seconds."""

    def __init__(self, shards: int, inputs: int, rejected: int, log: Log) -> None:
        self.all_shards, self.all_inputs, self.rejected, self.log = shards, inputs, rejected, log
        self.shards = self.inputs = 0
        self.started = self.shown = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        self.shards += not outcome.failure
        self.inputs += outcome.inputs
        self.rejected += sum(outcome.skipped.values())

    def show(self, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.shown < PROGRESS_S:
            return
        self.shown = now
        rate = self.inputs / max(now - self.started, 1e-9)
        left = f"{(self.all_inputs - self.inputs) / rate:,.0f} s left" if rate else "time left not known yet"
        self.log(
            f"shards {self.shards:,}/{self.all_shards:,}, {rate:,.0f} samples/s, {self.rejected:,} rejected, "
            + (f"done in {now - self.started:,.1f} s" if last else left)
        )


def _finish(config: DatasetConfig, folder: str, plans: Sequence[ShardPlan], log: Log) -> Manifest:
    """The files beside the tars, the manifest last; ValueError if too many inputs were rejected."""
    merged = merge_samples(folder, plans)
    rejected = sum(merged.skipped.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in merged.skipped.items())
    if rejected > config.max_rejected * merged.inputs:
        raise ValueError(
            f"{rejected:,} of {merged.inputs:,} inputs were rejected ({reasons}), more than the share "
            f"--dataset.max-rejected {config.max_rejected:g}: mend the data and --retry-rejected, or allow more; "
            "--report lists them"
        )
    if missing := [split for split in SPLITS if not any(shard.split == split for shard in merged.shards)]:
        raise ValueError(f"no usable sample in the split {' and '.join(missing)}: {', '.join(SPLITS)} need one each")
    vocabulary = Vocabulary.build(accepted_captions(folder, "train"))
    storage.publish_text(storage.join(folder, VOCABULARY), vocabulary.to_json())
    manifest = commit(folder, merged.shards)
    log(
        f"{folder}: {len(manifest.shards):,} shards, {merged.inputs - rejected:,} samples, {len(vocabulary):,} words"
        + (f", {rejected:,} rejected ({reasons})" if rejected else "")
    )
    return manifest


def _alone(folder: str, log: Log) -> contextlib.AbstractContextManager[None]:
    """One build of a data set at a time; others wait, and then find it done."""
    said = []

    def busy(holder: str) -> None:
        if not said or time.monotonic() - said[-1] > 30:
            log(f"waiting for {holder}, which builds {folder}")
            said.append(time.monotonic())

    return storage.locked(f"{folder}.lock", busy)
