"""The one place that opens a path: a local folder, `s3://` or `gs://`, the same calls for all (pyarrow.fs).

Whatever is published appears whole or not at all. Locally that is a temporary file in the same folder, fsync, rename.
An object store shows an object only once its upload is complete, but pyarrow completes the upload when a stream is left
by an exception too; so nothing is ever streamed there: `publish_*` hand over bytes or files that are already whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pyarrow import fs

PART = ".part"  # a temporary file's name starts with its target's and ends "<pid>.part": never read, swept by `sweep`


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def join(root: str | Path, *names: str) -> str:
    """Path below root, for local folders and object stores alike."""
    return "/".join([str(root).rstrip("/"), *names])


@lru_cache(maxsize=32)
def _remote_filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


def resolve(path: str | Path) -> tuple[fs.FileSystem, str]:
    """A pyarrow file system and the path in it. Credentials and AWS_ENDPOINT_URL come from the environment."""
    text = str(path)
    if not is_remote(text):
        return fs.LocalFileSystem(), os.path.abspath(text)
    scheme, _, rest = text.partition("://")
    if scheme not in ("s3", "gs"):
        raise ValueError(f"cannot open {text}: paths are local, s3:// or gs://")
    return _remote_filesystem(f"{scheme}://{rest.split('/')[0]}"), rest


def exists(path: str | Path) -> bool:
    filesystem, name = resolve(path)
    return filesystem.get_file_info(name).type != fs.FileType.NotFound


def listing(folder: str | Path) -> list[str]:
    """Names right under a folder, sorted; empty if it is not there. Temporary files are not listed."""
    filesystem, name = resolve(folder)
    found = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    return sorted(info.base_name for info in found if not info.base_name.endswith(PART))


def size_of(path: str | Path) -> int:
    filesystem, name = resolve(path)
    return filesystem.get_file_info(name).size


def read_bytes(path: str | Path) -> bytes:
    """The whole file; FileNotFoundError if it is not there."""
    filesystem, name = resolve(path)
    with filesystem.open_input_file(name) as file:
        return file.read()


def read_text(path: str | Path) -> str:
    return read_bytes(path).decode("utf-8")


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents; an object store needs none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def publishing(path: str | Path) -> Iterator[Path]:
    """A local file to write; it becomes `path` when the block ends well, and is removed when it does not."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            _upload(part, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}{PART}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def publish_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file; a reader sees the old one or the new one, never a part."""
    if is_remote(path):
        filesystem, name = resolve(path)
        with filesystem.open_output_stream(name) as stream:
            stream.write(content)
        return
    with publishing(path) as part:
        part.write_bytes(content)


def publish_text(path: str | Path, content: str) -> None:
    publish_bytes(path, content.encode("utf-8"))


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
    gone = [part for part in Path(folder).glob(f"*{PART}") if not _alive(part)]
    for part in gone:
        part.unlink(missing_ok=True)
    return sorted(part.name for part in gone)


def _alive(part: Path) -> bool:
    """Whether the process that writes a temporary file still runs (on this machine)."""
    pid = part.name.removesuffix(PART).rpartition(".")[2]
    return pid.isdigit() and os.path.exists(f"/proc/{pid}")


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
