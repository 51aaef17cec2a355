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
