"""What an evaluation measured of each image, query, caption and drawing, in one file: what two systems are compared by.

Figures are means; a difference between two systems is told from noise by what happened image by image (compare.py). Names are
those of the figures: test/bound (images,), retrieval/places (queries, 2), ssi (captions, drawings), drawn/.../right (captions,).
A .npz file of numbers, without pickled objects.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

Values = Mapping[str, np.ndarray]


def to_bytes(values: Values) -> bytes:
    """The file; equal values give equal bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, **values)
    return file.getvalue()


def from_bytes(content: bytes) -> dict[str, np.ndarray]:
    """The values of a file; ValueError if it is no such file."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        ValueError,
        OSError,
        EOFError,
        AttributeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"not a file of values: {error}") from None
