"""MLflow on a real PostgreSQL, as on a shared cluster: what other tests show on SQLite, shown again, and a database that restarts.

The PostgreSQL is the machine's (Debian: apt-get install postgresql), in a folder of its own, without a port: only a socket.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import Tracker
from tests.conftest import MlflowServer
from tests.test_registry import (  # noqa: F401
    test_versions_are_registered_once_promoted_and_rolled_back,
    trained,
)
from tests.test_tracking import (  # noqa: F401
    arrived,
    points,
    quick,
    stage,
    test_a_run_arrives_with_its_parent_parameters_metrics_tags_and_artifacts,
    test_a_stage_killed_in_mid_run_goes_on_in_the_same_run,
    test_parent_and_stages_that_start_at_once_make_each_run_once,
)

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("postgres")]


class Postgres:
    """A server that keeps its data in a temporary folder and is stopped as a power failure would."""

    def __init__(self, programs: Path, user: str) -> None:
        self.programs, self.user = programs, user
        self.folder = Path(tempfile.mkdtemp(prefix="ccpg", dir="/tmp"))  # a socket's path has at most 107 bytes
        if user != pwd.getpwuid(os.getuid()).pw_name:
            shutil.chown(self.folder, user, pwd.getpwnam(user).pw_gid)
        self._run("initdb", "--username=mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        self._run("postgres", "--single", "-j", "postgres", given="CREATE DATABASE mlflow;\n")
        self.uri = f"postgresql://mlflow@/mlflow?host={self.folder}"

    def start(self) -> Postgres:
        options = f"-F -k {self.folder} -c listen_addresses="
        self._run("pg_ctl", "start", "--wait", f"--log={self.folder}/log", f"--options={options}")
        return self

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, program: str, *words: str, given: str = "") -> None:
        """A program of PostgreSQL, which refuses to be run by root."""
        pid = pwd.getpwnam(self.user)
        other = {"user": pid.pw_uid, "group": pid.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        command = [self.programs / program, *words]
        subprocess.run(
            command,
            cwd=self.folder,
            env={"PATH": os.defpath, "PGDATA": f"{self.folder}/data", "LC_ALL": "C"},
            input=given,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
            **other,
        )


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # Debian does not put it on the path
    initdb = shutil.which("initdb") or (found and str(found[-1]))
    if not initdb:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    user = pwd.getpwuid(os.getuid()).pw_name
    if user == "root":
        user = "postgres"
        if not any(entry.pw_name == user for entry in pwd.getpwall()):
            pytest.skip("PostgreSQL refuses to be run by root, and there is no user postgres")
    pytest.importorskip("psycopg", reason="MLflow reaches PostgreSQL by psycopg: pip install -e .[dev]")
    server = Postgres(Path(initdb).resolve().parent, user).start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def mlflow_server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """In place of the session's: with two processes, as the cluster's is."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), postgres.uri, workers=2).start()
    yield server
    server.kill()


@pytest.mark.usefixtures("quick")
def test_a_database_that_is_restarted_under_two_writing_runs_loses_and_repeats_nothing(
    tmp_path: Path, mlflow_server: MlflowServer, postgres: Postgres, capsys
) -> None:
    uri = mlflow_server.uri
    folders = {name: tmp_path / name / "train" for name in ("one", "two")}
    trackers = [Tracker.open(folder, f"restarted-{name}", name, "train", uri) for name, folder in folders.items()]
    for step in range(300):
        if step == 100:
            assert all(map(arrived, trackers))
            postgres.stop()
        if step == 200:
            postgres.start()
        for tracker in trackers:
            tracker.metrics({"loss": step}, step)
        time.sleep(0.01)
    assert all(map(arrived, trackers))
    for name, tracker in zip(folders, trackers):
        tracker.close()
        train = stage(uri, f"restarted-{name}", "train")
        assert points(uri, train, "loss") == [(step, step) for step in range(300)]
        assert train["info"]["status"] == "FINISHED"
    assert capsys.readouterr().err.count("is back") == 2
