"""Our tars are those of WebDataset's writer; whatever else tarfile can write is refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from pipeline.shards import tar

FILES = {"a.json": b"{}", "a.png": bytes(range(256)) * 5, "b-2_x.json": b"", "b-2_x.png": b"x" * 512}


def ours(files: dict[str, bytes]) -> bytes:
    content = b"".join(piece for name, data in files.items() for piece in tar.member(name, data))
    return content + tar.ending(len(content))


def anything(name: str) -> int:
    return 10**6


def listed(content: bytes) -> dict[str, bytes]:
    return {name: content[start : start + size] for name, start, size in tar.walk(content, anything)}


def with_tarfile(*members: tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT, data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for member in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def test_the_bytes_are_those_of_webdataset_and_of_tarfile() -> None:
    import webdataset

    stream = io.BytesIO()
    with webdataset.TarWriter(stream, encoder=False, mtime=0) as writer:
        for key in ("a", "b-2_x"):
            writer.write({"__key__": key, "json": FILES[f"{key}.json"], "png": FILES[f"{key}.png"]})
    assert ours(FILES) == stream.getvalue()

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uname, member.gname = len(data), 0o444, "bigdata", "bigdata"
            archive.addfile(member, io.BytesIO(data))
    assert ours(FILES) == stream.getvalue()


def test_what_is_written_is_walked_and_tarfile_sees_the_same() -> None:
    content = ours(FILES)
    assert listed(content) == FILES
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {name: archive.extractfile(name).read() for name in archive.getnames()} == FILES


def test_an_archive_ends_at_a_whole_record_whatever_its_length() -> None:
    for size in range(0, 25 * 512, 512):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            member = tarfile.TarInfo("x")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
        assert 512 + size + len(tar.ending(512 + size)) == len(stream.getvalue())


def test_tars_that_other_tools_packed_are_walked_too() -> None:
    member = tarfile.TarInfo("key.png")
    member.mtime, member.mode, member.uid, member.uname = 1234567890, 0o644, 1000, "me"
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        assert listed(with_tarfile(member, format=format, data=b"abc")) == {"key.png": b"abc"}


def test_a_tar_that_was_cut_anywhere_is_refused() -> None:
    content = ours(FILES)
    whole = (-(-len(content.rstrip(b"\0")) // 512) + 2) * 512  # the last file, and the two blocks that end a tar
    for length in range(0, whole, 256):
        with pytest.raises(ValueError, match="cut short"):
            tar.walk(content[:length], anything)


def test_links_devices_folders_and_long_names_are_refused() -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("key.png")
        member.type, member.linkname = kind, "/etc/passwd"
        with pytest.raises(ValueError, match="only regular files are allowed"):
            tar.walk(with_tarfile(member), anything)
    long = tarfile.TarInfo("x" * 150 + ".png")
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(ValueError, match="only regular files are allowed"):
            tar.walk(with_tarfile(long, format=format), anything)
    in_folder = tarfile.TarInfo("f" * 90 + "/" + "x" * 90)  # tarfile puts the folder into the prefix field
    with pytest.raises(ValueError, match="no plain ustar header"):
        tar.walk(with_tarfile(in_folder), anything)


def test_sizes_are_refused_before_anything_is_read() -> None:
    head = bytearray(tar.header("key.png", 0))
    head[124:136] = b"\x80" + b"\xff" * 11  # GNU's binary size
    with pytest.raises(ValueError, match="for a number"):
        tar.walk(bytes(head) + bytes(1024), anything)
    with pytest.raises(ValueError, match="at most 1000000 are allowed"):
        tar.walk(tar.header("key.png", 8**11 - 1) + bytes(1024), anything)
    with pytest.raises(ValueError, match="cut short"):
        tar.walk(tar.header("key.png", 999_999) + bytes(1024), anything)


def test_a_header_with_any_bit_flipped_is_refused_or_its_files_are_the_same() -> None:
    content = ours({"key.json": b"{}", "key.png": b"x"})
    for place in range(1024):
        damaged = bytearray(content)
        damaged[place] ^= 4
        if place < 512 or damaged[512:] == content[512:]:
            with pytest.raises(ValueError):
                tar.walk(bytes(damaged), anything)


def test_something_behind_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="appended"):
        tar.walk(ours(FILES) + ours(FILES), anything)
