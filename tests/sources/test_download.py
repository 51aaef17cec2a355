"""Downloads from a real HTTP server on loopback that breaks in all the ways mirrors do."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.sources import download as module
from pipeline.sources.download import download
from pipeline.sources.idx import PUBLISHED

FILE = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(FILE).hexdigest()


class Mirror:
    """Serves FILE; `answer(handler, start)` replaces the honest answer to a request for the bytes from start on."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler, int], None] = honest
        self.starts: list[int] = []  # of each request
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range", "bytes=0-")
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                mirror.starts.append(start)
                mirror.answer(self, start)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def head(handler: BaseHTTPRequestHandler, start: int, length: int | None, total: int = len(FILE)) -> None:
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()


def honest(handler: BaseHTTPRequestHandler, start: int) -> None:
    if start >= len(FILE):
        handler.send_error(416)
        return
    head(handler, start, len(FILE) - start)
    handler.wfile.write(FILE[start:])


def cuts_after(count: int) -> Callable[[BaseHTTPRequestHandler, int], None]:
    def answer(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, start, len(FILE) - start)
        handler.wfile.write(FILE[start : start + count])

    return answer


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Mirror]]:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setattr(module, "TIMEOUT_S", 1.0)
    made: list[Mirror] = []

    def make(answer: Callable = honest) -> Mirror:
        made.append(Mirror())
        made[-1].answer = answer
        return made[-1]

    yield make
    for mirror in made:
        mirror.server.shutdown()
        mirror.server.server_close()


def get(folder: Path, *used: Mirror) -> list[str]:
    lines: list[str] = []
    download("file.gz", MD5, str(folder), [mirror.url for mirror in used], lines.append)
    assert os.listdir(folder) == ["file.gz"], "nothing else may stay behind"
    assert (folder / "file.gz").read_bytes() == FILE
    return lines


def test_an_honest_mirror_gives_the_file_in_one_request_and_what_is_there_is_not_fetched_again(
    mirrors, tmp_path
) -> None:
    mirror = mirrors()
    get(tmp_path, mirror)
    get(tmp_path, mirror)
    assert mirror.starts == [0]


def test_a_connection_cut_again_and_again_is_continued_where_it_was_cut(mirrors, tmp_path) -> None:
    mirror = mirrors(cuts_after(70_000))
    get(tmp_path, mirror)
    assert mirror.starts == [0, 70_000, 140_000, 210_000, 280_000]


def test_a_second_mirror_continues_what_the_first_began(mirrors, tmp_path) -> None:
    def answer(handler: BaseHTTPRequestHandler, start: int) -> None:
        return cuts_after(100_000)(handler, start) if not start else handler.send_error(503)

    broken, good = mirrors(answer), mirrors()
    lines = get(tmp_path, broken, good)
    assert good.starts == [100_000]
    assert "HTTP 503" in lines[0]


def test_a_download_that_was_killed_is_continued_by_the_next_one(mirrors, tmp_path) -> None:
    def stalls(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, start, len(FILE) - start)
        handler.wfile.write(FILE[start : start + 131_072])
        handler.wfile.flush()
        time.sleep(60)

    slow = mirrors(stalls)
    command = f"from pipeline.sources.download import download; download('file.gz', '{MD5}', '{tmp_path}', ['{slow.url}'], print)"
    process = subprocess.Popen([sys.executable, "-c", command])
    part = tmp_path / "file.gz.download"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    had = part.stat().st_size
    assert had > 0
    assert not (tmp_path / "file.gz").exists()
    good = mirrors()
    get(tmp_path, good)
    assert good.starts == [had]


def test_wrong_bytes_are_refused_and_the_next_mirror_is_asked_from_the_start(mirrors, tmp_path) -> None:
    def wrong(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, start, len(FILE) - start)
        handler.wfile.write(bytes(len(FILE) - start))

    bad, good = mirrors(wrong), mirrors()
    lines = get(tmp_path, bad, good)
    assert good.starts == [0]
    assert MD5 in lines[0] and bad.url in lines[0]


def test_a_wrong_beginning_left_by_another_mirror_is_thrown_away(mirrors, tmp_path) -> None:
    (tmp_path / "file.gz.download").write_bytes(bytes(1000))
    good = mirrors()
    get(tmp_path, good)
    assert good.starts == [1000, 0]


def test_a_server_that_ignores_ranges_is_read_from_the_start(mirrors, tmp_path) -> None:
    (tmp_path / "file.gz.download").write_bytes(FILE[:5000])

    def ignores(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, 0, len(FILE))
        handler.wfile.write(FILE)

    get(tmp_path, mirrors(ignores))


def test_a_range_other_than_the_one_asked_for_is_not_appended(mirrors, tmp_path) -> None:
    (tmp_path / "file.gz.download").write_bytes(FILE[:5000])

    def elsewhere(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, 7000 if start else 0, len(FILE) - (7000 if start else 0))
        handler.wfile.write(FILE[7000 if start else 0 :])

    get(tmp_path, mirrors(elsewhere))


def test_a_length_announced_too_long_does_no_harm_and_one_too_short_gives_no_file(mirrors, tmp_path) -> None:
    def long(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, start, len(FILE) - start + 1000)
        handler.wfile.write(FILE[start:])

    def short(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, 0, 1000)
        handler.wfile.write(FILE)

    get(tmp_path, mirrors(long))
    (tmp_path / "file.gz").unlink()
    lines = get(tmp_path, mirrors(short), mirrors())
    assert "1000 bytes" in lines[0]


def test_a_body_without_end_is_left(mirrors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 2_000_000)

    def endless(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, 0, None)
        try:
            while True:
                handler.wfile.write(bytes(65536))
        except OSError:
            pass

    assert "more than 2000000 bytes" in get(tmp_path, mirrors(endless), mirrors())[0]


def test_a_server_that_drips_is_left_at_the_deadline(mirrors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)

    def drips(handler: BaseHTTPRequestHandler, start: int) -> None:
        head(handler, 0, len(FILE))
        try:
            for byte in FILE:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass

    began = time.monotonic()
    lines = get(tmp_path, mirrors(drips), mirrors())
    assert time.monotonic() - began < 20
    assert "not done after" in lines[0]


def test_no_mirror_left_is_one_line_that_names_each_and_why(mirrors, tmp_path) -> None:
    missing = mirrors(lambda handler, start: handler.send_error(404))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(
        ValueError, match=r"no mirror gave file.gz whole: .*HTTP 404.*refused.*starts with http"
    ) as error:
        download("file.gz", MD5, str(tmp_path), [missing.url, nobody, "file:///etc"], lambda line: None)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_the_shard_job_downloads_mnist_before_it_looks_at_the_data(tmp_path) -> None:
    from jobs.shard import main

    digits = ["digits-demo", "--out", str(tmp_path / "out"), "--download"]
    with pytest.raises(ValueError, match="--download fetches MNIST into --data; the source is digits, --data is None"):
        main(digits)
    mnist = ["mnist-aligndraw", "--data", f"{tmp_path}/mnist", "--out", f"{tmp_path}/out", "--download"]
    with pytest.raises(ValueError, match="no mirror gave train-images-idx3-ubyte.gz whole: ftp://nowhere"):
        main([*mnist, "--mirrors", "ftp://nowhere"])


def test_the_four_files_of_mnist_from_a_mirror(mirrors, tmp_path, shared_data, bucket) -> None:
    def files(handler: BaseHTTPRequestHandler, start: int) -> None:
        content = (shared_data / "mnist" / handler.path.strip("/")).read_bytes()[start:]
        head(handler, start, len(content), start + len(content))
        handler.wfile.write(content[:4_000_000])  # the largest is cut twice

    mirror = mirrors(files)
    for folder in (str(tmp_path), f"{bucket}/mnist"):
        module.download_mnist(folder, [mirror.url], lambda line: None)
        assert storage.listing(folder) == sorted(f"{name}.gz" for name in PUBLISHED)
        for name in PUBLISHED:
            assert storage.read_bytes(f"{folder}/{name}.gz") == (shared_data / "mnist" / f"{name}.gz").read_bytes()


def test_another_file_of_that_name_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "file.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="move it away"):
        download("file.gz", MD5, str(tmp_path), [], print)
    assert (tmp_path / "file.gz").read_bytes() == b"mine"
