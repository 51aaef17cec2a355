"""MNIST with captions (paper section 5.2, the authors' create-captions.py): one or two digits on a black 60x60 canvas.

Eight templates of exactly 12 tokens say which digits there are and where. Some combinations of template, slot and digit are
held out: they are drawn once from the seed, recorded in the facts of the data set, and appear in no sample of any split, so
drawing them is generalisation. A template of one digit has its corner to itself: what it holds out is on no image. A place of
the others belongs to two templates, so most digits that one holds out there are on images of the other. The digits come from the
IDX files of MNIST or, with nothing to download, from scikit-learn's packaged handwritten digits (8x8, enlarged). The splits use
disjoint source digits.

Choice: each template and slot holds out exactly one digit; the authors draw from 0 to 10, where 10 bans nothing.
Choice: on canvases other than 60x60 everything scales with the side.
Choice: with dataset.wordings above 1 the training split says the same in other words too; what is held out stays held out
in all of them, and the other splits and the captions that are judged have the authors' words only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.sample import SPLITS, Rejected, Sample, ShardPlan
from pipeline.sources.idx import read_idx
from pipeline.sources.resize import resize
from pipeline.sources.source import below, check_folder, cut_into_shards, random_words, shuffled

CANVAS = 60  # pixels; the numbers below are the authors' for this side
DIGIT = 28
WORDS_A_SAMPLE = 8  # random numbers of a sample: template, two digits, two rows, two columns, wording


@dataclass(frozen=True)
class Template:
    """A caption with a gap for each digit, and where each of them is drawn."""

    name: str  # the place of the first digit
    wordings: tuple[str, ...]  # the authors' first
    places: tuple[str, ...]  # of each slot, names of PLACES
    shared: str = ""  # what two digits have in common: "row" or "column"

    def caption(self, digits: Sequence[int], wording: int = 0) -> str:
        return self.wordings[wording].format(*digits)

    def label(self, digits: Sequence[int], wording: int = 0) -> LabelledCaption:
        return LabelledCaption(self.caption(digits, wording), self.name, tuple(digits), self.places)


def _pair(name: str, other: str, words: str, shared: str) -> Template:
    wordings = (
        f"the digit {{0}} is {words} of the digit {{1}} .",
        f"{words} of the digit {{1}} is the digit {{0}} .",
        f"there is a {{0}} {words} of a {{1}} .",
        f"an image of a {{1}} with a {{0}} {words} .",
    )
    return Template(name, wordings, (name, other), shared)


def _corner(name: str) -> Template:
    wordings = (
        f"the digit {{0}} is at the {name} of the image .",
        f"at the {name} of the image is the digit {{0}} .",
        f"there is a {{0}} at the {name} of the image .",
        f"an image with a {{0}} at the {name} .",
    )
    return Template(name, wordings, (name,))


TEMPLATES = (
    _pair("left", "right", "on the left", "row"),
    _pair("right", "left", "on the right", "row"),
    _pair("top", "bottom", "at the top", "column"),
    _pair("bottom", "top", "at the bottom", "column"),
    _corner("top left"),
    _corner("bottom right"),
    _corner("top right"),
    _corner("bottom left"),
)
NEAR, MIDDLE, FAR = "near", "middle", "far"
PLACES = {  # name -> where the digit's box lies down and across
    "left": (MIDDLE, NEAR),
    "right": (MIDDLE, FAR),
    "top": (NEAR, MIDDLE),
    "bottom": (FAR, MIDDLE),
    "top left": (NEAR, NEAR),
    "bottom right": (FAR, FAR),
    "top right": (NEAR, FAR),
    "bottom left": (FAR, NEAR),
}


def digit_side(size: int) -> int:
    """Side of a digit's box on a canvas of this side, pixels."""
    return max(1, size * DIGIT // CANVAS)


def box_range(place: str, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column (inclusive) that the top left corner of a digit's box may take."""
    last = size - digit_side(size)
    return tuple(
        {NEAR: (0, jitter), MIDDLE: (last // 2, min(last, last // 2 + jitter)), FAR: (last - jitter, last)}[where]
        for where, jitter in zip(PLACES[place], _jitter(place, size, last), strict=True)
    )


def _jitter(place: str, size: int, last: int) -> tuple[int, int]:
    """Pixels a box may move down and across: 2, but 4 across where it is left or right (at 60x60)."""
    across = 2 if PLACES[place][1] == MIDDLE else 4
    return tuple(min(last, round(pixels * size / CANVAS)) for pixels in (2, across))


@dataclass(frozen=True)
class LabelledCaption:
    """A caption and what must be seen in its drawing."""

    caption: str
    template: str
    digits: tuple[int, ...]
    places: tuple[str, ...]


def labelled_captions() -> dict[str, LabelledCaption]:
    """Every caption there can be, in any wording, and what must be seen in its drawing."""
    labels = (
        template.label(digits, wording)
        for template in TEMPLATES
        for digits in np.ndindex(*(10,) * len(template.places))
        for wording in range(len(template.wordings))
    )
    return {label.caption: label for label in labels}


def held_out_captions(facts: dict[str, Any], *, digits: int) -> list[LabelledCaption]:
    """All captions of one or two digits in which at least one digit is held out at its place."""
    return [caption for caption, new in _all_captions(facts, digits) if new]


def seen_captions(facts: dict[str, Any], *, digits: int) -> list[LabelledCaption]:
    """All captions of one or two digits that may occur in the training split."""
    return [caption for caption, new in _all_captions(facts, digits) if not new]


def other_corners(facts: dict[str, Any]) -> list[tuple[LabelledCaption, LabelledCaption]]:
    """Captions of one digit with those that name the same digit at another corner, both of them seen in training."""
    seen = seen_captions(facts, digits=1)
    return [(one, other) for one in seen for other in seen if one.digits == other.digits and one.places != other.places]


def _all_captions(facts: dict[str, Any], slots: int) -> Iterator[tuple[LabelledCaption, bool]]:
    banned = {(entry["template"], entry["slot"], entry["digit"]) for entry in facts["held_out"]}
    for template in TEMPLATES:
        if len(template.places) == slots:
            for digits in np.ndindex(*(10,) * slots):
                new = any((template.name, slot, digit) in banned for slot, digit in enumerate(digits))
                yield template.label(digits), new


@dataclass(frozen=True)
class Digits:
    """Source digits of one file or package, before they are dealt to splits."""

    images: np.ndarray  # (n, h, w) uint8
    labels: np.ndarray  # (n,) uint8, 0 to 9


class DigitCaptions:
    """The source `digits` (scikit-learn's) and `mnist` (IDX files in the folder `data`)."""

    def __init__(self, config: DatasetConfig, data: str | None) -> None:
        self.config, self.data = config, data
        _load.cache_clear()  # the files may have changed since this process last opened them
        _deal.cache_clear()
        _, self.digest, warnings = _load(config.source, data)
        deal = _deal(config, data)
        held_out = draw_held_out(config.seed)
        self.facts = {
            "held_out": [
                {"template": template.name, "slot": slot, "digit": int(digit)}
                for template, banned in zip(TEMPLATES, held_out, strict=True)
                for slot, digit in enumerate(banned)
            ],
            "source_digits": {split: len(deal[split][1]) for split in SPLITS},
            "warnings": list(warnings),
        }
        self.plan = tuple(
            plan
            for split in SPLITS
            for plan in cut_into_shards(split, getattr(config, split), config.samples_per_shard)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plan": ()}

    def read(self, plan: ShardPlan) -> Iterator[Sample | Rejected]:
        self.check_unchanged()
        images, labels, names = self.digits(plan.split)
        size, side = self.config.size, digit_side(self.config.size)
        drawn = draw_samples(self.config, plan, labels)
        for i, (template, wording, digits, rows, columns) in enumerate(drawn, start=plan.start):
            canvas = np.zeros((size, size, self.config.channels), np.uint8)
            for digit, row, column in zip(digits, rows, columns, strict=True):  # as the authors': the second overwrites
                canvas[row : row + side, column : column + side] = images[digit]
            caption = template.caption([labels.item(digit) for digit in digits], wording)
            source = " ".join([self.config.source, *(str(names.item(digit)) for digit in digits)])
            yield Sample(f"{plan.split}-{i:08d}", canvas, (caption,), source, plan.split, (size, size))

    def check_unchanged(self) -> None:
        """ValueError if the files are not those that the plan was made from."""
        if (digest := _load(self.config.source, self.data)[1]) != self.digest:
            raise ValueError(
                f"{self.data}: changed while it was read, sha256 {digest[:10]} was {self.digest[:10]}; start again"
            )

    def digits(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A split's n source digits: images (n, side, side, 1) uint8, labels (n,), and the place of each in its file (n,)."""
        return _deal(self.config, self.data)[split]


def draw_held_out(seed: int) -> list[tuple[int, ...]]:
    """For each template the digit held out in each of its slots."""
    drawn = below(random_words("held out", seed, 0, len(TEMPLATES), 4), 10)
    return [tuple(map(int, row[: len(template.places)])) for row, template in zip(drawn, TEMPLATES, strict=True)]


def draw_samples(
    config: DatasetConfig, plan: ShardPlan, labels: np.ndarray
) -> Iterator[tuple[Template, int, list[int], list[int], list[int]]]:
    """Template, number of its wording, source digits, rows and columns of each sample of a plan.

    Arithmetic on a counter, drawn for all at once. A digit's image is uniform over the split's digits that its slot does not
    hold out, as if drawn until accepted.
    """
    held_out, count = draw_held_out(config.seed), plan.stop - plan.start
    words = random_words(f"samples of {plan.split}", config.seed, plan.start, count, WORDS_A_SAMPLE)
    kinds = below(words[:, 0], len(TEMPLATES))
    wordings = below(words[:, 7], config.wordings if plan.split == "train" else 1)
    digits, rows, columns = (np.zeros((count, 2), np.int64) for _ in range(3))
    for kind, template in enumerate(TEMPLATES):
        mine = kinds == kind
        for slot, place in enumerate(template.places):
            allowed = np.flatnonzero(labels != held_out[kind][slot])
            if not len(allowed):
                raise ValueError(f"all source digits of {plan.split} are {held_out[kind][slot]}s, which are held out")
            (top, bottom), (left, right) = box_range(place, config.size)
            digits[mine, slot] = allowed[below(words[mine, 1 + slot], len(allowed))]
            rows[mine, slot] = top + below(words[mine, 3 + slot], bottom - top + 1)
            columns[mine, slot] = left + below(words[mine, 5 + slot], right - left + 1)
        if template.shared:
            shared = rows if template.shared == "row" else columns
            shared[mine, 1] = shared[mine, 0]
    drawn = (kinds, wordings, digits, rows, columns)
    for kind, wording, *numbers in zip(*(column.tolist() for column in drawn), strict=True):
        template = TEMPLATES[kind]
        yield template, wording, *(number[: len(template.places)] for number in numbers)


@lru_cache(maxsize=2)
def _deal(config: DatasetConfig, data: str | None) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """split -> its source digits, at the side they have on the canvas, or that of the image they are alone in."""
    files, _, _ = _load(config.source, data)
    side = config.size if config.source == "binary-mnist" else digit_side(config.size)
    dealt = {}
    for split, (file, which) in _disjoint(config, {name: len(digits.labels) for name, digits in files.items()}).items():
        images = files[file].images[which][..., None]
        if images.shape[1:3] != (side, side):
            images = np.stack([resize(image, side) for image in images])
        dealt[split] = (images, files[file].labels[which], which)
    return dealt


def _disjoint(config: DatasetConfig, counts: dict[str, int]) -> dict[str, tuple[str, np.ndarray]]:
    """split -> (file, which of its digits). MNIST's test file is the test split; the rest is shuffled and cut."""
    order = shuffled("source digits", config.seed, counts["train"])
    sixth = counts["train"] // 6  # 10,000 of MNIST's 60,000
    if "test" in counts:
        cuts = {"val": ("train", order[:sixth]), "test": ("test", np.arange(counts["test"]))}
    else:
        cuts = {"val": ("train", order[:sixth]), "test": ("train", order[sixth : 2 * sixth])}
    used = sum(len(which) for file, which in cuts.values() if file == "train")
    return {"train": ("train", order[used:]), **cuts}


@lru_cache(maxsize=2)
def _load(source: str, data: str | None) -> tuple[dict[str, Digits], str, tuple[str, ...]]:
    """Files of digits by name, the sha256 of their content, and what is odd about them; read once in a process."""
    if source == "digits":
        return _load_packaged()
    return _load_idx(data)


def _load_packaged() -> tuple[dict[str, Digits], str, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    packaged = load_digits()
    images = np.rint(packaged.images * (255 / 16)).astype(np.uint8)  # 17 levels of ink
    labels = packaged.target.astype(np.uint8)
    return {"train": Digits(images, labels)}, hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(), ()


def _load_idx(data: str | None) -> tuple[dict[str, Digits], str, tuple[str, ...]]:
    wanted = "a folder with the four IDX files of MNIST, gzipped or raw (jobs.shard --download fetches them into it)"
    check_folder(data, "mnist", wanted)
    files, digests, warnings = {}, [], []
    for name, prefix in {"train": "train", "test": "t10k"}.items():
        images, image_digest, image_warning = read_idx(data, f"{prefix}-images-idx3-ubyte", 3)
        labels, label_digest, label_warning = read_idx(data, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or not len(images):
            raise ValueError(
                f"{data}: {len(images)} {name} images and {len(labels)} labels; there is one label an image"
            )
        if labels.max() > 9 or not 1 <= min(images.shape[1:]) <= max(images.shape[1:]) <= 256:
            raise ValueError(
                f"{data}: {name} labels go up to {labels.max()} and images are {images.shape[1]}x{images.shape[2]}; "
                "labels are 0 to 9, images at most 256x256"
            )
        if len(images) < 12:
            raise ValueError(f"{data}: {len(images)} {name} digits; at least 12 are needed to split them")
        files[name] = Digits(images, labels)
        digests += [image_digest, label_digest]
        warnings += [warning for warning in (image_warning, label_warning) if warning]
    return files, hashlib.sha256(" ".join(digests).encode()).hexdigest(), tuple(warnings)
