"""Members of a zip file, read by their place in it, so that only the job reads the directory and its tasks do not.

The directory of COCO's train2017.zip has 118,287 entries: a second and 100 MB in every process that opens it with zipfile.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from typing import IO, NamedTuple

from pipeline import storage
from pipeline.sources.picture import Unusable

HEADER = 30  # bytes before a member's name
ROOM = 1024  # bytes that its name and extra fields may take; one read then gets all of a member


class Member(NamedTuple):
    """What the directory says of a member."""

    offset: int
    packed: int  # bytes in the zip file
    bytes: int
    method: int
    crc: int


def list_members(path: str) -> dict[str, Member]:
    """Name -> member, of all files in a zip file (local, s3:// or gs://); ValueError if it is not whole."""
    return members_of(open_once(path), path)


def members_of(file: IO[bytes], path: str) -> dict[str, Member]:
    try:
        found = zipfile.ZipFile(file).infolist()
    except OSError:
        raise  # of the disk or the network
    except Exception as error:  # on damaged directories zipfile raises a dozen kinds, struct.error among them
        raise ValueError(f"{path}: not a whole zip file ({error}); get the file again") from None
    return {
        i.filename: Member(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC)
        for i in found
        if not i.filename.endswith("/")
    }


def read_member(file: IO[bytes], member: Member, limit: int) -> bytes:
    """A member's bytes, its checksum verified, never more than limit; Unusable where they cannot be had."""
    if max(member.bytes, member.packed) > limit:
        raise Unusable("too large")
    file.seek(max(member.offset, 0))
    found = file.read(HEADER + ROOM + member.packed)
    start = HEADER + int.from_bytes(found[26:28], "little") + int.from_bytes(found[28:30], "little")
    content = found[start : start + member.packed]
    if found[:4] == b"PK\x03\x04" and start <= HEADER + ROOM:
        if member.method == zipfile.ZIP_DEFLATED:
            content = _inflate(content, member.bytes)
        if len(content) == member.bytes and zlib.crc32(content) == member.crc:
            return content
    raise Unusable("damaged in its zip file")


def _inflate(packed: bytes, limit: int) -> bytes:
    """At most limit bytes; none where they are damaged."""
    try:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(packed, limit + 1)
    except zlib.error:
        return b""


@lru_cache(maxsize=4)
def open_once(path: str) -> IO[bytes]:
    """The file, opened once in a process: an object store is asked for a file's size at each opening."""
    filesystem, name = storage.resolve(path)
    return filesystem.open_input_file(name)
