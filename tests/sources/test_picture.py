"""Pictures of every kind that turn up in folders of photographs, good, odd, damaged and hostile."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.sources import picture as module
from pipeline.sources.picture import Unusable, read_picture

RED, GREEN, BLUE, GREY = (200, 30, 40), (20, 180, 60), (30, 60, 210), (128, 128, 128)


def quarters(width: int = 80, height: int = 60) -> Image.Image:
    """Red top left, green top right, blue bottom left, grey bottom right."""
    image = Image.new("RGB", (width, height))
    for box, colour in {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE, (1, 1): GREY}.items():
        image.paste(
            colour, (box[0] * width // 2, box[1] * height // 2, (box[0] + 1) * width // 2, (box[1] + 1) * height // 2)
        )
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(pixel: np.ndarray, colour: tuple[int, ...], within: int = 6) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= within)


def is_quarters(image: np.ndarray, within: int = 6) -> bool:
    corners = image[1, 1], image[1, -2], image[-2, 1], image[-2, -2]
    return all(close(pixel, colour, within) for pixel, colour in zip(corners, (RED, GREEN, BLUE, GREY), strict=True))


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "keep_rgb": True}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("BMP", {}),
    ],
)
@pytest.mark.parametrize("size", [16, 100])
def test_usual_formats(kind: str, options: dict, size: int) -> None:
    found = read_picture(encoded(quarters(), kind, **options), size, 3)
    assert (found.width, found.height) == (80, 60)
    assert found.image.shape == (size, size, 3) and found.image.flags.c_contiguous
    assert is_quarters(found.image)
    grey = read_picture(encoded(quarters(), kind, **options), size, 1).image
    assert grey.shape == (size, size, 1)
    for pixel, colour in ((grey[1, 1, 0], RED), (grey[1, -2, 0], GREEN), (grey[-2, 1, 0], BLUE)):
        assert abs(int(pixel) - np.dot(colour, (0.299, 0.587, 0.114))) < 4


def test_grey_cmyk_palette_and_gif_become_colour() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 3, dtype=np.uint8), (60, 1)))
    for kind in ("JPEG", "PNG"):
        image = read_picture(encoded(ramp, kind), 8, 3).image
        assert (image[..., 0] == image[..., 2]).all()
        assert np.abs(image[0, :, 0] - (np.arange(8) * 30 + 13.5)).max() < 4
    assert is_quarters(read_picture(encoded(quarters().convert("CMYK"), "JPEG", quality=95), 16, 3).image)
    assert is_quarters(read_picture(encoded(quarters().quantize(8), "PNG"), 16, 3).image)
    assert is_quarters(read_picture(encoded(quarters().quantize(8), "GIF"), 16, 3).image)


def test_of_an_animation_the_first_frame_counts() -> None:
    other = Image.new("RGB", (80, 60), BLUE)
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        moving = encoded(quarters(), kind, save_all=True, append_images=[other, other], **options)
        assert is_quarters(read_picture(moving, 16, 3).image), kind


def test_sixteen_bits_are_scaled_and_transparency_shows_white() -> None:
    deep = Image.fromarray(np.full((20, 20), 0x8080, np.uint16))
    assert (read_picture(encoded(deep, "PNG"), 4, 3).image == 0x80).all()
    black = Image.fromarray(np.full((20, 20), 100, np.uint16))
    assert (read_picture(encoded(black, "PNG"), 4, 3).image == 0).all()
    clear = quarters().convert("RGBA")
    clear.paste((9, 9, 9, 0), (40, 30, 80, 60))
    clear.paste((0, 0, 0, 128), (0, 0, 40, 30))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        image = read_picture(encoded(clear, kind, **options), 16, 3).image
        assert (
            close(image[-2, -2], (255, 255, 255)) and close(image[1, 1], (127, 127, 127)) and close(image[1, -2], GREEN)
        )
    indexed = Image.new("P", (20, 20), 0)
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    assert (read_picture(encoded(indexed, "PNG", transparency=0), 4, 3).image == 255).all()


@pytest.mark.parametrize("kind, size", [("JPEG", 16), ("JPEG", 4), ("PNG", 16), ("WEBP", 16)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, size: int, orientation: int) -> None:
    """Stored as a camera held that way would have, by Pillow's own inverse transpositions."""
    inverse = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = quarters()
    for turn in inverse[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_picture(encoded(stored, kind, exif=exif, quality=95), size, 3)
    assert is_quarters(found.image, within=12)
    assert (found.width, found.height) == (80, 60)


def test_an_orientation_that_makes_no_sense_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert is_quarters(read_picture(encoded(quarters(), "JPEG", exif=exif, quality=95), 16, 3).image)
    broken = encoded(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert is_quarters(read_picture(broken, 16, 3).image)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(image - reference).mean())


def opencv_full(content: bytes, size: int) -> np.ndarray:
    """Full decode and area average, by another library, in float64."""
    full = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    return cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("size", [32, 64])
def test_every_coco_photograph_is_within_38_db_of_full_decode_and_area_average(shared_data: Path, size: int) -> None:
    files = sorted((shared_data / "coco").glob("*2017/*.jpg"))
    assert len(files) == 70
    contents = [file.read_bytes() for file in files]
    assert min(psnr(read_picture(c, size, 3).image, opencv_full(c, size)) for c in contents) > 42


@pytest.mark.parametrize("height, width", [(200, 200), (201, 333), (427, 640), (767, 511), (1000, 1501)])
def test_sizes_that_do_not_divide_keep_their_edges(height: int, width: int) -> None:
    """Sharp bars make a shift of half a pixel visible."""
    y, x = np.mgrid[:height, :width]
    bars = np.stack([(x // 23 % 2) * 255, (y // 19 % 2) * 255, ((x + y) // 31 % 2) * 255], axis=2).astype(np.uint8)
    content = encoded(Image.fromarray(bars), "JPEG", quality=92, subsampling=0)
    assert psnr(read_picture(content, 32, 3).image, opencv_full(content, 32)) > 38


def reason(content: bytes) -> str:
    with pytest.raises(Unusable) as error:
        read_picture(content, 16, 3)
    return error.value.reason


def test_what_is_no_whole_picture_is_refused_with_its_reason() -> None:
    photo = encoded(Image.effect_noise((200, 150), 60).convert("RGB"), "JPEG", quality=90)
    assert reason(b"") == "empty file"
    assert reason(b"<html>404 not found</html>") == "not an image"
    assert reason(b"\xff\xd8\xff") == "not an image"
    assert reason(photo[:100]) == "not an image"
    assert reason(photo[: len(photo) // 2]) == "truncated"
    assert reason(photo[:-2]) == "truncated"
    assert reason(photo[: len(photo) // 2] + bytes(len(photo) // 2)) == "truncated"
    middle = len(photo) // 2
    assert reason(photo[:middle] + b"\xff\xc4" * 20 + photo[middle + 40 :]) in ("damaged", "truncated")
    for kind in ("PNG", "GIF", "WEBP"):
        whole = encoded(Image.effect_noise((200, 150), 60).convert("RGB"), kind)
        assert reason(whole[: len(whole) // 2]) in ("truncated", "damaged", "not an image")
    assert reason(b"%PDF-1.4" + bytes(1000)) == "not an image"


def test_bytes_after_the_end_do_no_harm() -> None:
    assert is_quarters(read_picture(encoded(quarters(), "JPEG", quality=95) + b"camera maker's notes" * 9, 16, 3).image)


def test_a_refused_picture_still_tells_its_size() -> None:
    photo = encoded(Image.effect_noise((200, 150), 60).convert("RGB"), "JPEG")
    with pytest.raises(Unusable) as error:
        read_picture(photo[: len(photo) // 2], 16, 3)
    assert (error.value.width, error.value.height) == (200, 150)


def png_announcing(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**7), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header_without_unpacking_it() -> None:
    jpeg = bytearray(encoded(quarters(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">2H", 60_000, 60_000)
    bombs = [bytes(jpeg), png_announcing(60_000, 60_000), png_announcing(2**30, 1), png_announcing(20_000, 10)]
    tracemalloc.start()
    for bomb in bombs:
        assert reason(bomb) == "too large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_file_larger_than_any_photograph_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    assert reason(encoded(quarters(), "BMP")) == "too large"


def test_a_jpeg_of_thousands_of_scans_is_refused_quickly() -> None:
    """Each scan of a few bytes would cost a pass over the whole picture."""
    photo = encoded(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    scan = photo[photo.rindex(b"\xff\xda") : -2]
    began = time.process_time()
    assert reason(photo[:-2] + scan * 3000 + photo[-2:]) == "too large"
    assert time.process_time() - began < 1
