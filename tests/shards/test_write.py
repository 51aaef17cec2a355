"""One shard: the same bytes each time, a record after the tar, a fate for every input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.sample import Sample, ShardPlan
from pipeline.shards.members import read_shard
from pipeline.shards.write import ACCEPTED, fits, read_record, record_of, record_path, retry_shard, write_shard
from tests.fake_source import FakeSource


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(tmp_path / "source")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "set") if request.param == "local" else request.getfixturevalue("bucket") + "/set"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def reject(source: FakeSource, *keys: str, reason: str = "not an image") -> None:
    for key in keys:
        source.trouble("rejected", key).write_text(reason)


def test_the_record_tells_what_is_in_the_tar(source: FakeSource, folder: str) -> None:
    plan = source.plan[1]
    reject(source, "train-000009", "train-000012")
    finished = write_shard(folder, plan, source)
    record, samples = finished.record, [s for s in source.samples(plan) if isinstance(s, Sample)]
    assert (record.name, record.split, record.samples) == ("train-00001.tar", "train", 5)
    assert record.captions == tuple(len(sample.captions) for sample in samples)
    assert record.pairs == sum(record.captions)
    assert record.skipped == {"not an image": 2}
    assert read_record(folder, plan.name) == finished
    assert read_shard(f"{folder}/{record.name}", record).keys == tuple(sample.key for sample in samples)


def test_every_input_has_one_row_with_its_fate(source: FakeSource, tmp_path: Path) -> None:
    plan = source.plan[0]
    reject(source, "train-000002")
    fates = write_shard(str(tmp_path), plan, source).fates
    for fate, item in zip(fates, source.samples(plan), strict=True):
        assert (fate.key, fate.captions, fate.source) == (item.key, item.captions, item.source)
        if item.key == "train-000002":
            assert (fate.status, fate.width, fate.height) == ("not an image", 640, 480)
        else:
            assert (fate.status, fate.width, fate.height) == (ACCEPTED, *item.original)


def test_another_process_writes_the_same_bytes(source: FakeSource, tmp_path: Path) -> None:
    write_shard(str(tmp_path / "here"), source.plan[1], source)
    code = (
        "import sys; from tests.fake_source import FakeSource; from pipeline.shards.write import write_shard\n"
        "source = FakeSource(sys.argv[1]); write_shard(sys.argv[2], source.plan[1], source)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, source.folder, str(tmp_path / "there")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=environment)
    assert files(tmp_path / "here") == files(tmp_path / "there")
    assert sorted(files(tmp_path / "here")) == ["records/train-00001.json", "train-00001.tar"]


def test_the_bytes_stay_as_they_are_between_versions(tmp_path: Path) -> None:
    """If this fails, data sets built before are no longer reproduced: raise FORMAT in manifest.py, or undo."""

    class Counting:
        def read(self, plan: ShardPlan):
            for i in range(plan.start, plan.stop):
                image = (np.arange(48, dtype=np.uint8) * (i + 1)).reshape(4, 4, 3)
                yield Sample(f"k{i}", image, (f"caption {i}", "ä"), f"{i}.jpg", "train", (5, 6))

    record = write_shard(str(tmp_path), ShardPlan("train-00000", "train", 0, 3), Counting()).record
    assert record.sha256 == hashlib.sha256((tmp_path / "train-00000.tar").read_bytes()).hexdigest()
    assert record.sha256 == "3eff872d260ddc22f57f20bc5c70666091790fed13f9a5b741a6b3585eae763e"


def test_a_failing_source_leaves_nothing(source: FakeSource, folder: str) -> None:
    source.trouble("broken", "train-00000").touch()
    with pytest.raises(OSError, match="noises"):
        write_shard(folder, source.plan[0], source)
    from pipeline import storage

    assert storage.listing(folder) == []


def test_a_shard_without_usable_samples_has_a_record_and_no_tar(source: FakeSource, tmp_path: Path) -> None:
    reject(source, *(f"val-{i:06}" for i in range(7)))
    record = write_shard(str(tmp_path), source.plan[3], source).record
    assert (record.samples, record.bytes, record.skipped) == (0, 0, {"not an image": 6})
    assert sorted(files(tmp_path / ".")) == ["records/val-00000.json"] + [
        f"source/{name}" for name in sorted(files(tmp_path / "source"))
    ]


class Given:
    """A source of given samples."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def read(self, plan: ShardPlan):
        return iter(self.samples)


def sample(key: str = "a", captions: tuple[str, ...] = ("x",), dtype: type = np.uint8) -> Sample:
    return Sample(key, np.zeros((4, 4, 1), dtype), captions, "s", "train")


def test_samples_without_usable_captions_are_rejected_by_reason(tmp_path: Path) -> None:
    given = Given(sample(), sample("b", ()), sample("c", ("half a pair \ud800",)), sample("d", ("x" * 2**21,)))
    finished = write_shard(str(tmp_path), ShardPlan("train-00000", "train", 0, 4), given)
    assert [fate.status for fate in finished.fates] == [
        "ok",
        "no captions",
        "caption is not valid text",
        "captions are too long",
    ]
    assert finished.fates[2].captions == ("half a pair ?",)
    assert read_record(str(tmp_path), "train-00000") == finished


@pytest.mark.parametrize("broken", [sample("a.b"), sample("../a"), sample("a" * 91), sample(dtype=np.float32)])
def test_a_source_that_breaks_its_promise_is_a_mistake_of_ours(broken: Sample, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_shard(str(tmp_path), ShardPlan("train-00000", "train", 0, 1), Given(broken))
    with pytest.raises(AssertionError, match="same key"):
        write_shard(str(tmp_path), ShardPlan("train-00000", "train", 0, 2), Given(sample(), sample()))
    with pytest.raises(AssertionError, match="2 of 3 inputs"):
        write_shard(str(tmp_path), ShardPlan("train-00000", "train", 0, 3), Given(sample(), sample("b")))
    assert not files(tmp_path)


@pytest.mark.parametrize("before", ["set", "older"])
def test_retrying_reads_only_what_was_rejected_and_gives_what_a_new_build_would(
    source: FakeSource, tmp_path: Path, before: str
) -> None:
    plan = source.plan[1]
    reject(source, "train-000007", "train-000010", "train-000013")
    write_shard(str(tmp_path / before), plan, source)
    for key in ("train-000007", "train-000010"):
        source.trouble("rejected", key).unlink()
    reject(source, "train-000013", reason="cut short")
    source.forget_calls()
    finished = retry_shard(str(tmp_path / "set"), plan, source, before=str(tmp_path / before))
    assert source.calls() == ["train-000007", "train-000010", "train-000013"]
    assert finished.record.skipped == {"cut short": 1}
    write_shard(str(tmp_path / "new"), plan, source)
    assert files(tmp_path / "set") == files(tmp_path / "new")


def test_retrying_reads_inputs_again_whose_row_has_changed(source: FakeSource, tmp_path: Path) -> None:
    """A source that lists its inputs tells by a row, e.g. name and bytes of a file, that one of them is another now."""
    plan = replace(source.plan[1], rows=tuple((f"{i}.jpg", 1000 + i) for i in range(7)))
    write_shard(str(tmp_path / "set"), plan, source)
    source.forget_calls()
    retry_shard(str(tmp_path / "set"), plan, source, before=str(tmp_path / "set"))
    assert source.calls() == []
    changed = replace(plan, rows=(*plan.rows[:4], ("4.jpg", 77), *plan.rows[5:]))
    retry_shard(str(tmp_path / "set"), changed, source, before=str(tmp_path / "set"))
    assert source.calls() == ["train-000011"]
    write_shard(str(tmp_path / "new"), changed, source)
    assert files(tmp_path / "set") == files(tmp_path / "new")


def test_a_shard_of_rejected_inputs_alone_is_retried_too(source: FakeSource, tmp_path: Path) -> None:
    plan, folder = source.plan[3], str(tmp_path / "set")
    reject(source, *(f"val-{i:06}" for i in range(6)))
    write_shard(folder, plan, source)
    for i in range(6):
        source.trouble("rejected", f"val-{i:06}").unlink()
    assert retry_shard(folder, plan, source, before=folder).record.samples == 6
    write_shard(str(tmp_path / "new"), plan, source)
    assert files(tmp_path / "set") == files(tmp_path / "new")


def test_a_retry_that_dies_half_way_leaves_a_shard_that_counts_as_unfinished(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the new tar could lie under the old record, and have its size."""
    plan, folder = source.plan[1], str(tmp_path / "set")
    reject(source, "train-000007")
    write_shard(folder, plan, source)
    source.trouble("rejected", "train-000007").unlink()

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.shards.write.storage.publish_text", die)
    with pytest.raises(KeyboardInterrupt):
        retry_shard(folder, plan, source, before=folder)
    with pytest.raises(FileNotFoundError):
        read_record(folder, plan.name)


@pytest.mark.parametrize("damage", ["tar", "record", "other plan", "nothing there"])
def test_retrying_writes_everything_anew_where_the_old_shard_cannot_be_trusted(
    source: FakeSource, tmp_path: Path, damage: str
) -> None:
    plan, folder = source.plan[1], tmp_path / "set"
    if damage != "nothing there":
        other = replace(plan, start=6) if damage == "other plan" else plan
        write_shard(str(folder), other, source)
    path = folder / ("train-00001.tar" if damage == "tar" else "records/train-00001.json")
    if damage in ("tar", "record"):
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        path.write_bytes(content)
    retry_shard(str(folder), plan, source, before=str(folder))
    write_shard(str(tmp_path / "new"), plan, source)
    assert files(folder) == files(tmp_path / "new")


def test_a_record_fits_only_the_plan_it_was_made_from(source: FakeSource, tmp_path: Path) -> None:
    plan = source.plan[1]
    finished = write_shard(str(tmp_path), plan, source)
    assert fits(finished, plan)
    for other in (
        replace(plan, stop=13),
        replace(plan, split="val"),
        replace(plan, name="train-00002"),
        replace(plan, rows=(1,)),
    ):
        assert not fits(finished, other)


def test_a_damaged_record_is_told_apart_from_a_missing_one(source: FakeSource, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(str(tmp_path), "train-00000")
    write_shard(str(tmp_path), source.plan[0], source)
    path = Path(record_path(str(tmp_path), "train-00000"))
    whole = path.read_text()
    text = whole.splitlines()[0]
    values = json.loads(text)
    values["record"]["samples"] = 5
    one_row_less = json.loads(text)
    one_row_less["inputs"]["key"].pop()
    other_count = json.loads(text)
    other_count["inputs"]["status"][0] = "broken"
    malformed = ["", "[" * 10**5, "{}", "[]", *(json.dumps(one) for one in (values, one_row_less, other_count))]
    signed = [f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n" for line in malformed]
    for damaged in (*signed, "", text, whole[:-10], whole.replace("640", "641")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            read_record(str(tmp_path), "train-00000")


def test_records_that_do_not_add_up_are_refused() -> None:
    good = dict(
        name="train-00000.tar",
        split="train",
        samples=2,
        pairs=3,
        captions=[1, 2],
        bytes=10240,
        sha256="0" * 64,
        skipped={},
    )
    assert record_of(good).captions == (1, 2)
    for change in (
        {"name": "../x.tar"},
        {"name": 3},
        {"split": "all"},
        {"samples": 3},
        {"samples": True},
        {"pairs": 4},
        {"captions": [3, 0]},
        {"captions": [-1, 4]},
        {"captions": None},
        {"bytes": -1},
        {"bytes": 1.5},
        {"sha256": "x" * 64},
        {"sha256": "0"},
        {"skipped": {"a": "b"}},
        {"skipped": [1]},
        {"more": 1},
    ):
        with pytest.raises(ValueError):
            record_of({**good, **change})
