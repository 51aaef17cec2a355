"""A data set: its folder's name, and the files beside its tars that let every later stage address any sample.

    OUT/shards/mnist-60-3f2a91c04b/       named by the source, the size and a digest of (format, config, source bytes)
        dataset.json                      what the name stands for: config, digest of the source, facts it drew
        train-00000.tar ...  records/     the shards, and one record a shard (write.py)
        samples.parquet                   one row an input: split, shard, key, status or reason, original size, captions, source
        vocabulary.json                   words of the training captions
        manifest.parquet                  one row a shard; written last: where it is, the data set is whole

Config or source bytes that differ give another folder, so data sets never mix. Vocabulary, lanes and training config are
not part of the name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.sample import Manifest, ShardPlan, ShardRecord
from pipeline.shards.write import ACCEPTED, Fate, FinishedShard, fits, read_record, record_of

FORMAT = 1  # of tars and manifest; a new one makes new folders
MANIFEST, SAMPLES, DESCRIPTION, VOCABULARY = "manifest.parquet", "samples.parquet", "dataset.json", "vocabulary.json"
MAX_MANIFEST = 2**30  # bytes
ROWS_AT_ONCE = 2**16  # rows of a row group of samples.parquet, and all that merging keeps in memory
READERS = 16  # records read at once: an object store takes tens of ms each

SAMPLE_COLUMNS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "ok" or the reason why not
        pa.field("width", pa.int32(), nullable=False),  # of the original, 0: not known
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
SHARD_COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("captions", pa.list_(pa.int32()), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("skipped", pa.string(), nullable=False),  # json object: reason -> count
    ]
)


def config_digest(config: DatasetConfig) -> str:
    """sha256 of the fields that the shards depend on: all but how many rejected inputs are put up with."""
    return _digest({"format": FORMAT, **_shaping(config)})


def dataset_folder(out: str, config: DatasetConfig, source_digest: str) -> str:
    """Where the data set of this config and source lies below `out`."""
    name = _digest({"config": config_digest(config), "source": source_digest})[:10]
    return storage.join(out, "shards", f"{config.source}-{config.size}-{name}")


def describe(folder: str, config: DatasetConfig, source_digest: str, facts: dict) -> None:
    """Write what the folder's name stands for."""
    values = {
        "format": FORMAT,
        "config": _shaping(config),
        "config_digest": config_digest(config),
        "source_digest": source_digest,
        "facts": facts,
    }
    storage.publish_text(storage.join(folder, DESCRIPTION), json.dumps(values, indent=1, sort_keys=True))


def description(folder: str) -> dict:
    """The data set's config, source digest and facts, as `describe` wrote them."""
    path = storage.join(folder, DESCRIPTION)
    try:
        values = json.loads(storage.read_bytes(path, limit=MAX_MANIFEST))
        if not isinstance(values, dict) or {"config", "config_digest", "source_digest", "facts"} - set(values):
            raise ValueError("fields are missing")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove the folder and build the data set again") from None
    return values


def find_dataset(out: str, config: DatasetConfig, source_digest: str | None = None) -> str:
    """Folder of the finished data set of a config; ValueError if there is none, or one from each of several sources."""
    found = [
        folder
        for folder, source in datasets(out, config).items()
        if source_digest in (None, source) and storage.exists(storage.join(folder, MANIFEST))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{len(found)} data sets have this config and other sources: {', '.join(found)}; "
            "say with --data which source is meant, or remove the others"
        )
    raise ValueError(
        f"no finished {config.source} data set of this config in {out}: run `python -m jobs.shard` with the same recipe, "
        "--data, --out and --dataset options first"
    )


def datasets(out: str, config: DatasetConfig) -> dict[str, str]:
    """Folder -> source digest of all data sets of a config, finished or not, the newest first."""
    wanted, found = config_digest(config), []
    for name in storage.listing(storage.join(out, "shards")):
        folder = storage.join(out, "shards", name)
        path = storage.join(folder, DESCRIPTION)
        if name.startswith(f"{config.source}-{config.size}-") and storage.exists(path):
            about = description(folder)
            if about["config_digest"] == wanted:
                found.append((storage.modified(path), folder, about["source_digest"]))
    return {folder: source for _, folder, source in sorted(found, reverse=True)}


def records(folder: str, plans: Sequence[ShardPlan]) -> Iterator[FinishedShard | None]:
    """For each plan, in order, what is recorded of its shard; None where there is no usable record."""

    def read(plan: ShardPlan) -> FinishedShard | None:
        try:
            return read_record(folder, plan.name)
        except (FileNotFoundError, ValueError):  # a damaged record is as good as none: its shard is written again
            return None

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(plans), 4 * READERS):  # `map` would read all of them ahead
            yield from pool.map(read, plans[start : start + 4 * READERS])


@dataclass(frozen=True)
class Merged:
    """What the records of all shards add up to."""

    shards: tuple[ShardRecord, ...]  # those with samples, by name
    inputs: int
    skipped: dict[str, int]  # reason -> rejected inputs, the most frequent first


def merge_samples(folder: str, plans: Sequence[ShardPlan]) -> Merged:
    """Write samples.parquet from the records of all shards."""
    shards, inputs, skipped = [], 0, Counter()
    with storage.publishing(storage.join(folder, SAMPLES)) as part:
        with pq.ParquetWriter(part, SAMPLE_COLUMNS, compression="zstd", store_schema=False) as writer:
            rows = []
            for plan, finished in zip(plans, records(folder, plans), strict=True):
                if finished is None or not fits(finished, plan):
                    raise OSError(
                        f"{folder}: shard {plan.name} has gone while the data set was built; run the job again"
                    )
                rows += [(plan.split, plan.name, *fate) for fate in finished.fates]
                inputs += len(plan)
                skipped.update(finished.record.skipped)
                if finished.record.samples:
                    shards.append(finished.record)
                if len(rows) >= ROWS_AT_ONCE:
                    writer.write_table(_sample_table(rows))
                    rows = []
            if rows:
                writer.write_table(_sample_table(rows))
    return Merged(tuple(sorted(shards, key=lambda record: record.name)), inputs, dict(skipped.most_common()))


def _sample_table(rows: list[tuple]) -> pa.Table:
    columns = zip(("split", "shard", *Fate._fields), zip(*rows, strict=True), strict=True)
    return pa.table(dict(columns), schema=SAMPLE_COLUMNS)


def status_rows(folder: str, columns: Sequence[str]) -> Iterator[dict[str, list]]:
    """Blocks of samples.parquet, some columns of it, in order."""
    path = storage.join(folder, SAMPLES)
    filesystem, name = storage.resolve(path)
    with filesystem.open_input_file(name) as file, pq.ParquetFile(file) as table:
        for block in table.iter_batches(batch_size=ROWS_AT_ONCE // 8, columns=list(columns)):
            yield block.to_pydict()


def accepted_captions(folder: str, split: str) -> Iterator[str]:
    """All captions of a split's samples, in order."""
    for block in status_rows(folder, ["split", "status", "captions"]):
        for where, status, captions in zip(block["split"], block["status"], block["captions"], strict=True):
            if where == split and status == ACCEPTED:
                yield from captions


def commit(folder: str, shards: Sequence[ShardRecord]) -> Manifest:
    """Write the manifest, which makes the data set whole."""
    about = description(folder)
    manifest = _manifest(folder, tuple(shards), about)
    rows = [{**vars(shard), "skipped": json.dumps(shard.skipped)} for shard in manifest.shards]
    sink = pa.BufferOutputStream()
    # Plain pages with checksums: what is read is never larger than the file, and damage is seen before it is used.
    options = dict(compression="none", use_dictionary=False, write_page_checksum=True, store_schema=False)
    with pq.ParquetWriter(sink, SHARD_COLUMNS, **options) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=SHARD_COLUMNS))
        writer.add_key_value_metadata({"digest": manifest.digest, "format": str(FORMAT)})
    storage.publish_bytes(storage.join(folder, MANIFEST), sink.getvalue().to_pybytes())
    return manifest


def load_manifest(folder: str) -> Manifest:
    """The manifest of a finished data set; ValueError if the folder has none, or a damaged one."""
    path = storage.join(folder, MANIFEST)
    try:
        content = storage.read_bytes(path, limit=MAX_MANIFEST)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {MANIFEST}: it is no finished data set; `python -m jobs.shard` makes one"
        ) from None
    try:
        shards, digest = parse_manifest(content)
        manifest = _manifest(folder, shards, description(folder))
        if manifest.digest != digest:
            raise ValueError(f"its digest is {manifest.digest[:12]}..., it says {str(digest)[:12]}...")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): build the data set again, the shards that are whole stay"
        ) from None
    return manifest


def parse_manifest(content: bytes) -> tuple[tuple[ShardRecord, ...], str]:
    """Records and digest of a manifest's bytes; ValueError for whatever `commit` would not write."""
    try:
        with pq.ParquetFile(
            pa.BufferReader(content),
            page_checksum_verification=True,
            thrift_string_size_limit=len(content) + 1,
            thrift_container_size_limit=len(content) + 1,
        ) as file:
            _check_sizes(file.metadata, len(content))
            if not file.schema_arrow.equals(SHARD_COLUMNS):
                raise ValueError(f"its columns are {file.schema_arrow.names!r:.200}")
            digest = (file.metadata.metadata or {}).get(b"digest", b"").decode("ascii", "replace")
            rows = file.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"not a Parquet file of ours: {' '.join(str(error).split())[:200]}") from None
    shards = tuple(
        record_of({**row, "captions": row["captions"] or (), "skipped": _counts(row["skipped"])}) for row in rows
    )
    names = [shard.name for shard in shards]
    if names != sorted(set(names)) or not all(shard.samples for shard in shards):
        raise ValueError("its shards are not in order, or one of them is empty")
    return shards, digest


def _check_sizes(metadata: pq.FileMetaData, length: int) -> None:
    """Nothing in the file claims to be larger than the file: `commit` writes plain columns."""
    if metadata.num_columns != len(SHARD_COLUMNS.names) or max(metadata.num_rows, metadata.num_row_groups) > length:
        raise ValueError(f"it claims {metadata.num_rows} rows of {metadata.num_columns} columns in {length} bytes")
    # not `.column(i)`: for some damaged footers pyarrow 25 ends the process there instead of raising
    claimed = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if not 0 <= claimed <= length:
        raise ValueError(f"it claims {claimed} bytes of columns in {length}")


def _counts(text: str) -> dict:
    try:
        counts = json.loads(text)
    except RecursionError:
        counts = None
    if not isinstance(counts, dict):
        raise ValueError("its counts of rejected inputs are no json object")
    return counts


def _manifest(folder: str, shards: tuple[ShardRecord, ...], about: dict) -> Manifest:
    config = about["config"]
    hashed = hashlib.sha256(json.dumps([FORMAT, config, about["source_digest"]], sort_keys=True).encode())
    for shard in shards:
        hashed.update(json.dumps(vars(shard), sort_keys=True).encode())
    try:
        return Manifest(folder, shards, int(config["size"]), int(config["channels"]), hashed.hexdigest())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{DESCRIPTION} lacks the images' size: {error}") from None


def _shaping(config: DatasetConfig) -> dict:
    """The fields that the shards depend on."""
    values = dataclasses.asdict(config)
    del values["max_rejected"]
    return values


def _digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
