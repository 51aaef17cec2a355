"""From tars on disk: our reader, WebDataset's and a plain tarfile agree, and a damaged tar is noticed while training."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.loading.stream import ordered, stream
from pipeline.sample import Manifest, Sample, ShardPlan
from pipeline.shards.write import write_shard
from pipeline.text.vocabulary import Vocabulary

WORDS = "a red green dog cat sits on the grass , two one and Ünïcode".split()


class Noise:
    """Random images, each with 1 to 4 captions."""

    def __init__(self, size: int, channels: int) -> None:
        self.size, self.channels = size, channels

    def read(self, plan: ShardPlan) -> Iterator[Sample]:
        for number in range(plan.start, plan.stop):
            random = np.random.default_rng(number)
            image = random.integers(0, 256, (self.size, self.size, self.channels), dtype=np.uint8)
            texts = tuple(" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(random.integers(1, 5)))
            yield Sample(f"{number:06}", image, texts, f"noise {number}", plan.split)


@pytest.fixture(params=[(32, 3), (60, 1)], ids=["32x32x3", "60x60x1"])
def written(request, tmp_path: Path) -> tuple[Manifest, list[Sample], Vocabulary]:
    """Three shards on disk, and what is in them."""
    size, channels = request.param
    source = Noise(size, channels)
    plans = [ShardPlan(f"train-{i:05}", "train", i * 7, min(i * 7 + 7, 17)) for i in range(3)]
    records = tuple(write_shard(str(tmp_path), plan, source).record for plan in plans)
    samples = [sample for plan in plans for sample in source.read(plan)]
    vocabulary = Vocabulary.build(text for sample in samples for text in sample.captions)
    return Manifest(str(tmp_path), records, size, channels, digest=""), samples, vocabulary


def pixels(png: bytes) -> np.ndarray:
    """(H, W, C) by Pillow, which shares no code with our decoder."""
    image = np.asarray(Image.open(io.BytesIO(png)))
    return image.reshape(*image.shape[:2], -1)


def by_webdataset(manifest: Manifest) -> list[tuple[str, np.ndarray, tuple[str, ...]]]:
    import webdataset

    paths = [f"{manifest.folder}/{record.name}" for record in manifest.shards]
    # Without .decode(), which would run code found in a tar.
    samples = webdataset.WebDataset(paths, shardshuffle=False)
    return [(s["__key__"], pixels(s["png"]), tuple(json.loads(s["json"])["captions"])) for s in samples]


def by_tarfile(manifest: Manifest) -> list[tuple[str, np.ndarray, tuple[str, ...]]]:
    found = []
    for record in manifest.shards:
        with tarfile.open(f"{manifest.folder}/{record.name}") as tar:
            files = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for key in dict.fromkeys(name.split(".")[0] for name in files):
            captions = json.loads(files[f"{key}.json"])["captions"]
            found.append((key, pixels(files[f"{key}.png"]), tuple(captions)))
    return found


@pytest.mark.parametrize("reader", [by_webdataset, by_tarfile])
def test_other_readers_find_the_same_samples(written, reader) -> None:
    manifest, samples, vocabulary = written
    theirs = reader(manifest)
    batches = list(ordered(manifest, vocabulary, "train", batch=5))
    ours = [(key, image) for batch in batches for key, image in zip(batch.keys, batch.images.numpy(), strict=True)]
    assert len(ours) == len(theirs) and sum(len(captions) for *_, captions in theirs) == manifest.pairs("train")
    words = [row[keep].tolist() for batch in batches for row, keep in zip(batch.words, batch.keep, strict=True)]
    for (key, image), ids, (their_key, their_image, captions) in zip(ours, words, theirs, strict=True):
        assert key == their_key
        assert ids == vocabulary.numbers(captions[0])
        assert np.array_equal(np.rint(image * 255).astype(np.uint8), their_image.transpose(2, 0, 1))
    assert [captions for _, _, captions in theirs] == [sample.captions for sample in samples]


def test_training_sees_every_pair_of_the_tars_in_an_epoch(written) -> None:
    manifest, samples, vocabulary = written
    pairs = manifest.pairs("train")
    batches = itertools.islice(stream(manifest, vocabulary, batch=1, lanes=1, seed=0), pairs)
    seen = [(batch.keys[0], tuple(batch.words[0].tolist())) for batch in batches]
    expected = [(sample.key, tuple(vocabulary.numbers(text))) for sample in samples for text in sample.captions]
    assert sorted(seen) == sorted(expected) and seen != expected


@pytest.mark.parametrize("damage", ["a byte", "cut short", "gone", "another one's bytes"])
def test_a_damaged_tar_ends_the_stream_with_its_name(written, damage: str) -> None:
    manifest, _, vocabulary = written
    path = Path(manifest.folder) / "train-00001.tar"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        new = {"a byte": bytes(content), "cut short": content[:-10240]}
        path.write_bytes(new.get(damage) or (path.parent / "train-00000.tar").read_bytes())
    with pytest.raises((ValueError, OSError), match="train-00001.tar"):
        for _ in itertools.islice(stream(manifest, vocabulary, batch=4, lanes=2, seed=0, threads=2), 100):
            pass
