"""The Laplacian pyramid: an image as a small image and, size by size, what enlarging it leaves out.

Denton et al. 2015 (arXiv 1506.05751), section 2.2. LAPGAN (lapgan.py) draws an image in this order: the small one first,
then a residual a level. The sharpener (sharpener.py) adds the finest residual to a drawing.

Choice: shrinking is the mean over the pixels that a smaller one covers and enlarging is bilinear; the authors' code left both
to its image library. Any pair reconstructs, since a residual is defined by what the enlargement misses.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def shrink(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), means over areas."""
    return F.interpolate(images, size=(size, size), mode="area")


def enlarge(images: Tensor, size: int) -> Tensor:
    """(B, C, h, w) -> (B, C, size, size), bilinear."""
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def pyramid_sizes(size: int, levels: int) -> tuple[int, ...]:
    """Sides from coarse to fine, each half of the next, rounded up: 60 in 3 levels is 15, 30, 60."""
    if levels < 1 or size < 2 ** (levels - 1):
        raise ValueError(f"{levels} levels of an image of side {size}: from 1 level up to where one pixel is left")
    sizes = [size]
    for _ in range(levels - 1):
        sizes.insert(0, (sizes[0] + 1) // 2)
    return tuple(sizes)


def scales(images: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """(B, C, H, W) with H the last of the sizes -> the images in each size, coarse to fine, each shrunk from the next."""
    scaled = [images]
    for smaller in reversed(sizes[:-1]):
        scaled.insert(0, shrink(scaled[0], smaller))
    return scaled
