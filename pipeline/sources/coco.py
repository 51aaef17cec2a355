"""Captioned photographs in COCO's layout (Lin et al. 2014, arXiv 1405.0312; captions: Chen et al. 2015, arXiv 1504.00325).

A data folder (local, s3:// or gs://) holds, as downloaded,

    annotations/captions_train2017.json, captions_val2017.json     or annotations_trainval2017.zip with them in it
    train2017/000000000009.jpg ..., val2017/...                    or train2017.zip, val2017.zip, read without unpacking
    dataset_coco.json                                              optional: Karpathy's split

and the same with 2014 in place of 2017 or with no year at all. Official train is the training split.

Choice: the official validation images are halved by the seed into our validation and test split.
Choice: with Karpathy's file its train, val and test are ours and its restval is left out, which gives the paper's 82,783.
Choice: white space in captions is made single blanks; an image's first captions are those first in the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.sample import SPLITS, Rejected, Sample, ShardPlan
from pipeline.sources.picture import MOST_BYTES, Unusable, read_picture
from pipeline.sources.source import check_folder, contents, cut_into_shards, shuffled
from pipeline.sources.zipped import Member, list_members, open_once, read_member

YEARS = ("2017", "2014", "")  # layouts; "" is captions_train.json beside train/
MOST_JSON = 2**30  # bytes; the captions of COCO 2014 have 67 MB
LONGEST_CAPTION = 2_000  # characters; COCO's longest has about 250
KARPATHY = "dataset_coco.json"


class Row(NamedTuple):
    """An image of the annotations, before it is read."""

    key: str
    subset: str  # where its file lies, e.g. "train2017"
    file: str
    bytes: int  # -1: it is not there
    member: Member | None  # where it lies in the zip file, if it is in one
    captions: tuple[str, ...]
    width: int  # as the annotations say
    height: int


class CocoCaptions:
    """The source `coco`."""

    def __init__(self, config: DatasetConfig, data: str | None) -> None:
        check_folder(data, "coco", _EXPECTED)
        self.size, self.channels = config.size, config.channels
        open_once.cache_clear()  # the files may have changed since this process last opened them
        year = _find_year(data)
        annotations = {f"{part}{year}": Annotations.load(data, f"{part}{year}", year) for part in ("train", "val")}
        self.folders = {subset: ImageFolder.find(data, subset) for subset in annotations}
        rows = {
            subset: _rows(subset, found, self.folders[subset].listing(), config.captions)
            for subset, found in annotations.items()
        }
        karpathy = _load_karpathy(data)
        splits, rule = _split(rows, karpathy[0] if karpathy else None, config.seed)
        for split in SPLITS:
            if not splits[split]:
                raise ValueError(f"{data}: no images for the {split} split ({rule})")
        used = sum(map(len, splits.values()))
        digest = hashlib.sha256(repr(sorted(a.sha256 for a in annotations.values())).encode())
        digest.update(karpathy[1].encode() if karpathy else b"")
        for row in sorted((row for split in splits.values() for row in split), key=_key):
            digest.update(f"{row.subset}/{row.file} {row.bytes}\n".encode())
        self.digest = digest.hexdigest()
        self.facts = {
            "layout": f"COCO {year}".strip(),
            "split_rule": rule,
            "splits": {split: len(splits[split]) for split in SPLITS},
            "left_out": sum(map(len, rows.values())) - used,
            "annotations": {
                subset: {"sha256": a.sha256, "images": len(a.images), "unreadable_captions": a.unreadable}
                for subset, a in annotations.items()
            },
            "images": {subset: "zip file" if folder.packed else "folder" for subset, folder in self.folders.items()},
            "warnings": [
                f"captions_{subset}.json: {a.unreadable} captions have no words, or no image that is listed; they are left out"
                for subset, a in annotations.items()
                if a.unreadable
            ],
        }
        self.plan = tuple(
            plan
            for split in SPLITS
            for plan in cut_into_shards(split, len(splits[split]), config.samples_per_shard, tuple(splits[split]))
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plan": ()}

    def read(self, plan: ShardPlan) -> Iterator[Sample | Rejected]:
        for row in plan.rows:
            source = f"{row.subset}/{row.file}"
            try:
                if not row.captions:
                    raise Unusable("no captions", row.width, row.height)
                picture = read_picture(self.folders[row.subset].read(row), self.size, self.channels)
            except Unusable as why:
                size = (why.width or row.width, why.height or row.height)
                yield Rejected(row.key, source, plan.split, why.reason, row.captions, *size)
            else:
                size = (picture.width, picture.height)
                yield Sample(row.key, picture.image, row.captions, source, plan.split, size)


_EXPECTED = (
    "a folder with annotations/captions_{train,val}2017.json (or 2014, or no year; or annotations_trainval2017.zip) "
    "beside train2017/ and val2017/ (or train2017.zip and val2017.zip)"
)


@dataclass(frozen=True)
class Annotations:
    """One captions_*.json: its images in order of id, the captions of each, and how many entries made no sense."""

    images: tuple[dict[str, Any], ...]
    captions: dict[int, list[str]]
    unreadable: int
    sha256: str

    @classmethod
    def load(cls, data: str, subset: str, year: str) -> Annotations:
        name = f"captions_{subset}.json"
        path = storage.join(data, "annotations", name)
        if storage.exists(path):
            return cls.parse(storage.read_bytes(path, MOST_JSON), path)
        path = storage.join(data, f"annotations_trainval{year}.zip")
        if not storage.exists(path):
            raise ValueError(f"{data}: annotations/{name} is missing; expected {_EXPECTED}; found: {contents(data)}")
        try:
            content = read_member(open_once(path), list_members(path)[f"annotations/{name}"], MOST_JSON)
        except KeyError:
            raise ValueError(f"{path}: holds no annotations/{name}; get the file again") from None
        except Unusable as why:
            raise ValueError(f"{path}: annotations/{name} is {why.reason}; get the file again") from None
        return cls.parse(content, f"{path}/annotations/{name}")

    @classmethod
    def parse(cls, content: bytes, path: str) -> Annotations:
        """Checked before pycocotools sees it, which believes what it is given."""
        document = _parse_json(content, path)
        if not isinstance(document, dict) or not all(
            isinstance(document.get(k), list) for k in ("images", "annotations")
        ):
            held = f"the keys {', '.join(list(document)[:8])}" if isinstance(document, dict) else "no object"
            raise ValueError(
                f"{path}: COCO captions are an object with the lists images and annotations; it holds {held}"
            )
        for number, image in enumerate(document["images"]):
            if not isinstance(image, dict) or not _is_id(image.get("id")):
                raise ValueError(f"{path}: images[{number}] has no id that is a whole number from 0 to 10^12")
        counts = Counter(image["id"] for image in document["images"])
        if twice := [number for number, count in counts.items() if count > 1]:
            raise ValueError(f"{path}: {len(twice)} image ids occur more than once, e.g. {twice[0]}; ids are unique")
        readable = [a for a in document["annotations"] if isinstance(a, dict) and _is_caption(a, counts)]
        captions = _captions_by_image(document["images"], readable)
        images = tuple(sorted(document["images"], key=lambda image: image["id"]))
        unreadable = len(document["annotations"]) - len(readable)
        return cls(images, captions, unreadable, hashlib.sha256(content).hexdigest())


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 10**12


def _is_caption(annotation: dict, images: Counter) -> bool:
    """Whether an annotation has words for an image that is listed."""
    words, image = annotation.get("caption"), annotation.get("image_id")
    return _is_id(image) and image in images and isinstance(words, str) and 0 < len(words.strip()) <= LONGEST_CAPTION


def _captions_by_image(images: list[dict], annotations: list[dict]) -> dict[int, list[str]]:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": images, "annotations": [{**a, "id": i} for i, a in enumerate(annotations)]}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints; the last line of a job's output is its result
        coco.createIndex()
    return {image: [" ".join(_as_utf8(a["caption"]).split()) for a in found] for image, found in coco.imgToAnns.items()}


def _as_utf8(text: str) -> str:
    """JSON can hold lone surrogates, which UTF-8 cannot: they become '?'."""
    return text.encode("utf-8", "replace").decode()


def _parse_json(content: bytes, path: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:80]}); get the file again") from None


def _rows(
    subset: str, annotations: Annotations, listing: dict[str, tuple[int, Member | None]], captions: int
) -> list[Row]:
    """One row an image, in order of id. A file that is not in the folder's listing is missing."""
    rows = []
    for image in annotations.images:
        file = image.get("file_name")
        file = _as_utf8(file)[:255] if isinstance(file, str) else "?"
        sides = (image.get(side) for side in ("width", "height"))
        width, height = (side if _is_id(side) and side < 2**31 else 0 for side in sides)
        words = tuple(annotations.captions.get(image["id"], [])[:captions])
        rows.append(
            Row(f"{subset}-{image['id']:012d}", subset, file, *listing.get(file, (-1, None)), words, width, height)
        )
    return rows


def _split(rows: dict[str, list[Row]], karpathy: dict[int, str] | None, seed: int) -> tuple[dict[str, list[Row]], str]:
    """split -> its rows in order of key, and in words how they were chosen."""
    train, val = rows.values()
    if karpathy is not None:
        dealt = {split: [row for row in [*train, *val] if karpathy.get(_id_of(row)) == split] for split in SPLITS}
        return {split: sorted(rows, key=_key) for split, rows in dealt.items()}, f"{KARPATHY} (restval left out)"
    order = shuffled("halves of val", seed, len(val))
    half = (len(val) + 1) // 2
    halves = {
        "val": sorted((val[i] for i in order[:half]), key=_key),
        "test": sorted((val[i] for i in order[half:]), key=_key),
    }
    return {"train": train, **halves}, f"official train; halves of the official val by seed {seed}"


def _key(row: Row) -> str:
    return row.key


def _id_of(row: Row) -> int:
    return int(row.key.rpartition("-")[2])


def _load_karpathy(data: str) -> tuple[dict[int, str], str] | None:
    """Image id -> split of Karpathy's file, and the file's sha256; None where there is no such file."""
    for path in (storage.join(data, KARPATHY), storage.join(data, "annotations", KARPATHY)):
        if storage.exists(path):
            content = storage.read_bytes(path, MOST_JSON)
            return parse_karpathy(content, path), hashlib.sha256(content).hexdigest()
    return None


def parse_karpathy(content: bytes, path: str) -> dict[int, str]:
    document = _parse_json(content, path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{path}: Karpathy's split is an object with the list images")
    splits = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not _is_id(image.get("cocoid")) or not isinstance(image.get("split"), str):
            raise ValueError(f"{path}: images[{number}] lacks cocoid (a whole number) or split (a word)")
        splits[image["cocoid"]] = image["split"]
    return splits


def _find_year(data: str) -> str:
    """Which layout a folder has; where annotations of two are there, the one whose images are there too."""
    names = set(storage.listing(data))
    within = set(storage.listing(storage.join(data, "annotations")))
    annotated = [
        y for y in YEARS if f"captions_train{y}.json" in within or (y and f"annotations_trainval{y}.zip" in names)
    ]
    pictured = [y for y in annotated if {f"train{y}", f"train{y}.zip"} & names]
    if not annotated:
        partly = sorted(name for name in within if re.fullmatch(r"captions_.*\.json", name))
        what = f"annotations holds {', '.join(partly)}" if partly else f"found: {contents(data)}"
        raise ValueError(f"{data}: not COCO captions; expected {_EXPECTED}; {what}")
    chosen = pictured or annotated
    if len(chosen) > 1:
        raise ValueError(
            f"{data}: holds COCO of {' and '.join(map(repr, chosen))}; point --data at a folder with one of them"
        )
    return chosen[0]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a subset: files of a folder, or members of an official zip file."""

    path: str  # of the folder or the zip file
    name: str  # of the folder, also inside the zip file
    packed: bool

    @classmethod
    def find(cls, data: str, subset: str) -> ImageFolder:
        folder, packed = storage.join(data, subset), storage.join(data, f"{subset}.zip")
        if storage.exists(folder):
            return cls(folder, subset, False)
        if storage.exists(packed):
            return cls(packed, subset, True)
        raise ValueError(f"{data}: neither {subset}/ nor {subset}.zip is there; found: {contents(data)}")

    def listing(self) -> dict[str, tuple[int, Member | None]]:
        """File name -> bytes and place in the zip file, of all files right in the folder."""
        if not self.packed:
            return {name: (size, None) for name, size in storage.sizes(self.path).items()}
        prefix = f"{self.name}/"
        found = {name.removeprefix(prefix): member for name, member in list_members(self.path).items()}
        return {name: (member.bytes, member) for name, member in found.items() if "/" not in name}

    def read(self, row: Row) -> bytes:
        """The bytes of an image that the listing holds; Unusable where they cannot be had."""
        if row.bytes < 0:
            raise Unusable("missing", row.width, row.height)
        if row.bytes > MOST_BYTES:
            raise Unusable("too large", row.width, row.height)
        if row.member:
            return read_member(open_once(self.path), row.member, MOST_BYTES)
        content = _read_file(storage.join(self.path, row.file), row.bytes)
        if len(content) != row.bytes:  # the data set's digest is over the listing
            raise Unusable("changed since it was listed", row.width, row.height)
        return content


def _read_file(path: str, limit: int) -> bytes:
    try:
        return storage.read_bytes(path, limit)
    except FileNotFoundError:
        raise Unusable("missing") from None
    except PermissionError:
        raise Unusable("not readable") from None
    except ValueError:
        raise Unusable("changed since it was listed") from None
