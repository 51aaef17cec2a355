"""Drawing a file of captions: the pictures one process would draw, on any number of workers, and no caption too odd."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import generate
from pipeline import checkpoint
from pipeline.generate import draw_captions
from pipeline.models.build import build_model
from pipeline.recipes import find_recipe
from pipeline.registry import read_version, write_version
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.adversarial import sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState

BASE = find_recipe("tiny-aligndraw")
CONFIG = replace(BASE, model=replace(BASE.model, canvas=0.0))  # grey, so that what is drawn shows
WORDS = Vocabulary.build(["the digit three is on the left of the image ."])
CAPTIONS = ["the digit three is on the left .", "a zebra 🦓 on the left", "?", "the " * 1000, "three", "three"]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a version with a sharpener; its weights are random, and large enough that captions matter."""
    folder, model = tmp_path_factory.mktemp("model"), build_model(CONFIG.model, len(WORDS), 16, 3, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    origin = checkpoint.Origin(CONFIG, WORDS, 16, 3)
    drawing = checkpoint.save(str(folder / "a"), TrainState.of(model, make_optimizer(model, CONFIG.train)), origin)
    sharpener = checkpoint.save(str(folder / "b"), sharpener_state(model, 3, 16, CONFIG.sharpen), origin)
    parts = checkpoint.load(drawing), checkpoint.load(sharpener)
    return write_version(str(folder / "version"), *parts, {"dataset": ""}).folder


def run(folder: Path, version: str, *more: str, captions: list[str] = CAPTIONS) -> tuple[dict, list[np.ndarray]]:
    """The job's result, and its pictures (H, W, C)."""
    (folder / "captions.txt").write_text("\ufeff" + "\n\n".join(captions) + "\r\n", encoding="utf-8")
    given = ["--model", version, "--captions", str(folder / "captions.txt"), "--out", str(folder / "out")]
    result = generate.main([*given, "--batch", "2", *more])
    made = Path(result["folder"])
    pictures = [np.array(Image.open(made / f"{row:05}.png")) for row in range(result["drawings"])]
    assert len(list(made.glob("[0-9]*.png"))) == len(pictures)
    return result, pictures


def test_drawings_are_those_of_one_process_and_do_not_depend_on_the_workers(
    tmp_path: Path, version: str, ray_cluster: str, capsys
) -> None:
    result, pictures = run(tmp_path, version, "--workers", "2", "--seed", "5")
    said = capsys.readouterr().out
    assert "2 captions have words that the model never saw" in said and "zebra" in said
    assert "1 captions have more than 256 words" in said
    assert (result["captions"], result["drawings"], result["cut"]) == (6, 6, 1)
    about = json.loads((Path(result["folder"]) / "captions.json").read_text())
    assert [line["caption"] for line in about["captions"]] == [caption.strip() for caption in CAPTIONS]
    assert about["captions"][1]["unknown"] == ["a", "zebra", "🦓"] and about["captions"][3]["words"] == 1000
    assert about["captions"][4]["files"] == ["00004.png"]
    assert Image.open(result["sheet"]).width > 100

    opened = read_version(version)
    model, sharpener = checkpoint.load_model(opened.drawing)[0], checkpoint.load_sharpener(opened.sharpener)
    captions = [" ".join(caption.split()[:256]) for caption in CAPTIONS]
    assert np.std(pictures[0]) > 1, "something is drawn"
    for row, caption in enumerate(captions):  # one by one
        drawn = draw_captions(model, WORDS, [caption], 5, sharpener, rows=[row])
        expected = (drawn.sharpened[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(pictures[row].astype(int) - expected).max() <= 1, row  # a batch sums in another order
    assert not np.array_equal(pictures[4], pictures[5]), "the same caption twice has noise of its own"

    _, alone = run(tmp_path, version, "--workers", "1", "--seed", "5", "--to", str(tmp_path / "again"))
    assert all(np.array_equal(*pair) for pair in zip(pictures, alone, strict=True))
    _, others = run(tmp_path, version, "--workers", "1", "--seed", "6", "--each", "2", "--unsharpened")
    assert len(others) == 12 and not np.array_equal(others[0], others[1])


def test_what_is_drawn_with_may_be_a_run_a_version_or_a_checkpoint(tmp_path: Path, version: str) -> None:
    opened = read_version(version)
    assert generate.find_model(version, "out") == generate.Model(version, opened.drawing, opened.sharpener)
    assert generate.find_model(opened.drawing, "out") == generate.Model(opened.drawing, opened.drawing, None)
    run = tmp_path / "runs" / "demo"
    for stage, result in {"train": {"checkpoint": "c", "dataset": "d"}, "sharpen": {"checkpoint": "s"}}.items():
        (run / stage).mkdir(parents=True)
        (run / stage / "result.json").write_text(json.dumps(result))
    assert generate.find_model(str(run), "out") == generate.Model("demo", "c", "s", "d")


def test_mistakes_are_one_line(tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    good, latin, blank = tmp_path / "good.txt", tmp_path / "latin.txt", tmp_path / "blank.txt"
    good.write_text("a cat")
    latin.write_bytes("né".encode("latin-1"))
    blank.write_text(" \n\n")
    for model, captions, more, said in (
        (version, tmp_path / "none.txt", (), "there is no such file"),
        (version, latin, (), "is not UTF-8 text"),
        (version, blank, (), "has 0 captions"),
        (version, good, ("--each", "0"), "at least 1"),
        (str(tmp_path), good, (), "no folder of a run, a version or a checkpoint"),
        ("champion", good, (), "set MLFLOW_TRACKING_URI"),
        ("demo/3", good, (), "set MLFLOW_TRACKING_URI"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            generate.main(["--model", model, "--captions", str(captions), "--out", str(tmp_path / "out"), *more])
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
