"""Samples <-> the bytes of a shard: a WebDataset tar with two files a sample.

    <key>.json   {"captions": ["a cat", ...], "source": "train2017/000000000009.jpg"}
    <key>.png    the image, lossless, since the bound is measured on pixels

Captions stay text, so another vocabulary needs no other shards. Reading runs no decoder: two kinds of member are allowed,
their sizes are known beforehand, and the whole tar must match the digest in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted

import numpy as np

from pipeline import storage
from pipeline.sample import ShardRecord
from pipeline.shards import tar
from pipeline.shards.png import decode_png, encode_png, png_bytes, png_shape

MAX_TEXT = 2**20  # bytes of a sample's captions and source
MAX_SHARD = 2**31  # bytes of a shard; it is read at once
KEY = re.compile(r"[0-9A-Za-z_-]{1,90}")  # with its ending it fits a tar name; no dots: WebDataset cuts there
MEMBER = re.compile(KEY.pattern + r"\.(json|png)")


@dataclass(frozen=True)
class DecodedShard:
    """A shard in memory, in the tar's order."""

    keys: tuple[str, ...]
    images: np.ndarray  # (n, H, W, C) uint8
    captions: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


def text_bytes(captions: Sequence[str], source: str) -> bytes:
    """A sample's json; ValueError if the texts are not Unicode or too long."""
    # four times as fast as json.dumps, which makes an encoder at each call
    content = f'{{"captions":[{",".join(map(quoted, captions))}],"source":{quoted(source)}}}'.encode()
    if len(content) > MAX_TEXT:
        raise ValueError(f"captions of {len(content)} bytes; at most {MAX_TEXT} are allowed")
    return content


def member_bytes(key: str, text: bytes, image: np.ndarray) -> bytes:
    """A sample's part of the tar."""
    png = encode_png(image)
    return b"".join((*tar.member(key + ".json", text), *tar.member(key + ".png", png)))


def tar_of(parts: Iterable[bytes]) -> bytes:
    """The archive made of members' parts, in their order."""
    parts = list(parts)
    return b"".join([*parts, tar.ending(sum(map(len, parts)))])


def split_tar(content: bytes) -> dict[str, bytes]:
    """Key -> the sample's part of the tar, as `member_bytes` made it."""
    parts = {}
    for key, (text, _), (png, size) in _pairs(content):
        parts[key] = content[text - tar.HEADER : png + size + -size % tar.HEADER]
    return parts


def read_shard(
    path: str | bytes, record: ShardRecord, *, shape: tuple[int, int, int] | None = None, verify: bool = True
) -> DecodedShard:
    """Read a tar, by path or its bytes, that the manifest knows as `record`; ValueError names it and what is wrong with it.

    shape (H, W, C): what the images must have; None: what the first has. verify=False takes a tar with other bytes than
    the manifest's, e.g. one that was packed anew; its members are as strictly read.
    """
    name = record.name if isinstance(path, bytes) else str(path)
    content = path if isinstance(path, bytes) else storage.read_bytes(path, limit=record.bytes if verify else MAX_SHARD)
    try:
        if verify:
            check_digest(content, record)
        decoded = decode_tar(content, shape)
        if len(decoded) != record.samples:
            raise ValueError(f"it has {len(decoded)} samples, the manifest says {record.samples}")
    except ValueError as error:
        raise ValueError(
            f"shard {name} cannot be used: {error}; `python -m jobs.shard` --verify lists all such"
        ) from None
    return decoded


def check_digest(content: bytes, record: ShardRecord) -> None:
    """ValueError unless these are the bytes that the record was made for."""
    if len(content) != record.bytes:
        raise ValueError(f"it has {len(content)} bytes, the manifest says {record.bytes}")
    if (digest := hashlib.sha256(content).hexdigest()) != record.sha256:
        raise ValueError(f"its sha256 is {digest[:12]}..., the manifest says {record.sha256[:12]}...")


def decode_tar(content: bytes, shape: tuple[int, int, int] | None = None) -> DecodedShard:
    """The samples of a tar; ValueError says what is not as `member_bytes` writes it."""
    found, view = _pairs(content), memoryview(content)
    if not found:
        raise ValueError("it has no samples")
    at = found[0][2][0]
    shape = shape or png_shape(view[at : at + found[0][2][1]])
    if any(size != png_bytes(shape) for _, _, (_, size) in found):  # before memory is reserved for all of them
        raise ValueError(f"its images are not all of {shape[1]}x{shape[0]} pixels, {shape[2]} channels")
    images = np.empty((len(found), *shape), np.uint8)
    captions, sources = [], []
    for image, (key, text, png) in zip(images, found, strict=True):
        try:
            decode_png(view[png[0] : png[0] + png[1]], image)
            said, source = _read_text(content[text[0] : text[0] + text[1]])
        except ValueError as error:
            raise ValueError(f"sample {key}: {error}") from None
        captions.append(said)
        sources.append(source)
    return DecodedShard(tuple(key for key, _, _ in found), images, tuple(captions), tuple(sources))


def _pairs(content: bytes) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Of each sample its key, and start and size of its json and png; ValueError unless the tar is a row of such pairs."""
    found = tar.walk(content, _limit)
    texts, images = found[::2], found[1::2]
    pairs = []
    for (text, *text_at), (image, *image_at) in zip(texts, images, strict=False):
        key = text[: -len(".json")]
        if text != key + ".json" or image != key + ".png":
            raise ValueError(f"members {text!r} and {image!r} follow each other; KEY.json and KEY.png are expected")
        pairs.append((key, tuple(text_at), tuple(image_at)))
    if len(found) % 2 or len({key for key, _, _ in pairs}) != len(pairs):
        raise ValueError("a member is there without its other half, or twice")
    return pairs


def _limit(name: str) -> int:
    """Bytes that a member may have; ValueError if its name is not one of ours."""
    if not MEMBER.fullmatch(name):
        raise ValueError(f"member {name!r} is not allowed; members are KEY.json and KEY.png")
    return MAX_TEXT if name.endswith(".json") else MAX_SHARD


def _read_text(content: bytes) -> tuple[tuple[str, ...], str]:
    """Captions and source of a sample."""
    try:
        values = json.loads(content.decode())
    except RecursionError:
        raise ValueError("its json is nested too deeply") from None
    if not isinstance(values, dict) or set(values) != {"captions", "source"}:
        raise ValueError("its json is not an object of captions and source")
    captions, source = values["captions"], values["source"]
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in (*captions, source)):
        raise ValueError("its captions are not a list of texts, or its source is not a text")
    "".join((*captions, source)).encode()  # half a surrogate pair is no text: UnicodeEncodeError is a ValueError
    return tuple(captions), source
