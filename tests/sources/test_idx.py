"""The IDX reader on good, broken and hostile files."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.idx import PUBLISHED, parse_idx, read_idx
from tests.sources.fuzz_sources import READERS, fuzz


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file, written from the format's description."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
def test_what_was_written_is_read(pack) -> None:
    assert (parse_idx(pack(idx_bytes(IMAGES)), 3) == IMAGES).all()
    assert parse_idx(pack(idx_bytes(np.zeros(0, np.uint8))), 1).shape == (0,)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda good: b"", "starts with nothing"),
        (lambda good: b"\x89PNG" + good, "starts with 89504e47.*00000803"),
        (lambda good: idx_bytes(np.zeros(5, np.uint8)), "starts with 00000801.*3 axes.*00000803"),
        (lambda good: good[:9], "cut short in its header, 9 of 16"),
        (lambda good: good[:-1], "cut short, 39 of 40"),
        (lambda good: good + b"x", "bytes follow the announced 40"),
        (lambda good: struct.pack(">4I", 0x803, 2**31, 2**31, 2**31) + good[16:], "at most 1073741824"),
    ],
)
def test_a_broken_file_is_one_line_that_says_how(pack, damage, says: str) -> None:
    with pytest.raises(ValueError, match=f"^some/file: .*{says}") as error:
        parse_idx(pack(damage(idx_bytes(IMAGES))), 3, "some/file")
    assert "\n" not in str(error.value)


def test_a_damaged_gzip_says_so() -> None:
    packed = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8)))
    for broken, says in [
        (packed[:-12], "cut short"),
        (packed[:-8] + bytes(8), "damaged gzip"),
        (packed[:200] + b"\xff" * 9 + packed[209:], "damaged gzip"),
        (packed + b"more", "bytes follow"),
        (packed + packed, "bytes follow"),
    ]:
        with pytest.raises(ValueError, match=says):
            parse_idx(broken, 3)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_announces() -> None:
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = (
        squeeze.compress(idx_bytes(IMAGES))
        + b"".join(squeeze.compress(bytes(2**20)) for _ in range(300))
        + squeeze.flush()
    )
    assert len(bomb) < 400_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes follow"):
        parse_idx(bomb, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_the_published_files_are_known_and_others_are_warned_of(tmp_path: Path, shared_data: Path) -> None:
    digests = set()
    for name in PUBLISHED:
        packed = (shared_data / "mnist" / f"{name}.gz").read_bytes()
        assert hashlib.md5(packed).hexdigest() == PUBLISHED[name][0]
        assert hashlib.md5(gzip.decompress(packed)).hexdigest() == PUBLISHED[name][1]
    name = "t10k-labels-idx1-ubyte"
    raw = gzip.decompress((shared_data / "mnist" / f"{name}.gz").read_bytes())
    for folder, file, content in [("a", name, raw), ("b", f"{name}.gz", gzip.compress(raw))]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(content)
        _, digest, warning = read_idx(str(tmp_path / folder), name, 1)
        assert warning is None
        digests.add(digest)
    assert len(digests) == 1, "raw or packed, it is the same data"
    (tmp_path / "a" / name).write_bytes(idx_bytes(np.zeros(7, np.uint8)))
    _, digest, warning = read_idx(str(tmp_path / "a"), name, 1)
    assert digest not in digests and "not the published MNIST file" in warning


def test_a_missing_file_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"neither t10k-labels-idx1-ubyte.gz nor .* is there; found: holiday.jpg"):
        read_idx(str(tmp_path), "t10k-labels-idx1-ubyte", 1)


@pytest.mark.parametrize("reader", READERS)
def test_mutated_inputs_are_read_or_refused(reader: str) -> None:
    """All readers of sources; the long version is `python -m tests.sources.fuzz_sources 100000`."""
    outcomes = fuzz(reader, 1500, seed=1)
    assert outcomes["read"] > 15 and outcomes["refused"] > 100, outcomes
