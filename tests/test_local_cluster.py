"""`cluster.local` with real servers: two checkouts side by side, taken ports, dead servers, and jobs submitted to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import local

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("local")]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The servers of a checkout, running; one of the ports they would like is taken."""
    folder = tmp_path_factory.mktemp("checkout") / ".local"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = {name: _free_port() for name in local.PORTS} | {"mlflow": other.getsockname()[1]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "PORTS", ports)
            local.up(folder)
    yield folder
    local.stop(folder)
    assert not any(local.processes(name, folder) for name in local.NAMES)
    shutil.rmtree((folder / "ray").resolve())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def submit(state: Path, *words: str, **changes: str) -> subprocess.CompletedProcess:
    """`python -m jobs.submit` as a user of that checkout would type it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = kept | local.environment(state) | {"PYTHONPATH": str(ROOT)} | changes
    command = [sys.executable, "-m", "jobs.submit", *words]
    return subprocess.run(command, env=environment, cwd=state.parent, capture_output=True, text=True, timeout=120)


def test_a_taken_port_is_named_and_another_one_used(state: Path) -> None:
    ports = json.loads((state / "servers.json").read_text())
    assert local.healthy("ray", state) and local.healthy("mlflow", state)
    assert len(set(ports.values())) == len(local.PORTS)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert not local._is_free(other.getsockname()[1])


def test_servers_listen_on_loopback_only(state: Path) -> None:
    pids = {process.pid for name in local.NAMES for process in local.processes(name, state)}
    listening = [c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in pids]
    assert len(listening) >= 2
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_ray_asks_for_the_token_that_only_this_user_can_read(state: Path) -> None:
    assert (state / "token").stat().st_mode & 0o777 == 0o600
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{local.address('ray', state)}/api/version", timeout=10)
    assert refused.value.code == 401
    assert "set RAY_AUTH_MODE=token" in submit(state, "sync", RAY_AUTH_TOKEN_PATH="", RAY_AUTH_MODE="").stderr


def test_mlflow_answers_no_other_host_name(state: Path) -> None:
    request = urllib.request.Request(
        f"{local.address('mlflow', state)}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    request.add_header("Host", "evil.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 403


def test_starting_again_changes_nothing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: [process.pid for process in local.processes(name, state)][:1] for name in local.NAMES}
    addresses = local.up(state)
    assert capsys.readouterr().out.count("already running") == 2
    assert {name: [process.pid for process in local.processes(name, state)][:1] for name in local.NAMES} == before
    assert addresses == {name: local.address(name, state) for name in local.NAMES}


def test_another_checkout_neither_sees_nor_stops_these_servers(state: Path, tmp_path: Path) -> None:
    other = tmp_path / ".local"
    assert local.environment(other) == {}
    local.stop(other)
    other.mkdir()
    (other / "servers.json").write_text((state / "servers.json").read_text())  # as a copied checkout would have it
    assert not local.status(other)
    local.stop(other)
    assert local.status(state)


def test_a_server_that_died_is_started_again_at_its_address(state: Path) -> None:
    address = local.address("mlflow", state)
    first = local.processes("mlflow", state)
    for process in first:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(first, timeout=10)
    assert not local.status(state)
    local.up(state)
    assert local.healthy("mlflow", state) and local.address("mlflow", state) == address


def test_what_a_killed_server_left_over_is_still_known_as_ours(state: Path) -> None:
    parent, *children = local.processes("mlflow", state)
    parent.send_signal(signal.SIGKILL)
    psutil.wait_procs([parent], timeout=10)
    left = {process.pid for process in local.processes("mlflow", state)}
    assert left == {child.pid for child in children if child.is_running()}
    local.up(state)
    assert local.healthy("mlflow", state)


def test_a_server_that_hangs_is_started_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = local._answers_within
    monkeypatch.setattr(
        local, "_answers_within", lambda name, s, seconds: real(name, s, min(seconds, 2 if seconds < 60 else 120))
    )
    monkeypatch.setattr(local, "STOP_S", 2)
    for process in local.processes("mlflow", state):
        process.send_signal(signal.SIGSTOP)
    local.up(state)
    assert local.healthy("mlflow", state)


def test_a_submitted_job_fails_with_its_own_exit_code_and_one_line(state: Path) -> None:
    done = submit(state, "sync", "--out", "nowhere")
    assert done.returncode == 2
    assert f"error: {state.parent}/nowhere/runs has no runs" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert local.address("mlflow", state) in done.stdout  # the environment is passed on


def test_a_job_that_succeeds_ends_with_zero_and_its_json_line(state: Path, tmp_path: Path) -> None:
    from pipeline.tracking import Tracker

    with Tracker.open(tmp_path / "out" / "runs" / "demo" / "train", "submitted", "demo", "train", None) as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    done = submit(state, "sync", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["records"] == 3 and result["uri"] == local.address("mlflow", state)


def test_a_submission_id_is_taken_once(state: Path) -> None:
    words = ("--no-wait", "--id", "once-only", "sync", "--out", "/nowhere")
    assert submit(state, *words).returncode == 0
    again = submit(state, *words)
    assert again.returncode == 2 and "once-only" in again.stderr


def test_no_secret_is_printed_logged_kept_or_uploaded(state: Path, tmp_path: Path) -> None:
    """Secrets in the environment, in MLflow's address and in files beside the code, and a job that is told one of them."""
    planted = {name: f"planted-{name}" for name in ("environment", "address", "file", "told")}
    copy = tmp_path / "copy"
    for name in ("pipeline", "jobs", "cluster"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for name in (".env", "key.pem", "credentials.json", "jobs/.env.local"):
        (copy / name).write_text(planted["file"])
    changes = {
        "PYTHONPATH": str(copy),
        "AWS_SECRET_ACCESS_KEY": planted["environment"],
        "TOLD": planted["told"],
        "MLFLOW_TRACKING_URI": local.address("mlflow", state).replace("//", f"//user:{planted['address']}@"),
    }
    out = tmp_path / "out"
    done = submit(state, "--env", "TOLD", "shard", "tiny-aligndraw", "--out", str(out), **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "***" in done.stdout and local.address("mlflow", state) in done.stdout
    sent = json.loads((out / "runs" / "tiny-aligndraw" / "shard" / "tracking.sent.json").read_text())
    assert sent["uri"] == local.address("mlflow", state)  # it was reached, by user and password
    failed = submit(state, "--env", "TOLD", "sync", "--out", str(tmp_path / "nowhere"), **changes)
    secrets = [*planted.values(), (state / "token").read_text()]
    said = done.stdout + done.stderr + failed.stdout + failed.stderr
    assert [secret for secret in secrets if secret in said] == []
    # Ray writes what a job is told into this log; `--env` says that whoever may use the cluster can read it
    session = (state / "ray").resolve()
    assert found(secrets, out, state, session) <= {"token", "runtime_env_agent.log"}
    assert found([planted["environment"], planted["file"], secrets[-1]], out, session) == set()
    assert session.stat().st_mode & 0o777 == 0o700


def found(secrets: list[str], *folders: Path) -> set[str]:
    """The names of files that hold one of the secrets. Ray is at work in some of the folders: what goes meanwhile is gone."""
    looked_at, holding = 0, set()
    for path in (Path(place, name) for folder in folders for place, _, names in os.walk(folder) for name in names):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()
                looked_at += 1
                holding |= {path.name} if any(secret.encode() in content for secret in secrets) else set()
    assert looked_at > 50
    return holding


def test_two_starts_at_once_start_one_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, started = tmp_path / ".local", []
    monkeypatch.setattr(local, "_start", lambda name, state: started.append(name))
    monkeypatch.setattr(local, "processes", lambda name, state: [1] if name in started else [])
    monkeypatch.setattr(local, "healthy", lambda name, state: bool(time.sleep(0.05)) or name in started)
    threads = [threading.Thread(target=local.up, args=(folder,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started) == sorted(local.NAMES)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local, "_ray_command", lambda state: ([sys.executable, "-c", "raise SystemExit('no paint')"], {})
    )
    monkeypatch.setattr(local, "_mlflow_command", local._ray_command)
    with pytest.raises(OSError, match=r"ray did not start(.|\n)*no paint"):
        local.up(tmp_path / ".local")
