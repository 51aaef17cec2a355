"""One planned shard of a source -> one tar and, after it, one small file that says the tar is whole.

    <data set>/train-00003.tar            the samples
    <data set>/records/train-00003.json   its ShardRecord and the fate of every input, and a sha256 of that line;
                                          written when the tar is there

Both appear whole or not at all (storage.publish_bytes) and depend on source and config alone. So a task may be killed and
repeated, or run twice at once: a shard whose record fits its plan and its tar is done, any other is written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from pipeline import storage
from pipeline.sample import SPLITS, Rejected, Sample, ShardPlan, ShardRecord
from pipeline.shards.members import KEY, MAX_TEXT, member_bytes, split_tar, tar_of, text_bytes

RECORDS = "records"
ACCEPTED = "ok"  # the status of an input that became a sample
MAX_RECORD = 2**28  # bytes of a record file
UINT8 = np.dtype(np.uint8)


class Source(Protocol):
    """What is needed of a source to write its shards."""

    def read(self, plan: ShardPlan) -> Iterable[Sample | Rejected]:
        """One item for each input of the plan, in order."""


class Fate(NamedTuple):
    """What happened to one input: a row of the status table."""

    key: str
    status: str  # ACCEPTED or the reason
    width: int  # of the original image, pixels; 0: not known
    height: int
    captions: tuple[str, ...]  # as kept
    source: str


@dataclass(frozen=True)
class FinishedShard:
    """What a record file holds: the tar's record, and the fate of every input in the plan's order."""

    record: ShardRecord
    fates: tuple[Fate, ...]
    marks: tuple[str, ...]  # of each input a digest of its row in the plan; none where the source lists no rows


Entry = tuple[Fate, bytes]  # an input's fate and its part of the tar, empty if it was rejected


def write_shard(folder: str, plan: ShardPlan, source: Source) -> FinishedShard:
    """Write one shard below the data set's folder. The same plan and source give the same bytes."""
    return _finish(folder, plan, map(_entry, source.read(plan)))


def retry_shard(folder: str, plan: ShardPlan, source: Source, before: str) -> FinishedShard:
    """Write one shard with the samples it has in the folder `before`, which may be the same; read only its other inputs.

    Others are those that were rejected, and those whose row in the plan has changed since. So the result is that of
    `write_shard`, as far as the source's digest, which is made of these rows, tells its inputs apart.
    """
    try:
        old = read_record(before, plan.name)
        content = _read_tar(before, old.record)
    except (FileNotFoundError, ValueError):
        old = None
    if old is None or not fits(old, plan):
        return write_shard(folder, plan, source)
    # another tar under the old record must not be taken for done if this is killed half way
    storage.delete(record_path(folder, plan.name))
    return _finish(folder, plan, _retried(old, content, plan, source))


def _retried(old: FinishedShard, content: bytes, plan: ShardPlan, source: Source) -> Iterator[Entry]:
    parts = split_tar(content) if content else {}
    same = [mark == now for mark, now in zip(old.marks, _marks(plan), strict=True)] or [True] * len(plan)
    for place, fate in enumerate(old.fates):
        if fate.status == ACCEPTED and same[place]:
            yield fate, parts[fate.key]
            continue
        at = plan.start + place
        one = dataclasses.replace(plan, start=at, stop=at + 1, rows=plan.rows[place : place + 1])
        yield from map(_entry, source.read(one))


def _marks(plan: ShardPlan) -> tuple[str, ...]:
    return tuple(hashlib.sha256(repr(row).encode("utf-8", "backslashreplace")).hexdigest()[:16] for row in plan.rows)


def _entry(item: Sample | Rejected) -> Entry:
    if isinstance(item, Rejected):
        return _rejected(item)
    # What a source promises is asserted: breaking it is our mistake, not the data's.
    assert KEY.fullmatch(item.key), f"key {item.key!r}: letters, digits, - and _ are allowed, at most 90"
    assert item.image.dtype == UINT8, f"{item.key}: the image is {item.image.dtype}"
    reason = "" if item.captions else "no captions"
    try:
        text = text_bytes(item.captions, item.source)
    except UnicodeEncodeError:
        reason = "caption is not valid text"
    except ValueError:
        reason = "captions are too long"
    if reason:
        return _rejected(Rejected(item.key, item.source, item.split, reason, item.captions, *item.original))
    fate = Fate(item.key, ACCEPTED, *item.original, item.captions, item.source)
    return fate, member_bytes(item.key, text, item.image)


def _rejected(item: Rejected) -> Entry:
    # the status table is UTF-8: what cannot be written there shows as question marks
    *captions, source = (text.encode("utf-8", "replace").decode()[:MAX_TEXT] for text in (*item.captions, item.source))
    return Fate(item.key, item.reason, item.width, item.height, tuple(captions), source), b""


def _finish(folder: str, plan: ShardPlan, entries: Iterable[Entry]) -> FinishedShard:
    """Publish the tar, then its record."""
    fates, parts = zip(*entries, strict=True)
    assert plan.split in SPLITS and len(fates) == len(plan), (
        f"{plan.name}: {len(fates)} of {len(plan)} inputs were read"
    )
    assert len({fate.key for fate in fates}) == len(fates), f"{plan.name}: two inputs have the same key"
    accepted = [fate for fate in fates if fate.status == ACCEPTED]
    content = tar_of(parts) if accepted else b""
    captions = tuple(len(fate.captions) for fate in accepted)
    record = ShardRecord(
        name=f"{plan.name}.tar",
        split=plan.split,
        samples=len(accepted),
        pairs=sum(captions),
        captions=captions,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        skipped=dict(sorted(Counter(fate.status for fate in fates if fate.status != ACCEPTED).items())),
    )
    finished = FinishedShard(record, fates, _marks(plan))
    if accepted:  # an empty tar is none: WebDataset fails on it
        storage.publish_bytes(storage.join(folder, record.name), content)
    # a record lost in a power failure only means that its shard is written again
    storage.publish_text(record_path(folder, plan.name), _to_text(finished), durable=False)
    return finished


def record_path(folder: str, name: str) -> str:
    return storage.join(folder, RECORDS, f"{name}.json")


def _to_text(finished: FinishedShard) -> str:
    columns = dict(zip(Fate._fields, zip(*finished.fates, strict=True), strict=True))
    values = {"record": vars(finished.record), "inputs": columns, "marks": finished.marks}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n"


def read_record(folder: str, name: str) -> FinishedShard:
    """The record of a shard; FileNotFoundError if it is not finished, ValueError if the file is damaged."""
    path = record_path(folder, name)
    try:
        content, _, digest = storage.read_bytes(path, limit=MAX_RECORD).partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest.strip():
            raise ValueError("it does not match its checksum")
        values = json.loads(content)
        record = record_of(values["record"])
        columns = [values["inputs"][field] for field in Fate._fields]
        fates = tuple(Fate(*row)._replace(captions=tuple(row[4])) for row in zip(*columns, strict=True))
        accepted = tuple(len(fate.captions) for fate in fates if fate.status == ACCEPTED)
        marks = tuple(map(str, values["marks"]))
        if accepted != record.captions or len(marks) not in (0, len(fates)):
            raise ValueError("its inputs do not add up to its record")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the shard is built again") from None
    return FinishedShard(record, fates, marks)


def record_of(values: Mapping) -> ShardRecord:
    """A ShardRecord from a plain dict; ValueError unless it is complete and adds up."""
    try:
        record = ShardRecord(**{**values, "captions": tuple(values["captions"]), "skipped": dict(values["skipped"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of a shard: {error}") from None
    counts = (record.samples, record.pairs, record.bytes, *record.captions, *record.skipped.values())
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"record of {record.name!r}: counts are whole numbers from 0")
    texts = (record.name, record.split, record.sha256, *record.skipped)
    if not all(isinstance(text, str) for text in texts) or not KEY.fullmatch(record.name.removesuffix(".tar")):
        raise ValueError(f"record of {record.name!r}: not the name of a shard")
    if record.split not in SPLITS or len(record.sha256) != 64 or record.sha256.strip("0123456789abcdef"):
        raise ValueError(f"record of {record.name}: split {record.split!r}, sha256 {record.sha256[:80]!r}")
    if len(record.captions) != record.samples or sum(record.captions) != record.pairs or 0 in record.captions:
        raise ValueError(f"record of {record.name}: its captions do not add up to its samples and pairs")
    return record


def fits(finished: FinishedShard, plan: ShardPlan) -> bool:
    """Whether a record was made for a plan of this shape; the inputs behind it are what the data set's name stands for."""
    record, rows = finished.record, len(finished.marks)
    return (record.name, record.split, len(finished.fates), rows) == (
        f"{plan.name}.tar",
        plan.split,
        len(plan),
        len(plan.rows),
    )


def _read_tar(folder: str, record: ShardRecord) -> bytes:
    """The tar of a record, checked; empty if the shard has no samples."""
    path = storage.join(folder, record.name)
    content = storage.read_bytes(path, limit=record.bytes) if record.samples else b""
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError(f"shard {path} does not match its record")
    return content
