"""Sentence vectors on disk: the published skip-thought weights as they are read, and the vectors of a data set's captions.

The weights are those of ryankiros/skip-thoughts (Kiros et al. 2015, arXiv 1506.06726). A folder is expected to hold, as
downloaded, five files; pickles (`*.npz.pkl`) beside them are not needed and never read:

    dictionary.txt                one word a line, in the order of the tables' rows; one of them is UNK
    utable.npy, btable.npy        word vectors of the two encoders, float32, one row a word
    uni_skip.npz, bi_skip.npz     arrays encoder_{W,b,U,Wx,bx,Ux}, in bi_skip also encoder_r_{...}

Vectors are kept in a folder beside the data set, so that they are computed once: files of PART captions each, in the
alphabetical order of all captions of the data set. Choice: half precision; a vector's direction changes by less than 0.1 %.
Vectors of other captions, made when they are asked for, are rounded in the same way.

Choice: words are those of vocabulary.tokenize, lower-case, as the paper's captions are; Kiros et al. use nltk's tokenizer
and keep the case, which differs for contractions other than 's.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.text.vocabulary import tokenize

PART = 4096  # captions of a file of vectors
WORDS, TABLES, ENCODERS = "dictionary.txt", ("utable.npy", "btable.npy"), ("uni_skip.npz", "bi_skip.npz")
UNKNOWN = "UNK"
ARRAYS = ("W", "b", "U", "Wx", "bx", "Ux")

# what numpy and zipfile raise for files that are not what their names say
DAMAGES = (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error)

Encode = Callable[[Sequence[str]], np.ndarray]  # captions -> (n, S)


# ---- the published weights


@dataclass(frozen=True)
class Published:
    """The published weights of a folder; word vectors stay on disk until a caption needs them."""

    folder: str
    uni: Mapping[str, np.ndarray]
    bi: Mapping[str, np.ndarray]
    tables: tuple[np.ndarray, np.ndarray]  # (V, E) each
    rows: Mapping[str, int]  # word -> its row

    def look_up(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Word vectors of the two encoders (n, N, E) x 2, keep (n, N). A caption without words is one unknown word."""
        numbers = [
            [self.rows.get(word, self.rows[UNKNOWN]) for word in tokenize(text) or [UNKNOWN]] for text in captions
        ]
        keep = np.arange(max(map(len, numbers))) < np.array([len(row) for row in numbers])[:, None]
        found = []
        for table in self.tables:
            vectors = np.zeros((*keep.shape, table.shape[1]), np.float32)
            vectors[keep] = table[np.concatenate([np.array(row) for row in numbers])]
            found.append(vectors)
        return found[0], found[1], keep


def open_published(folder: str) -> Published:
    """The weights in a local folder; ValueError says what is expected and what was found."""
    path = Path(folder)
    if missing := [name for name in (WORDS, *TABLES, *ENCODERS) if not (path / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: published skip-thought weights are a local folder with "
            f"{', '.join((WORDS, *TABLES, *ENCODERS))}"
        )
    words = [line.strip() for line in (path / WORDS).read_text("utf-8").split("\n")]
    rows = {word: number for number, word in enumerate(words) if word}
    if UNKNOWN not in rows:
        raise ValueError(f"{path / WORDS} has no word {UNKNOWN}, whose vector stands for words that are not listed")
    tables = [_array(path / name) for name in TABLES]
    for name, table in zip(TABLES, tables, strict=True):
        if table.ndim != 2 or len(table) <= max(rows.values()) or table.dtype != np.float32:
            raise ValueError(
                f"{path / name} holds {table.dtype} of shape {table.shape}; expected are float32 rows, one for each of the "
                f"{max(rows.values()) + 1} words of {WORDS}"
            )
    uni = _encoder(path / ENCODERS[0], tables[0].shape[1], ["encoder"])
    bi = _encoder(path / ENCODERS[1], tables[1].shape[1], ["encoder", "encoder_r"])
    if uni["encoder_Ux"].shape[0] != 2 * bi["encoder_Ux"].shape[0]:
        raise ValueError(f"{folder}: the unidirectional encoder is not twice as wide as a direction of the other")
    return Published(folder, uni, bi, (tables[0], tables[1]), rows)


def mark_of(folder: str) -> str:
    """A digest that tells published weights apart: of the files' sizes, beginnings and ends (they have 5 GB)."""
    seen = hashlib.sha256()
    for name in (WORDS, *TABLES, *ENCODERS):
        with open(Path(folder) / name, "rb") as file:
            size = file.seek(0, 2)
            seen.update(f"{name} {size}".encode())
            for place in (0, max(0, size - 2**20)):
                file.seek(place)
                seen.update(file.read(2**20))
    return seen.hexdigest()


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a plain array ({' '.join(str(error).split())[:100]}); a pickled one is not opened, "
            "since that runs code: load it once where you trust it and save it anew as float32 with numpy.save"
        ) from None


def _encoder(path: Path, word: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of one npz, with the shapes that belong together."""
    wanted = [f"{name}_{array}" for name in names for array in ARRAYS]
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in wanted if name not in file.files]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays = {name: np.asarray(file[name], np.float32) for name in wanted}
        width = arrays[f"{names[0]}_Ux"].shape[0]
        shapes = {"W": (word, 2 * width), "b": (2 * width,), "U": (width, 2 * width)}
        shapes |= {"Wx": (word, width), "bx": (width,), "Ux": (width, width)}
        for name, array in arrays.items():
            if array.shape != shapes[name.rpartition("_")[2]]:
                raise ValueError(f"{name} has shape {array.shape}, expected is {shapes[name.rpartition('_')[2]]}")
    except DAMAGES as error:
        raise ValueError(f"{path} is no published encoder: {' '.join(str(error).split())[:200]}") from None
    return arrays


# ---- the vectors of a data set


@dataclass
class SentenceVectors:
    """Captions -> (n, S) float32: read from a folder that `write_part` filled; other captions are encoded when asked for."""

    folder: str
    captions: Sequence[str]  # of the data set, each once, in order
    encode: Encode
    _opened: dict[int, np.ndarray] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, int]:
        return {caption: place for place, caption in enumerate(self.captions)}

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        places = [self.places.get(caption) for caption in captions]
        rows = [None if place is None else self.part(place // PART)[place % PART] for place in places]
        if new := sorted({text for text, row in zip(captions, rows, strict=True) if row is None}):
            made = dict(zip(new, half(self.encode(new)), strict=True))
            rows = [made[text] if row is None else row for text, row in zip(captions, rows, strict=True)]
        return np.stack(rows).astype(np.float32)

    def part(self, number: int) -> np.ndarray:
        if number not in self._opened:
            self._opened[number] = read_part(self.folder, number)
        return self._opened[number]


def distinct(captions: Sequence[str]) -> list[str]:
    """Each caption once, in the order that the files of vectors have."""
    return sorted(set(captions))


def part_path(folder: str, number: int) -> str:
    return storage.join(folder, f"vectors-{number:05}.npy")


def write_part(folder: str, number: int, vectors: np.ndarray) -> None:
    """Vectors (n, S) of captions number * PART ... number * PART + n - 1; the file appears whole."""
    content = io.BytesIO()
    np.save(content, half(vectors), allow_pickle=False)
    storage.publish_bytes(part_path(folder, number), content.getvalue())


def read_part(folder: str, number: int) -> np.ndarray:
    """A file's vectors (n, S): mapped where it is local, else read."""
    path = part_path(folder, number)
    if storage.is_remote(path):
        return np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def half(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors, np.float16)
