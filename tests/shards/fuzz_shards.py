"""Feeds damaged shards, records and manifests to their readers: `python -m tests.shards.fuzz_shards 100000 [SEED]`.

Each must give a result or a ValueError of one line, within seconds and bounded memory. What is read from a damaged tar is
compared with what tarfile reads from it, so that no two readers ever see different samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.shards.manifest import commit, describe, description, merge_samples, parse_manifest
from pipeline.shards.members import decode_tar, member_bytes, split_tar, tar_of, text_bytes
from pipeline.shards.png import decode_png, encode_png, png_shape
from pipeline.shards.write import read_record, record_path, write_shard
from tests.fake_source import FakeSource
from tests.sources.fuzz_sources import fuzz

Reader = tuple[list[bytes], Callable[[bytes], object]]
MOST_MIB = 1500  # of the whole process


def image(number: int, channels: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 5, channels), dtype=np.uint8)


def shards() -> Reader:
    originals = [
        tar_of(member_bytes(f"key-{i}", text_bytes([f"a {i}", "Ü"], f"{i}.jpg"), image(i, channels)) for i in range(n))
        for n, channels in ((1, 1), (3, 3))
    ]

    def read(content: bytes) -> object:
        shard = decode_tar(content)
        assert len(shard.keys) == len(shard.images) == len(shard.captions) == len(shard.sources)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        assert members.keys() == {f"{key}.{ending}" for key in shard.keys for ending in ("json", "png")}
        for key, captions, source in zip(shard.keys, shard.captions, shard.sources, strict=True):
            assert json.loads(members[f"{key}.json"]) == {"captions": list(captions), "source": source}
        assert split_tar(content).keys() == set(shard.keys)
        return shard

    return originals, read


def resealed_shards() -> Reader:
    """Damaged tars whose headers' checksums are right again, so that what lies behind them is reached."""
    originals, read = shards()

    def seal(content: bytes) -> object:
        sealed = bytearray(content)
        for at in range(0, len(sealed) - 511, 512):
            if sealed[at + 257 : at + 262] == b"ustar":
                total = sum(sealed[at : at + 148]) + 8 * 32 + sum(sealed[at + 156 : at + 512])
                sealed[at + 148 : at + 156] = b"%06o\0 " % total
        return read(bytes(sealed))

    return originals, seal


def pngs() -> Reader:
    def read(content: bytes) -> object:
        height, width, channels = png_shape(content)
        out = np.empty((height, width, channels), np.uint8) if height * width < 10**6 else np.empty((1, 1, 1), np.uint8)
        decode_png(content, out)
        assert encode_png(out) == content, "only what we would write is read"
        return out

    return [encode_png(image(0, 1)), encode_png(image(1, 3)), encode_png(np.zeros((300, 90, 3), np.uint8))], read


def texts() -> Reader:
    from pipeline.shards.members import _read_text

    return [text_bytes(["a cat", 'on "a" mat', "Ü\n"], "x.jpg")], _read_text


def records() -> Reader:
    folder = tempfile.mkdtemp()
    source = FakeSource(f"{folder}/source")
    source.trouble("rejected", "train-000002").write_text("not an image")
    plan = source.plan[0]
    write_shard(folder, plan, source)
    path = Path(record_path(folder, plan.name))
    original = path.read_bytes().splitlines()[0]

    def read(content: bytes) -> object:
        path.write_bytes(content + b"\n" + hashlib.sha256(content).hexdigest().encode())
        return read_record(folder, plan.name)

    return [original], read


def manifests() -> Reader:
    originals = []
    for shards in (1, 9):
        with tempfile.TemporaryDirectory() as folder:
            source = FakeSource(f"{folder}/source", {"train": shards, "val": 1, "test": 1})
            source.trouble("rejected", "train-000002").write_text("not an image")
            describe(folder, DatasetConfig(source="digits", size=8), source.digest, source.facts)
            for plan in source.plan:
                write_shard(folder, plan, source)
            commit(folder, merge_samples(folder, source.plan).shards)
            originals.append(Path(folder, "manifest.parquet").read_bytes())
    return originals, parse_manifest


def damaged_footers() -> Reader:
    """Parquet's own description of a file is at its end; here all damage goes there."""
    originals, read = manifests()
    content = originals[0]
    at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")

    def joined(footer: bytes) -> object:
        return read(content[:at] + footer + len(footer).to_bytes(4, "little") + b"PAR1")

    return [content[at:-8]], joined


def descriptions() -> Reader:
    folder = tempfile.mkdtemp()
    describe(folder, DatasetConfig(), "digest", {"held_out": [{"template": "left", "slot": 0, "digit": 3}]})
    path = Path(folder, "dataset.json")
    original = path.read_bytes()

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return description(folder)

    return [original], read


READERS = {
    "shard": shards,
    "resealed shard": resealed_shards,
    "png": pngs,
    "text": texts,
    "record": records,
    "manifest": manifests,
    "manifest's footer": damaged_footers,
    "description": descriptions,
}


def main(count: int, seed: int = 0) -> None:
    for reader in READERS:
        began = time.monotonic()
        outcomes = fuzz(reader, count // len(READERS), seed, READERS)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{reader}: {dict(outcomes)}, {time.monotonic() - began:.0f} s, {memory:.0f} MiB at most", flush=True)
        assert memory < MOST_MIB, f"{reader}: {memory:.0f} MiB"


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2:]))
