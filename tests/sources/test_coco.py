"""COCO's layouts, splits and captions against pycocotools itself, and what is said of folders that are not COCO."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.sample import SPLITS, Rejected, Sample
from pipeline.sources import open_source
from pipeline.sources.picture import read_picture
from tests.sources.test_picture import encoded, is_quarters, quarters

CONFIG = DatasetConfig(source="coco", size=16, channels=3, samples_per_shard=4)


def name_of(number: int, subset: str) -> str:
    return f"COCO_{subset}_{number:012d}.jpg" if subset.endswith("2014") else f"{number:012d}.jpg"


def write_coco(folder: Path, year: str = "2017", train: int = 10, val: int = 7, captions: int = 6) -> Path:
    """Pictures of four colours, each with numbered captions, as downloaded: images and annotations in no special order."""
    (folder / "annotations").mkdir(parents=True)
    for part, numbers in (("train", range(100, 100 + train)), ("val", range(500, 500 + val))):
        subset = f"{part}{year}"
        (folder / subset).mkdir()
        images, annotations = [], []
        for number in numbers:
            width, height = 40 + number % 7, 30 + number % 5
            (folder / subset / name_of(number, subset)).write_bytes(
                encoded(quarters(width, height), "JPEG", quality=95)
            )
            images.append({"id": number, "file_name": name_of(number, subset), "width": width, "height": height})
        for turn in range(captions):
            for number in reversed(numbers):
                annotations.append(
                    {"id": len(annotations), "image_id": number, "caption": f" Caption {turn}\nof {number}. "}
                )
        document = {"info": {}, "licenses": [], "images": images[::-1], "annotations": annotations}
        (folder / "annotations" / f"captions_{subset}.json").write_text(json.dumps(document))
    return folder


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def everything(source) -> dict[str, list[Sample | Rejected]]:
    return {
        split: [item for plan in source.plan if plan.split == split for item in source.read(plan)] for split in SPLITS
    }


def pixels(items: list[Sample | Rejected]) -> list[tuple]:
    return [(i.key, i.captions, i.source, i.original, i.image.tobytes()) for i in items if isinstance(i, Sample)]


@pytest.mark.parametrize("year", ["2017", "2014", ""])
def test_each_layout_is_read_whole(tmp_path: Path, year: str) -> None:
    source = open_source(CONFIG, str(write_coco(tmp_path / "data", year)))
    items = everything(source)
    assert {split: len(found) for split, found in items.items()} == {"train": 10, "val": 4, "test": 3}
    first = items["train"][0]
    assert first.key == f"train{year}-000000000100" and first.original == (42, 30)
    assert first.source == f"train{year}/{name_of(100, f'train{year}')}"
    assert first.captions == tuple(f"Caption {turn} of 100." for turn in range(5))
    assert all(is_quarters(item.image) and item.image.shape == (16, 16, 3) for split in SPLITS for item in items[split])
    assert source.facts["splits"] == {"train": 10, "val": 4, "test": 3}
    keys = [item.key for split in SPLITS for item in items[split]]
    assert len(set(keys)) == 17 and keys[:10] == sorted(keys[:10]) and not any("." in key for key in keys)
    json.dumps(source.facts)


def test_captions_are_those_that_pycocotools_finds(shared_data: Path, capsys: pytest.CaptureFixture) -> None:
    items = everything(open_source(CONFIG, str(shared_data / "coco")))
    assert capsys.readouterr().out == "", "a job's last line of output is its result: nothing else may print there"
    from pycocotools.coco import COCO

    for part, splits in (("train", ["train"]), ("val", ["val", "test"])):
        coco = COCO(str(shared_data / "coco" / "annotations" / f"captions_{part}2017.json"))
        mine = {int(item.key[-12:]): item for split in splits for item in items[split]}
        assert sorted(mine) == sorted(coco.getImgIds())
        for number, item in mine.items():
            theirs = [a["caption"] for a in coco.loadAnns(coco.getAnnIds(number))][:5]
            assert [c.split() for c in item.captions] == [c.split() for c in theirs]
            image = coco.loadImgs(number)[0]
            assert item.original == (image["width"], image["height"])
    assert sum(len(item.captions) for split in SPLITS for item in items[split]) == 200 + 150  # one image has 6


def test_the_first_captions_are_as_many_as_the_config_says(tmp_path: Path) -> None:
    data = str(write_coco(tmp_path / "data"))
    for wanted, kept in ((1, 1), (3, 3), (20, 6)):
        source = open_source(DatasetConfig(source="coco", size=16, channels=3, captions=wanted), data)
        assert {len(item.captions) for item in everything(source)["train"]} == {kept}


def test_zip_files_give_what_folders_give(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "folder")
    packed = tmp_path / "packed"
    packed.mkdir()
    for subset in ("train2017", "val2017"):
        with zipfile.ZipFile(packed / f"{subset}.zip", "w") as archive:
            archive.writestr(f"{subset}/", "")
            for file in sorted((folder / subset).iterdir(), reverse=True):
                archive.write(file, f"{subset}/{file.name}")
    with zipfile.ZipFile(packed / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_train2017.json", "{}")
        for file in (folder / "annotations").iterdir():
            archive.write(file, f"annotations/{file.name}")
    one, two = open_source(CONFIG, str(folder)), open_source(CONFIG, str(packed))
    assert one.digest == two.digest
    travelled = pickle.loads(pickle.dumps(two))
    for mine, its in zip(one.plan, two.plan, strict=True):
        assert pixels(list(one.read(mine))) == pixels(list(travelled.read(its)))
    assert sorted(file.name for file in packed.iterdir()) == [
        "annotations_trainval2017.zip",
        "train2017.zip",
        "val2017.zip",
    ]


def test_an_object_store_gives_what_a_disk_gives(tmp_path: Path, bucket: str) -> None:
    folder = write_coco(tmp_path / "data")
    with zipfile.ZipFile(folder / "val2017.zip", "w") as archive:
        for file in (folder / "val2017").iterdir():
            archive.write(file, f"val2017/{file.name}")
            storage.publish_bytes(f"{bucket}/coco/none/{file.name}", b"")
    for file in [*folder.rglob("*.jpg"), *folder.rglob("*.json"), folder / "val2017.zip"]:
        if file.parent.name != "val2017":
            storage.publish_bytes(f"{bucket}/coco/{file.relative_to(folder)}", file.read_bytes())
    here, there = open_source(CONFIG, str(folder)), open_source(CONFIG, f"{bucket}/coco")
    assert there.facts["images"] == {"train2017": "folder", "val2017": "zip file"}
    assert here.digest == there.digest
    for mine, its in zip(here.plan, there.plan, strict=True):
        assert pixels(list(here.read(mine))) == pixels(list(there.read(its)))
    with pytest.raises(ValueError, match=r"s3://.*/nothing does not exist"):
        open_source(CONFIG, f"{bucket}/nothing")


def test_the_official_validation_images_are_halved_by_the_seed(tmp_path: Path) -> None:
    data = str(write_coco(tmp_path / "data", val=40))
    halves = {}
    for seed in (0, 1):
        source = open_source(DatasetConfig(source="coco", size=16, channels=3, seed=seed), data)
        items = everything(source)
        val, test = ({item.key for item in items[split]} for split in ("val", "test"))
        assert len(val) == len(test) == 20 and not val & test
        assert all(key.startswith("val2017-") for key in val | test)
        assert f"seed {seed}" in source.facts["split_rule"]
        halves[seed] = val
    assert halves[0] != halves[1]


def karpathy(splits: dict[int, str]) -> str:
    images = [{"cocoid": number, "split": split, "filename": "x", "sentences": []} for number, split in splits.items()]
    return json.dumps({"dataset": "coco", "images": images})


def test_karpathys_file_decides_the_split_and_restval_is_left_out(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    before = open_source(CONFIG, str(folder)).digest
    splits = {
        100: "test",
        101: "val",
        **dict.fromkeys(range(102, 108), "train"),
        500: "restval",
        501: "train",
        502: "val",
    }
    for place in ("dataset_coco.json", "annotations/dataset_coco.json"):
        (folder / place).write_text(karpathy(splits))
        source = open_source(CONFIG, str(folder))
        dealt = {split: {int(i.key[-12:]) for i in found} for split, found in everything(source).items()}
        assert dealt == {"train": {*range(102, 108), 501}, "val": {101, 502}, "test": {100}}
        assert source.facts["left_out"] == 7 and "restval left out" in source.facts["split_rule"]
        assert source.digest != before
        (folder / place).unlink()


def test_the_digest_is_over_annotations_and_the_listing_of_images(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    digest = open_source(CONFIG, str(folder)).digest
    assert open_source(CONFIG, str(folder)).digest == digest
    (folder / "train2017" / "unlisted.jpg").write_bytes(b"not named by the annotations")
    assert open_source(CONFIG, str(folder)).digest == digest
    picture = folder / "train2017" / "000000000103.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content + b"x")
    assert open_source(CONFIG, str(folder)).digest != digest
    picture.write_bytes(content)
    assert open_source(CONFIG, str(folder)).digest == digest
    edit(folder / "annotations" / "captions_val2017.json", lambda d: d["annotations"][0].update(caption="another"))
    assert open_source(CONFIG, str(folder)).digest != digest


def test_the_plan_travels_without_the_source_and_covers_all_images_once(tmp_path: Path) -> None:
    source = open_source(CONFIG, str(write_coco(tmp_path / "data", train=10)))
    assert [(p.name, p.start, p.stop) for p in source.plan if p.split == "train"] == [
        ("train-00000", 0, 4),
        ("train-00001", 4, 8),
        ("train-00002", 8, 10),
    ]
    assert len(pickle.dumps(source)) < 3_000 and len(pickle.loads(pickle.dumps(source.plan[0])).rows) == 4
    numbers = [int(row.key[-12:]) for plan in source.plan if plan.split == "train" for row in plan.rows]
    assert numbers == list(range(100, 110))


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    source = open_source(CONFIG, str(write_coco(tmp_path / "data")))
    code = "import pickle, sys; s, p = pickle.loads(sys.stdin.buffer.read()); sys.stdout.buffer.write(pickle.dumps(list(s.read(p))))"
    order = pickle.dumps((source, source.plan[1]))
    done = subprocess.run([sys.executable, "-c", code], input=order, capture_output=True, check=True)
    assert pixels(pickle.loads(done.stdout)) == pixels(list(source.read(source.plan[1])))


def test_bad_samples_are_rejected_with_their_reason_and_the_others_read(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data", train=14)
    images = folder / "train2017"
    (images / "000000000100.jpg").unlink()
    (images / "000000000101.jpg").write_bytes(b"")
    (images / "000000000102.jpg").write_bytes(b"<html>")
    (images / "000000000103.jpg").write_bytes((images / "000000000103.jpg").read_bytes()[:-50])
    (images / "000000000104.jpg").unlink()
    (images / "000000000104.jpg").mkdir()

    def spoil(document: dict) -> None:
        by_id = {image["id"]: image for image in document["images"]}
        by_id[105]["file_name"] = "../val2017/000000000500.jpg"
        by_id[106]["file_name"] = "/etc/passwd"
        by_id[107]["file_name"] = None
        by_id[108]["file_name"] = "a\0b\ud800.jpg"
        for annotation in document["annotations"]:
            if annotation["image_id"] == 109:
                annotation["image_id"] = 10**6
            if annotation["image_id"] == 110:
                annotation["caption"] = " \n "
            if annotation["image_id"] == 111 and "5" not in annotation["caption"]:
                annotation["caption"] = [None, 7, "", "x" * 10_000, {}][annotation["id"] % 5]
        document["annotations"] += [None, {}, {"image_id": 112}, {"image_id": True, "caption": "x"}]

    edit(folder / "annotations" / "captions_train2017.json", spoil)
    source = open_source(CONFIG, str(folder))
    items = everything(source)["train"]
    reasons = {int(item.key[-12:]): item.reason for item in items if isinstance(item, Rejected)}
    assert reasons == {
        100: "missing",
        101: "empty file",
        102: "not an image",
        103: "truncated",
        104: "missing",
        105: "missing",
        106: "missing",
        107: "missing",
        108: "missing",
        109: "no captions",
        110: "no captions",
    }
    good = {int(item.key[-12:]): item for item in items if isinstance(item, Sample)}
    assert sorted(good) == [111, 112, 113]
    assert good[111].captions == ("Caption 5 of 111.",)
    assert source.facts["annotations"]["train2017"]["unreadable_captions"] == 6 + 6 + 5 + 4
    assert source.facts["warnings"] == [
        "captions_train2017.json: 21 captions have no words, or no image that is listed; they are left out"
    ]
    truncated = next(item for item in items if item.key.endswith("103"))
    assert (truncated.width, truncated.height) == (45, 33) and len(truncated.captions) == 5
    for item in items:
        item.source.encode()


def test_a_file_that_changes_after_it_was_listed_is_rejected(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data", train=4)
    source = open_source(CONFIG, str(folder))
    (folder / "train2017" / "000000000100.jpg").unlink()
    (folder / "train2017" / "000000000101.jpg").write_bytes(b"short")
    (folder / "train2017" / "000000000102.jpg").write_bytes(bytes(10**6))
    counts = Counter(getattr(item, "reason", "ok") for item in source.read(source.plan[0]))
    assert counts == {"missing": 1, "changed since it was listed": 2, "ok": 1}


def test_a_damaged_zip_member_is_rejected_and_the_others_read(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data", train=3)
    archive = folder / "train2017.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted((folder / "train2017").iterdir()):
            out.write(file, f"train2017/{file.name}")
            file.unlink()
    (folder / "train2017").rmdir()
    content = bytearray(archive.read_bytes())
    content[400] ^= 1  # within the first picture
    archive.write_bytes(content)
    source = open_source(CONFIG, str(folder))
    assert [getattr(i, "reason", "ok") for i in source.read(source.plan[0])] == ["damaged in its zip file", "ok", "ok"]


def annotation(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / "annotations" / name


TRAIN = annotation("captions_train2017.json")


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: TRAIN(f).write_text("<html>"), r"captions_train2017.json: not JSON \(Expecting value"),
        (lambda f: TRAIN(f).write_bytes(b"\xff\xfe\x00"), "captions_train2017.json: not JSON"),
        (lambda f: TRAIN(f).write_text("[" * 10**6), "captions_train2017.json: not JSON"),
        (lambda f: TRAIN(f).write_text(""), "captions_train2017.json: not JSON"),
        (lambda f: TRAIN(f).write_text("[1]"), "lists images and annotations; it holds no object"),
        (lambda f: edit(TRAIN(f), lambda d: d.pop("images")), "lists images and annotations; it holds the keys info, "),
        (lambda f: edit(TRAIN(f), lambda d: d.pop("annotations")), "lists images and annotations"),
        (lambda f: edit(TRAIN(f), lambda d: d["images"].clear()), "no images for the train split"),
        (
            lambda f: edit(TRAIN(f), lambda d: d["images"].append(d["images"][0])),
            "1 image ids occur more than once, e.g. 109",
        ),
        (
            lambda f: edit(TRAIN(f), lambda d: d["images"][3].update(id="7")),
            r"images\[3\] has no id that is a whole number",
        ),
        (lambda f: edit(TRAIN(f), lambda d: d["images"][3].update(id=-7)), r"images\[3\] has no id"),
        (lambda f: edit(TRAIN(f), lambda d: d["images"].insert(0, None)), r"images\[0\] has no id"),
        (
            lambda f: annotation("captions_val2017.json")(f).unlink(),
            "annotations/captions_val2017.json is missing; expected",
        ),
        (
            lambda f: TRAIN(f).rename(f / "captions.json"),
            "not COCO captions; expected .* annotations holds captions_val2017.json",
        ),
        (
            lambda f: (f / "val2017").rename(f / "images"),
            "neither val2017/ nor val2017.zip is there; found: annotations, images",
        ),
        (lambda f: (f / "dataset_coco.json").write_text("{}"), "dataset_coco.json: Karpathy's split is an object"),
        (lambda f: (f / "dataset_coco.json").write_text('{"images": [{}]}'), r"images\[0\] lacks cocoid"),
        (lambda f: (f / "dataset_coco.json").write_text(karpathy({100: "train"})), "no images for the val split"),
        (lambda f: write_more(f, "2014"), "holds COCO of '2017' and '2014'"),
    ],
)
def test_what_is_not_coco_is_one_line_that_says_what_is_there_and_what_is_expected(tmp_path: Path, spoil, says) -> None:
    folder = write_coco(tmp_path / "data")
    spoil(folder)
    with pytest.raises(ValueError, match=says) as error:
        open_source(CONFIG, str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def write_more(folder: Path, year: str) -> None:
    other = write_coco(folder.with_name("other"), year)
    for path in [*other.glob("annotations/*"), *other.glob("*2014")]:
        path.rename(folder / path.relative_to(other))


def test_a_folder_that_is_missing_empty_or_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for data, says in [
        (None, "coco needs --data, a folder with annotations/captions_.* none was given"),
        (f"{tmp_path}/no", "--data .*/no does not exist: check the path; coco needs a folder with annotations"),
        (f"{tmp_path}/empty", "not COCO captions; .*found: nothing"),
        (f"{tmp_path}/file", "--data .*/file is a file: give the folder that holds it"),
        ("ftp://host/coco", "paths are local, s3:// or gs://"),
    ]:
        with pytest.raises(ValueError, match=says) as error:
            open_source(CONFIG, data)
        assert "\n" not in str(error.value)


def test_a_zip_file_that_was_cut_is_one_line(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    for file in (folder / "train2017").iterdir():
        file.unlink()
    (folder / "train2017").rmdir()
    (folder / "train2017.zip").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match="train2017.zip: not a whole zip file .*get the file again"):
        open_source(CONFIG, str(folder))


def test_a_zip_bomb_of_annotations_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sources import coco

    monkeypatch.setattr(coco, "MOST_JSON", 10**6)
    folder = write_coco(tmp_path / "data")
    for file in (folder / "annotations").iterdir():
        file.unlink()
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/captions_train2017.json", bytes(5 * 10**7))
    with pytest.raises(ValueError, match="captions_train2017.json is too large"):
        open_source(CONFIG, str(folder))


def test_flickr8k_in_cocos_schema(shared_data: Path) -> None:
    source = open_source(CONFIG, str(shared_data / "flickr8k"))
    assert source.facts["splits"] == {"train": 6000, "val": 500, "test": 500}
    items = list(source.read(source.plan[-1]))
    assert items and all(isinstance(item, Sample) and len(item.captions) == 5 for item in items)
    content = (shared_data / "flickr8k" / items[0].source).read_bytes()
    assert np.array_equal(items[0].image, read_picture(content, 16, 3).image)
