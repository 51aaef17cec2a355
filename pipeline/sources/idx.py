"""The IDX files of MNIST (http://yann.lecun.com/exdb/mnist), gzipped or raw, read with suspicion.

An IDX file is a magic number (two zero bytes, the type 0x08 for bytes, the number of axes), each axis as a big-endian
32-bit number, then the bytes. Nothing is believed that the file's length does not confirm, and no more is unpacked than
the header announces.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib

import numpy as np

from pipeline import storage
from pipeline.sources.source import contents

LARGEST = 2**30  # bytes of an unpacked file; EMNIST's largest has 547 MB
STEP = 2**20  # bytes unpacked at a time

# name -> md5 of the file as published (gzip) and of its content
PUBLISHED = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}


def parse_idx(content: bytes, axes: int, name: str = "IDX file") -> np.ndarray:
    """uint8 array of `axes` axes from the bytes of a file, gzipped or raw; ValueError says what is wrong with it."""
    head = 4 + 4 * axes
    packed = content[:2] == b"\x1f\x8b"
    raw = _gunzip(content, head, name) if packed else content[:head]
    magic = 0x0800 + axes
    if len(raw) < 4 or struct.unpack(">I", raw[:4])[0] != magic:
        raise ValueError(
            f"{name}: starts with {raw[:4].hex() or 'nothing'}, an IDX file of bytes with {axes} axes starts with {magic:08x}"
        )
    if len(raw) < head:
        raise ValueError(f"{name}: cut short in its header, {len(raw)} of {head} bytes")
    shape = struct.unpack(f">{axes}I", raw[4:head])
    expected = head + math.prod(shape)
    if expected > LARGEST:
        raise ValueError(f"{name}: announces {' x '.join(map(str, shape))} bytes, at most {LARGEST} are read")
    raw = _gunzip(content, expected + 1, name) if packed else content
    if len(raw) < expected:
        raise ValueError(f"{name}: cut short, {len(raw)} of {expected} bytes; get the file again")
    if len(raw) > expected:
        raise ValueError(f"{name}: bytes follow the announced {expected}; get the file again")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def read_idx(folder: str, name: str, axes: int) -> tuple[np.ndarray, str, str | None]:
    """The array of folder/name.gz or folder/name, sha256 of its content, and a warning if it is not the published file."""
    found = [f"{name}{ending}" for ending in (".gz", "") if storage.exists(storage.join(folder, f"{name}{ending}"))]
    if not found:
        raise ValueError(f"{folder}: neither {name}.gz nor {name} is there; found: {contents(folder)}")
    path = storage.join(folder, found[0])
    content = storage.read_bytes(path, LARGEST)
    array = parse_idx(content, axes, path)
    header = struct.pack(f">{1 + axes}I", 0x0800 + axes, *array.shape)
    md5, sha256 = hashlib.md5(header, usedforsecurity=False), hashlib.sha256(header)
    for digest in (md5, sha256):
        digest.update(array)
    known = {hashlib.md5(content, usedforsecurity=False).hexdigest(), md5.hexdigest()} & set(PUBLISHED[name])
    warning = None if known else f"{found[0]} is not the published MNIST file (md5 of its content {md5.hexdigest()})"
    return array, sha256.hexdigest(), warning


def _gunzip(content: bytes, limit: int, name: str) -> bytes:
    """The first `limit` bytes of a gzip file; fewer only where it is whole and holds no more. Checksums are verified."""
    unpack = zlib.decompressobj(wbits=31)  # gzip
    parts, length = [], 0
    for start in range(0, len(content), STEP):
        rest = content[start : start + STEP]
        while rest and length < limit and not unpack.eof:
            try:
                parts.append(unpack.decompress(rest, limit - length))
            except zlib.error as error:
                raise ValueError(f"{name}: damaged gzip ({error}); get the file again") from None
            rest, length = unpack.unconsumed_tail, length + len(parts[-1])
        if length >= limit:
            return b"".join(parts)
        if unpack.eof and (rest or unpack.unused_data or start + STEP < len(content)):
            raise ValueError(f"{name}: bytes follow the end of the gzip data; get the file again")
    if not unpack.eof:
        raise ValueError(f"{name}: gzip cut short after {length} bytes; get the file again")
    return b"".join(parts)
