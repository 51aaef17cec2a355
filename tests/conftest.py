"""What several tests share: the real data beside the project, one Ray for the whole run, MLflow servers to start and kill.

Everything here listens on loopback, keeps its files in temporary folders and stops only the processes that it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline import storage
from pipeline.config import DatasetConfig

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # as training processes have it: more threads sum in another order
os.environ["RAY_AUTH_MODE"] = (
    "token"  # Ray reads it once, on import, which a test module may do before any fixture runs
)
settings.register_profile("untimed", deadline=None)  # on a busy machine any example may take a fifth of a second
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist (`--dist loadgroup`) all tests that need Ray go to one process, so that the run has one Ray."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real MNIST and COCO subsets; they are no part of the project, so the tests that use them skip elsewhere."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The finished data set of `tiny-aligndraw`, on disk, made in this process: about a hundred drawn digits."""
    from pipeline.recipes import find_recipe

    return make_dataset(str(tmp_path_factory.mktemp("data")), find_recipe("tiny-aligndraw").dataset)


def make_dataset(out: str, config: DatasetConfig, data: str | None = None) -> str:
    """What jobs.shard makes, in this process: the folder."""
    from pipeline.shards.manifest import VOCABULARY, commit, dataset_folder, describe, merge_samples
    from pipeline.shards.write import write_shard
    from pipeline.sources import open_source
    from pipeline.text.vocabulary import Vocabulary

    source = open_source(config, data)
    folder = dataset_folder(out, config, source.digest)
    describe(folder, config, source.digest, source.facts)
    for plan in source.plan:
        write_shard(folder, plan, source)
    captions = [caption for plan in source.plan for sample in source.read(plan) for caption in sample.captions]
    storage.publish_text(storage.join(folder, VOCABULARY), Vocabulary.build(captions).to_json())
    commit(folder, merge_samples(folder, source.plan).shards)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an object store in memory, on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_environment(address: str) -> dict[str, str]:
    """Address and credentials, in the variables that pyarrow reads."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": address, **keys}


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3:// address of a new bucket, which tests and Ray tasks can read and write."""
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{os.urandom(4).hex()}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT"), timeout=10).close()
    storage.forget()
    yield f"s3://{name}"
    storage.forget()


@pytest.fixture(scope="session")
def ray_environment(s3_server: str) -> Iterator[dict[str, str]]:
    """Environment of a Ray of one's own: no usage reports, own home (Ray keeps a token there), no other cluster's address."""
    # Unix sockets have paths of at most 107 bytes and Ray appends some 80: pytest's own folders are too long.
    home = Path(tempfile.mkdtemp(prefix="cc", dir="/tmp"))
    changes = {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback only
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **s3_environment(s3_server),
    }
    (home / "token").write_text("f" * 64)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_ID", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        for name, value in changes.items():
            patch.setenv(name, value)
        yield changes
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(ray_environment: dict[str, str]) -> Iterator[str]:
    """One Ray with 2 CPUs for all tests of the run; its address. `ray.init()` was called: tests just use Ray."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        _temp_dir=f"{ray_environment['HOME']}/r",
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A real MLflow server on loopback in a process group of its own, to be killed and started again at will."""

    def __init__(self, folder: Path, database: str = "", workers: int = 1) -> None:
        self.folder, self.workers = folder, workers
        self.database = database or f"sqlite:///{folder}/mlflow.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> MlflowServer:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", str(self.workers), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--backend-store-uri", self.database]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.3)
        return self

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def signal(self, number: int) -> None:
        """To every process of the server: SIGSTOP makes it hang, SIGCONT go on, SIGKILL die."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None


@pytest.fixture
def own_mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server for one test, not started yet."""
    server = MlflowServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running server for the tests that only write to it and read from it."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.kill()
