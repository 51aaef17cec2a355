"""Two processes never work on one run, also where its folder is in an object store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.workspace import Workspace
from pipeline import storage
from pipeline.recipes import find_recipe

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.recipes import find_recipe
storage.RENEW_S = 0.5
with Workspace(sys.argv[1], find_recipe("tiny-aligndraw")).opened():
    print("opened", flush=True)
    time.sleep(100)
"""


WRITER = """
import sys, time
from pipeline import storage
with storage.publishing(sys.argv[1]) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(100)
"""


def test_what_killed_writers_left_in_a_run_is_removed_when_it_is_opened_again(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path), find_recipe("tiny-aligndraw"))
    names = ("config.json", "train/effort.json", "evaluate/tracking.sent.json")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, f"{workspace.folder}/{name}"], cwd=ROOT, stdout=subprocess.PIPE)
        for name in names
    ]
    try:
        assert [writer.stdout.readline() for writer in writers] == [b"writing\n"] * 3
        with workspace.opened():
            assert len(list(tmp_path.rglob("*.part"))) == 3, "their writers live"
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    with workspace.opened():
        assert list(tmp_path.rglob("*.part")) == []


def test_a_run_in_an_object_store_is_of_one_process_until_that_dies(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name, value in {"RETRY_S": 0.1, "RENEW_S": 0.5, "SILENT_S": 5.0}.items():
        monkeypatch.setattr(storage, name, value)
    workspace = Workspace(bucket, find_recipe("tiny-aligndraw"))
    with subprocess.Popen([sys.executable, "-c", HOLDER, bucket], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"opened\n"
            with (
                pytest.raises(
                    ValueError, match=f"in use by process {holder.pid} on .*: wait for it, stop it, or choose"
                ),
                workspace.opened(),
            ):
                pass
        finally:
            holder.kill()
    with workspace.opened():
        assert "taking over" in capsys.readouterr().out
        with workspace.opened():  # as a stage of an experiment does
            pass
        assert storage.listing(storage.join(workspace.folder, "lock"))
    assert storage.listing(workspace.folder) == ["config.json", "lock"]
