"""The shard job as a user runs it: its result line, its reports, and its complaints."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import shard
from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import find_dataset, load_manifest

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder in COCO's layout: 12 training and 8 validation images, one of them no image."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for subset, count in (("train2017", 12), ("val2017", 8)):
        (folder / subset).mkdir()
        images, annotations = [], []
        for i in range(count):
            name = f"{i:012}.jpg"
            pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / subset / name, quality=95)
            images.append({"id": i, "file_name": name, "width": 60, "height": 40})
            annotations += [{"id": 2 * i + j, "image_id": i, "caption": f"photo {i} {j}"} for j in range(2)]
        (folder / "annotations" / f"captions_{subset}.json").write_text(
            json.dumps({"images": images, "annotations": annotations})
        )
    (folder / "train2017" / "000000000003.jpg").write_bytes(b"not a picture")
    return folder


def words(coco: Path, out: Path, *more: str) -> list[str]:
    return ["coco-aligndraw", "--data", str(coco), "--out", str(out), "--dataset.samples-per-shard", "5", *more]


def test_the_job_says_where_the_data_set_is_and_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = shard.main(["tiny-aligndraw", "--out", str(tmp_path)])
    config = find_recipe("tiny-aligndraw").dataset
    assert result["dataset"] == find_dataset(str(tmp_path), config)
    assert result["samples"] == {"train": 96, "val": 24, "test": 24}
    assert result["digest"] == load_manifest(result["dataset"]).digest
    assert json.loads(json.dumps(result)) == result
    assert "shards 5/5" in capsys.readouterr().out
    again = shard.main(["tiny-aligndraw", "--out", str(tmp_path)])
    assert again == result
    assert "is finished: 5 shards" in capsys.readouterr().out


def test_the_report_counts_inputs_by_reason_and_names_some(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match="without --report first"):
        shard.main(words(coco, tmp_path / "out", "--report"))
    with pytest.raises(ValueError, match="1 of 20 inputs were rejected"):
        shard.main(words(coco, tmp_path / "out", "--dataset.max-rejected", "0.01"))
    capsys.readouterr()
    result = shard.main(words(coco, tmp_path / "out", "--report"))
    assert (result["inputs"], result["accepted"], sum(result["rejected"].values())) == (20, 19, 1)
    printed = capsys.readouterr().out
    assert "train2017/000000000003.jpg" in printed
    assert [line.split()[:3] for line in printed.splitlines() if line.split()[2] == "ok"] == [
        ["test", "4", "ok"],
        ["train", "11", "ok"],
        ["val", "4", "ok"],
    ]


def test_a_mended_image_is_taken_in_by_writing_its_shard_alone(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = shard.main(words(coco, tmp_path / "out"))
    shutil.copy(coco / "train2017" / "000000000004.jpg", coco / "train2017" / "000000000003.jpg")
    second = shard.main(words(coco, tmp_path / "out", "--retry-rejected"))
    assert (first["samples"]["train"], second["samples"]["train"]) == (11, 12)
    assert first["dataset"] != second["dataset"], "another source is another data set"
    new = shard.main(words(coco, tmp_path / "new"))
    assert new["digest"] == second["digest"]
    for name in storage.listing(new["dataset"]):
        if name != "records":
            assert storage.read_bytes(f"{new['dataset']}/{name}") == storage.read_bytes(f"{second['dataset']}/{name}")


def test_verifying_fails_with_the_names_of_damaged_shards_and_the_job_mends_them(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    built = shard.main(words(coco, tmp_path / "out"))
    assert built["data"] == str(coco)
    assert shard.main(words(coco, tmp_path / "out", "--verify"))["damaged"] == 0
    path = Path(built["dataset"], "train-00001.tar")
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 5 shards in .* are damaged \(train-00001.tar\): remove these files"):
        shard.main(words(coco, tmp_path / "out", "--verify"))
    path.unlink()
    assert shard.main(words(coco, tmp_path / "out"))["digest"] == built["digest"]
    assert shard.main(words(coco, tmp_path / "out", "--verify"))["damaged"] == 0


def test_the_preview_shows_samples_of_the_data_set(coco: Path, tmp_path: Path) -> None:
    shard.main(words(coco, tmp_path / "out"))
    result = shard.main(words(coco, tmp_path / "out", "--preview"))
    with Image.open(io.BytesIO(Path(result["picture"]).read_bytes())) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 600 and sheet.height > 400
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100, "noise images are on it"


def test_flags_that_exclude_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--report and --verify: one at a time"):
        shard.main(["tiny-aligndraw", "--out", str(tmp_path), "--report", "--verify"])


def test_the_job_works_on_an_object_store_as_on_disk(coco: Path, tmp_path: Path, bucket: str) -> None:
    """Input and output: the source is read from there too."""
    for path in coco.rglob("*.*"):
        storage.publish_bytes(f"{bucket}/coco/{path.relative_to(coco)}", path.read_bytes())
    there = shard.main(
        ["coco-aligndraw", "--data", f"{bucket}/coco", "--out", f"{bucket}/out", "--dataset.samples-per-shard", "5"]
    )
    here = shard.main(words(coco, tmp_path / "out"))
    assert there["digest"] == here["digest"]
    for name in storage.listing(here["dataset"]):
        if name.endswith((".tar", ".parquet", "vocabulary.json")):
            assert storage.read_bytes(f"{there['dataset']}/{name}") == storage.read_bytes(f"{here['dataset']}/{name}")


def test_real_mnist_becomes_a_data_set(shared_data: Path, tmp_path: Path) -> None:
    small = ["--dataset.train", "300", "--dataset.val", "20", "--dataset.test", "20"]
    result = shard.main(["mnist-aligndraw", "--data", str(shared_data / "mnist"), "--out", str(tmp_path), *small])
    assert result["samples"] == {"train": 300, "val": 20, "test": 20}
    config = DatasetConfig(source="mnist", train=300, val=20, test=20)
    assert find_dataset(str(tmp_path), config) == result["dataset"]
