"""Digits with captions: what the paper and the authors' code say of them, and that plans can be read anywhere in any order."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DatasetConfig
from pipeline.sample import SPLITS, Sample, ShardPlan
from pipeline.sources import open_source
from pipeline.sources.mnist_captions import (
    PLACES,
    TEMPLATES,
    box_range,
    digit_side,
    draw_samples,
    held_out_captions,
    other_corners,
    seen_captions,
)
from pipeline.text.vocabulary import Vocabulary, tokenize
from tests.sources.test_idx import idx_bytes

CONFIG = DatasetConfig(source="digits", train=3_000, val=500, test=500, samples_per_shard=400)


@pytest.fixture(scope="module")
def source():
    return open_source(CONFIG, None)


@pytest.fixture(scope="module")
def samples(source) -> dict[str, list[Sample]]:
    return {split: [s for plan in source.plan if plan.split == split for s in source.read(plan)] for split in SPLITS}


def places_by_ink(image: np.ndarray, caption: str) -> bool:
    """Whether the ink lies where the caption says, judged by the centres of ink alone."""
    ink = image[:, :, 0].astype(float)
    rows, columns = np.mgrid[: len(ink), : len(ink)]

    def centre(mask: np.ndarray) -> tuple[float, float]:
        part = ink * mask
        return (part * rows).sum() / part.sum(), (part * columns).sum() / part.sum()

    if caption.count("digit") == 2:
        across = "left" in caption or "right" in caption
        split = (columns if across else rows) < 30
        (r0, c0), (r1, c1) = centre(split), centre(~split)
        return (c0 < 25 and c1 > 35 and abs(r0 - r1) < 8) if across else (r0 < 25 and r1 > 35 and abs(c0 - c1) < 8)
    row, column = centre(ink > -1)
    return ("top" in caption) == (row < 30) and ("left" in caption) == (column < 30)


def test_each_template_is_twelve_words_and_all_of_them_make_the_papers_vocabulary() -> None:
    texts = [template.caption([1, 2][: len(template.places)]) for template in TEMPLATES]
    assert texts[0] == "the digit 1 is on the left of the digit 2 ."
    assert texts[3] == "the digit 1 is at the bottom of the digit 2 ."
    assert texts[6] == "the digit 1 is at the top right of the image ."
    assert [len(tokenize(text)) for text in texts] == [12] * 8
    every = [template.caption([d, d][: len(template.places)]) for template in TEMPLATES for d in range(10)]
    assert len(Vocabulary.build(every)) == 2 + 22  # ours has padding and the unknown word besides the paper's 22


def test_boxes_lie_where_the_authors_put_them() -> None:
    """create-captions.py, lines 37 to 127: inclusive ranges of the top left corner, rows then columns."""
    assert {place: box_range(place, 60) for place in PLACES} == {
        "left": ((16, 18), (0, 4)),
        "right": ((16, 18), (28, 32)),
        "top": ((0, 2), (16, 18)),
        "bottom": ((30, 32), (16, 18)),
        "top left": ((0, 2), (0, 4)),
        "bottom right": ((30, 32), (28, 32)),
        "top right": ((0, 2), (28, 32)),
        "bottom left": ((30, 32), (0, 4)),
    }
    assert digit_side(60) == 28
    for size in (4, 5, 17, 28, 40, 64, 100):
        for place in PLACES:
            for first, last in box_range(place, size):
                assert 0 <= first <= last <= size - digit_side(size), (size, place)


def test_the_ink_is_where_the_caption_says(samples) -> None:
    judged = [places_by_ink(s.image, s.captions[0]) for split in SPLITS for s in samples[split][:400]]
    assert np.mean(judged) > 0.99


def test_canvases_are_the_source_digits_pasted_in_order(source, samples) -> None:
    """Every sample again from its source numbers: pasting at some allowed place gives its canvas."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    images, _, names = source.digits("train")
    enlarged = dict(zip(names.tolist(), images, strict=True))
    for sample in samples["train"][:100]:
        numbers = [int(word) for word in sample.source.split()[1:]]
        fitting = [template for template in TEMPLATES if len(template.places) == len(numbers)]
        template = next(t for t in fitting if t.caption(sample_digits(sample)) == sample.captions[0])
        assert [labels[n] for n in numbers] == sample_digits(sample)
        found = False
        ranges = [box_range(place, 60) for place in template.places]
        for row in range(ranges[0][0][0], ranges[0][0][1] + 1):
            for column in range(ranges[0][1][0], ranges[0][1][1] + 1):
                first = np.zeros((60, 60, 1), np.uint8)
                first[row : row + 28, column : column + 28] = enlarged[numbers[0]]
                if len(numbers) == 1:
                    found |= bool((first == sample.image).all())
                    continue
                for move in range(ranges[1][template.shared == "row"][0], ranges[1][template.shared == "row"][1] + 1):
                    r, c = (row, move) if template.shared == "row" else (move, column)
                    second = first.copy()
                    second[r : r + 28, c : c + 28] = enlarged[numbers[1]]
                    found |= bool((second == sample.image).all())
        assert found, sample.captions


def sample_digits(sample: Sample) -> list[int]:
    return [int(word) for word in tokenize(sample.captions[0]) if word.isdigit()]


def test_held_out_combinations_are_in_no_sample_and_the_others_in_some(source, samples) -> None:
    assert len(source.facts["held_out"]) == 12
    for digits in (1, 2):
        held_out = {c.caption for c in held_out_captions(source.facts, digits=digits)}
        seen = {c.caption for c in seen_captions(source.facts, digits=digits)}
        assert (len(held_out), len(seen)) == ((4, 36) if digits == 1 else (76, 324))
        occurring = {s.captions[0] for split in SPLITS for s in samples[split] if len(sample_digits(s)) == digits}
        assert occurring <= seen
        if digits == 1:
            assert occurring == seen
    assert {template["template"] for template in source.facts["held_out"]} == {template.name for template in TEMPLATES}


def test_the_same_digit_is_asked_for_at_another_corner_where_training_showed_both(source) -> None:
    seen = {c.caption for c in seen_captions(source.facts, digits=1)}
    pairs = [(one.caption.split(), other.caption.split()) for one, other in other_corners(source.facts)]
    assert {" ".join(words) for pair in pairs for words in pair} <= seen
    assert all(one[2] == other[2] and one[6:8] != other[6:8] for one, other in pairs)
    corners = Counter(caption.split()[2] for caption in seen)  # of each digit
    assert len({(*one, *other) for one, other in pairs}) == len(pairs) == sum(n * (n - 1) for n in corners.values())


def test_a_labelled_caption_names_the_place_of_each_digit(source) -> None:
    every = [c for digits in (1, 2) for f in (held_out_captions, seen_captions) for c in f(source.facts, digits=digits)]
    found = next(c for c in every if c.caption == "the digit 3 is at the bottom of the digit 7 .")
    assert (found.template, found.digits, found.places) == ("bottom", (3, 7), ("bottom", "top"))


def test_other_wordings_say_the_same_of_the_same_canvases_and_hold_out_the_same(source, samples) -> None:
    reworded = open_source(replace(CONFIG, wordings=4), None)
    held_out = {(e["template"], e["slot"], e["digit"]) for e in source.facts["held_out"]}
    used = Counter()
    for split in SPLITS:
        plans = [plan for plan in reworded.plan if plan.split == split]
        for one, other in zip(samples[split], (s for plan in plans for s in reworded.read(plan)), strict=True):
            assert (one.image == other.image).all() and one.source == other.source
            if split != "train":
                assert one.captions == other.captions
                continue
            digits = sample_digits(one)
            fitting = [template for template in TEMPLATES if len(template.places) == len(digits)]
            template = next(t for t in fitting if t.caption(digits) == one.captions[0])
            wording = next(k for k in range(4) if template.caption(digits, k) == other.captions[0])
            assert not held_out & {(template.name, slot, digit) for slot, digit in enumerate(digits)}
            used[template.name, wording] += 1
    assert len(used) == 8 * 4 and min(used.values()) > 3_000 / 32 / 2
    assert reworded.facts["held_out"] == source.facts["held_out"]


def test_no_two_captions_of_any_wording_are_equal_and_each_names_its_places() -> None:
    every = [
        (t.caption([3, 7][: len(t.places)], k), t.name, [3, 7][: len(t.places)]) for t in TEMPLATES for k in range(4)
    ]
    assert len({text for text, *_ in every}) == 32
    for text, name, digits in every:
        assert name in text and sorted(w for w in tokenize(text) if w.isdigit()) == [str(d) for d in digits], text
    for wordings in (0, 5):
        with pytest.raises(ValueError, match="DatasetConfig.wordings: . is not allowed; from 1, the paper's, to 4"):
            replace(CONFIG, wordings=wordings)


def test_the_splits_share_no_source_digit(samples) -> None:
    used = {split: {word for s in samples[split] for word in s.source.split()[1:]} for split in SPLITS}
    assert not used["train"] & used["val"] and not used["train"] & used["test"] and not used["val"] & used["test"]


def test_templates_and_allowed_digits_are_uniform(source) -> None:
    plan = ShardPlan("train-00000", "train", 0, 80_000)
    _, labels, _ = source.digits("train")
    drawn = list(draw_samples(CONFIG, plan, labels))
    kinds = Counter(template.name for template, *_ in drawn)
    assert all(abs(kinds[template.name] / 10_000 - 1) < 0.05 for template in TEMPLATES)
    banned = {(e["template"], e["slot"]): e["digit"] for e in source.facts["held_out"]}
    share = np.bincount(labels, minlength=10) / len(labels)
    for template in TEMPLATES:
        for slot in range(len(template.places)):
            digits = np.bincount([labels[d[slot]] for t, _, d, *_ in drawn if t is template], minlength=10)
            expected = share.copy()
            expected[banned[template.name, slot]] = 0
            gap = digits / digits.sum() - expected / expected.sum()
            assert np.abs(gap).max() < 0.015
    rows = Counter(r[0] for t, _, _, r, _ in drawn if t.name == "left")
    assert set(rows) == {16, 17, 18} and min(rows.values()) > 3_000
    assert all(r[0] == r[1] for t, _, _, r, _ in drawn if t.shared == "row")
    assert all(c[0] == c[1] for t, *_, c in drawn if t.shared == "column")


def test_samples_do_not_depend_on_how_the_split_is_cut_or_who_reads_it(source, samples) -> None:
    whole = open_source(replace(CONFIG, samples_per_shard=10**6), None)
    assert same(samples["val"], whole.read(next(plan for plan in whole.plan if plan.split == "val")))
    travelled = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2_000, "a source travels to every task: it must stay small"
    assert same(samples["train"][800:1200], travelled.read(source.plan[2]))
    code = (
        "import sys, hashlib; from pipeline.config import DatasetConfig; from pipeline.sources import open_source\n"
        "s = open_source(DatasetConfig(source='digits', train=3_000, val=500, test=500, samples_per_shard=400), None)\n"
        "print(s.digest, hashlib.sha256(b''.join(x.image.tobytes() + x.captions[0].encode() for x in s.read(s.plan[1]))).hexdigest())"
    )
    mine = hashlib.sha256(b"".join(x.image.tobytes() + x.captions[0].encode() for x in samples["train"][400:800]))
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [source.digest, mine.hexdigest()]


def same(left, right) -> bool:
    one, two = list(left), list(right)
    return len(one) == len(two) and all(
        (a.key, a.captions, a.source, a.split) == (b.key, b.captions, b.source, b.split) and (a.image == b.image).all()
        for a, b in zip(one, two, strict=True)
    )


def test_these_bytes_never_change() -> None:
    """Shards are named by config and source: another version of this code must make the same samples or change a field."""
    source = open_source(DatasetConfig(source="digits", train=64, val=1, test=1), None)
    digest = hashlib.sha256(b"".join(s.image.tobytes() + s.captions[0].encode() for s in source.read(source.plan[0])))
    assert (source.digest[:16], digest.hexdigest()[:16]) == ("a19cb3d96bba7dea", "1c4e8f84aac0e121")


def test_the_seed_changes_everything_and_the_size_only_the_size(source, samples) -> None:
    other = open_source(replace(CONFIG, seed=1), None)
    assert other.facts["held_out"] != source.facts["held_out"]
    assert not same(other.read(other.plan[0]), samples["train"][:400])
    small = open_source(replace(CONFIG, size=40, channels=3), None)
    first = next(iter(small.read(small.plan[0])))
    assert first.image.shape == (40, 40, 3) and first.captions == samples["train"][0].captions
    assert (first.image[..., 0] == first.image[..., 2]).all()


def test_the_plan_covers_each_split_once(source) -> None:
    assert [plan.name for plan in source.plan][:2] == ["train-00000", "train-00001"]
    for split, count in (("train", 3_000), ("val", 500), ("test", 500)):
        covered = [i for plan in source.plan if plan.split == split for i in range(plan.start, plan.stop)]
        assert covered == list(range(count))


def test_keys_are_unique_sort_as_drawn_and_hold_no_dots(samples) -> None:
    keys = [s.key for split in SPLITS for s in samples[split]]
    assert len(set(keys)) == len(keys)
    assert [s.key for s in samples["train"]] == sorted(s.key for s in samples["train"])
    assert not any(set(key) & set("./\\ ") for key in keys)


def write_mnist(folder: Path, train: int = 60, test: int = 24, side: int = 28) -> Path:
    """The four files, with digits whose pixels tell their number."""
    folder.mkdir(exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, side, side), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count, dtype=np.uint8) % 10))
    return folder


MNIST = DatasetConfig(source="mnist", train=200, val=50, test=50, samples_per_shard=100)


def test_the_test_split_comes_from_the_test_file_and_a_sixth_of_the_other_is_for_validation(tmp_path: Path) -> None:
    source = open_source(MNIST, str(write_mnist(tmp_path)))
    assert source.facts["source_digits"] == {"train": 50, "val": 10, "test": 24}
    assert len(source.facts["warnings"]) == 4 and "not the published" in source.facts["warnings"][0]
    _, labels, names = source.digits("test")
    assert names.tolist() == list(range(24)) and labels.tolist() == [i % 10 for i in range(24)]


def test_images_of_another_size_are_resized_to_the_digits_box(tmp_path: Path) -> None:
    source = open_source(MNIST, str(write_mnist(tmp_path, side=14)))
    assert source.digits("val")[0].shape == (10, 28, 28, 1)


def test_files_that_change_between_planning_and_reading_are_noticed(tmp_path: Path) -> None:
    source = open_source(MNIST, str(write_mnist(tmp_path)))
    write_mnist(tmp_path, train=61)
    code = "import pickle, sys; s, p = pickle.loads(sys.stdin.buffer.read()); print(sum(1 for _ in s.read(p)))"
    order = pickle.dumps((source, source.plan[0]))
    done = subprocess.run([sys.executable, "-c", code], input=order, capture_output=True)
    assert done.returncode != 0 and b"changed while it was read" in done.stderr


@pytest.mark.parametrize(
    "break_it, says",
    [
        (lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "neither train-labels-idx1-ubyte.gz nor"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(59, np.uint8))),
            "60 train images and 59 labels",
        ),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(24, 10, np.uint8))),
            "labels go up to 10",
        ),
        (
            lambda folder: (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((24, 0, 28), np.uint8))),
            "images are 0x28",
        ),
        (lambda folder: write_mnist(folder, train=6), "6 train digits; at least 12"),
        (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"<html>not here"), "starts with 3c68746d"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, break_it, says: str) -> None:
    break_it(write_mnist(tmp_path))
    with pytest.raises(ValueError, match=says) as error:
        open_source(MNIST, str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_that_is_missing_or_empty_is_one_line(tmp_path: Path) -> None:
    for data, says in [
        (None, "mnist needs --data, a folder with the four IDX files of MNIST.* --download .*; none was given"),
        (f"{tmp_path}/no", "--data .*/no does not exist: check the path; mnist needs a folder with the four IDX files"),
        (f"{tmp_path}", "found: nothing"),
    ]:
        with pytest.raises(ValueError, match=says):
            open_source(MNIST, data)


def test_real_mnist(shared_data: Path) -> None:
    source = open_source(replace(MNIST, train=1_000), str(shared_data / "mnist"))
    assert source.facts["warnings"] == []
    assert source.facts["source_digits"] == {"train": 50_000, "val": 10_000, "test": 10_000}
    samples = [s for plan in source.plan for s in source.read(plan)]
    assert np.mean([places_by_ink(s.image, s.captions[0]) for s in samples]) > 0.98
