"""Feeds damaged inputs to the readers of sources: `python -m tests.sources.fuzz_sources 100000 [SEED]`.

Each reader gets mutants of a good input: it must give a result or its own kind of error, within seconds and bounded memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import signal
import struct
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image

from pipeline.sources import coco, idx, picture, zipped
from pipeline.text.vocabulary import Vocabulary

TIME_LIMIT_S = 10  # for one input; a usual one takes a millisecond


def mutate(content: bytes, random: Random) -> bytes:
    """A few random changes: bits, bytes, numbers at their limits, cuts, repeats, moves."""
    mutant = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not mutant:
            break
        at, length = random.randrange(len(mutant)), random.choice((1, 2, 4, 8, 64))
        kind = random.randrange(8)
        if kind == 0:
            mutant[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            mutant[at] = random.randrange(256)
        elif kind == 2:
            number = random.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, random.getrandbits(32)))
            mutant[at : at + 4] = struct.pack(random.choice("<>") + "I", number)
        elif kind == 3:
            del mutant[at:]
        elif kind == 4:
            del mutant[at : at + length]
        elif kind == 5:
            mutant[at:at] = mutant[at : at + length] * random.choice((1, 1, 50))
        elif kind == 6:
            to = random.randrange(len(mutant))
            mutant[to : to + length] = mutant[at : at + length]
        else:
            mutant += random.randbytes(length)
    return bytes(mutant)


def mutate_json(document: object, random: Random) -> object:
    """A copy with some value replaced by one of another kind."""
    strange = (
        None,
        True,
        -1,
        0,
        10**30,
        1.5,
        float("nan"),
        "",
        "x" * 3000,
        "\ud800",
        "../../etc/passwd",
        [],
        {},
        [[]],
        "a\0b",
    )
    if random.random() < 0.15 or not isinstance(document, dict | list) or not document:
        return random.choice(strange)
    copy = dict(document) if isinstance(document, dict) else list(document)
    at = random.choice(list(copy)) if isinstance(copy, dict) else random.randrange(len(copy))
    kind = random.randrange(6)
    if kind == 0:
        del copy[at]
    elif kind == 1 and isinstance(copy, list):
        copy.append(copy[at])
    else:
        copy[at] = mutate_json(copy[at], random)
    return copy


def idx_files() -> tuple[list[bytes], Callable[[bytes], object]]:
    images = struct.pack(">4I", 0x803, 3, 4, 5) + bytes(range(60))
    labels = struct.pack(">2I", 0x801, 9) + bytes(range(9))
    plain = [images, labels]

    def read(content: bytes) -> object:
        with contextlib.suppress(ValueError):
            idx.parse_idx(content, 3)
        return idx.parse_idx(content, 1)

    return plain + [gzip.compress(content, mtime=0) for content in plain], read


CAPTIONS = {
    "info": {},
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 5, "height": 6} for i in range(4)],
    "annotations": [{"id": i, "image_id": i % 4, "caption": f"a man's {i} dogs ."} for i in range(9)],
}
KARPATHY = {"images": [{"cocoid": i, "split": "train", "filename": f"{i}.jpg"} for i in range(4)]}


def read_captions(content: bytes) -> object:
    found = coco.Annotations.parse(content, "captions.json")
    rows = coco._rows("train", found, {"0.jpg": (10, None)}, 5)
    for row in rows:
        assert len(row.captions) <= 5
        json.dumps(row, ensure_ascii=False).encode()  # no lone surrogates
    return Vocabulary.build(caption for row in rows for caption in row.captions)


def caption_files() -> tuple[list[bytes], Callable[[bytes], object]]:
    return [json.dumps(CAPTIONS).encode()], read_captions


def karpathy_files() -> tuple[list[bytes], Callable[[bytes], object]]:
    return [json.dumps(KARPATHY).encode()], lambda content: coco.parse_karpathy(content, "dataset_coco.json")


def vocabulary_files() -> tuple[list[bytes], Callable[[bytes], object]]:
    text = Vocabulary.build(["a dog .", "a cat"]).to_json()
    return [text.encode()], lambda content: Vocabulary.from_json(content.decode("utf-8", "replace"))


def pictures() -> tuple[list[bytes], Callable[[bytes], object]]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    rgb, files = Image.fromarray(noise), []
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, kind, options in (
        (rgb, "JPEG", {"exif": exif}),
        (rgb.resize((300, 220)), "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("L").convert("I;16"), "PNG", {}),
        (rgb.convert("RGBA"), "WEBP", {}),
        (rgb.convert("P"), "GIF", {}),
        (rgb, "BMP", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())

    def read(content: bytes) -> object:
        found = picture.read_picture(content, 16, 3)
        assert found.image.shape == (16, 16, 3) and found.image.dtype == np.uint8
        return found

    return files, read


def zips() -> tuple[list[bytes], Callable[[bytes], object]]:
    files = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("train/1.jpg", b"abc" * 50)
            archive.writestr("train/2.jpg", b"def" * 50)
        files.append(buffer.getvalue())

    def read(content: bytes) -> object:
        file, contents = io.BytesIO(content), []
        for member in zipped.members_of(file, "train.zip").values():
            with contextlib.suppress(picture.Unusable):
                contents.append(zipped.read_member(file, member, 1000))
                assert len(contents[-1]) <= 1000
        return contents

    return files, read


Readers = dict[str, Callable[[], tuple[list[bytes], Callable[[bytes], object]]]]
READERS: Readers = {
    "idx": idx_files,
    "captions": caption_files,
    "karpathy": karpathy_files,
    "vocabulary": vocabulary_files,
    "picture": pictures,
    "zip": zips,
}


@contextlib.contextmanager
def time_limit(seconds: int, what: str) -> Iterator[None]:
    def expired(*_: object) -> None:
        raise AssertionError(f"{what} took more than {seconds} s")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def fuzz(reader: str, count: int, seed: int = 0, readers: Readers = READERS) -> Counter[str]:
    """Outcomes of `count` mutants; anything but a result, ValueError or Unusable is an AssertionError with the input."""
    originals, read = readers[reader]()
    for original in originals:
        if reader != "idx":  # of which one half of the originals is of the other kind
            read(original)
    outcomes: Counter[str] = Counter()
    warnings.simplefilter("ignore")
    for number in range(count):
        random = Random(f"{reader} {seed} {number}")
        original = random.choice(originals)
        if original[:1] in b"{[" and random.random() < 0.7:
            mutant = json.dumps(mutate_json(json.loads(original), random)).encode("utf-8", "surrogatepass")
        else:
            mutant = mutate(original, random)
        try:
            with time_limit(TIME_LIMIT_S, f"{reader} {seed} {number}"):
                read(mutant)
            outcomes["read"] += 1
        except (ValueError, picture.Unusable) as error:
            assert "\n" not in str(error), f"{reader} {seed} {number}: an error has one line, got {error}"
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{reader} {seed} {number}: {error!r} on {mutant[:200]!r}") from error
    return outcomes


def main(count: int, seed: int = 0) -> None:
    for reader in READERS:
        began = time.monotonic()
        outcomes = fuzz(reader, count, seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{reader}: {count} inputs, {dict(outcomes)}, {time.monotonic() - began:.0f} s, {memory:.0f} MiB at most",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2:]))
