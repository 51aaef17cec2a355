"""Shards are read as they were written, by WebDataset too, and hostile ones are refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.sample import ShardPlan, ShardRecord
from pipeline.shards import tar
from pipeline.shards.members import MAX_TEXT, decode_tar, member_bytes, read_shard, split_tar, tar_of, text_bytes
from pipeline.shards.png import encode_png
from pipeline.shards.write import write_shard
from tests.fake_source import FakeSource

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)


@pytest.fixture(params=[(8, 1), (12, 3)], ids=["grey", "colour"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> FakeSource:
    size, channels = request.param
    return FakeSource(tmp_path / "source", size=size, channels=channels)


@pytest.fixture
def written(source: FakeSource, tmp_path: Path) -> tuple[str, ShardRecord, ShardPlan]:
    """A shard's path, record and plan."""
    plan = source.plan[1]
    record = write_shard(str(tmp_path / "set"), plan, source).record
    return str(tmp_path / "set" / record.name), record, plan


def test_a_shard_is_read_as_it_was_written(source: FakeSource, written: tuple) -> None:
    path, record, plan = written
    samples, shard = source.samples(plan), read_shard(path, record)
    assert shard.keys == tuple(sample.key for sample in samples)
    assert shard.captions == tuple(sample.captions for sample in samples)
    assert shard.sources == tuple(sample.source for sample in samples)
    assert np.array_equal(shard.images, np.stack([sample.image for sample in samples]))


def test_webdataset_and_tarfile_read_the_same(source: FakeSource, written: tuple) -> None:
    import cv2
    import webdataset

    path, _, plan = written
    samples = source.samples(plan)
    found = list(webdataset.WebDataset(path, shardshuffle=False))
    assert [one["__key__"] for one in found] == [sample.key for sample in samples]
    for one, sample in zip(found, samples, strict=True):
        assert json.loads(one["json"]) == {"captions": list(sample.captions), "source": sample.source}
        pixels = cv2.imdecode(np.frombuffer(one["png"], np.uint8), cv2.IMREAD_UNCHANGED).reshape(sample.image.shape)
        assert np.array_equal(pixels[..., ::-1], sample.image)
    with tarfile.open(path) as archive:
        assert archive.getnames() == [f"{sample.key}.{ending}" for sample in samples for ending in ("json", "png")]


def test_a_shard_whose_bytes_differ_from_the_manifest_is_refused_unless_told_otherwise(written: tuple) -> None:
    path, record, _ = written
    content = Path(path).read_bytes()
    other = content.replace(b".jpg", b".gif")  # well formed, but not what was written
    Path(path).write_bytes(other)
    with pytest.raises(ValueError, match=r"train-00001\.tar cannot be used: its sha256 is .* the manifest says"):
        read_shard(path, record)
    assert read_shard(path, record, verify=False).sources[0].endswith(".gif")
    with pytest.raises(ValueError, match="bytes, the manifest says"):
        read_shard(content[:-10240], record)
    with pytest.raises(ValueError, match="has 7 samples, the manifest says 6"):
        read_shard(content, replace(record, samples=6), verify=False)


def test_a_longer_file_than_the_manifest_says_is_not_even_read(written: tuple) -> None:
    path, record, _ = written
    with open(path, "ab") as file:
        file.truncate(2**40)  # sparse: reading it would need a terabyte
    with pytest.raises(ValueError, match="at most"):
        read_shard(path, record)
    with pytest.raises(ValueError, match="at most"):
        read_shard(path, record, verify=False)


def test_images_of_another_shape_are_refused(written: tuple) -> None:
    path, record, _ = written
    with pytest.raises(ValueError, match="its images are not all of 9x9 pixels"):
        read_shard(path, record, shape=(9, 9, 1))


def test_a_tar_is_split_into_the_parts_it_was_made_of() -> None:
    parts = {key: member_bytes(key, text_bytes([key * 100], "s"), IMAGE) for key in ("a", "b", "c")}
    assert split_tar(tar_of(parts.values())) == parts
    assert split_tar(tar_of([])) == {}


@pytest.mark.parametrize(
    "captions",
    [["plain"], ['quotes " and \\ back', "tab\tnewline\n", "\x00\x1f\x7f"], ["Grüße 你好 🎨", "\u2028"], ["", " "]],
)
def test_texts_are_json_that_the_standard_library_reads_back(captions: list[str]) -> None:
    content = text_bytes(captions, captions[0])
    assert json.loads(content) == {"captions": captions, "source": captions[0]}
    assert content.decode() == json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))


def archive(files: dict[str, bytes]) -> bytes:
    return tar_of(b"".join(tar.member(name, data)) for name, data in files.items())


GOOD = {"a.json": text_bytes(["a cat"], "x.jpg"), "a.png": encode_png(IMAGE)}


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no samples"),
        ({**GOOD, "b.json": GOOD["a.json"]}, "without its other half"),
        ({"a.png": GOOD["a.png"], "a.json": GOOD["a.json"]}, "follow each other"),
        ({"a.json": GOOD["a.json"], "b.png": GOOD["a.png"]}, "follow each other"),
        ({**GOOD, "../b.json": b"{}"}, r"member '../b.json' is not allowed"),
        ({**GOOD, "/etc/b.json": b"{}"}, "not allowed"),
        ({**GOOD, "b.c.json": b"{}"}, "not allowed"),
        ({**GOOD, "b.pyd": b"{}"}, "not allowed"),
        ({**GOOD, "b.pickle": b"{}"}, "not allowed"),
        ({**GOOD, "b.png\n": b"{}"}, "not plain text"),
        ({**GOOD, "a.json": b"{}"}, "not an object of captions and source"),
        ({**GOOD, "a.json": b"[" * 100_000}, "nested too deeply"),
        ({**GOOD, "a.json": b"{" + b'"a":' * 3}, "Expecting"),
        ({**GOOD, "a.json": b'{"captions": [], "source": "x"}'}, "not a list of texts"),
        ({**GOOD, "a.json": b'{"captions": "abc", "source": "x"}'}, "not a list of texts"),
        ({**GOOD, "a.json": b'{"captions": [1], "source": "x"}'}, "not a list of texts"),
        ({**GOOD, "a.json": b'{"captions": ["\\ud800"], "source": "x"}'}, "surrogates not allowed"),
        ({**GOOD, "a.json": b'{"captions": ["\xff"], "source": "x"}'}, "utf-8"),
        ({**GOOD, "a.json": b" " * (MAX_TEXT + 1)}, "at most 1048576 are allowed"),
        ({**GOOD, "a.png": b"GIF89a" + bytes(100)}, "not a PNG"),
        ({**GOOD, "b.json": GOOD["a.json"], "b.png": encode_png(IMAGE[:, :4])}, "not all of 8x8"),
    ],
)
def test_what_our_writer_would_not_write_is_refused(files: dict[str, bytes], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_tar(archive(files))


def test_a_key_that_occurs_twice_is_refused() -> None:
    part = member_bytes("a", GOOD["a.json"], IMAGE)
    with pytest.raises(ValueError, match="twice"):
        decode_tar(tar_of([part, part]))


def test_no_code_in_a_shard_is_run(tmp_path: Path) -> None:
    """The members that WebDataset's decoder executes, and a name that its opener gives to a shell."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    for ending in ("pyd", "pickle", "pkl", "pth", "pt", "npy"):
        with pytest.raises(ValueError, match="not allowed"):
            decode_tar(archive({**GOOD, f"b.{ending}": pickle.dumps(Evil())}))
    record = ShardRecord("x.tar", "train", 1, 1, (1,), 10240, "0" * 64)
    with pytest.raises((ValueError, OSError)):
        read_shard(f"pipe:touch {tmp_path}/ran", record)
    assert not (tmp_path / "ran").exists()


def test_links_are_refused_although_tarfile_would_follow_them() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as made:
        member = tarfile.TarInfo("a.json")
        member.type, member.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        made.addfile(member)
    with pytest.raises(ValueError, match="only regular files"):
        decode_tar(stream.getvalue())
