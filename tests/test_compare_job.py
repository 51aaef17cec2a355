"""Several systems from one command: what cannot be compared is refused at once, what is done is kept, the tables repeat."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from jobs import compare, compare_page, sync
from jobs.arguments import parse
from jobs.workspace import Workspace
from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.evaluation.values import from_bytes
from pipeline.models.build import build_model
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import VOCABULARY, load_manifest
from pipeline.text.vocabulary import Vocabulary
from pipeline.tracking import PARENT, Tracker
from pipeline.training.adversarial import lapgan_state, sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState

RECIPES = ["tiny-aligndraw", "tiny-lapgan", "tiny-captioner"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["tiny-aligndraw", "coco-fc-vae"], "their dataset differs .*size: 60 -> 32.*--dataset.FIELD VALUE"),
        (["tiny-aligndraw", "digits-demo"], "digits-demo and tiny-aligndraw cannot be compared, their dataset differs"),
        (["tiny-captioner", "tiny-skipthought"], "none of tiny-captioner, tiny-skipthought draws"),
        (["tiny-draw", "tiny-draw"], "tiny-draw is named twice"),
        (["tiny-draw", "tiny-drow"], "no recipe 'tiny-drow'; did you mean tiny-draw"),
        (["tiny-draw", "--model.maps", "3"], "^tiny-draw: Unrecognized .*--model.maps"),
        (["tiny-draw", "--name", "a/b"], "letters, digits, - and _"),
        (["tiny-draw", "--captioner", "nobody"], "--captioner nobody: there is no such run"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(
    words: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        compare.main(["--out", str(tmp_path), "--recipes", *words])
    assert not list(tmp_path.iterdir())


def test_evaluations_must_measure_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less = find_recipe("tiny-lapgan")
    monkeypatch.setitem(compare.parse.__globals__["RECIPES"], "tiny-less", lambda: less)
    object.__setattr__(less, "evaluation", find_recipe("digits-demo").evaluation)
    words = ["--out", str(tmp_path), "--recipes", "tiny-aligndraw", "tiny-less"]
    with pytest.raises(ValueError, match="their evaluation differs .*queries: 4 -> 200"):
        compare._parse(words)
    alike = [
        f
        for key in ("images", "queries", "shortlist", "ssi-captions", "ssi-samples", "judged")
        for f in (f"--evaluation.{key}", "5")
    ]
    alike += ["--evaluation.judge-steps", "9", "--evaluation.any-captions", "1", "--evaluation.batch", "4"]
    assert len(compare._parse([*words, *alike]).systems) == 2


def test_a_captioner_that_was_trained_elsewhere_is_not_taken(tmp_path: Path) -> None:
    def captioner(name: str, **changes: str) -> None:
        fields = [word for pair in changes.items() for word in (f"--dataset.{pair[0]}", pair[1])]
        config = parse("python -m jobs.train", ["tiny-captioner", "--name", name, *fields]).config
        with Workspace(str(tmp_path), config).opened() as workspace:
            workspace.finish("train", {"checkpoint": "c", "dataset": "d"})

    captioner("same")
    captioner("other", seed="1")
    words = ["--out", str(tmp_path), "--recipes", "tiny-aligndraw", "--captioner"]
    assert compare._parse([*words, "same"]).teller.config.name == "same"
    with pytest.raises(ValueError, match="trained on another data set"):
        compare._parse([*words, "other"])


def test_a_name_stands_for_one_comparison(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--recipes", "tiny-aligndraw", "tiny-lapgan"]
    compare._match(compare._parse([*words, "tiny-draw"]))  # nothing came of it
    compare._match(compare._parse(words))
    (tmp_path / "compare" / "systems" / "tables.md").touch()
    compare._match(compare._parse(words))
    for other in ([*words, "tiny-draw"], [*words[:3], "tiny-lapgan", "tiny-aligndraw"], [*words, "--train.steps", "9"]):
        with pytest.raises(ValueError, match="comparison systems exists in .* choose another --name"):
            compare._match(compare._parse(other))
        compare._match(compare._parse([*other, "--name", f"n{len(other)}{other[3]}"]))


def test_three_recipes_become_tables_and_a_page_after_an_interruption_too(
    tmp_path: Path, dataset: str, ray_cluster: str, mlflow_server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    words = ["--out", str(tmp_path), "--recipes", *RECIPES, "--name", "three", "--train.steps", "4"]
    for recipe in RECIPES:
        pretend_trained(Workspace(str(tmp_path), parse("python -m jobs.train", [recipe, *words[-2:]]).config), dataset)
    folder, build, given, broken = tmp_path / "compare" / "three", compare_page.build_page, [], [True]

    def built(place: str, *others: object) -> str:
        """The page; of the comparison it is noted, and breaks as long as `broken` says so."""
        if place == str(folder / "report"):
            if broken:
                raise ZeroDivisionError(broken.pop())
            given.append((place, *others))
        return build(place, *others)

    monkeypatch.setattr(compare_page, "build_page", built)
    with pytest.raises(ZeroDivisionError):
        compare.main(words)
    first, told = (folder / "tables.md").read_bytes(), sorted((tmp_path / "told").iterdir())
    when = [path.stat().st_mtime_ns for path in told]
    assert len(told) == 3, "real images and two systems"

    capsys.readouterr()
    result = compare.main(words)
    said = capsys.readouterr().out
    assert said.count("done before") == 5 + 4 + 2 and said.count("left out") == 4
    assert [path.stat().st_mtime_ns for path in told] == when
    assert (folder / "tables.md").read_bytes() == first
    ((place, _, runs, tables, teller),) = given
    assert place == str(folder / "report") and Path(result["page"]).parent == folder / "report"
    assert [run.config.name for run in runs] == RECIPES[:2] and teller.config.name == "tiny-captioner"
    assert [table[0] for table in tables] == [
        "Lower bound",
        "Retrieval and similarity",
        "Retrieval by other scores",
        "Differences to alignDRAW",
        "Faithfulness to the caption",
        "Text to image to text",
    ]
    assert compare.main(words) == result and len(given) == 1
    (folder / "result.json").unlink()
    compare.main(words)
    assert (folder / "tables.md").read_bytes() == first and len(given) == 2

    figures = json.loads((folder / "figures.json").read_text())
    align, lapgan = (from_bytes((tmp_path / f"runs/{name}/evaluate/values.npz").read_bytes()) for name in RECIPES[:2])
    gap = figures["gaps"]["LAPGAN"]["ssi/mean"]
    assert gap["mean"] == pytest.approx(float(np.mean(lapgan["ssi"]) - np.mean(align["ssi"])))
    assert "| LAPGAN | - | - | - | - | - | - | 4 | 32 | 2 | 4 | 0.03 M |" in first.decode()
    assert set(figures["told"]) == {"real images", "alignDRAW", "alignDRAW, sharpened", "LAPGAN"}
    run = in_mlflow(mlflow_server.uri, result["mlflow_run_id"])
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert run["info"]["run_name"] == "compare three" and tags["run.tiny-lapgan"] == result["runs"]["tiny-lapgan"]
    logged = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert logged["tiny-lapgan/minus_first/ssi/mean"] == pytest.approx(gap["mean"])
    assert logged["tiny-aligndraw/test/bound"] == pytest.approx(float(align["test/bound"].mean()))


def test_what_the_server_missed_of_a_comparison_is_sent_later(
    tmp_path: Path, mlflow_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs/one", "compare/two"):
        with Tracker.open(str(tmp_path / folder), "later", folder, PARENT, None) as tracker:
            tracker.metrics({"test/bound": -3.0}, 0)
    (tmp_path / "compare" / "two.lock").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    first, second = (sync.main(["--out", str(tmp_path)]) for _ in range(2))
    assert first["records"] == 6 and second["records"] == 0
    sent = json.loads((tmp_path / "compare" / "two" / "tracking.sent.json").read_text())
    (metric,) = in_mlflow(mlflow_server.uri, sent["run_id"])["data"]["metrics"]
    assert metric["value"] == -3.0


def pretend_trained(workspace: Workspace, dataset: str) -> None:
    """The stages before evaluation as if they had run; the weights are random. The main job's own test runs them."""
    config, manifest = workspace.config, load_manifest(dataset)
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    model = build_model(config.model, len(vocabulary), manifest.size, manifest.channels)
    origin = Origin(config, vocabulary, manifest.size, manifest.channels)
    if config.model.kind == "lapgan":
        state = lapgan_state(model, config.train)
    else:
        state = TrainState.of(model, make_optimizer(model, config.train))
    drawing = checkpoint.save(f"{workspace.stage('train')}/checkpoints", state, origin)
    made = {"checkpoint": drawing, "checkpoint_step": 4, "step": 4, "validation_bound": None, "dataset": dataset}
    with workspace.opened():
        workspace.finish("shard", {"digest": manifest.digest})
        workspace.finish("train", {**made, "seconds": 2.5, "cpu_seconds": 4.5, "parameters": 30_000})
        if not workspace.left_out():
            sharpener = sharpener_state(model, manifest.channels, manifest.size, config.sharpen)
            saved = checkpoint.save(f"{workspace.stage('sharpen')}/checkpoints", sharpener, origin)
            workspace.finish("sharpen", {"checkpoint": saved})


def in_mlflow(uri: str, run_id: str) -> dict:
    with urllib.request.urlopen(f"{uri}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=20) as answer:
        return json.load(answer)["run"]
