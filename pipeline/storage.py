"""The one place that opens a path: a local folder, `s3://` or `gs://`, the same calls for all (pyarrow.fs).

Whatever is published appears whole or not at all. Locally that is a temporary file in the same folder, fsync, rename.
An object store shows an object only once its upload is complete, but pyarrow completes the upload when a stream is left
by an exception too; so nothing is ever streamed there: `publish_*` hand over bytes or files that are already whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from pyarrow import fs

PART = ".part"  # temporary files are called <target>.<host>.<pid>.<random>.part: never read, removed by `sweep`
RETRY_S, RENEW_S, SILENT_S = 1.0, 20.0, 90.0  # of the claims that are locks in an object store
S3_ATTEMPTS = 12  # of a request
STALE_S = 6 * 3600.0  # another machine's temporary file that nobody wrote to for so long was left by a dead process


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def join(root: str | Path, *names: str) -> str:
    """Path below root, for local folders and object stores alike."""
    return "/".join([str(root).rstrip("/"), *names])


@lru_cache(maxsize=32)
def _remote_filesystem(root: str) -> fs.FileSystem:
    found = fs.FileSystem.from_uri(root)[0]
    if not isinstance(found, fs.S3FileSystem):
        return found
    # Choice: a store that does not answer, or answers with errors, is asked again for about a minute and a half (each wait is
    # twice the one before), and then is an OSError; as pyarrow sets it out, a second of it would end a job.
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://"
    scheme, _, host = address.rpartition("://")
    patience = fs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    endpoint = host.rstrip("/") or None
    return fs.S3FileSystem(
        region=found.region,
        scheme=scheme or "https",
        endpoint_override=endpoint,
        retry_strategy=patience,
        allow_delayed_open=True,  # a small file is one request: S3 dates one of several by the first, which misleads `renew`
    )


def forget() -> None:
    """Open object stores anew at the next call: their address and credentials were read from the environment once."""
    _remote_filesystem.cache_clear()


def resolve(path: str | Path) -> tuple[fs.FileSystem, str]:
    """A pyarrow file system and the path in it. Credentials and AWS_ENDPOINT_URL come from the environment."""
    text = str(path)
    if not is_remote(text):
        return fs.LocalFileSystem(), os.path.abspath(text)
    scheme, _, rest = text.partition("://")
    if scheme not in ("s3", "gs"):
        raise ValueError(f"cannot open {text}: paths are local, s3:// or gs://")
    if "@" in rest.split("/")[0]:  # not shown: it would be kept wherever the path is
        raise ValueError(f"a {scheme}:// path takes no user and no key: they come from the environment")
    return _remote_filesystem(f"{scheme}://{rest.split('/')[0]}"), rest


def exists(path: str | Path) -> bool:
    filesystem, name = resolve(path)
    return filesystem.get_file_info(name).type != fs.FileType.NotFound


def listing(folder: str | Path) -> list[str]:
    """Names right under a folder, sorted; empty if it is not there. Temporary files are not listed."""
    filesystem, name = resolve(folder)
    found = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    return sorted(info.base_name for info in found if not info.base_name.endswith(PART))


def folders(folder: str | Path) -> list[str]:
    """Names of the folders right under a folder, sorted; none if it is not there."""
    filesystem, name = resolve(folder)
    found = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def modified(path: str | Path) -> float:
    """When a file was last published, seconds since 1970."""
    filesystem, name = resolve(path)
    return (filesystem.get_file_info(name).mtime_ns or 0) / 1e9


def sizes(folder: str | Path) -> dict[str, int]:
    """Names right under a folder and their bytes, from one listing; temporary files and folders are left out."""
    filesystem, name = resolve(folder)
    found = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    return {i.base_name: i.size for i in found if i.type == fs.FileType.File and not i.base_name.endswith(PART)}


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """The whole file; FileNotFoundError if it is not there, ValueError, before reading, if it has more than `limit` bytes."""
    filesystem, name = resolve(path)
    with filesystem.open_input_file(name) as file:
        if limit is not None and file.size() > limit:
            raise ValueError(
                f"{path} has {file.size():,} bytes, at most {limit:,} are allowed: it is damaged or not ours"
            )
        return file.read()


def read_text(path: str | Path) -> str:
    return read_bytes(path).decode("utf-8")


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents; an object store needs none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def publishing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A local file to write; it becomes `path` when the block ends well, and is removed when it does not.

    durable=False saves the wait for the disk, for files that are checked before use and can be made again: a power
    failure may leave an empty file. A process that dies never does.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            _upload(part, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        if durable:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, target)
        if durable:
            _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def publish_bytes(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Write a whole file; a reader sees the old one or the new one, never a part."""
    if is_remote(path):
        filesystem, name = resolve(path)
        # pyarrow would compress what is called .gz
        with filesystem.open_output_stream(name, compression=None) as stream:
            stream.write(content)
        return
    with publishing(path, durable) as part:
        part.write_bytes(content)


def publish_text(path: str | Path, content: str, durable: bool = True) -> None:
    publish_bytes(path, content.encode("utf-8"), durable)


def copy_in(path: str | Path, folder: Path) -> Path:
    """A local file with the content of `path`: the file itself where it is local, else a copy below folder."""
    if not is_remote(path):
        return Path(path)
    local = folder / str(path).rsplit("/", 1)[-1]
    local.write_bytes(read_bytes(path))
    return local


def delete(path: str | Path) -> None:
    """Remove a file or a folder with all in it; nothing happens if it is not there."""
    if not is_remote(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
        return
    filesystem, name = resolve(path)
    info = filesystem.get_file_info(name)
    if info.type == fs.FileType.Directory:
        filesystem.delete_dir(name)
    elif info.type == fs.FileType.File:
        filesystem.delete_file(name)


def sweep(folder: str | Path) -> list[str]:
    """Remove temporary files left in a folder by processes that are gone; returns their names."""
    if is_remote(folder) or not os.path.isdir(folder):
        return []
    gone = [part for part in Path(folder).glob(f"*{PART}") if _abandoned(part)]
    for part in gone:
        part.unlink(missing_ok=True)
    return sorted(part.name for part in gone)


@contextlib.contextmanager
def locked(path: str | Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock, one process at a time; `busy` is called with the holder while another has it.

    `busy` may raise to give up; when it returns, the lock is tried again after a second. Locally it is a file, and the
    kernel frees it when its holder dies, however that happens; in an object store see `_claimed`.
    """
    if is_remote(path):
        with _claimed(path, busy):
            yield
        return
    import fcntl

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                busy(file.read().strip() or "another process")
                time.sleep(1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {_host()}")
        file.flush()
        yield


@contextlib.contextmanager
def _claimed(path: str | Path, busy: Callable[[str], None]) -> Iterator[None]:
    """A lock in an object store: a folder of claims. Who has written one, and then sees no other, has the lock.

    What was written is listed from then on (S3 and GCS promise it), so of two the later sees the other: both never have the
    lock, and no conditional write is needed, which pyarrow.fs does not have. A claim is renewed while its process lives. One
    that is not renewed for SILENT_S, by the store's clock, is removed and its lock taken over; one that is renewed is `busy`.
    So it takes up to SILENT_S after a holder's death, and up to RENEW_S to refuse.

    What this cannot give: a holder that was cut off for SILENT_S (stopped, or without network) may still write while another has
    taken over. When it comes back it finds its claim gone, or that it was renewed too late, and ends itself by SIGTERM.
    """
    mine, renewed = _claim(path, busy)
    ended = threading.Event()

    def renew() -> None:
        nonlocal renewed
        while not ended.wait(RENEW_S):
            with contextlib.suppress(OSError):  # no answer this time: there are more before it counts as silence
                if exists(mine):
                    publish_text(mine, "")
                # Whoever takes over has seen our claim older than SILENT_S before a renewal arrives, so the store's clock tells:
                # a longer gap may have been used, a shorter one cannot have been. Claims of those who only try say nothing.
                before, renewed = renewed, modified(mine)
                if not 0 < renewed <= before + SILENT_S:
                    print(f"{path}: silent for too long, another process took over: ending", flush=True)
                    with contextlib.suppress(OSError):  # this renewal has revived it
                        delete(mine)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # else it is taken for dead after a while
            delete(mine)


def _claim(path: str | Path, busy: Callable[[str], None]) -> tuple[str, float]:
    """The path of a claim that is the only one, and when the store had it last.

    Of several that come at once the first by name stays, the others step back.
    """
    first: dict[str, float] = {}  # claims of others, and when they had been renewed when they were seen first
    mine = ""
    try:
        while True:
            mine = mine or f"process {os.getpid()} on {_host()} {secrets.token_hex(4)}"
            publish_text(join(path, mine), "")
            claims = _modified(path)
            now, others = claims.pop(mine, 0.0), claims
            if now and not others:
                return join(path, mine), now
            for name, at in others.items():
                if now - at > SILENT_S:
                    print(f"{path}: {_holder(name)} is silent for {now - at:.0f} s: taking over", flush=True)
                    delete(join(path, name))
                elif name not in first:
                    print(f"{path}: {_holder(name)} has it; looking whether that lives", flush=True)
                if at > first.setdefault(name, at):
                    busy(_holder(name))
            if min(others, default=mine) < mine:
                delete(join(path, mine))
                mine = ""
                time.sleep(RETRY_S)
            time.sleep(RETRY_S)
    except BaseException:
        if mine:
            delete(join(path, mine))
        raise


def _modified(folder: str | Path) -> dict[str, float]:
    """Names right under a folder, and when they were written, seconds since 1970 by the store's clock."""
    filesystem, name = resolve(folder)
    found = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    return {info.base_name: info.mtime_ns / 1e9 for info in found if info.type == fs.FileType.File}


def _holder(claim: str) -> str:
    """A claim's process, without what makes its name its own."""
    return claim.rpartition(" ")[0]


def _host() -> str:
    """This machine's name without dots, which separate the parts of a temporary file's name."""
    return os.uname().nodename.replace(".", "-")


def _abandoned(part: Path) -> bool:
    """Whether nobody writes a temporary file any more: its process is gone, or, on another machine, silent for hours."""
    words = part.name.split(".")
    with contextlib.suppress(FileNotFoundError):
        if len(words) >= 5 and words[-4] == _host() and words[-3].isdigit():
            return not os.path.exists(f"/proc/{words[-3]}")
        return time.time() - part.stat().st_mtime > STALE_S
    return False  # another sweep was faster


def _upload(local: Path, path: str | Path) -> None:
    filesystem, name = resolve(path)
    fs.copy_files(str(local), name, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the directory entry is data of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
