"""MNIST's four files from a list of mirrors, whole or not at all: `python -m pipeline.sources.download FOLDER [MIRROR ...]`.

A mirror may be gone, cut the connection, lie about lengths or serve something else. What arrived is kept in a `.download`
file, which the next attempt, or the next start of this program, continues with an HTTP range request; only a file with the
published digest gets its name.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import storage
from pipeline.sources.idx import PUBLISHED

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
LARGEST = 64 * 2**20  # bytes; the largest of the four has 9.9 MB
ATTEMPTS = 4  # at a mirror without another byte
PAUSE_S = 1.0  # after the first of them, then twice as long, ...
TIMEOUT_S = 20.0  # without a byte
DEADLINE_S = 1800.0  # for a file from one mirror: a server that drips does not hold us for ever
STEP = 2**16  # bytes


class MirrorError(Exception):
    """This mirror does not give the file; another may."""


def download_mnist(folder: str, mirrors: Sequence[str] = MIRRORS, log: Callable[[str], None] = print) -> None:
    """Put the four files into a folder (local, s3:// or gs://); ValueError if no mirror gives one of them whole."""
    for name, (md5, _) in PUBLISHED.items():
        download(f"{name}.gz", md5, folder, mirrors, log)


def download(name: str, md5: str, folder: str, mirrors: Sequence[str], log: Callable[[str], None]) -> None:
    """folder/name with this md5, from the first mirror that gives it; nothing is done if it is there."""
    path = storage.join(folder, name)
    if storage.exists(path):
        if _md5(storage.read_bytes(path)) != md5:
            raise ValueError(f"{path} is there but is not the published file (md5 {md5}); move it away to download it")
        return
    storage.make_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch if storage.is_remote(folder) else folder) / f"{name}.download"
        problems = []
        for mirror in mirrors:
            try:
                content = _from_mirror(f"{mirror.rstrip('/')}/{name}", md5, part)
            except MirrorError as error:
                problems.append(f"{mirror}: {error}")
                log(f"{name}: {problems[-1]}")
                continue
            storage.publish_bytes(path, content)
            part.unlink()
            log(f"{name}: {len(content)} bytes from {mirror}")
            return
    raise ValueError(f"no mirror gave {name} whole: {'; '.join(problems) or 'none was named'}")


def _from_mirror(url: str, md5: str, part: Path) -> bytes:
    """The file's bytes, verified; MirrorError says why there are none. What arrived stays in `part` if it may be right."""
    if not url.startswith(("http://", "https://")):
        raise MirrorError("a mirror's address starts with http:// or https://")
    inherited = part.exists()
    problem = _fill(url, part)
    content = part.read_bytes() if part.exists() else b""
    if _md5(content) == md5:
        return content
    if problem:
        raise MirrorError(f"{problem}, {len(content)} bytes came")
    part.unlink(missing_ok=True)
    if inherited:  # perhaps it was another file's beginning
        return _from_mirror(url, md5, part)
    raise MirrorError(f"serves {len(content)} bytes with md5 {_md5(content)}, published is {md5}")


def _fill(url: str, part: Path) -> str:
    """Get what is missing of `part`, again and again while more comes; what went wrong, or "" where the mirror says that is all."""
    deadline, failures, problem = time.monotonic() + DEADLINE_S, 0, ""
    while failures < ATTEMPTS:
        before = _size(part)
        try:
            _continue(url, part, deadline)
            return ""
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing lies beyond what is there
                return ""
            if error.code not in (408, 429, 500, 502, 503, 504):
                return f"HTTP {error.code}"
            problem = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        time.sleep(PAUSE_S * failures)
    return problem


def _continue(url: str, part: Path, deadline: float) -> None:
    """Append what follows to `part`, or start it anew where the server cannot continue; OSError where it was cut."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        continues = answer.status == 206 and re.match(rf"bytes {have}-", answer.headers.get("Content-Range", ""))
        announced = answer.headers.get("Content-Length", "")
        received = 0
        with open(part, "ab" if continues else "wb", buffering=0) as file:
            while chunk := answer.read1(STEP):  # what is there, without waiting for more
                file.write(chunk)
                received += len(chunk)
                if have * bool(continues) + received > LARGEST:
                    file.truncate(0)
                    raise MirrorError(f"more than {LARGEST} bytes")
                if time.monotonic() > deadline:
                    raise MirrorError(f"not done after {DEADLINE_S:.0f} s")
        if announced.isdigit() and received < int(announced):
            raise OSError(f"cut: {received} of {announced} bytes came")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    try:
        download_mnist(sys.argv[1], sys.argv[2:] or MIRRORS)
    except (IndexError, ValueError, OSError) as error:
        sys.exit(__doc__.partition("\n")[0] if isinstance(error, IndexError) else str(error))
