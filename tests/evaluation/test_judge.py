"""The judge of digits: that it can read real canvases it has never seen, soft ones too, and counts what is right fairly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.config import DatasetConfig
from pipeline.evaluation.judge import (
    EMPTY,
    Judge,
    LoneDigits,
    Region,
    from_bytes,
    measure_judge,
    to_bytes,
    train_judge,
    verdicts,
)
from pipeline.sources.mnist_captions import (
    PLACES,
    DigitCaptions,
    box_range,
    digit_side,
    held_out_captions,
    seen_captions,
)

SIZE = 60
ORDER = list(PLACES)


def regions() -> list[Region]:
    ranges = [box_range(place, SIZE) for place in ORDER]
    side = digit_side(SIZE)
    return [Region(top, bottom + side, left, right + side) for (top, bottom), (left, right) in ranges]


def labels_of(captions: list) -> np.ndarray:
    """Labelled captions -> classes by place."""
    labels = np.full((len(captions), len(ORDER)), EMPTY)
    for row, caption in zip(labels, captions, strict=True):
        for digit, place in zip(caption.digits, caption.places, strict=True):
            row[ORDER.index(place)] = digit
    return labels


@pytest.fixture(scope="module")
def source() -> DigitCaptions:
    return DigitCaptions(DatasetConfig(train=5_000, val=1, test=1_000, samples_per_shard=5_000), None)


@pytest.fixture(scope="module")
def canvases(source: DigitCaptions) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real canvases (n, H, W) of each split and their classes by place."""
    known = {c.caption: c for digits in (1, 2) for c in seen_captions(source.facts, digits=digits)}
    found = {}
    for plan in source.plan:
        samples = list(source.read(plan))
        images = np.stack([sample.image[..., 0] for sample in samples])
        found[plan.split] = images, labels_of([known[sample.captions[0]] for sample in samples])
    return found


@pytest.fixture(scope="module")
def judge(canvases: dict) -> Judge:
    return train_judge(*canvases["train"], regions())


def share_right(judge: Judge, images: np.ndarray, labels: np.ndarray) -> float:
    return float((judge.look(torch.from_numpy(images)[:, None].float()) == labels).all(1).mean())


def test_real_canvases_of_digits_never_seen_are_read_right(judge: Judge, canvases: dict, source: DigitCaptions) -> None:
    held_out = labels_of([c for digits in (1, 2) for c in held_out_captions(source.facts, digits=digits)])
    figures = measure_judge(judge, *canvases["test"], held_out)
    assert figures["accuracy"] >= 0.97, figures
    assert figures["one_digit"] >= 0.97 and figures["two_digits"] >= 0.95, figures
    assert figures["held_out"] >= 0.95, figures
    images, labels = canvases["test"]
    assert figures["accuracy"] == pytest.approx(share_right(judge, images / 255, labels))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda images: gaussian_filter(images, (0, 1.5, 1.5)),
        lambda images: 0.6 * images,
        lambda images: np.clip(images + 0.1 * np.random.default_rng(0).normal(size=images.shape), 0, 1),
    ],
    ids=["soft", "faint", "noisy"],
)
def test_soft_faint_and_noisy_digits_are_read_as_the_digits_they_are(judge: Judge, canvases: dict, spoil) -> None:
    images, labels = canvases["test"]
    assert share_right(judge, spoil(images[:400] / 255), labels[:400]) >= 0.94


def test_empty_canvases_and_smudges_are_no_digits(judge: Judge) -> None:
    noise = 0.1 * np.random.default_rng(0).random((50, SIZE, SIZE))
    assert (judge.look(torch.zeros(1, 1, SIZE, SIZE)) == EMPTY).all()
    assert (judge.look(torch.from_numpy(noise).float()[:, None]) == EMPTY).mean() > 0.99


def test_a_digit_too_many_is_noticed(judge: Judge, canvases: dict) -> None:
    """Canvases with a digit in one corner and another, not asked for, in the opposite one."""
    images, labels = canvases["test"]
    corner = {place: images[labels[:, ORDER.index(place)] != EMPTY][:60] for place in ("top left", "bottom right")}
    both = np.maximum(*corner.values()) / 255
    seen = judge.look(torch.from_numpy(both)[:, None].float())
    assert ((seen != EMPTY).sum(1) == 2).mean() > 0.95


def test_it_is_the_same_judge_again_from_the_same_canvases_and_from_its_file(canvases: dict) -> None:
    images, labels = canvases["train"]
    first = train_judge(images[:200], labels[:200], regions(), steps=3)
    torch.manual_seed(7)
    again = train_judge(images[:200], labels[:200], regions(), steps=3)
    restored, figures = from_bytes(to_bytes(first, {"accuracy": 0.5}))
    assert figures == {"accuracy": 0.5} and restored.regions == first.regions
    for other in (again, restored):
        for name, value in first.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("content", [b"", b"judge", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"])
def test_a_file_of_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a judge"):
        from_bytes(content)


def test_lone_digits_come_to_the_places_they_are_wanted_at(canvases: dict) -> None:
    images, labels = canvases["train"]
    lone = LoneDigits(images, labels, regions())
    wanted = torch.full((8, 8), EMPTY)
    wanted[range(8), range(8)] = torch.arange(8)
    for place, (canvas, region) in enumerate(zip(lone.place(wanted).numpy(), regions(), strict=True)):
        outside = canvas.copy()
        outside[region.top : region.bottom, region.left : region.right] = 0
        assert canvas.max() > 0.5 and outside.sum() <= 0.02 * canvas.sum(), ORDER[place]


def test_every_set_of_places_is_trained_on_but_overlapping_ones() -> None:
    from pipeline.evaluation.judge import _filled_together

    sets = {tuple(np.flatnonzero(row)) for row in _filled_together(regions()).numpy()}
    name = ORDER.index
    assert {(place,) for place in range(8)} <= sets
    for pair in (("left", "right"), ("top", "bottom"), ("top left", "bottom right"), ("left", "top right")):
        assert tuple(sorted(map(name, pair))) in sets
    for pair in (("left", "top left"), ("left", "top"), ("bottom", "bottom right")):
        assert tuple(sorted(map(name, pair))) not in sets


def test_verdicts_by_hand() -> None:
    e = EMPTY
    wanted = np.array([[3, e, e, 5]] * 6)
    seen = np.array([[3, e, e, 5], [5, e, e, 3], [3, e, e, e], [3, 5, e, e], [3, e, 1, 5], [e, 3, 5, e]])
    expected = {
        "right": [1, 0, 0, 0, 0, 0],
        "places": [1, 1, 0, 0, 0, 0],
        "digits": [1, 1, 0, 1, 0, 1],
        "number": [1, 1, 0, 1, 0, 1],
    }
    assert {name: verdict.astype(int).tolist() for name, verdict in verdicts(seen, wanted).items()} == expected


def test_without_a_lone_digit_there_is_no_judge() -> None:
    with pytest.raises(ValueError, match="canvases with a single digit"):
        train_judge(np.zeros((4, SIZE, SIZE), np.uint8), np.full((4, 8), EMPTY), regions(), steps=1)
