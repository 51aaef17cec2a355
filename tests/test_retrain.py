"""Retraining for real, tiny: on data that grows, against a registry that is MLflow's, with every way it can end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs import generate, retrain
from pipeline import storage
from pipeline.registry import CHAMPION, PREVIOUS, Registry
from pipeline.shards.manifest import load_manifest
from pipeline.shards.members import read_shard
from tests.sources.test_coco import write_coco

SMALL = (
    "--dataset.source coco --dataset.size 16 --dataset.channels 3 --dataset.samples-per-shard 8 --dataset.captions 2 "
    "--evaluation.images 0 --train.lr 0.01"
).split()


def words(tmp_path: Path, slot: str, *more: str) -> list[str]:
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--slot", slot]
    return ["tiny-aligndraw", *SMALL, *places, *more]


def grow(folder: Path, train: int) -> None:
    """The data as it is downloaded later: the same images, and new ones."""
    shutil.rmtree(folder, ignore_errors=True)
    write_coco(folder, train=train, val=40, captions=2)


def tags(out: Path, run: str) -> dict[str, str]:
    """What the journal of a run sends to MLflow."""
    records = map(json.loads, (out / "runs" / run / "tracking.jsonl").read_text().splitlines())
    return {name: value for record in records for name, value in record.get("tags", {}).items()}


def images_of(dataset: str) -> dict[str, bytes]:
    manifest = load_manifest(dataset)
    decoded = [read_shard(storage.join(dataset, record.name), record) for record in manifest.split("train")]
    return {key: image.tobytes() for one in decoded for key, image in zip(one.keys, one.images, strict=True)}


def test_a_champion_is_found_kept_replaced_and_brought_back(
    tmp_path: Path, ray_cluster: str, mlflow_server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    data, out, registry = tmp_path / "data", tmp_path / "out", Registry(mlflow_server.uri, "tiny-aligndraw")
    assert registry.newest() is None, "the tests of the session share the server, not the name"

    def champions() -> tuple[int | None, int | None]:
        return registry.named(CHAMPION), registry.named(PREVIOUS)

    def result_of(stage: str, run: str) -> dict:
        return json.loads((out / "runs" / run / stage / "result.json").read_text())

    grow(data, 24)
    first = retrain.main(words(tmp_path, "one", "--train.steps", "1"))
    assert (first["decision"], first["why"], first["version"]) == ("promoted", "it is the first version", 1)
    assert champions() == (1, None)

    again = retrain.main(words(tmp_path, "one", "--train.steps", "1"))  # the same slot is done
    assert again == first
    skipped = retrain.main(words(tmp_path, "two", "--train.steps", "1"))
    assert skipped["decision"] == "skipped" and "no new data since version 1" in skipped["why"]
    assert tags(out, "tiny-aligndraw-two")["decision"] == "skipped" and champions() == (1, None)
    assert not (out / "runs" / "tiny-aligndraw-two" / "train").exists()

    # new images; an old one is now damaged but of the same size: who reads it again gets nothing
    before = images_of(result_of("train", "tiny-aligndraw-one")["dataset"])
    grow(data, 35)
    old = data / "train2017" / "000000000100.jpg"
    old.write_bytes(b"\0" * old.stat().st_size)
    better = words(tmp_path, "three", "--train.steps", "30", "--warm-start")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", lambda self, number: (_ for _ in ()).throw(OSError("the line is dead")))
        with pytest.raises(OSError, match="the line is dead"):
            retrain.main(better)
    assert champions() == (1, None)
    trained = (out / "runs" / "tiny-aligndraw-three" / "train" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    later = retrain.main(words(tmp_path, "later", *better[len(words(tmp_path, "three")) :]))  # the next one finishes it
    said = capsys.readouterr().out
    assert "version 2 was registered but never promoted or kept: going on with tiny-aligndraw-three" in said
    assert later["decision"] == "skipped" and later["champion"] == 2
    third = retrain.main(better)
    assert third["decision"] == "promoted" and "against version 1: the bound is better by +" in third["why"]
    assert (third["version"], champions()) == (2, (2, 1))
    assert (out / "runs" / "tiny-aligndraw-three" / "train" / "result.json").stat().st_mtime_ns == trained
    after = images_of(result_of("train", "tiny-aligndraw-three")["dataset"])
    assert len(before) == 24 and len(after) == 35 and before.items() <= after.items()
    written = tags(out, "tiny-aligndraw-three")
    assert written["decision"] == "promoted" and written["why"] == third["why"] and written["warm_start"] == "1"
    about = json.loads((out / "runs" / "tiny-aligndraw-three" / "version" / "version.json").read_text())
    assert about["config"]["train"]["steps"] == 30 and about["step"] == 30 and about["commit"]
    assert about["metrics"]["test/bound"] > result_of("evaluate", "tiny-aligndraw-one")["metrics"]["test/bound"]

    made = {stage: result_of(stage, "tiny-aligndraw-one") for stage in ("shard", "train", "sharpen", "evaluate")}
    monkeypatch.setattr(retrain, "_stages", lambda *given: made)  # saves a training: it comes out as the first one did
    worse = retrain.main(words(tmp_path, "four", "--train.steps", "1", "--always"))
    assert worse["decision"] == "kept" and "against version 2: the bound is not better" in worse["why"]
    assert (worse["version"], champions()) == (3, (2, 1))
    assert registry.client.get_model_version("tiny-aligndraw", "3").tags["decision"] == "kept"

    back = retrain.main(words(tmp_path, "five", "--rollback"))
    assert (back["champion"], champions()) == (1, (1, 2))

    # what was registered draws
    (tmp_path / "captions.txt").write_text("caption 0 of 100 .\nsomething else\n")
    monkeypatch.chdir(tmp_path)
    for model, title in {
        "tiny-aligndraw@champion": "version 1",  # with its name: other tests register models too
        "tiny-aligndraw@previous": "version 2",
        "tiny-aligndraw/3": "version 3",
    }.items():
        drawn = generate.main(["--model", model, "--captions", "captions.txt", "--out", str(out), "--workers", "1"])
        assert drawn["model"] == f"tiny-aligndraw {title}" and drawn["drawings"] == 2
    with pytest.raises(ValueError, match="no such version; it has"):
        generate.main(["--model", "tiny-aligndraw/7", "--captions", "captions.txt", "--out", str(out)])


def test_a_model_that_cannot_be_compared_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = ["--out", str(tmp_path / "out")]
    for given, said in {
        ("tiny-lapgan",): "a lapgan has no bound to compare",
        ("tiny-skipthoughtdraw",): "would train an encoder anew",
        ("tiny-aligndraw",): "set MLFLOW_TRACKING_URI",
        ("tiny-aligndraw", "--slot", "a b"): "--slot 'a b'",
        ("tiny-aligndraw", "--cron", "now"): "five fields",
    }.items():
        with pytest.raises(ValueError, match=said):
            retrain.main([*given, *out])
    assert not (tmp_path / "out").exists()
