"""Our PNG files against OpenCV, Pillow and zlib, and against files that only look like ours."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.png import decode_png, encode_png, png_bytes, png_shape

SHAPES = [(1, 1, 1), (60, 60, 1), (32, 32, 3), (7, 300, 3), (150, 150, 3), (256, 255, 1), (255, 256, 3)]


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_readers_see_the_same_pixels(shape: tuple[int, int, int]) -> None:
    import cv2

    image = noise(shape)
    png = encode_png(image)
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.mode == {1: "L", 3: "RGB"}[shape[2]]
        assert np.array_equal(np.asarray(opened).reshape(shape), image)
    by_cv2 = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED).reshape(shape)
    assert np.array_equal(by_cv2[..., ::-1] if shape[2] == 3 else by_cv2, image)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_reader_gives_back_what_was_written(shape: tuple[int, int, int]) -> None:
    image = noise(shape)
    png, out = encode_png(image), np.zeros_like(image)
    decode_png(memoryview(png), out)
    assert np.array_equal(out, image)
    assert png_shape(png) == shape
    assert png_bytes(shape) == len(png)


def test_an_image_that_is_a_view_with_strides_is_written_as_it_looks() -> None:
    image = noise((20, 30, 3))
    assert encode_png(image[::2, ::-1]) == encode_png(np.ascontiguousarray(image[::2, ::-1]))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def by_the_book(image: np.ndarray, level: int, extra: bytes = b"") -> bytes:
    """A PNG as the specification says, compressed by zlib."""
    h, w, c = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    head = struct.pack(">IIBBBBB", w, h, 8, {1: 0, 3: 2}[c], 0, 0, 0)
    data = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows, level)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_the_bytes_are_those_that_zlib_stores() -> None:
    image = noise((60, 60, 1))
    assert encode_png(image) == by_the_book(image, 0)


def test_compressed_files_and_files_with_more_chunks_are_refused() -> None:
    image = noise((8, 8, 1))
    for png in (by_the_book(image, 9), by_the_book(image, 0, chunk(b"tEXt", b"a\0b")), encode_png(image) + b"x"):
        with pytest.raises(ValueError, match="not a stored 8x8x1 PNG|pixels are compressed"):
            decode_png(png, np.empty_like(image))
    # a bomb: as long as the stored file would be, but its few bytes would unpack to something large
    bomb = bytearray(encode_png(np.zeros((60, 60, 1), np.uint8)))
    bomb[41 + 2] = 3  # a block with fixed Huffman codes
    bomb[-16:-12] = struct.pack(">I", zlib.crc32(bytes(bomb[37:-16])))
    with pytest.raises(ValueError, match="pixels are compressed"):
        decode_png(bytes(bomb), np.empty((60, 60, 1), np.uint8))


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    image = noise((5, 4, 3))
    png = encode_png(image)
    for place in range(len(png)):
        for bit in (1, 128):
            damaged = bytearray(png)
            damaged[place] ^= bit
            with pytest.raises(ValueError):
                png_shape(damaged)
                decode_png(bytes(damaged), np.empty_like(image))


def test_headers_that_claim_too_much_are_refused_before_anything_is_reserved() -> None:
    good = encode_png(noise((8, 8, 1)))
    for width, height, depth, colour in [(2**31, 8, 8, 0), (8, 5000, 8, 0), (0, 8, 8, 0), (8, 8, 16, 0), (8, 8, 8, 3)]:
        head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        with pytest.raises(ValueError, match="shards hold 8 bit grey or RGB of at most 4096 a side"):
            png_shape(good[:16] + head + good[29:])
    for not_png in (b"", b"\xff\xd8\xff", good[:20]):
        with pytest.raises(ValueError, match="not a PNG file"):
            png_shape(not_png)
