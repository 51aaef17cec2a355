"""Single digits in black and white: each pixel is a coin of its intensity, thrown once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import DatasetConfig
from pipeline.sources import open_source
from pipeline.sources.idx import read_idx
from tests.sources.test_idx import idx_bytes

CONFIG = DatasetConfig(source="binary-mnist", size=28, train=100_000, val=100_000, test=100_000, samples_per_shard=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """240 + 60 digits; the training digits are all of one intensity, each of its own, so that shares of ink can be counted."""
    folder = tmp_path_factory.mktemp("idx")
    for name, count in (("train", 240), ("t10k", 60)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return str(folder)


def samples(source, split):
    return [sample for plan in source.plan if plan.split == split for sample in source.read(plan)]


def test_every_digit_comes_once_and_in_one_split(folder):
    source = open_source(CONFIG, folder)
    numbers = {
        split: [sample.source.split()[1] for sample in samples(source, split)] for split in ("train", "val", "test")
    }
    assert sorted(map(int, numbers["train"] + numbers["val"])) == list(range(240))
    assert list(map(int, numbers["test"])) == list(range(60))
    assert len(numbers["val"]) == 40  # a sixth, as 10,000 of 60,000


def test_a_pixel_is_white_as_often_as_its_intensity_says(folder):
    shown = 0
    for sample in samples(open_source(CONFIG, folder), "train"):
        number = int(sample.source.split()[1])  # which is its intensity
        assert sample.image.shape == (28, 28, 1) and set(np.unique(sample.image)) <= {0, 255}
        share, deviation = number / 255, np.sqrt(number / 255 * (1 - number / 255) / 784)
        assert abs((sample.image == 255).mean() - share) <= 5 * deviation
        assert sample.captions == (f"the digit {number % 10} .",)
        shown += (sample.image == 255).mean() - share
    assert abs(shown / 200) < 0.003


def test_ink_is_a_function_of_the_seed_and_not_of_how_the_shards_are_cut(folder):
    first = [sample.image for sample in samples(open_source(CONFIG, folder), "test")]
    again = [sample.image for sample in samples(open_source(replace(CONFIG, samples_per_shard=7), folder), "test")]
    other = [sample.image for sample in samples(open_source(replace(CONFIG, seed=1), folder), "test")]
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any()


def test_the_config_may_take_fewer(folder):
    source = open_source(replace(CONFIG, train=30, test=7), folder)
    assert [sum(len(plan) for plan in source.plan if plan.split == split) for split in ("train", "test")] == [30, 7]


def test_real_digits_keep_their_shape(shared_data):
    source = open_source(CONFIG, str(shared_data / "mnist"))
    sizes = {split: sum(len(plan) for plan in source.plan if plan.split == split) for split in ("train", "val", "test")}
    assert sizes == {"train": 50_000, "val": 10_000, "test": 10_000}
    originals, _, _ = read_idx(str(shared_data / "mnist"), "t10k-images-idx3-ubyte", 3)
    for sample, original in zip(source.read(next(p for p in source.plan if p.split == "test")), originals):
        assert np.corrcoef(sample.image.ravel(), original.ravel())[0, 1] > 0.7
        assert not sample.image[original == 0].any() and (sample.image[original == 255] == 255).all()
