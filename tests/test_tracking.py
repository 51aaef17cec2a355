"""Tracking against a real MLflow server that is down, hangs, dies and comes back; read back through its plain REST API."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline import storage, tracking
from pipeline.tracking import JOURNAL, Tracker, history, sync
from tests.faulty_store import faulty

DEAD = "http://127.0.0.1:9"  # the discard port: refused at once


def ask(uri: str, path: str, **body: object) -> dict:
    """One request of MLflow's REST API, without MLflow's client."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def runs(uri: str, experiment: str) -> list[dict]:
    found = ask(uri, f"experiments/get-by-name?experiment_name={experiment}")["experiment"]["experiment_id"]
    return ask(uri, "runs/search", experiment_ids=[found]).get("runs", [])


def stage(uri: str, experiment: str, name: str) -> dict:
    (run,) = [run for run in runs(uri, experiment) if run["info"]["run_name"] == name]
    return run


def points(uri: str, run: dict, metric: str) -> list[tuple[int, float]]:
    found = ask(uri, f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={metric}")
    return sorted((int(point.get("step", 0)), point["value"]) for point in found["metrics"])


def pairs(items: list[dict]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in items}


def arrived(tracker: Tracker) -> bool:
    """Whether the server has all records within a minute; `flush` gives up as soon as the server does not take them."""
    deadline = time.monotonic() + 60
    while not tracker.flush():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, so that a server's absence is noticed and its return used in tests' time."""
    monkeypatch.setattr(tracking, "SEND_EVERY_S", 0.2)
    monkeypatch.setattr(tracking, "RETRY_AT_MOST_EVERY_S", 0.5)
    for name, value in {"MAX_RETRIES": "0", "BACKOFF_FACTOR": "0", "TIMEOUT": "10"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


def test_without_a_server_the_journal_keeps_everything(tmp_path: Path) -> None:
    with Tracker.open(tmp_path / "run" / "train", "none", "demo", "train", None) as tracker:
        tracker.params({"train": {"steps": 3, "clip": None}, "name": "demo"})
        tracker.metrics({"loss": 2.5}, step=1)
        assert tracker.run_id is None and tracker.url is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / JOURNAL).read_text().splitlines()]
    assert lines[0]["parent"] == json.loads((tmp_path / "run" / JOURNAL).read_text())["run"]
    assert {"train.steps": "3", "train.clip": "None", "name": "demo"} in [line.get("params") for line in lines]
    assert [(line["step"], line["metrics"]) for line in lines if "metrics" in line] == [(1, {"loss": 2.5})]
    assert [line["status"] for line in lines if "status" in line] == ["RUNNING", "FINISHED"]


def test_points_that_are_computed_again_after_a_restart_are_recorded_once(tmp_path: Path) -> None:
    for start in (0, 3):  # killed after step 5, restarted from the checkpoint of step 3
        tracker = Tracker.open(tmp_path / "run" / "train", "none", "demo", "train", None)
        tracker.params({"seed": start})
        for step in range(start, start + 6):
            tracker.metrics({"loss": 10 * start + step, "rate": 1.0}, step)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / JOURNAL).read_text().splitlines()]
    losses = [(line["step"], line["metrics"]["loss"]) for line in lines if "metrics" in line]
    assert losses == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 36), (7, 37), (8, 38)]
    assert [line["params"] for line in lines if "params" in line] == [{"seed": "0"}]


def test_a_line_that_a_killed_process_left_unfinished_costs_nothing_else(tmp_path: Path) -> None:
    with Tracker.open(tmp_path / "run" / "train", "none", "demo", "train", None) as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    journal = tmp_path / "run" / "train" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"metrics": {"lo')
    with Tracker.open(tmp_path / "run" / "train", "none", "demo", "train", None) as tracker:
        tracker.metrics({"loss": 2.0}, 2)
        kept = [record["metrics"] for record in tracking.recorded(tracker._journal.folder) if "metrics" in record]
    assert kept == [{"loss": 1.0}, {"loss": 2.0}]


def test_the_history_counts_the_seconds_of_work_and_not_those_between_two_processes(tmp_path: Path) -> None:
    hour = 3_600_000  # ms
    records = [
        {"run": "a", "time": hour},
        {"status": "RUNNING", "time": hour + 5_000},
        {"metrics": {"train/bound": -9.0, "train/kl": 1.0}, "step": 2, "time": hour + 15_000},
        {"metrics": {"train/bound": -8.0}, "step": 4, "time": hour + 25_500},  # killed here
        {"status": "RUNNING", "time": 9 * hour},
        {"tags": {"a": "b"}, "time": 9 * hour + 500},
        {"metrics": {"train/bound": -7.0}, "step": 6, "time": 9 * hour + 4_500},
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / JOURNAL).write_text("\n".join([*lines[:4], '{"metrics": {"trai', *lines[4:]]) + "\n")
    found = tracking.history(tmp_path)
    assert found == {"train/bound": [(2, 10.0, -9.0), (4, 20.5, -8.0), (6, 25.0, -7.0)], "train/kl": [(2, 10.0, 1.0)]}
    assert tracking.history(tmp_path / "nowhere") == {}


def test_a_run_arrives_with_its_parent_parameters_metrics_tags_and_artifacts(tmp_path: Path, mlflow_server) -> None:
    uri = mlflow_server.uri
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    (tmp_path / "pictures" / "deep" / "a.txt").write_text("drawn")
    (tmp_path / "meta.json").write_text("{}")
    with Tracker.open(tmp_path / "run", "arrives", "demo", "experiment", uri) as whole:
        with Tracker.open(tmp_path / "run" / "train", "arrives", "demo", "train", uri) as tracker:
            tracker.params({f"field{number}": number for number in range(150)})  # more than a request takes
            tracker.tags({"manifest": "abc"})
            for step in range(1200):
                tracker.metrics({"loss": 1 / (step + 1), "R@1": float("nan")}, step)
            tracker.artifact(tmp_path / "pictures", "figures")
            tracker.artifact(tmp_path / "meta.json")
            assert arrived(tracker)
            assert stage(uri, "arrives", "train")["info"]["status"] == "RUNNING"
            page = tracker.url
        whole.metrics({"bound": -7.5}, 0)
    train, parent = stage(uri, "arrives", "train"), stage(uri, "arrives", "demo")
    assert len(runs(uri, "arrives")) == 2
    assert train["info"]["status"] == parent["info"]["status"] == "FINISHED"
    assert pairs(train["data"]["tags"])["mlflow.parentRunId"] == parent["info"]["run_id"]
    assert pairs(train["data"]["tags"])["manifest"] == "abc"
    assert pairs(train["data"]["tags"])["mlflow.source.git.commit"] == tracking.git_commit()
    assert pairs(train["data"]["params"]) == {f"field{number}": str(number) for number in range(150)}
    assert points(uri, train, "loss") == [(step, 1 / (step + 1)) for step in range(1200)]
    assert len(points(uri, train, "R_1")) == 1200
    assert points(uri, parent, "bound") == [(0, -7.5)]
    listed = ask(uri, f"artifacts/list?run_id={train['info']['run_id']}&path=figures/deep")["files"]
    assert [file["path"] for file in listed] == ["figures/deep/a.txt"]
    assert page.endswith(f"/#/experiments/{train['info']['experiment_id']}/runs/{train['info']['run_id']}")


def test_a_stage_killed_in_mid_run_goes_on_in_the_same_run(tmp_path: Path, mlflow_server) -> None:
    first = (
        "import sys, time; from pipeline.tracking import Tracker\n"
        f"t = Tracker.open({str(tmp_path / 'run' / 'train')!r}, 'killed', 'demo', 'train', {mlflow_server.uri!r})\n"
        "for step in range(5): t.metrics({'loss': step}, step)\n"
        "t.flush(60); t.metrics({'loss': 5}, 5); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", first], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    with Tracker.open(tmp_path / "run" / "train", "killed", "demo", "train", mlflow_server.uri) as tracker:
        for step in range(3, 8):
            tracker.metrics({"loss": step}, step)
    assert len(runs(mlflow_server.uri, "killed")) == 2
    train = stage(mlflow_server.uri, "killed", "train")
    assert points(mlflow_server.uri, train, "loss") == [(step, step) for step in range(8)]
    assert train["info"]["status"] == stage(mlflow_server.uri, "killed", "demo")["info"]["status"] == "FINISHED"


def test_a_stage_that_raises_is_marked_as_failed(tmp_path: Path, mlflow_server) -> None:
    with (
        pytest.raises(RuntimeError, match="out of paint"),
        Tracker.open(tmp_path / "run" / "train", "raises", "demo", "train", mlflow_server.uri),
    ):
        raise RuntimeError("out of paint")
    assert {run["info"]["status"] for run in runs(mlflow_server.uri, "raises")} == {"FAILED"}


def test_parent_and_stages_that_start_at_once_make_each_run_once(tmp_path: Path, mlflow_server) -> None:
    names = ("shard", "train", "sharpen", "evaluate")
    folders = {"experiment": tmp_path / "run", **{name: tmp_path / "run" / name for name in names}}
    trackers = [Tracker.open(folder, "at-once", "demo", name, mlflow_server.uri) for name, folder in folders.items()]
    trackers += [Tracker.open(tmp_path / "run" / "train", "at-once", "demo", "train", mlflow_server.uri)]  # a worker
    for tracker in trackers:
        tracker.metrics({"one": 1}, 0)
        time.sleep(0.005)  # at another millisecond: MLflow takes the same row once anyway
    for tracker in reversed(trackers):
        tracker.close()
    assert sorted(run["info"]["run_name"] for run in runs(mlflow_server.uri, "at-once")) == sorted(("demo", *names))
    assert points(mlflow_server.uri, stage(mlflow_server.uri, "at-once", "train"), "one") == [(0, 1)]


def test_a_record_that_the_server_refuses_does_not_hold_up_the_others(tmp_path: Path, mlflow_server, capsys) -> None:
    uri, folder = mlflow_server.uri, tmp_path / "run" / "train"
    with Tracker.open(folder, "refused", "demo", "train", uri) as tracker:
        tracker.params({"seed": 1})
        assert arrived(tracker)
        tracker._journal._write({"params": {"seed": "2"}})  # MLflow takes no second value
        tracker.metrics({"loss": 3}, 1)
        tracker.artifact(tmp_path / "nowhere.png")
    assert points(uri, stage(uri, "refused", "train"), "loss") == [(1, 3)]
    said = capsys.readouterr().err
    assert "refuses a record" in said and "nowhere.png is gone" in said


def test_a_run_that_a_person_deleted_is_made_again_with_all_its_records(tmp_path: Path, mlflow_server, quick) -> None:
    with Tracker.open(tmp_path / "run" / "train", "deleted", "demo", "train", mlflow_server.uri) as tracker:
        tracker.metrics({"loss": 1}, 1)
        assert arrived(tracker)
        ask(mlflow_server.uri, "runs/delete", run_id=tracker.run_id)
        tracker.metrics({"loss": 2}, 2)
        assert arrived(tracker)
    train = stage(mlflow_server.uri, "deleted", "train")
    assert points(mlflow_server.uri, train, "loss") == [(1, 1), (2, 2)]


def test_without_a_server_a_stage_is_not_delayed_and_a_later_sync_sends_it(
    tmp_path: Path, mlflow_server, quick, capsys
) -> None:
    started = time.monotonic()
    with Tracker.open(tmp_path / "run" / "train", "later", "demo", "train", DEAD) as tracker:
        opened = time.monotonic()
        for step in range(100):
            tracker.metrics({"loss": step}, step)
        assert time.monotonic() - opened < 0.5
    assert time.monotonic() - opened < 3 and time.monotonic() - started < 15  # the import of MLflow
    said = capsys.readouterr().err
    assert "connection refused" in said and "did not take 102 records" in said and "jobs.sync" in said
    assert sync(str(tmp_path / "run"), mlflow_server.uri) == 102
    assert sync(str(tmp_path / "run"), mlflow_server.uri) == 0
    assert len(points(mlflow_server.uri, stage(mlflow_server.uri, "later", "train"), "loss")) == 100


def test_the_next_stage_sends_what_the_one_before_could_not(tmp_path: Path, mlflow_server, quick) -> None:
    with Tracker.open(tmp_path / "run" / "train", "next", "demo", "train", DEAD) as tracker:
        tracker.metrics({"loss": 1}, 1)
    with Tracker.open(tmp_path / "run" / "sharpen", "next", "demo", "sharpen", mlflow_server.uri) as tracker:
        tracker.metrics({"loss": 2}, 1)
    assert len(runs(mlflow_server.uri, "next")) == 3
    assert points(mlflow_server.uri, stage(mlflow_server.uri, "next", "train"), "loss") == [(1, 1)]


def test_another_server_gets_the_whole_history(tmp_path: Path, mlflow_server) -> None:
    folder = tmp_path / "run" / "train"
    with Tracker.open(folder, "moved", "demo", "train", mlflow_server.uri) as tracker:
        tracker.metrics({"loss": 1}, 1)
    with Tracker.open(folder, "moved", "demo", "train", f"sqlite:///{tmp_path}/other.db") as tracker:
        tracker.metrics({"loss": 2}, 2)
        assert arrived(tracker)
    with sqlite3.connect(tmp_path / "other.db") as database:
        assert sorted(database.execute("select step, value from metrics")) == [(1, 1.0), (2, 2.0)]
        assert database.execute("select count(*) from runs").fetchone() == (2,)


def test_a_run_in_an_object_store_is_tracked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    request = urllib.request.Request(f"http://{host}:{port}/tracks", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    folder, uri = "s3://tracks/runs/demo/train", f"sqlite:///{tmp_path}/mlflow.db"
    try:
        for step in (1, 2):
            tracking._spool.cache_clear()  # as a process on another machine would start
            with Tracker.open(folder, "remote", "demo", "train", uri) as tracker:
                tracker.metrics({"loss": 1}, 1)
                tracker.metrics({"loss": step}, step)
                assert arrived(tracker)
    finally:
        server.stop()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert sorted(database.execute("select step, value from metrics")) == [(1, 1.0), (2, 2.0)]
        assert database.execute("select count(*) from runs").fetchone() == (2,)


WORKER = """
import sys, time
from pipeline import tracking
tracking.SEND_EVERY_S = 0.2
folder, uri, first, last, ending = sys.argv[1:]
tracker = tracking.Tracker.open(folder, "stored", "demo", folder.rpartition("/")[2], uri or None)
for step in range(int(first), int(last) + 1):
    tracker.metrics({"loss": step}, step)
print("recorded", flush=True)
time.sleep(100 if ending == "killed" else 0)
tracker.close()
"""


def worker(folder: str, uri: str, first: int, last: int, ending: str) -> subprocess.Popen:
    """A process, as on another machine, that records the steps first ... last of a stage."""
    words = [sys.executable, "-c", WORKER, folder, uri, str(first), str(last), ending]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(tracking.__file__).parent.parent)


def kill_once_stored(process: subprocess.Popen, folder: str, steps: list[int]) -> None:
    try:
        assert process.stdout.readline() == "recorded\n"
        deadline = time.monotonic() + 30
        while [point[0] for point in history(folder).get("loss", ())] != steps:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


def in_database(path: Path, query: str) -> list[tuple]:
    with sqlite3.connect(path) as database:
        return sorted(database.execute(query))


def test_processes_that_share_a_journal_in_an_object_store_overwrite_nothing_of_each_other(
    bucket: str, tmp_path: Path, quick
) -> None:
    run, folder = f"{bucket}/runs/demo", f"{bucket}/runs/demo/train"
    with Tracker.open(folder, "stored", "demo", "train", None) as driver:
        driver.params({"seed": 1})
        kill_once_stored(worker(folder, "", 1, 4, "killed"), folder, [1, 2, 3, 4])
        assert worker(folder, "", 3, 6, "closed").communicate(timeout=60)[0] == "recorded\n"
        driver.tags({"data": "abc"})
    assert [(step, value) for step, _, value in history(folder)["loss"]] == [(n, n) for n in range(1, 7)]
    found = [storage.read_text(f"{folder}/{name}").splitlines() for name in storage.listing(folder)]
    assert len({lines[0] for lines in found}) == 1 and len(found) == 3, "a head for all, a segment for each"
    assert sum("FINISHED" in line for lines in found for line in lines) == 2
    tracking._spool.cache_clear()  # as jobs.sync on another machine would start
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert sync(run, uri) == 4 + 5 + 4, (
        "of driver, killed worker, and the next, which recorded two steps and two statuses"
    )
    assert sync(run, uri) == 0
    database = tmp_path / "mlflow.db"
    assert in_database(database, "select step, value from metrics") == [(n, float(n)) for n in range(1, 7)]
    assert in_database(database, "select name, status from runs") == [("demo", "FINISHED"), ("train", "FINISHED")]


def test_a_killed_worker_leaves_its_points_in_the_object_store_whatever_mlflow_does(
    bucket: str, tmp_path: Path, quick
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        silence = f"http://127.0.0.1:{silent.getsockname()[1]}"
        folders = {f"{bucket}/runs/demo/{name}": uri for name, uri in (("a", ""), ("b", DEAD), ("c", silence))}
        workers = {folder: worker(folder, uri, 1, 3, "killed") for folder, uri in folders.items()}
        for folder, process in workers.items():
            kill_once_stored(process, folder, [1, 2, 3])
    with Tracker.open(f"{bucket}/runs/demo/a", "stored", "demo", "a", f"sqlite:///{tmp_path}/mlflow.db") as tracker:
        for step in range(2, 5):
            tracker.metrics({"loss": 10 * step}, step)
        assert arrived(tracker)
    rows = in_database(
        tmp_path / "mlflow.db", "select name, step, value from metrics join runs on metrics.run_uuid = runs.run_uuid"
    )
    assert rows == [("a", 1, 1.0), ("a", 2, 2.0), ("a", 3, 3.0), ("a", 4, 40.0)] + [
        (name, step, float(step)) for name in "bc" for step in (1, 2, 3)
    ]


def test_an_object_store_that_refuses_a_journal_for_a_while_fails_nothing(
    bucket: str, quick, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 1)
    folder = f"{bucket}/runs/demo/train"
    with faulty() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.address)
        storage.forget()
        with Tracker.open(folder, "stored", "demo", "train", None) as tracker:
            store.failing, began = 1.0, store.failed
            tracker.metrics({"loss": 1}, 1)
            deadline = time.monotonic() + 30
            while store.failed < began + 3:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            store.failing = 0.0
            (name,) = storage.listing(folder)
            while '"loss": 1.0' not in storage.read_text(f"{folder}/{name}"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            store.failing = 1.0  # and at the end
        assert capsys.readouterr().err.count("does not take its journal") == 2


def test_a_server_that_hangs_delays_neither_metrics_nor_the_end(
    tmp_path: Path, mlflow_server, quick, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 2.0)
    tracker = Tracker.open(tmp_path / "run" / "train", "hangs", "demo", "train", mlflow_server.uri)
    tracker.metrics({"loss": 0}, 0)
    assert arrived(tracker)
    mlflow_server.signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        for step in range(1, 500):
            tracker.metrics({"loss": step}, step)
        assert time.monotonic() - started < 1
        tracker.close()
        assert time.monotonic() - started < 4
    finally:
        mlflow_server.signal(signal.SIGCONT)
    assert "did not take" in capsys.readouterr().err
    tracker._thread.join(30)
    sync(str(tmp_path / "run"), mlflow_server.uri)
    train = stage(mlflow_server.uri, "hangs", "train")
    assert points(mlflow_server.uri, train, "loss") == [(step, step) for step in range(500)]


@pytest.mark.cluster
def test_a_server_killed_and_restarted_under_four_writing_runs_loses_and_repeats_nothing(
    tmp_path: Path, own_mlflow_server, quick, capsys
) -> None:
    server = own_mlflow_server.start()
    trackers = [Tracker.open(tmp_path / f"run{n}" / "train", "four", f"run{n}", "train", server.uri) for n in range(4)]
    done = threading.Event()

    def write(tracker: Tracker) -> None:
        step = 0
        while not done.is_set():
            tracker.metrics({"loss": step}, step)
            step += 1
            time.sleep(0.02)
        tracker.close()

    threads = [threading.Thread(target=write, args=(tracker,)) for tracker in trackers]
    for thread in threads:
        thread.start()
    time.sleep(3)
    server.kill()
    time.sleep(2)
    server.start()
    time.sleep(3)
    done.set()
    for thread in threads:
        thread.join()
    assert len(runs(server.uri, "four")) == 8
    trains = [run for run in runs(server.uri, "four") if run["info"]["run_name"] == "train"]
    recorded = sorted(
        [record["step"] for record in tracking.recorded(tracker._journal.folder) if "metrics" in record][-1]
        for tracker in trackers
    )
    sent = []
    for run in trains:
        steps = [step for step, _ in points(server.uri, run, "loss")]
        assert steps == list(range(len(steps)))
        sent.append(steps[-1])
    assert sorted(sent) == recorded
    assert "is back" in capsys.readouterr().err


def test_the_commit_is_what_the_submitter_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVAS_COMMIT", "abc123")
    assert tracking.git_commit() == "abc123"
    monkeypatch.delenv("CANVAS_COMMIT")
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, cwd=Path(tracking.__file__).parent, capture_output=True, text=True)
    assert tracking.git_commit() == (done.stdout.strip() if done.returncode == 0 else "unknown")
    assert os.environ.get("CANVAS_COMMIT") is None
