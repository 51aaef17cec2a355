"""Captioned images from where they are: scikit-learn's digits, MNIST's IDX files, COCO's folders or zip files."""

from __future__ import annotations

from pipeline.config import DatasetConfig
from pipeline.sources.source import Source


def open_source(config: DatasetConfig, data: str | None) -> Source:
    """The source that the config names, reading `data` (a folder, s3:// or gs://); ValueError is one line for the user."""
    if config.source == "coco":
        from pipeline.sources.coco import CocoCaptions

        return CocoCaptions(config, data)
    if config.source == "binary-mnist":
        from pipeline.sources.binary_digits import BinaryDigits

        return BinaryDigits(config, data)
    from pipeline.sources.mnist_captions import DigitCaptions

    return DigitCaptions(config, data if config.source == "mnist" else None)
