"""What a run tells MLflow: parameters, metrics by step, tags and artifacts; the end of the flow.

Only this file and registry.py know MLflow.

Tracking is a journal first. Every record is appended to `tracking.jsonl` in the stage's folder, which is the truth; a
background thread sends what is new to the server in batches and remembers how far it came in `tracking.sent.json`. An object
store cannot append: there every process has a segment of its own, `tracking-*.jsonl`, which no other one writes, and puts it
there whole every few seconds; a process that is killed loses what it recorded since. So

- a server that is down, slow or restarted neither fails nor delays training: what it missed is sent when it is back, by
  this stage, by the next one, or by `python -m jobs.sync`;
- a restarted stage continues its run: the run is found by a tag (an id of ours, the journal's first line) before one is
  made, and a point that was recorded before a crash and computed again is not recorded twice;
- another server, or one that lost its database, gets the whole history.

One MLflow run is the parent of a run's folder, with a nested run for each stage. Sending twice changes nothing (a metric
is the same row at the same time), and a lock lets one process of a machine send at a time, so the job, its workers and
`jobs.sync` may share a journal. Choice: MLflow cannot overwrite a point, so of two values of one metric at one step the
first stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import leaves

JOURNAL, LOCK = "tracking.jsonl", "tracking.lock"
RUN_TAG = "canvas.run"  # on every MLflow run: the id of ours in its journal
PARENT = "experiment"  # the stage whose run is the parent of the others; its folder is above theirs
# Between batches to the server, and copies to an object store; and while the server does not answer
SEND_EVERY_S, RETRY_AT_MOST_EVERY_S = 3.0, 60.0
CLOSE_S = 20.0  # how long the end of a stage waits for the server
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # the server's limits for one request
# A request that is not answered is tried three times; MLflow's own settings would block a thread for four minutes.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a job's last line is its result
}


def tracking_uri() -> str | None:
    """The server's address that the job was started with; None: journals only."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def shown(text: str) -> str:
    """A text as it may be printed or kept: addresses in it without user and password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def git_commit() -> str:
    """The code's commit: what the submitter said (an uploaded folder has no .git), or this folder's; else 'unknown'."""
    if named := os.environ.get("CANVAS_COMMIT"):
        return named
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return "unknown"


class Tracker:
    """The tracked run of one stage. `with Tracker.open(...) as tracker:` ends it as finished, failed or killed."""

    def __init__(self, journal: Journal, uri: str | None, *, leads: bool) -> None:
        self._journal, self._uri = journal, uri
        self._leads = leads  # the parent's status follows this stage's: the stage was started alone
        self._stop, self._thread, self._down = threading.Event(), None, False
        self._status("RUNNING")
        if storage.is_remote(journal.folder):
            journal.publish()  # at once: the segments of other processes begin with the same head
            threading.Thread(target=self._keep_publishing, name="journal", daemon=True).start()
        if uri is not None:
            self._sender = Sender(journal, uri)
            self._thread = threading.Thread(target=self._keep_sending, name="tracking", daemon=True)
            self._thread.start()

    @classmethod
    def open(cls, stage_folder: str | Path, experiment: str, run_name: str, stage: str, uri: str | None) -> Tracker:
        """Start or continue the run of a stage; `experiment` is MLflow's experiment, `run_name` the parent run's name.

        The stage "experiment" is the parent itself; the folder above any other stage's is the parent's.
        """
        head = {"experiment": experiment, "name": run_name, "stage": stage, "parent": None}
        if stage == PARENT:
            return cls(Journal(stage_folder, head), uri, leads=False)
        with contextlib.closing(Journal(_above(stage_folder), {**head, "stage": PARENT})) as parent:
            statuses = [record["status"] for record in recorded(parent.folder) if "status" in record]
        return cls(
            Journal(stage_folder, {**head, "parent": parent.head["run"]}), uri, leads=statuses[-1:] != ["RUNNING"]
        )

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters; a nested dict becomes dotted names. A parameter keeps its first value."""
        self._journal.append({"params": {name: str(value) for name, value in leaves(values)}})

    def tags(self, values: Mapping[str, Any]) -> None:
        self._journal.append({"tags": {name: str(value) for name, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step; what was recorded at that step before, by this process or an earlier one, stays."""
        self._journal.append({"metrics": {name: float(value) for name, value in values.items()}, "step": int(step)})

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """A file, or a folder with all in it, to be copied into the run; it must stay in place until it is sent."""
        self._journal.append({"artifact": str(path), "folder": folder})

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once the server has given one."""
        return self._journal.sent().get("run_id")

    @property
    def url(self) -> str | None:
        """The page of the run, once there is one."""
        return run_url(self._journal.sent())

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until all that was recorded is sent; False when the server does not answer or did not take it in time."""
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and self._journal.unsent():
            if self._down or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def close(self, status: str = "FINISHED") -> None:
        """End the run, and say so when the server has not taken all of it within `CLOSE_S` seconds."""
        self._status(status)
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if left := self._journal.unsent():
                _say(
                    f"MLflow at {shown(self._uri)} did not take {left} records of {self._journal.folder}: they are kept in its "
                    f"{self._journal.path.name}, and sent by the next stage or by python -m jobs.sync"
                )
        self._journal.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def _status(self, status: str) -> None:
        self._journal.append({"status": status, "leads": self._leads})

    def _keep_publishing(self) -> None:
        """Apart from sending, which a server that hangs may hold up."""
        while not self._stop.wait(SEND_EVERY_S):
            self._journal.publish()

    def _keep_sending(self) -> None:
        """Send what is new every few seconds, ever more rarely while the server does not answer; once more at the end."""
        wait, siblings = 0.0, self._journal.head["parent"] is not None
        while True:
            last = self._stop.wait(wait)
            try:
                count = self._sender.send()
                if siblings:  # what earlier stages could not send
                    sync(_above(self._journal.folder), self._uri, but=self._journal.path)
                    siblings = False
                if last:  # what processes of this stage that were killed could not
                    _sync_stage(self._journal.folder, self._uri, but=self._journal.path)
                if self._down:
                    _say(f"MLflow at {shown(self._uri)} is back: {count} records sent")
                wait, self._down = SEND_EVERY_S, False
            except unavailable() as error:
                if not self._down:
                    _say(
                        f"MLflow at {shown(self._uri)} does not take records ({brief(error)}): they are kept and sent later"
                    )
                wait, self._down = min(max(2 * wait, SEND_EVERY_S), RETRY_AT_MOST_EVERY_S), True
            if last:
                return


def sync(run_folder: str, uri: str, but: Path | None = None) -> int:
    """Send what the journals of a run and of its stages still hold, leaving out those in use; the number of records."""
    stages = (storage.join(run_folder, name) for name in storage.folders(run_folder))
    return sum(_sync_stage(folder, uri, but) for folder in (run_folder, *stages))


def _sync_stage(folder: str, uri: str, but: Path | None) -> int:
    """The same for one journal; `but`: the segment that its process itself sends."""
    found = [Segment(folder, name) for name in segments(folder)]
    left = [segment for segment in found if segment.path != but and segment.unsent()]
    # the last word of a process that was killed is that it is running: only the newest status of all segments counts
    since = max((r["time"] for r in recorded(folder) if "status" in r), default=0) if left and len(found) > 1 else 0
    return sum(Sender(segment, uri, since).send(wait=False) for segment in left)


def run_url(sent: Mapping[str, Any]) -> str | None:
    """The page of a run, from what is kept of its sending."""
    if not str(sent.get("uri", "")).startswith("http"):
        return None
    return f"{sent['uri']}/#/experiments/{sent['experiment_id']}/runs/{sent['run_id']}"


def history(folder: str | Path) -> dict[str, list[tuple[int, float, float]]]:
    """What a stage recorded of each metric: (step, seconds of work until then, value); nothing where there is no journal.

    The clock stands still from the end of one process, however it came, to the start of the next.
    """
    found: dict[str, list[tuple[int, float, float]]] = {}
    clock = last = 0
    for record in recorded(folder):
        if last and record.get("status") != "RUNNING":
            clock += max(0, record["time"] - last)
        last = record["time"]
        for name, value in record.get("metrics", {}).items():
            found.setdefault(name, []).append((record["step"], clock / 1000, value))
    return found


def segments(folder: str | Path) -> list[str]:
    """The files of a journal: one, to which all processes append; in an object store one for each process."""
    return [name for name in storage.listing(folder) if name.startswith("tracking") and name.endswith(".jsonl")]


def recorded(folder: str | Path) -> list[dict[str, Any]]:
    """What all processes recorded, by time; nothing where there is no journal."""
    own = _own(folder)
    found = [storage.read_bytes(storage.join(folder, name)) for name in segments(folder) if name != own.name]
    if own.exists():  # newer than what the object store has of it
        found.append(own.read_bytes())
    parsed = ((record for record, _ in _parsed(content.splitlines(keepends=True))) for content in found)
    return list(heapq.merge(*parsed, key=lambda record: record["time"]))


def _own(folder: str | Path) -> Path:
    """The file to which this process appends the records of a journal."""
    if not storage.is_remote(folder):
        return Path(folder, JOURNAL)
    spool = Path(_spool().name)
    return spool / str(folder).partition("://")[2] / f"{spool.name}.jsonl"


def _parsed(lines: Iterable[bytes], offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Each record and the offset of its end; a line that was cut short by a process that was killed is passed over."""
    for line in lines:
        offset += len(line)
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line), offset


class Segment:
    """A file of records, one JSON object a line, the first of which names the run; and how far a server has it."""

    def __init__(self, folder: str | Path, name: str) -> None:
        """Open it for sending; of another process's in an object store that is a copy, as far as it is there by now."""
        self.folder, self.path = str(folder), _own(folder).with_name(name)
        self.kept: float = math.inf  # bytes of it that outlive this process: all that is in a local folder
        self._sent, self._told = self.path.with_suffix(".sent.json"), b""  # and what the object store has of it
        self._publishing, self._refused = threading.Lock(), False
        if storage.is_remote(folder) and self.path != _own(folder):
            for path in (self.path, self._sent):
                if storage.exists(there := storage.join(folder, path.name)):
                    storage.publish_bytes(path, storage.read_bytes(there), durable=False)

    @property
    def head(self) -> dict[str, Any]:
        return next(self.lines())[0]

    def lines(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """The records from a byte offset on, each with the offset of its end."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            yield from _parsed(file, offset)

    def sent(self) -> dict[str, Any]:
        """How far it is sent: uri, run_id, experiment_id and the offset; empty before the first sending."""
        return json.loads(self._sent.read_text()) if self._sent.exists() else {}

    def remember(self, sent: Mapping[str, Any]) -> None:
        storage.publish_text(self._sent, json.dumps(sent))

    def unsent(self) -> int:
        """Records that the server has not taken."""
        return sum(1 for record, _ in self.lines(self.sent().get("offset", 0)) if "run" not in record)

    def publish(self) -> None:
        """Put what is new here into the object store. If that fails it is said, and tried again at the next call."""
        if not storage.is_remote(self.folder):
            return
        with self._publishing:  # one thread at a time: else an older copy could arrive last
            try:
                self._publish()
                self._refused = False
            except OSError as error:
                if not self._refused:
                    _say(f"{self.folder} does not take its journal ({brief(error)}): it is tried again and again")
                self._refused = True

    def _publish(self) -> None:
        if self._sent.exists() and (sent := self._sent.read_bytes()) != self._told:
            storage.publish_bytes(storage.join(self.folder, self._sent.name), sent)
            self._told = sent


class Journal(Segment):
    """The segment of a run's records to which this process appends."""

    def __init__(self, folder: str | Path, head: Mapping[str, Any]) -> None:
        """Open the journal in a folder; a new one begins with `head` and an id of its own."""
        super().__init__(folder, _own(folder).name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered: a record is one write at the end of the file, which outlives the process and mixes with no other
        self._file = open(self.path, "ab", buffering=0)
        with _locked(self.path):
            if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")  # written by a process that was killed half way
            if new := not (found := recorded(folder)):
                found = [self._write({"run": uuid.uuid4().hex, **head})]
            elif self.path.stat().st_size == 0:
                self._write(found[0])  # as the others' segments begin
            self._seen = {key for record in found for key in _points(record)}
            self._known = self.path.stat().st_size  # bytes of it whose points are in `_seen`
        if storage.is_remote(folder):  # a borrowed head alone is not worth an object
            self.kept = 0 if new else self.path.stat().st_size

    def append(self, record: dict[str, Any]) -> None:
        """Write what of a record is new: a parameter's name, a metric's name and step; all of any other kind."""
        with _locked(self.path):  # so that of two processes with the same point one sees the other's
            for other, end in self.lines(self._known):
                self._seen.update(_points(other))
                self._known = end
            step = record.get("step")
            for kind in {"params", "metrics"} & record.keys():
                new = {name: value for name, value in record[kind].items() if (name, step) not in self._seen}
                if not new:
                    return
                record = {**record, kind: new}
            self._write(record)

    def close(self) -> None:
        self._file.close()
        self.publish()

    def _publish(self) -> None:
        if self.path.stat().st_size > self.kept:
            content = self.path.read_bytes()
            storage.publish_bytes(storage.join(self.folder, self.path.name), content)
            self.kept = len(content)
        super()._publish()

    def _write(self, record: dict[str, Any]) -> dict[str, Any]:
        record = {**record, "time": record.get("time", int(time.time() * 1000))}
        self._file.write(json.dumps(record).encode() + b"\n")
        return record


class Sender:
    """Brings a server up to date with a segment of a journal."""

    def __init__(self, journal: Segment, uri: str, since: int = 0) -> None:
        """since: earlier statuses are left out, ms: another segment has a later one."""
        for name, value in CLIENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._journal, self._uri, self._since = journal, uri, since
        self._client = MlflowClient(tracking_uri=uri)
        self._run: dict[str, Any] | None = None  # uri, run_id, experiment_id, parent_id

    def send(self, wait: bool = True) -> int:
        """Send the records that the server does not have; how many. What `unavailable` names is raised.

        One process sends at a time; with wait=False nothing is sent when another one is at it.
        """
        with _locked(self._journal.path.with_name(LOCK), wait) as held:
            if not held:
                return 0
            try:
                return self._send()
            except unavailable():
                self._run = None  # it may be gone: the next try looks for it again
                raise

    def _send(self) -> int:
        if self._run is None:
            self._run = self._find_run()
        self._journal.publish()
        sent, count = self._journal.sent(), 0
        if any(sent.get(name) != self._run[name] for name in ("uri", "run_id")):
            sent = {**self._run, "offset": 0}  # a new run, or another server: all of it
        # a point that only the server had would be recorded again, with another time, after a crash
        kept = takewhile(lambda line: line[1] <= self._journal.kept, self._journal.lines(sent["offset"]))
        for records, end in _grouped(kept):
            self._log(records)
            count += len(records)
            sent["offset"] = end
            self._journal.remember(sent)
        if count:
            self._journal.publish()
        return count

    def _find_run(self) -> dict[str, Any]:
        """The run of this journal and its parent, made if they are not there."""
        head = self._journal.head
        # the parent's own sender holds the same lock while it makes the same run
        above = self._journal.path.parent.parent / LOCK
        with _locked(above) if head["parent"] else contextlib.nullcontext():
            experiment = self._find_experiment(head["experiment"])
            parent = head["parent"] and self._find_or_create(
                experiment, head["parent"], head["name"], {"stage": PARENT}
            )
            tags = {"stage": head["stage"], **({"mlflow.parentRunId": parent} if parent else {})}
            name = head["stage"] if parent else head["name"]
            run = self._find_or_create(experiment, head["run"], name, tags)
        return {"uri": shown(self._uri), "run_id": run, "experiment_id": experiment, "parent_id": parent}

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:  # another run made it in between
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def _find_or_create(self, experiment: str, ours: str, name: str, tags: dict[str, str]) -> str:
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{ours}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {RUN_TAG: ours, "mlflow.source.name": "caption-canvas", "mlflow.source.git.commit": git_commit(), **tags}
        return self._client.create_run(experiment, run_name=name, tags=tags).info.run_id

    def _log(self, records: list[dict[str, Any]]) -> None:
        first = records[0]
        if "artifact" in first:
            self._log_artifact(first["artifact"], first["folder"])
        elif "status" in first:
            self._set_status(first)
        else:
            self._log_batch(records)

    def _log_batch(self, records: list[dict[str, Any]]) -> None:
        """One request; when the server refuses it for its content, the refused record alone is left out, and said."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        metrics, params, tags = [], [], []
        for record in records:
            metrics += [
                Metric(_legal(name), value, record["time"], record["step"])
                for name, value in record.get("metrics", {}).items()
            ]
            params += [Param(_legal(name), value) for name, value in record.get("params", {}).items()]
            tags += [RunTag(_legal(name), value) for name, value in record.get("tags", {}).items()]
        try:
            self._client.log_batch(self._run["run_id"], metrics, params, tags)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or self._deleted():
                raise
            if len(records) > 1:
                for record in records:
                    self._log_batch([record])
            else:
                _say(f"MLflow refuses a record of {self._journal.folder} ({brief(error)}): left out")

    def _deleted(self) -> bool:
        """Whether a person has deleted the run meanwhile; then the next try makes a new one, with all records."""
        return self._client.get_run(self._run["run_id"]).info.lifecycle_stage != "active"

    def _log_artifact(self, path: str, folder: str) -> None:
        if not storage.exists(path):
            _say(f"{path} is gone before MLflow had it: left out")
        elif storage.is_remote(path):
            with tempfile.TemporaryDirectory() as place:
                self._client.log_artifact(self._run["run_id"], str(storage.copy_in(path, Path(place))), folder or None)
        elif os.path.isdir(path):
            self._client.log_artifacts(self._run["run_id"], path, folder or None)
        else:
            self._client.log_artifact(self._run["run_id"], path, folder or None)

    def _set_status(self, record: dict[str, Any]) -> None:
        if record["time"] < self._since:
            return
        for run in (self._run["run_id"], self._run["parent_id"] if record["leads"] else None):
            if run and record["status"] == "RUNNING":
                self._client.update_run(run, status="RUNNING")
            elif run:
                self._client.set_terminated(run, record["status"], record["time"])


def _grouped(lines: Iterable[tuple[dict[str, Any], int]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Consecutive metrics, params and tags as one request within the server's limits; anything else alone."""
    group: list[dict[str, Any]] = []
    room, group_end = dict(BATCH), 0
    for record, end in lines:
        kind = next((kind for kind in BATCH if kind in record), None)
        if group and (kind is None or len(record[kind]) > room[kind]):
            yield group, group_end
            group, room = [], dict(BATCH)
        if kind is not None:
            group.append(record)
            room[kind] -= len(record[kind])
            group_end = end
        elif "run" not in record:
            yield [record], end
    if group:
        yield group, group_end


def _points(record: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """What a record fixes for good: (parameter, None) and (metric, step)."""
    for kind in ("params", "metrics"):
        yield from ((name, record.get("step")) for name in record.get(kind, ()))


def _legal(name: str) -> str:
    """A name as MLflow takes it: 'R@1' is 'R_1'."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _above(folder: str | Path) -> str:
    return str(folder).rstrip("/").rpartition("/")[0]


@lru_cache(maxsize=1)
def _spool() -> tempfile.TemporaryDirectory:
    """Where this process keeps its local copies of journals in object stores; removed at its end."""
    return tempfile.TemporaryDirectory(prefix="tracking-")


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file; the kernel frees it when the holder dies. False, and no lock, when wait=False and it is held."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def unavailable() -> tuple[type[Exception], ...]:
    """What a server that is down, slow or refusing raises in its client (requests' errors are OSErrors)."""
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError


def brief(error: Exception) -> str:
    """The cause in a few words: MLflow quotes whole chains of urllib3 errors."""
    text = shown(" ".join(str(error).split()))
    if named := re.search(r"Connection refused|[Tt]imed out|Name or service not known|Invalid Host header", text):
        return named[0].lower()
    return text[:160]


def _say(line: str) -> None:
    print(f"tracking: {line}", file=sys.stderr, flush=True)
