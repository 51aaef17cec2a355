"""The figures that Mansimov et al. 2016 (arXiv 1511.02793) published of their systems on COCO, to stand beside ours.

They are no goal for other data: a bound depends on the images, a rank on the shortlist. Bounds are from slide 17 of the first
author's talk (NIPS 2015 workshop on reasoning, attention and memory), retrieval and mean similarity from slide 19; the
similarity's standard deviations are remembered from the paper's table and were not checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Published:
    """A system's row in the paper's two tables; None where it has a dash or no row."""

    train: float | None = None  # lower bounds, nats an image
    test: float | None = None
    sharpened: float | None = None  # test, after sharpening
    r_at: tuple[float, float, float, float] | None = None  # R@1, 5, 10, 50, % of captions
    median_rank: int | None = None  # of 100
    ssi: float
    ssi_std: float


PUBLISHED = {
    ("draw", "align"): Published(
        train=-1792.15,
        test=-1791.53,
        sharpened=-2042.31,
        r_at=(3.0, 14.0, 22.9, 68.5),
        median_rank=31,
        ssi=0.156,
        ssi_std=0.11,
    ),
    ("draw", "mean"): Published(
        train=-1792.14,
        test=-1791.15,
        sharpened=-2051.07,
        r_at=(2.8, 14.1, 23.1, 68.0),
        median_rank=31,
        ssi=0.155,
        ssi_std=0.11,
    ),
    ("draw", "skipthought"): Published(
        train=-1794.29,
        test=-1791.37,
        sharpened=-2045.84,
        r_at=(2.0, 11.2, 18.9, 63.3),
        median_rank=36,
        ssi=0.157,
        ssi_std=0.11,
    ),
    ("vae", "conv"): Published(r_at=(1.0, 6.5, 12.0, 52.9), median_rank=48, ssi=0.164, ssi_std=0.10),
    ("vae", "fc"): Published(r_at=(1.0, 6.6, 12.0, 53.4), median_rank=47, ssi=0.156, ssi_std=0.10),
    ("lapgan", ""): Published(ssi=0.08, ssi_std=0.07),
}


def published_of(model: ModelConfig) -> Published | None:
    """The row of the system that a model is; None for one that the paper does not have."""
    kinds = {"draw": "caption", "vae": "body"}
    return PUBLISHED.get((model.kind, getattr(model, kinds[model.kind]) if model.kind in kinds else ""))
