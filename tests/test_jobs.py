"""The jobs as programs: quick help, exit codes, one clear line for a mistake, JSON last."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import submit
from jobs.arguments import Arguments, entry, parse
from jobs.workspace import STAGES

ROOT = Path(__file__).resolve().parent.parent
DOC = "python -m jobs.train"


def run(*words: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "CANVAS_"))
    }
    environment |= {"PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_every_stage_is_a_job_of_its_own() -> None:
    assert set(STAGES) | {"experiment", "sync"} <= set(submit.JOBS)


@pytest.mark.parametrize("job", ["submit", *submit.JOBS])
def test_help_is_quick_and_shows_the_command_to_paste(job: str) -> None:
    seconds = []
    for _ in range(3):  # the first may have to compile
        before = os.times()
        done = run(f"jobs.{job}", "--help")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert done.returncode == 0, done.stderr
    assert f"python -m jobs.{job}" in done.stdout
    assert min(seconds) < 1, "processor seconds: nothing heavy may be imported for it"


@pytest.mark.parametrize("job", [*STAGES, "experiment"])
def test_a_mistake_in_the_command_is_one_line_and_not_zero(job: str, tmp_path: Path) -> None:
    for words, said in {
        ("digit-demo",): "did you mean digits-demo",
        (): "a recipe's name comes first",
        ("digits-demo", "--train.step", "3"): "--train.step",
        ("digits-demo", "--train.steps", "many"): "many",
        ("digits-demo", "--train.steps", "0"): "TrainConfig.steps: 0 is not allowed",
    }.items():
        done = run(f"jobs.{job}", *words, cwd=tmp_path)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_says_what_to_do(capsys: pytest.CaptureFixture) -> None:
    def main() -> dict:
        with open("/dev/full", "w") as file:
            file.write("much")
        return {}

    with pytest.raises(SystemExit) as end:
        entry(main)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device: make room where --out" in said


def test_relative_paths_are_meant_from_where_the_job_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(DOC, ["digits-demo"]).out == str(tmp_path / "out")
    monkeypatch.setenv("CANVAS_FOLDER", "/home/me")
    arguments = parse(DOC, ["digits-demo", "--data", "mnist", "--out", "s3://bucket/out"])
    assert (arguments.data, arguments.out) == ("/home/me/mnist", "s3://bucket/out")


def test_a_relative_path_in_a_folder_that_ray_throws_away_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CANVAS_FOLDER", raising=False)
    with pytest.raises(ValueError, match="give the absolute path instead of out"):
        parse(DOC, ["digits-demo"])
    assert parse(DOC, ["digits-demo", "--out", "/data/out"], Arguments).out == "/data/out"


def test_submitting_to_no_cluster_is_one_line(tmp_path: Path) -> None:
    for address, said in {
        "http://127.0.0.1:9": "no Ray at http://127.0.0.1:9",
        "nonsense": "no Ray at nonsense",
    }.items():
        done = run("jobs.submit", "train", "digits-demo", cwd=tmp_path, RAY_API_SERVER_ADDRESS=address)
        assert done.returncode == 2 and said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_token_is_one_line(tmp_path: Path) -> None:
    class Locked(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(200 if self.headers["Authorization"] == "Bearer right" else 403)

        def log_message(self, *words: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        around = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{server.server_port}", "RAY_AUTH_MODE": "token"}
        with pytest.raises(ValueError, match=r"asks for its token \(HTTP 403\).*: eval .*cluster.local env") as error:
            submit.reachable({**around, "RAY_AUTH_TOKEN": "wrong"})
        assert "\n" not in str(error.value)
        assert submit.reachable({**around, "RAY_AUTH_TOKEN": "right"}) == around["RAY_API_SERVER_ADDRESS"]
        server.shutdown()


@pytest.mark.parametrize(("before", "asked"), [(0, 1), (2, 3)])
def test_a_job_is_submitted_again_while_the_head_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, asked: int
) -> None:
    ray, calls = tmp_path / "ray", tmp_path / "calls"
    ray.write_text(
        f"#!/bin/sh\necho $1 >> {calls}\n[ $(wc -l < {calls}) -gt {before} ] && exit 0\n"
        "echo 'RuntimeError: Request failed with status code 500: No available agent to submit job, please try again later..'\n"
        "exit 1\n"
    )
    ray.chmod(0o755)
    monkeypatch.setattr(submit, "AGAIN_S", 0.01)
    assert submit._submit([str(ray), "job"], dict(os.environ)).returncode == 0
    assert calls.read_text().split() == ["job"] * asked


@pytest.mark.parametrize(
    ("says", "patience"),
    [("ValueError: Job with submission_id x already exists", 60), ("RuntimeError: No available agent", -1)],
)
def test_another_refusal_is_final_and_so_is_a_head_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, patience: float
) -> None:
    monkeypatch.setattr(submit, "AWAY_S", patience)
    (ray := tmp_path / "ray").write_text(f"#!/bin/sh\necho asked >> {tmp_path}/calls\necho '{says}'\nexit 1\n")
    ray.chmod(0o755)
    done = submit._submit([str(ray)], dict(os.environ))
    assert (done.returncode, done.stdout.strip()) == (1, says)
    assert (tmp_path / "calls").read_text() == "asked\n"


def test_a_job_gets_the_variables_it_needs_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "AWS_SECRET_ACCESS_KEY": "planted", "AWS_REGION": "x"}
    monkeypatch.setenv("CANVAS_COMMIT", "abc")
    given = submit.environment(here, "http://127.0.0.1:8265", ["AWS_REGION"])
    assert given["CANVAS_FOLDER"] == os.getcwd() and given["CANVAS_COMMIT"] == "abc" and given["AWS_REGION"] == "x"
    assert "planted" not in json.dumps(given)
    assert "CANVAS_FOLDER" not in submit.environment(here, "http://ray.example:8265", [])
    with pytest.raises(ValueError, match="--env NOT_SET"):
        submit.environment(here, "http://127.0.0.1:8265", ["NOT_SET"])


@pytest.mark.parametrize("told", [True, False])
def test_who_leaves_a_job_is_told_how_to_reach_it_from_that_very_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, told: bool
) -> None:
    started = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for name, value in started.items() if told else ():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submit.local, "environment", lambda: started)
    monkeypatch.setattr(submit, "reachable", lambda surroundings: surroundings["RAY_API_SERVER_ADDRESS"])
    accepted = subprocess.CompletedProcess([], 0, "")
    monkeypatch.setattr(submit.subprocess, "run", lambda command, **options: accepted)
    monkeypatch.setattr(submit, "git_commit", lambda: "unknown")
    assert submit.main(["--no-wait", "--id", "mine", "train", "tiny-aligndraw"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "ray job stop mine" in last and last.endswith('eval "$(python -m cluster.local env)"') != told


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        (["RUNNING", ConnectionError("away"), "SUCCEEDED"], 0, "the log broke off"),
        (["RUNNING", ConnectionError("away"), "FAILED"], 7, "the log broke off"),
        (["RUNNING", RuntimeError("404: Job mine does not exist")], None, "has forgotten mine: submit it again"),
        ([ConnectionError("away")] * 99, None, "is away since 0 s"),
    ],
)
def test_a_job_is_followed_through_the_absence_of_its_server(
    answers: list, code: int | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Every connection breaks after a line; a head that was started anew knows nothing."""
    from ray import job_submission

    class Client:
        def __init__(self, address: str) -> None:
            self.answers, self.lines = iter(answers), ["one\n", "two\n", "three\n"]
            self.shown = 0

        async def tail_job_logs(self, submission: str):
            self.shown += 1
            yield "".join(self.lines[: self.shown])
            raise ConnectionError("broken")

        def get_job_info(self, submission: str) -> SimpleNamespace:
            if isinstance(answer := next(self.answers), Exception):
                raise answer
            status = job_submission.JobStatus(answer)
            return SimpleNamespace(status=status, driver_exit_code=code, message="")

        def get_job_logs(self, submission: str) -> str:
            return "".join(self.lines)

    async def sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(job_submission, "JobSubmissionClient", Client)
    monkeypatch.setattr(submit.asyncio, "sleep", sleep)
    monkeypatch.setattr(submit, "AWAY_S", 0 if code is None else 60)
    if code is None:
        with pytest.raises(ValueError, match=said):
            asyncio.run(submit._follow("http://there", "mine"))
        return
    assert asyncio.run(submit._follow("http://there", "mine")) == code
    found = capsys.readouterr()
    assert found.out == "one\ntwo\nthree\n" and said in found.err


@pytest.mark.parametrize("with_gitignore", [True, False])
def test_no_secret_no_data_and_no_result_is_uploaded(tmp_path: Path, with_gitignore: bool) -> None:
    """The package is made by Ray's own code, from a copy of this folder in which all of that lies about."""
    from ray._private.runtime_env.packaging import create_package

    project = tmp_path / "project"
    code = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("pipeline", "jobs", "cluster"):
        shutil.copytree(ROOT / name, project / name, ignore=code)
    for name in (".rayignore", ".gitignore", "pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, project / name)
    expected = {str(path.relative_to(project)) for path in project.rglob("*.py")}
    for name in (
        ".env .env.prod key.pem cluster/tls.key credentials.json jobs/credentials .local/token .local/mlflow/mlflow.db "
        ".venv/lib/site.py out/runs/demo/config.json data/mnist/train-images.gz mlflow.db pipeline/model.pt train.tar "
        "weights.safetensors manifest.parquet .git/config tests/test_x.py ray.log"
    ).split():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("planted")
    package = tmp_path / "package.zip"
    create_package(str(project), package, include_gitignore=with_gitignore, excludes=[])
    with zipfile.ZipFile(package) as uploaded:
        files = {info.filename for info in uploaded.infolist() if not info.is_dir()}
        assert [name for name in files if uploaded.read(name) == b"planted"] == []
    assert expected <= files
    assert package.stat().st_size < 5 * 2**20


def test_the_demo_is_the_main_job_and_can_be_started_over() -> None:
    for words, fresh in {("demo",): False, ("demo", "FRESH=1"): True}.items():
        planned = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f'jobs.submit experiment digits-demo --out "{ROOT}/out"' in planned
        assert ("--fresh" in planned) == fresh
