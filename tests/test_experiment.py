"""The main job: every stage once, what is done skipped, what is stale made anew, and one MLflow run with the stages in it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import experiment
from jobs.arguments import Arguments, parse
from jobs.workspace import STAGES, Workspace

MADE = {
    "shard": {"dataset": "shards", "digest": "abc"},
    "train": {"dataset": "shards", "checkpoint_step": 8, "validation_bound": -2.0},
    "sharpen": {},
    "evaluate": {"metrics": {"test/bound": -3.0}, "table": "| table |"},
    "figures": {"picture": "captions.png", "page": "index.html"},
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that only say that they ran; their names in order."""
    names: list[str] = []

    def stage(name: str):
        def main(arguments: Arguments) -> dict:
            if (arguments.data or "").endswith(f"/broken-{name}"):
                raise ValueError(f"{name} has no paint")
            names.append(name)
            workspace = Workspace(arguments.out, arguments.config)
            with workspace.opened():
                return workspace.finish(name, MADE[name])

        return SimpleNamespace(main=main)

    fake = SimpleNamespace(import_module=lambda name: stage(name.removeprefix("jobs.")))
    monkeypatch.setattr(experiment, "importlib", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return names


def statuses(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    return [line["status"] for line in lines if "status" in line]


def test_what_is_done_is_skipped_and_what_is_stale_is_made_anew(tmp_path: Path, made: list[str], capsys) -> None:
    words, run = ["tiny-aligndraw", "--out", str(tmp_path)], tmp_path / "runs" / "tiny-aligndraw"
    result = experiment.main(words)
    assert made == list(STAGES)
    assert result["metrics"] == {"test/bound": -3.0} and result["picture"] == "captions.png"
    said = capsys.readouterr().out
    assert "| table |" in said and "Picture  captions.png\nPage     index.html\n" in said
    assert experiment.main(words) == result
    assert made == list(STAGES)
    assert capsys.readouterr().out.count("done before") == 5
    (run / "sharpen" / "result.json").unlink()
    experiment.main(words)
    assert made == [*STAGES, "sharpen", "evaluate", "figures"]
    experiment.main([*words, "--fresh"])
    assert made == [*STAGES, "sharpen", "evaluate", "figures", *STAGES]


def test_training_that_was_done_alone_on_the_same_shards_is_kept(tmp_path: Path, made: list[str]) -> None:
    words, run = ["tiny-aligndraw", "--out", str(tmp_path)], tmp_path / "runs" / "tiny-aligndraw"
    experiment.main(words)
    (run / "shard" / "result.json").unlink()  # as after jobs.train, which needs shards but no such stage of its own
    experiment.main(words)
    assert made == [*STAGES, "shard"]
    (run / "shard" / "result.json").unlink()
    trained = run / "train" / "result.json"
    trained.write_text(json.dumps(json.loads(trained.read_text()) | {"dataset": "another"}))
    experiment.main(words)
    assert made == [*STAGES, "shard", *STAGES]


@pytest.mark.parametrize(
    ("recipe", "stages", "metrics"),
    [
        ("tiny-lapgan", ["shard", "train", "evaluate", "figures"], {"test/bound": -3.0}),
        ("tiny-captioner", ["shard", "train"], {"val/bound": -2.0}),
        ("tiny-skipthought", ["shard", "train"], {"val/bound": -2.0}),
    ],
)
def test_stages_that_a_system_does_not_have_are_left_out_and_said(
    recipe: str, stages: list[str], metrics: dict, tmp_path: Path, made: list[str], capsys
) -> None:
    words = [recipe, "--out", str(tmp_path)]
    result = experiment.main(words)
    assert made == stages and result["metrics"] == metrics
    assert (result["picture"] is None) == ("figures" not in stages)
    said = capsys.readouterr().out
    assert [stage for stage in STAGES if f"== {stage}: left out, a {recipe[5:]} " in said] == [
        stage for stage in STAGES if stage not in stages
    ]
    assert experiment.main(words) == result and made == stages


def test_a_stage_that_fails_ends_the_run_and_the_next_try_goes_on_there(tmp_path: Path, made: list[str]) -> None:
    words, run = ["tiny-aligndraw", "--out", str(tmp_path)], tmp_path / "runs" / "tiny-aligndraw"
    with pytest.raises(ValueError, match="sharpen has no paint"):
        experiment.main([*words, "--data", "broken-sharpen"])
    assert made == ["shard", "train"] and statuses(run) == ["RUNNING", "FAILED"]
    experiment.main(words)
    assert made == list(STAGES) and statuses(run)[2:] == ["RUNNING", "FINISHED"]


def test_another_config_under_the_same_name_is_refused_and_nothing_is_lost(tmp_path: Path, made: list[str]) -> None:
    words = ["tiny-aligndraw", "--out", str(tmp_path)]
    experiment.main(words)
    with pytest.raises(ValueError, match="model.steps: 3 -> 5"):
        experiment.main([*words, "--model.steps", "5"])
    assert made == list(STAGES)
    experiment.main([*words, "--model.steps", "5", "--name", "other"])
    assert made == [*STAGES, *STAGES]


def test_starting_over_does_not_remove_the_checkpoint_it_is_to_start_from(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANVAS_FOLDER", str(tmp_path))
    words = ["tiny-aligndraw", "--out", str(tmp_path)]
    experiment.main(words)
    there = tmp_path / "runs" / "tiny-aligndraw" / "train"
    for path in (str(there), "runs/tiny-aligndraw/train"):
        with pytest.raises(
            ValueError, match="--fresh would remove .*/runs/tiny-aligndraw/train, .* take another --name"
        ):
            experiment.main([*words, "--fresh", "--start-from", path])
    assert (there / "result.json").exists()
    given = []
    monkeypatch.setattr(experiment, "_run", lambda workspace, arguments: given.append(arguments) or MADE)
    experiment.main([*words, "--name", "other", "--fresh", "--start-from", "runs/tiny-aligndraw/train"])
    assert given[0].start_from == str(there)


def test_a_run_that_another_process_works_on_is_neither_entered_nor_emptied(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tiny-aligndraw", "--out", str(tmp_path)]
    experiment.main(words)
    other = Workspace(str(tmp_path), parse("python -m jobs.train", words).config)
    with other.opened():
        monkeypatch.setattr("jobs.workspace._HELD", set())  # as if the holder were another process
        for more in ([], ["--fresh"]):
            with pytest.raises(ValueError, match="is in use by process"):
                experiment.main(words + more)
        monkeypatch.setattr("jobs.workspace._HELD", {other.folder})
    assert other.finished("figures") == MADE["figures"]


def test_every_stage_for_real_is_one_run_with_nested_runs(
    tmp_path: Path, ray_environment: dict, ray_cluster: str, mlflow_server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """And no secret of its surroundings is printed or kept: by us, by MLflow or by Ray."""
    secrets = ["planted-password", "planted-key"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri.replace("//", f"//user:{secrets[0]}@"))
    words = ["tiny-aligndraw", "--out", str(tmp_path), "--name", "for-real"]
    result = experiment.main(words)
    again = experiment.main(words)
    assert again == result
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")

    def ask(path: str, **body: object) -> dict:
        request = urllib.request.Request(f"{mlflow_server.uri}/api/2.0/mlflow/{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    with urllib.request.urlopen(
        f"{mlflow_server.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=caption-canvas", timeout=20
    ) as answer:
        home = json.load(answer)["experiment"]["experiment_id"]
    inside = f"tags.`mlflow.parentRunId` = '{result['mlflow_run_id']}'"
    stages = ask("runs/search", experiment_ids=[home], filter=inside)["runs"]
    assert sorted(run["info"]["run_name"] for run in stages) == sorted(STAGES)
    assert {run["info"]["status"] for run in stages} == {"FINISHED"}
    (train,) = [run for run in stages if run["info"]["run_name"] == "train"]
    metrics = {metric["key"] for metric in train["data"]["metrics"]}
    params = {param["key"]: param["value"] for param in train["data"]["params"]}
    assert params["train.steps"] == "8" and params["model.kind"] == "draw" and params["dataset.size"] == "60"
    assert any("bound" in name for name in metrics)

    said, folders = capsys.readouterr(), (tmp_path, mlflow_server.folder, Path(ray_environment["HOME"], "r"))
    kept = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 100 and result["mlflow"].startswith(mlflow_server.uri)
    for secret in secrets:
        assert secret not in said.out + said.err
        assert not any(secret.encode() in content for content in kept)
