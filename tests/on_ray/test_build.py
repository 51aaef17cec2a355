"""A data set built by Ray tasks: whatever breaks on the way, a second run ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config import DatasetConfig
from pipeline.on_ray import build
from pipeline.on_ray.build import build_dataset, build_shards, retry_rejected, verify_dataset
from pipeline.sample import Sample
from pipeline.shards.manifest import dataset_folder, load_manifest
from pipeline.shards.members import read_shard
from pipeline.shards.write import record_path
from pipeline.text.vocabulary import Vocabulary
from tests.fake_source import FakeSource

ROOT = Path(__file__).parents[2]
CONFIG = DatasetConfig(source="digits", size=8, channels=1, max_rejected=0.2)

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(tmp_path / "source", {"train": 4, "val": 1, "test": 1})


@pytest.fixture
def undisturbed(source: FakeSource, tmp_path: Path) -> dict[str, bytes]:
    """The files of a data set that was built without trouble."""
    folder = tmp_path / "undisturbed"
    build_shards(CONFIG, source, str(folder), quiet)
    source.forget_calls()
    return files(folder)


def quiet(line: str) -> None:
    pass


def files(folder: str | Path) -> dict[str, bytes]:
    """Everything in a data set's folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def stored(folder: str) -> dict[str, bytes]:
    """The same of a folder in an object store."""
    names = [*storage.sizes(folder), *(f"records/{name}" for name in storage.sizes(f"{folder}/records"))]
    return {name: storage.read_bytes(f"{folder}/{name}") for name in names}


def test_a_data_set_holds_what_the_source_gave(source: FakeSource, tmp_path: Path) -> None:
    source.trouble("rejected", "train-000002").write_text("not an image")
    lines = []
    manifest = build_shards(CONFIG, source, str(tmp_path / "set"), lines.append)
    assert manifest == load_manifest(manifest.folder)
    items = [item for plan in source.plan for item in source.samples(plan)]
    stored = {
        key: image
        for shard in manifest.shards
        for decoded in [read_shard(f"{manifest.folder}/{shard.name}", shard)]
        for key, image in zip(decoded.keys, decoded.images, strict=True)
    }
    assert stored.keys() == {item.key for item in items if isinstance(item, Sample)}
    assert all((stored[item.key] == item.image).all() for item in items if isinstance(item, Sample))
    table = pq.read_table(f"{manifest.folder}/samples.parquet", columns=["key", "status"]).to_pylist()
    assert sorted(row["key"] for row in table) == sorted(item.key for item in items)
    assert [row["key"] for row in table if row["status"] != "ok"] == ["train-000002"]
    words = Vocabulary.from_json((tmp_path / "set" / "vocabulary.json").read_text())
    training = [c for item in items if isinstance(item, Sample) and item.split == "train" for c in item.captions]
    assert words == Vocabulary.build(training)
    assert lines[-1].endswith("1 rejected (not an image 1)")
    assert "shards 6/6" in lines[-2] and "done in" in lines[-2]


def test_a_second_run_has_nothing_to_do(source: FakeSource, tmp_path: Path, undisturbed: dict) -> None:
    lines = []
    build_shards(CONFIG, source, str(tmp_path / "undisturbed"), lines.append)
    assert source.calls() == []
    assert len(lines) == 1 and "is finished: 6 shards" in lines[0]
    assert files(tmp_path / "undisturbed") == undisturbed


def test_only_missing_and_damaged_shards_are_written_again(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    folder = tmp_path / "undisturbed"
    (folder / "manifest.parquet").unlink()
    (folder / "train-00001.tar").write_bytes(b"cut short")
    Path(record_path(str(folder), "train-00002")).write_text("{")
    Path(record_path(str(folder), "val-00000")).unlink()
    build_shards(CONFIG, source, str(folder), quiet)
    assert {key.split("-")[0] + str(int(key.split("-")[1]) // 7) for key in source.calls()} == {
        "train1",
        "train2",
        "val0",
    }
    assert files(folder) == undisturbed


def test_a_tar_that_went_missing_after_the_manifest_is_written_again(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    (tmp_path / "undisturbed" / "train-00003.tar").unlink()
    lines = []
    build_shards(CONFIG, source, str(tmp_path / "undisturbed"), lines.append)
    assert "1 shards are gone or cut short (train-00003.tar)" in lines[0]
    assert files(tmp_path / "undisturbed") == undisturbed


def test_a_damaged_manifest_is_made_again_from_whole_shards(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    (tmp_path / "undisturbed" / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    build_shards(CONFIG, source, str(tmp_path / "undisturbed"), quiet)
    assert source.calls() == []
    assert files(tmp_path / "undisturbed") == undisturbed


def test_a_task_killed_half_way_is_repeated(source: FakeSource, tmp_path: Path, undisturbed: dict) -> None:
    source.trouble("killed", "train-000009").touch()
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert source.calls().count("train-000009") == 2
    assert files(tmp_path / "set") == undisturbed


def test_a_failing_shard_is_named_after_its_retries_and_the_others_are_written(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    source.trouble("broken", "train-00002").touch()
    with pytest.raises(OSError, match=r"1 of 6 shards failed \(train-00002: .*the disk makes noises\); 5 were written"):
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert not (tmp_path / "set" / "manifest.parquet").exists()
    assert source.starts().count("train-00002") == 1 + build.RETRIES
    source.trouble("broken", "train-00002").unlink()
    source.forget_calls()
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert {int(key.split("-")[1]) // 7 for key in source.calls()} == {2}
    assert files(tmp_path / "set") == undisturbed


def test_a_programming_error_is_not_retried_and_keeps_its_kind(source: FakeSource, tmp_path: Path) -> None:
    source.trouble("wrong", "train-00000").touch()
    with pytest.raises(TypeError, match="a mistake in the program"):
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert source.starts().count("train-00000") == 1
    assert not (tmp_path / "set" / "manifest.parquet").exists()


def test_when_shard_after_shard_fails_no_more_are_started(tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "source", {"train": 40, "val": 1, "test": 1})
    for plan in source.plan:
        source.trouble("full", plan.name).touch()
    with pytest.raises(OSError, match=r"\d+ of 42 shards failed .* 0 were written"):
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert build.GIVE_UP <= len(source.starts()) <= build.GIVE_UP + 4


def test_a_full_disk_is_one_line_and_the_next_run_completes(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    source.trouble("full", "train-00001").touch()
    with pytest.raises(OSError, match=r"1 of 6 shards failed \(train-00001: no space left for .*/set\)") as error:
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert "\n" not in str(error.value)
    source.trouble("full", "train-00001").unlink()
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert files(tmp_path / "set") == undisturbed


def test_a_real_full_file_system_leaves_no_shard_that_looks_whole(tmp_path: Path) -> None:
    """A file system of 64 KB: only where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than this process has")
    try:
        source = FakeSource(tmp_path / "source", {"train": 4, "val": 1, "test": 1})
        with pytest.raises(OSError, match="no space left"):
            build_shards(CONFIG, source, str(small / "set"), quiet)
        whole = files(small / "set")
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        build_shards(CONFIG, source, str(small / "set"), quiet)
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
        assert files(small / "set") == files(tmp_path / "set")
        assert all(
            files(tmp_path / "set").get(name) == content for name, content in whole.items() if ".part" not in name
        )
    finally:
        subprocess.run(["umount", small], check=True)


def test_too_many_rejected_inputs_fail_the_job_with_the_reasons(source: FakeSource, tmp_path: Path) -> None:
    for i in range(10):
        source.trouble("rejected", f"train-{i:06}").write_text("not an image" if i % 3 else "cut short")
    with pytest.raises(
        ValueError, match=r"9 of 39 inputs were rejected \(not an image 6, cut short 3\), more than"
    ) as error:
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert "--retry-rejected" in str(error.value)
    assert not (tmp_path / "set" / "manifest.parquet").exists()
    source.forget_calls()
    build_shards(replace(CONFIG, max_rejected=0.5), source, str(tmp_path / "set"), quiet)
    assert source.calls() == [], "allowing more needs no shard to be written again"


def test_a_split_without_any_usable_sample_fails_the_job(source: FakeSource, tmp_path: Path) -> None:
    for i in range(6):
        source.trouble("rejected", f"val-{i:06}").write_text("not an image")
    with pytest.raises(ValueError, match="no usable sample in the split val"):
        build_shards(CONFIG, source, str(tmp_path / "set"), quiet)


def test_the_order_and_number_of_tasks_do_not_show(
    source: FakeSource, tmp_path: Path, undisturbed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.trouble("slow", "train-00000").write_text("0.5")
    source.plan = source.plan[::-1]
    monkeypatch.setattr(build, "_in_flight", lambda: 1)
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert files(tmp_path / "set") == undisturbed


def test_progress_is_a_plain_line_every_few_seconds(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PROGRESS_S", 0.2)
    for plan in source.plan:
        source.trouble("slow", plan.name).write_text("0.3")
    lines = []
    build_shards(CONFIG, source, str(tmp_path / "set"), lines.append)
    progress = [line for line in lines if line.startswith("shards ")]
    assert len(progress) >= 3
    assert any("s left" in line for line in progress)
    assert all("samples/s" in line and "rejected" in line and "\n" not in line for line in progress)


def test_files_of_a_killed_run_are_swept(source: FakeSource, tmp_path: Path, undisturbed: dict) -> None:
    (tmp_path / "set" / "records").mkdir(parents=True)
    host = os.uname().nodename.replace(".", "-")
    for name in (f"train-00000.tar.{host}.999999999.abcd.part", f"records/x.json.{host}.999999999.abcd.part"):
        (tmp_path / "set" / name).write_bytes(b"half")
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert files(tmp_path / "set") == undisturbed


def test_verifying_names_each_damaged_shard(source: FakeSource, tmp_path: Path, undisturbed: dict) -> None:
    folder = tmp_path / "undisturbed"
    manifest = load_manifest(str(folder))
    assert verify_dataset(manifest, quiet) == {}
    content = bytearray((folder / "train-00001.tar").read_bytes())
    content[700] ^= 1  # the same size: only the digest tells
    (folder / "train-00001.tar").write_bytes(content)
    (folder / "val-00000.tar").unlink()
    damaged = verify_dataset(manifest, quiet)
    assert sorted(damaged) == ["train-00001.tar", "val-00000.tar"]
    assert "sha256" in damaged["train-00001.tar"]


def test_tasks_write_and_read_an_object_store(
    source: FakeSource, bucket: str, tmp_path: Path, undisturbed: dict
) -> None:
    folder = f"{bucket}/out/set"
    source.trouble("killed", "train-000009").touch()
    manifest = build_shards(CONFIG, source, folder, quiet)
    assert stored(folder) == undisturbed
    assert verify_dataset(manifest, quiet) == {}
    storage.delete(f"{folder}/train-00002.tar")
    source.forget_calls()
    build_shards(CONFIG, source, folder, quiet)
    assert {int(key.split("-")[1]) // 7 for key in source.calls()} == {2}
    assert load_manifest(folder) == manifest


DRIVER = """
    import os, sys, ray
    from pipeline.config import DatasetConfig
    from pipeline.on_ray.build import build_shards
    from tests.fake_source import FakeSource
    ray.init(address=sys.argv[3], log_to_driver=False)
    source = FakeSource(sys.argv[1], {"train": 4, "val": 1, "test": 1})
    config = DatasetConfig(source="digits", size=8, channels=1, max_rejected=0.2)
    build_shards(config, source, sys.argv[2], lambda line: print(line, flush=True))
"""


def start_driver(source: FakeSource, folder: Path | str, address: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), source.folder, str(folder), address]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_driver_killed_half_way_leaves_a_folder_that_the_next_run_completes(
    source: FakeSource, tmp_path: Path, undisturbed: dict, ray_cluster: str
) -> None:
    for plan in source.plan[2:]:
        source.trouble("slow", plan.name).write_text("3")
    driver = start_driver(source, tmp_path / "set", ray_cluster)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "set").glob("*.tar")) and time.monotonic() < deadline:
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "set" / "manifest.parquet").exists()
    for trouble in Path(source.folder).glob("slow.*"):
        trouble.unlink()
    written = {path.name.split(".")[0] for path in (tmp_path / "set").glob("*.tar")}
    source.forget_calls()
    build_shards(CONFIG, source, str(tmp_path / "set"), quiet)
    assert written
    assert files(tmp_path / "set") == undisturbed


def run_twice_at_once(source: FakeSource, folder: str, address: str) -> list[str]:
    for plan in source.plan[:2]:
        source.trouble("slow", plan.name).write_text("1")
    drivers = [start_driver(source, folder, address) for _ in range(2)]
    outputs = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    return outputs


def test_of_two_runs_at_once_on_one_folder_the_second_waits_and_finds_it_done(
    source: FakeSource, tmp_path: Path, undisturbed: dict, ray_cluster: str
) -> None:
    outputs = run_twice_at_once(source, str(tmp_path / "set"), ray_cluster)
    assert files(tmp_path / "set") == undisturbed
    assert any("waiting for process" in output and "is finished" in output for output in outputs)
    assert len(source.calls()) == 39, "nothing was written twice"


def test_two_runs_at_once_on_an_object_store_end_with_the_same_bytes(
    source: FakeSource, bucket: str, undisturbed: dict, ray_cluster: str
) -> None:
    run_twice_at_once(source, f"{bucket}/set", ray_cluster)
    assert stored(f"{bucket}/set") == undisturbed


@pytest.mark.parametrize("digest", ["same", "mended"])
def test_retrying_takes_over_what_was_accepted_and_equals_a_new_build(
    source: FakeSource, tmp_path: Path, digest: str
) -> None:
    """With the same digest (a disk that had a bad day) in place; with another (files were mended) in a new folder."""
    out = str(tmp_path / "out")
    for key in ("train-000002", "train-000010", "val-000003"):
        source.trouble("rejected", key).write_text("not an image")
    source.digest = "same"
    first = build_dataset(CONFIG, source, out, quiet)
    before = files(first.folder)
    source.digest = digest
    source.trouble("rejected", "train-000002").unlink()
    source.trouble("rejected", "val-000003").unlink()
    source.forget_calls()
    retried = retry_rejected(CONFIG, source, out, quiet)
    assert sorted(source.calls()) == ["train-000002", "train-000010", "val-000003"]
    assert retried.folder == dataset_folder(out, CONFIG, digest)
    assert (retried.folder == first.folder) == (digest == "same")
    if digest == "mended":
        assert files(first.folder) == before
    new = build_dataset(CONFIG, source, str(tmp_path / "new"), quiet)
    assert files(retried.folder) == files(new.folder)


def test_retrying_after_a_build_with_too_many_rejected_finishes_it(source: FakeSource, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="run the job without --retry-rejected first"):
        retry_rejected(CONFIG, source, out, quiet)
    keys = [item.key for plan in source.plan[:2] for item in source.samples(plan)]
    for key in keys:
        source.trouble("rejected", key).write_text("not there")
    with pytest.raises(ValueError, match="13 of 39"):
        build_dataset(CONFIG, source, out, quiet)
    for key in keys[1:]:
        source.trouble("rejected", key).unlink()
    source.forget_calls()
    manifest = retry_rejected(CONFIG, source, out, quiet)
    assert sorted(source.calls()) == keys
    assert sum(shard.samples for shard in manifest.shards) == 38
    assert files(manifest.folder) == files(build_dataset(CONFIG, source, str(tmp_path / "new"), quiet).folder)


NODES = """
    import sys, threading, time, ray
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from pipeline.config import DatasetConfig
    from pipeline.on_ray.build import build_shards
    from tests.fake_source import FakeSource

    source = FakeSource(sys.argv[1], {"train": 4, "val": 1, "test": 1})
    head = dict(num_cpus=0, object_store_memory=100 * 2**20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)

        def lose_a_node():
            while len(source.starts()) < 2:  # both nodes are at work
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)
            print("lost a node", flush=True)

        killer = threading.Thread(target=lose_a_node)
        killer.start()
        config = DatasetConfig(source="digits", size=8, channels=1, max_rejected=0.2)
        build_shards(config, source, sys.argv[2], lambda line: print(line, flush=True))
        killer.join()
        ray.shutdown()
    finally:
        cluster.shutdown()
"""


@pytest.mark.cluster
def test_a_node_lost_half_way_costs_only_the_shards_it_was_writing(
    source: FakeSource, tmp_path: Path, undisturbed: dict
) -> None:
    """A head and two nodes of one CPU each, all on this machine; one of them is killed with the task it runs."""
    for plan in source.plan:
        source.trouble("slow", plan.name).write_text("2")
    command = [sys.executable, "-c", textwrap.dedent(NODES), source.folder, str(tmp_path / "set")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TMPDIR"] = os.environ["HOME"]  # short: Ray's sockets lie below it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost a node" in done.stdout
    assert files(tmp_path / "set") == undisturbed
    starts = source.starts()
    assert len(set(starts)) == 6
    assert 7 <= len(starts) <= 8, "what the lost node was at was begun again, nothing else"
