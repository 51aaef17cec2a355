"""Plain tar archives: what `webdataset.TarWriter(mtime=0)` writes, byte for byte, and a reader that takes nothing else in.

tarfile spends 100 us on a member and understands links, devices, sparse files and headers that rename others. Ours are flat
lists of small regular files with short names, so a header is one line and whatever is not that is refused.
Source: POSIX.1-1988 ustar.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

HEADER = 512  # bytes of a header, and the unit that files are padded to
RECORD = 10240  # an archive is padded to a multiple of this
NAME = 100  # bytes of the name field
_BEFORE = b"0000444\0" + b"0000000\0" * 2  # mode, user, group
_TIME = b"0" * 11 + b"\0"
_ZEROS = bytes(HEADER)
NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))  # mode, user, group, time, devices
# type, link, magic and version, user, group; no device numbers and no prefix
_AFTER = (b"0" + bytes(100) + b"ustar\00000" + b"bigdata".ljust(32, b"\0") * 2).ljust(HEADER - 156, b"\0")


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a file of `size` bytes."""
    called = name.encode("ascii")
    assert 0 < len(called) <= NAME, name
    fields, total = _fields(size)
    return b"%s%s%06o\0 %s" % (called.ljust(NAME, b"\0"), fields, total + sum(called), _AFTER)


@lru_cache(maxsize=4096)
def _fields(size: int) -> tuple[bytes, int]:
    """The fields between name and checksum, and the sum of all bytes but the name's."""
    assert 0 <= size < 8**11, size
    fields = _BEFORE + b"%011o\0" % size + _TIME
    return fields, sum(fields) + 8 * 32 + sum(_AFTER)  # the checksum counts itself as 8 blanks


def member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """A file as it lies in an archive: header, content, and zeros up to a whole block."""
    return header(name, len(content)), content, _ZEROS[: -len(content) % HEADER]


def ending(size: int) -> bytes:
    """What closes an archive whose members take `size` bytes: two empty blocks, and zeros up to a whole record."""
    return bytes(2 * HEADER + -(size + 2 * HEADER) % RECORD)


def walk(content: bytes, limit: Callable[[str], int]) -> list[tuple[str, int, int]]:
    """Name, start and size of every file in an archive; ValueError for anything but whole regular files with flat names.

    `limit` gives the bytes that a file of that name may have, and raises ValueError for a name that is not allowed.
    """
    found, headers, at, total = [], [], 0, len(content)
    if total % HEADER:
        raise ValueError(f"{total} bytes are no whole number of tar blocks: it was cut short")
    while True:
        if at + HEADER > total:
            raise ValueError("the tar has no end: it was cut short")
        block = content[at : at + HEADER]
        if block[0] == 0:
            break
        name = _name(block[:NAME])
        if block[156] not in b"0\0":  # links, devices, folders, and headers that change the meaning of the next
            raise ValueError(f"member {name!r} is of type {chr(block[156])!r}; only regular files are allowed")
        if block[257:262] != b"ustar" or block[345]:
            raise ValueError(f"member {name!r} has no plain ustar header")
        if block[100:124] != _BEFORE or block[136:148] != _TIME or any(block[329:345]):
            for start, stop in NUMBERS:  # of no use to us, but not every reader passes over nonsense
                _octal(block[start:stop], name)
        size = _octal(block[124:136], name)
        if size > limit(name):
            raise ValueError(f"member {name!r} has {size} bytes; at most {limit(name)} are allowed")
        headers.append(at)
        found.append((name, at + HEADER, size))
        at += HEADER + size + -size % HEADER
    if content.count(0, at) != total - at or total - at < 2 * HEADER:
        raise ValueError("the tar has no proper end: it was cut short or something was appended")
    _check_sums(content, headers, found)
    return found


def _name(field: bytes) -> str:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0") or not text.isascii() or not text.decode().isprintable():
        raise ValueError(f"member name {field[:40]!r} is not plain text")
    return text.decode()


def _octal(field: bytes, name: str) -> int:
    digits = field.rstrip(b"\0 ")
    if digits.strip(b"01234567"):
        raise ValueError(f"member {name!r} has a header with {field!r} for a number")
    return int(digits or b"0", 8)


def _check_sums(content: bytes, headers: list[int], found: list[tuple[str, int, int]]) -> None:
    """Every header's bytes add up to the checksum it states."""
    if not headers:
        return
    at = np.asarray(headers)[:, None]
    blocks = np.frombuffer(content, np.uint8)[at + np.arange(HEADER)]  # (members, 512)
    sums = blocks.sum(axis=1, dtype=np.int64) - blocks[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * 32
    for block, total, (name, _, _) in zip(blocks, sums.tolist(), found, strict=True):
        if _octal(block[148:156].tobytes(), name) != total:
            raise ValueError(f"member {name!r} has a header that does not match its checksum")
