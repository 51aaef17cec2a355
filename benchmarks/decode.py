"""Ways from a JPEG's bytes to 32x32: images a second on one core, and PSNR against full decode and area average in float64.

    OMP_NUM_THREADS=1 python -m benchmarks.decode ../shared/data/coco/*2017

2 cores of a shared Xeon (other work was running; CPU time, best of 5), Python 3.11, 70 images of 166 KB, 2026-11-22:

    pipeline.sources.picture         518 images/s  worst  48.9 dB, mean  55.1 dB
    OpenCV full + INTER_AREA         428 images/s  worst  58.8 dB, mean  58.9 dB
    OpenCV half + INTER_AREA         571 images/s  worst  39.5 dB, mean  50.6 dB
    OpenCV quarter + INTER_AREA      651 images/s  worst  30.0 dB, mean  44.3 dB
    simplejpeg full + INTER_AREA     450 images/s  worst  58.8 dB, mean  58.9 dB
    Pillow full + Lanczos            249 images/s  worst  29.1 dB, mean  35.1 dB
    floor: 1/8 scale, grey           798 images/s

With 3 pixels an output pixel (picture.KEPT) more of them are decoded at a quarter: 9 % faster, 43 dB here, but 34 dB on black
text and 32 dB on black-and-white noise, where 4 keep 38 and 40 dB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from pipeline.sources.picture import read_picture

SIZE, REPEATS = 32, 5


def area(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def opencv(flag: int) -> Callable[[bytes], np.ndarray]:
    return lambda content: area(cv2.imdecode(np.frombuffer(content, np.uint8), flag))[..., ::-1]


def pillow(content: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def eighth(content: bytes) -> np.ndarray:
    """Huffman codes and next to nothing else: the floor of anything that decodes a JPEG."""
    return simplejpeg.decode_jpeg(content, "GRAY", True, True, min_height=1, min_width=1, min_factor=8)


WAYS: dict[str, Callable[[bytes], np.ndarray]] = {
    "pipeline.sources.picture": lambda content: read_picture(content, SIZE, 3).image,
    "OpenCV full + INTER_AREA": opencv(cv2.IMREAD_COLOR),
    "OpenCV half + INTER_AREA": opencv(cv2.IMREAD_REDUCED_COLOR_2),
    "OpenCV quarter + INTER_AREA": opencv(cv2.IMREAD_REDUCED_COLOR_4),
    "simplejpeg full + INTER_AREA": lambda content: area(simplejpeg.decode_jpeg(content, "RGB")),
    "Pillow full + Lanczos": pillow,
    "floor: 1/8 scale, grey": eighth,
}


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(image - reference).mean(), 1e-9))


def main(folders: list[str]) -> None:
    cv2.setNumThreads(1)
    contents = [file.read_bytes() for folder in folders for file in sorted(Path(folder).glob("*.jpg"))]
    references = [
        area(cv2.imdecode(np.frombuffer(c, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(float)) for c in contents
    ]
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(REPEATS):  # alternating, so that a busy minute hits all alike
        for name, way in WAYS.items():
            began = time.process_time()
            for content in contents:
                way(content)
            best[name] = min(best[name], time.process_time() - began)
    print(f"{len(contents)} images of {np.mean([len(c) for c in contents]) / 1000:.0f} KB")
    for name, way in WAYS.items():
        images = [way(content) for content in contents]
        quality = [psnr(i, r) for i, r in zip(images, references, strict=True) if i.shape == r.shape]
        shown = f"worst {min(quality):5.1f} dB, mean {np.mean(quality):5.1f} dB" if quality else ""
        print(f"{name:30s} {len(contents) / best[name]:5.0f} images/s  {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
