"""Binarised MNIST 28x28, a digit an image: what plain DRAW (Gregor et al. 2015) and its bound of 81 to 87 nats are about.

Choice: a pixel is white with the probability of its intensity, drawn once when the data set is made (from its seed), as
Salakhutdinov & Murray 2008 did; published figures are on their draw of it, whose file is no part of MNIST. 50,000 digits
train and 10,000 of MNIST's training file validate, as there; the test file is the test split.
Choice: the caption names the digit. Plain DRAW does not read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.sample import SPLITS, Rejected, Sample, ShardPlan
from pipeline.sources.mnist_captions import DigitCaptions
from pipeline.sources.source import below, cut_into_shards, random_words


class BinaryDigits(DigitCaptions):
    """The source `binary-mnist`: each digit of the IDX files once, at the image's size, up to as many as the config says."""

    def __init__(self, config: DatasetConfig, data: str | None) -> None:
        super().__init__(config, data)
        self.facts["held_out"] = []
        counts = {split: min(getattr(config, split), self.facts["source_digits"][split]) for split in SPLITS}
        self.plan = tuple(
            plan for split, count in counts.items() for plan in cut_into_shards(split, count, config.samples_per_shard)
        )

    def read(self, plan: ShardPlan) -> Iterator[Sample | Rejected]:
        self.check_unchanged()
        images, labels, names = self.digits(plan.split)
        size, channels = self.config.size, self.config.channels
        width = -(-size * size // 4) * 4
        words = random_words(f"ink of {plan.split}", self.config.seed, plan.start, plan.stop - plan.start, width)
        for i, drawn in enumerate(below(words, 255)[:, : size * size], start=plan.start):
            ink = drawn.reshape(size, size, 1) < images[i]
            image = np.repeat(ink.astype(np.uint8) * 255, channels, axis=2)
            caption, source = f"the digit {labels[i]} .", f"{self.config.source} {names[i]}"
            yield Sample(f"{plan.split}-{i:08d}", image, (caption,), source, plan.split, (size, size))
