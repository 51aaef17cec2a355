"""An object store (moto's) that answers some requests with an error, and all of them late, when it is told to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyStore:
    """`failing`: the share of requests that get 503; `delay_s`: before each answer. Both may change at any time."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.failing, self.delay_s, self.failed = 0.0, 0.0, 0
        self.address = ""
        self._chance, self._store = random.Random(0), DomainDispatcherApplication(create_backend_app)

    def __call__(self, environment: dict, start: Callable) -> list[bytes]:
        time.sleep(self.delay_s)
        if self._chance.random() >= self.failing:
            return self._store(environment, start)
        self.failed += 1
        start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
        return [] if environment["REQUEST_METHOD"] == "HEAD" else [SLOW_DOWN]


@contextmanager
def faulty() -> Iterator[FaultyStore]:
    """A running one, sound at first. What it holds is that of all of moto's stores in this process."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    store = FaultyStore()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)
    store.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield store
    server.shutdown()
