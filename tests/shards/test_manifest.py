"""The manifest says exactly what is in a data set, or that it cannot be used; names keep data sets apart."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.sample import Manifest, Sample
from pipeline.shards.manifest import (
    SHARD_COLUMNS,
    accepted_captions,
    commit,
    config_digest,
    dataset_folder,
    describe,
    description,
    find_dataset,
    load_manifest,
    merge_samples,
    parse_manifest,
)
from pipeline.shards.write import read_record, record_path, write_shard
from tests.fake_source import FakeSource

CONFIG = DatasetConfig(source="digits", size=8, channels=1)


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    source = FakeSource(tmp_path / "source")
    source.trouble("rejected", "train-000002").write_text("not an image")
    source.trouble("rejected", "val-000003").write_text("cut short")
    return source


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("bucket") + "/out"


def build(out: str, source: FakeSource, config: DatasetConfig = CONFIG) -> Manifest:
    """A data set, written without Ray."""
    folder = dataset_folder(out, config, source.digest)
    describe(folder, config, source.digest, source.facts)
    for plan in source.plan:
        write_shard(folder, plan, source)
    return commit(folder, merge_samples(folder, source.plan).shards)


def test_a_manifest_is_read_as_it_was_written(source: FakeSource, out: str) -> None:
    manifest = build(out, source)
    assert load_manifest(manifest.folder) == manifest
    assert [shard.name for shard in manifest.shards] == [
        "test-00000.tar",
        "train-00000.tar",
        "train-00001.tar",
        "train-00002.tar",
        "val-00000.tar",
    ]
    assert manifest.shards[1] == read_record(manifest.folder, "train-00000").record
    assert (manifest.size, manifest.channels) == (8, 1)
    assert description(manifest.folder)["facts"] == source.facts


def test_anyone_can_ask_what_happened_to_an_input(source: FakeSource, tmp_path: Path) -> None:
    folder = build(str(tmp_path / "out"), source).folder
    table = pq.read_table(f"{folder}/samples.parquet").to_pylist()
    expected = {item.key: (item, plan) for plan in source.plan for item in source.samples(plan)}
    assert sorted(row["key"] for row in table) == sorted(expected)
    for row in table:
        item, plan = expected[row["key"]]
        assert (row["split"], row["shard"], tuple(row["captions"])) == (item.split, plan.name, item.captions)
        if isinstance(item, Sample):
            assert (row["status"], row["width"], row["height"]) == ("ok", *item.original)
        else:
            assert (row["status"], row["width"], row["height"]) == (item.reason, 640, 480)
    found = pq.read_table(f"{folder}/samples.parquet", filters=[("key", "=", "val-000003")]).to_pylist()
    assert [row["status"] for row in found] == ["cut short"]


def test_merging_counts_inputs_and_reasons(source: FakeSource, tmp_path: Path) -> None:
    folder = build(str(tmp_path / "out"), source).folder
    merged = merge_samples(folder, source.plan)
    assert (merged.inputs, merged.skipped) == (6 + 7 + 7 + 6 + 6, {"not an image": 1, "cut short": 1})
    Path(record_path(folder, "train-00001")).unlink()
    with pytest.raises(OSError, match="train-00001 has gone"):
        merge_samples(folder, source.plan)


def test_captions_of_accepted_samples_come_in_order(source: FakeSource, out: str) -> None:
    folder = build(out, source).folder
    items = [item for plan in source.plan for item in source.samples(plan) if item.split == "train"]
    wanted = [caption for item in items if isinstance(item, Sample) for caption in item.captions]
    assert list(accepted_captions(folder, "train")) == wanted


def test_the_folder_is_named_by_everything_the_shards_depend_on_and_nothing_else() -> None:
    name = dataset_folder("out", CONFIG, "a")
    assert name.startswith("out/shards/digits-8-")
    assert name == dataset_folder("out", CONFIG, "a")
    assert name == dataset_folder("out", replace(CONFIG, max_rejected=0.5), "a")
    others = [
        dataset_folder("out", CONFIG, "b"),
        *(dataset_folder("out", replace(CONFIG, **change), "a") for change in CHANGES),
    ]
    assert len({name, *others}) == 1 + len(others)


CHANGES = [
    {"size": 9},
    {"channels": 3},
    {"train": 7},
    {"val": 7},
    {"test": 7},
    {"wordings": 2},
    {"samples_per_shard": 7},
    {"captions": 1},
    {"seed": 1},
    {"source": "mnist"},
]


def test_every_field_of_the_config_is_considered() -> None:
    changed = {name for change in CHANGES for name in change}
    assert changed | {"max_rejected"} == {field.name for field in dataclasses.fields(DatasetConfig)}
    assert len({config_digest(replace(CONFIG, **change)) for change in CHANGES}) == len(CHANGES)


def test_a_data_set_is_found_by_its_config(source: FakeSource, out: str) -> None:
    with pytest.raises(ValueError, match="no finished digits data set of this config"):
        find_dataset(out, CONFIG)
    folder = build(out, source).folder
    assert find_dataset(out, CONFIG) == folder
    assert find_dataset(out, replace(CONFIG, max_rejected=0.9)) == folder
    with pytest.raises(ValueError, match="run `python -m jobs.shard`"):
        find_dataset(out, replace(CONFIG, seed=5))
    source.digest = "another"
    other = build(out, source).folder
    with pytest.raises(ValueError, match="2 data sets have this config .* say with --data"):
        find_dataset(out, CONFIG)
    assert find_dataset(out, CONFIG, "another") == other
    storage.delete(storage.join(other, "manifest.parquet"))
    assert find_dataset(out, CONFIG) == folder


def test_a_folder_without_manifest_is_no_data_set(source: FakeSource, out: str) -> None:
    folder = build(out, source).folder
    storage.delete(storage.join(folder, "manifest.parquet"))
    with pytest.raises(ValueError, match="it is no finished data set"):
        load_manifest(folder)


def test_damage_anywhere_in_the_manifest_is_noticed(source: FakeSource, tmp_path: Path) -> None:
    manifest = build(str(tmp_path / "out"), source)
    path = Path(manifest.folder, "manifest.parquet")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            assert load_manifest(manifest.folder) == manifest  # names and statistics in the footer that nobody uses
        except ValueError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
    for length in (0, 3, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            load_manifest(manifest.folder)


def test_a_manifest_of_another_config_is_noticed(source: FakeSource, tmp_path: Path) -> None:
    manifest = build(str(tmp_path / "out"), source)
    path = Path(manifest.folder, "dataset.json")
    about = json.loads(path.read_text())
    about["config"]["size"] = 16
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="its digest is"):
        load_manifest(manifest.folder)
    for damaged in ("", "[]", "{}", "[" * 10**5):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            load_manifest(manifest.folder)


def parquet(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def test_bombs_and_strange_files_are_refused_before_they_are_unpacked() -> None:
    plain = dict(compression="none", use_dictionary=False, store_schema=False)
    bomb = {field.name: pa.array([None] * 10**6, field.type) for field in SHARD_COLUMNS}
    nullable = pa.schema([field.with_nullable(True) for field in SHARD_COLUMNS])
    for content, complaint in [
        (parquet(pa.table(bomb, schema=nullable), compression="zstd"), "claims"),
        (parquet(pa.table({"x": [1]}), **plain), "columns"),
        (parquet(pa.table({name: ["a"] for name in SHARD_COLUMNS.names}), **plain), "its columns are"),
        (b"PAR1" * 10, "not a Parquet file"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            parse_manifest(content)


def test_records_are_checked_also_when_the_file_is_sound(source: FakeSource, tmp_path: Path) -> None:
    manifest = build(str(tmp_path / "out"), source)
    rows = [{**dataclasses.asdict(shard), "skipped": json.dumps(shard.skipped)} for shard in manifest.shards]

    def stored(rows: list[dict]) -> bytes:
        return parquet(
            pa.Table.from_pylist(rows, schema=SHARD_COLUMNS),
            compression="none",
            use_dictionary=False,
            store_schema=False,
        )

    assert parse_manifest(stored(rows))[0] == manifest.shards
    for wrong in (
        rows[::-1],
        rows + rows[-1:],
        [{**rows[0], "name": "../../etc"}],
        [{**rows[0], "skipped": "[" * 10**5}],
    ):
        with pytest.raises(ValueError):
            parse_manifest(stored(wrong))
