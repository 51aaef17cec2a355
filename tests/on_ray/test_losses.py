"""A machine without room for Ray: it does not come up, or its memory is full. Whatever it is, it ends, in one line."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import ray

from jobs.arguments import entry
from pipeline.on_ray.connect import connect
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_ray_that_does_not_come_up_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, address: str | None
) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because\nthe GCS is overloaded.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("socket.create_connection", lambda where, timeout: socket.socket())
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as end:
        entry(connect)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Ray {f'at {address} could' if address else 'did'} not")
    assert "timed out during startup" in line and line.endswith("type the command again when it is less so")


def test_where_nobody_listens_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(OSError, match=r"could not be joined \(.*refused\)"):
        connect()


FULL = """
    import sys, time
    from functools import partial
    from pipeline.config import DatasetConfig
    from pipeline.on_ray import build, connect
    from pipeline.on_ray.pool import Block, Pool
    from pipeline.shards.manifest import load_manifest
    from tests.fake_source import FakeSource

    connect.OOM_RETRIES = 1
    connect.connect()
    source = FakeSource(sys.argv[1], {"train": 1, "val": 1, "test": 1})
    for plan in source.plan:
        source.trouble("slow", plan.name).write_text("60")
    config = DatasetConfig(source="digits", size=8, channels=1)

    def pool():
        with Pool(partial(time.sleep, 60), workers=1) as workers:
            workers.run({"sleep": [Block("sleep")]})

    build._check_shards = lambda manifest, shards: time.sleep(60)

    def shards():
        build.build_shards(config, source, sys.argv[2])

    def verify():
        build.verify_dataset(load_manifest(sys.argv[3]))

    for work in (shards, verify, pool):
        try:
            work()
        except OSError as error:
            print("ended:", error, flush=True)
"""


def test_where_the_memory_is_full_tasks_and_workers_are_not_started_for_ever(
    ray_environment: dict[str, str], dataset: str, tmp_path: Path
) -> None:
    """A Ray of its own, for which any memory in use is too much."""
    full = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}
    full |= {"RAY_task_oom_retry_delay_base_ms": "1", "RAY_TMPDIR": f"{ray_environment['HOME']}/full"}
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "source"), str(tmp_path / "set"), dataset]
    said = subprocess.run(command, cwd=ROOT, env=os.environ | full, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stdout + said.stderr
    shards, verified, workers = re.findall("^ended: (.*)", said.stdout, re.MULTILINE)
    why = r"the memory of its machine was full, [\d.]+GB of [\d.]+GB"
    assert re.search(rf"3 of 3 shards failed \(test-00000: {why}; .*\); 0 were written: mend", shards)
    assert re.search(rf"^verifying ended: {why}; end other programs", verified)
    assert re.search(rf"^lost 4 workers: {why}; end other programs or", workers)
