"""Paths of every kind behave alike, and what is published is whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from tests.faulty_store import faulty


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket") + "/root"


def test_what_is_published_is_read_back(root: str) -> None:
    path = storage.join(root, "deep", "file.bin")
    assert not storage.exists(path)
    storage.publish_bytes(path, b"one")
    storage.publish_bytes(path, b"two!")
    storage.publish_text(storage.join(root, "deep", "a.txt"), "Grüße", durable=False)
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"two!"
    assert storage.read_text(storage.join(root, "deep", "a.txt")) == "Grüße"
    assert storage.listing(storage.join(root, "deep")) == ["a.txt", "file.bin"]
    assert storage.sizes(storage.join(root, "deep")) == {"a.txt": 7, "file.bin": 4}
    assert storage.folders(root) == ["deep"] and storage.folders(storage.join(root, "deep")) == []
    assert storage.listing(storage.join(root, "nowhere")) == storage.folders(storage.join(root, "nowhere")) == []
    assert storage.sizes(storage.join(root, "nowhere")) == {}


@pytest.mark.parametrize("ending", ["gz", "bz2", "zst"])
def test_a_name_never_changes_the_bytes(root: str, tmp_path: Path, ending: str) -> None:
    """pyarrow compresses what is streamed to such names unless told not to."""
    storage.publish_bytes(storage.join(root, f"a.{ending}"), b"as they are")
    with storage.publishing(storage.join(root, f"b.{ending}")) as part:
        part.write_bytes(b"as they are")
    for name in ("a", "b"):
        assert storage.read_bytes(storage.join(root, f"{name}.{ending}")) == b"as they are"


def test_a_missing_file_is_said_to_be_missing(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "nothing"))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(root: str) -> None:
    path = storage.join(root, "large")
    storage.publish_bytes(path, bytes(1001))
    assert len(storage.read_bytes(path, limit=1001)) == 1001
    with pytest.raises(ValueError, match=r"1,001 bytes, at most 1,000 are allowed"):
        storage.read_bytes(path, limit=1000)


def test_files_and_folders_are_deleted_and_missing_ones_are_no_error(root: str) -> None:
    storage.publish_bytes(storage.join(root, "a", "x"), b"x")
    storage.publish_bytes(storage.join(root, "a", "y"), b"y")
    storage.delete(storage.join(root, "a", "x"))
    assert storage.listing(storage.join(root, "a")) == ["y"]
    storage.delete(storage.join(root, "a"))
    storage.delete(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "y"))


def test_a_local_copy_of_a_file_has_its_content(root: str, tmp_path: Path) -> None:
    path = storage.join(root, "some.bin")
    storage.publish_bytes(path, b"content")
    assert storage.copy_in(path, tmp_path).read_bytes() == b"content"


def test_publishing_leaves_the_old_file_when_the_block_fails(root: str) -> None:
    path = storage.join(root, "kept")
    storage.publish_bytes(path, b"old")
    with pytest.raises(RuntimeError), storage.publishing(path) as part:
        part.write_bytes(b"half of the n")
        raise RuntimeError
    assert storage.read_bytes(path) == b"old"
    assert storage.listing(root) == ["kept"]


def test_other_schemes_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="paths are local, s3:// or gs://"):
        storage.read_bytes("http://somewhere/file")


def publish_slowly(path: str) -> None:
    with storage.publishing(path) as part:
        part.write_bytes(b"half")
        time.sleep(60)


def test_a_writer_killed_half_way_leaves_nothing_but_a_file_that_is_swept(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=publish_slowly, args=(str(tmp_path / "x.tar"),))
    process.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert storage.listing(tmp_path) == []
    assert storage.sweep(tmp_path) == [], "its writer lives"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [name.startswith("x.tar.") for name in storage.sweep(tmp_path)] == [True]
    assert list(tmp_path.iterdir()) == []


def publish_much(path: str) -> None:
    storage.publish_bytes(path, bytes(400 * 2**20))


def test_an_upload_killed_half_way_is_never_seen(bucket: str, s3_server: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=publish_much, args=(f"{bucket}/x.tar",))
    process.start()
    deadline = time.monotonic() + 60
    uploads = f"{s3_server}/{bucket.removeprefix('s3://')}?uploads"
    while b"<Key>x.tar</Key>" not in urllib.request.urlopen(uploads, timeout=10).read():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # parts of it are there
    process.join()
    assert not storage.exists(f"{bucket}/x.tar")
    assert storage.listing(bucket) == []


def test_a_temporary_file_of_another_machine_is_swept_only_when_it_is_old(tmp_path: Path) -> None:
    fresh, old = tmp_path / "a.tar.elsewhere.1.abcd.part", tmp_path / "b.tar.elsewhere.1.abcd.part"
    for part in (fresh, old):
        part.write_bytes(b"")
    os.utime(old, (time.time() - 2 * storage.STALE_S,) * 2)
    assert storage.sweep(tmp_path) == [old.name]
    assert fresh.exists()


def test_two_writers_in_one_process_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with storage.publishing(tmp_path / "x") as one, storage.publishing(tmp_path / "x") as other:
        assert one != other
        one.write_bytes(b"1")
        other.write_bytes(b"2")
    assert (tmp_path / "x").read_bytes() == b"1"


def hold(path: str, held: multiprocessing.Event) -> None:
    with storage.locked(path, busy=lambda holder: None):
        held.set()
        time.sleep(60)


def test_a_lock_is_held_by_one_process_and_freed_when_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path / "lock"), held))
    process.start()
    assert held.wait(30)
    seen = []

    def busy(holder: str) -> None:
        seen.append(holder)
        os.kill(process.pid, signal.SIGKILL)

    with storage.locked(tmp_path / "lock", busy):
        assert seen == [f"process {process.pid} on {os.uname().nodename.replace('.', '-')}"]
    process.join()


def test_giving_up_on_a_lock_is_up_to_the_caller(tmp_path: Path) -> None:
    def refuse(holder: str) -> None:
        raise ValueError(f"in use by {holder}")

    with storage.locked(tmp_path / "lock", refuse):
        with (
            pytest.raises(ValueError, match=f"in use by process {os.getpid()}"),
            storage.locked(tmp_path / "lock", refuse),
        ):
            pass


QUICK = {"RETRY_S": 0.1, "RENEW_S": 0.5, "SILENT_S": 4.0}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(storage, name, value)


@pytest.fixture
def holder(bucket: str, quick: None) -> Iterator[multiprocessing.Process]:
    """Another process, that holds the lock `run/lock` of the bucket."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_claim, args=(f"{bucket}/run/lock", held, 60))
    process.start()
    assert held.wait(30)
    yield process
    process.kill()
    process.join()


def hold_claim(path: str, held: multiprocessing.Event, seconds: float) -> None:
    vars(storage).update(QUICK)
    with storage.locked(path, busy=lambda holder: None):
        held.set()
        time.sleep(seconds)


def test_a_lock_in_an_object_store_is_refused_while_its_holder_lives_and_taken_over_after_its_death(
    bucket: str, holder: multiprocessing.Process, capsys
) -> None:
    path = f"{bucket}/run/lock"
    time.sleep(2 * QUICK["SILENT_S"])  # it is renewed

    def refuse(name: str) -> None:
        raise ValueError(f"in use by {name}")

    name = f"process {holder.pid} on {os.uname().nodename.replace('.', '-')}"
    with pytest.raises(ValueError, match=f"in use by {name}$"), storage.locked(path, refuse):
        pass
    assert len(storage.listing(path)) == 1, "who was refused leaves nothing"
    time.sleep(3 * QUICK["RENEW_S"])
    assert holder.is_alive(), "those who only try do not end it"
    holder.kill()
    holder.join()
    began = time.monotonic()
    with storage.locked(path, refuse):
        assert time.monotonic() - began > QUICK["SILENT_S"] / 2
        said = capsys.readouterr().out
        assert f"{name} is silent for" in said and "taking over" in said
    assert storage.listing(path) == []


def test_a_holder_that_was_cut_off_and_comes_back_ends_itself(bucket: str, holder: multiprocessing.Process) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    with storage.locked(f"{bucket}/run/lock", busy=lambda name: None):
        os.kill(holder.pid, signal.SIGCONT)
        holder.join(10)
    assert holder.exitcode == -signal.SIGTERM


def hold_claim_and_stall(path: str, held: multiprocessing.Event) -> None:
    """Holds a lock and is stopped at its first renewal, between the look at its claim and the write."""
    vars(storage).update(QUICK)
    publish = storage.publish_text

    def stalling(path: str, content: str) -> None:
        if held.is_set():
            storage.publish_text = publish
            os.kill(os.getpid(), signal.SIGSTOP)
        publish(path, content)

    storage.publish_text = stalling
    hold_claim(path, held, 60)


def test_a_holder_whose_renewal_arrives_after_another_took_over_ends_itself(bucket: str, quick: None) -> None:
    path, context = f"{bucket}/run/lock", multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_claim_and_stall, args=(path, held))
    process.start()
    try:
        assert held.wait(60)
        with storage.locked(path, busy=lambda name: None):
            (ours,) = storage.listing(path)
            os.kill(process.pid, signal.SIGCONT)
            process.join(20)
            assert process.exitcode == -signal.SIGTERM
            assert storage.listing(path) == [ours], "the claim that its renewal revived is gone"
    finally:
        process.kill()


def take_turns(path: str, out: str, turns: int) -> None:
    vars(storage).update(QUICK)
    for _ in range(turns):
        with storage.locked(path, busy=lambda holder: None):
            began = time.monotonic()  # of the machine, so the same for all
            time.sleep(0.05)
            with open(out, "a") as file:
                file.write(f"{began} {time.monotonic()}\n")


def test_of_many_that_want_a_lock_in_an_object_store_at_once_each_has_it_alone(bucket: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    work = (f"{bucket}/run/lock", str(tmp_path / "turns"), 3)
    processes = [context.Process(target=take_turns, args=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    turns = sorted(tuple(map(float, line.split())) for line in (tmp_path / "turns").read_text().splitlines())
    assert len(turns) == 9
    assert all(end < begin for (_, end), (begin, _) in zip(turns, turns[1:]))


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="takes no user and no key") as refused:
        storage.exists("s3://AKIA:planted@bucket/out")
    assert "planted" not in str(refused.value)


def test_a_store_that_answers_with_errors_for_a_while_is_asked_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.address)
        storage.forget()
        storage.publish_bytes(f"{bucket}/before", b"1")
        store.failing = 1.0
        threading.Timer(2.0, lambda: setattr(store, "failing", 0.3)).start()
        storage.publish_bytes(f"{bucket}/after", bytes(6 * 2**20))
        assert store.failed >= 5, "more than pyarrow's own patience"
        assert storage.read_bytes(f"{bucket}/after") == bytes(6 * 2**20)
        assert storage.listing(bucket) == ["after", "before"]
        storage.delete(f"{bucket}/after")
        assert not storage.exists(f"{bucket}/after")
