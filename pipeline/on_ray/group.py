"""A group of training processes under Ray Train: started, watched, started again when it dies, stopped when asked.

Ray Train gives places to run, ranks and a process group. Checkpoints are ours (pipeline/checkpoint.py): a group that starts
looks for the latest one itself, so a restart, a new submission and a run without Ray go on in the same way.

Choice: one Ray Train run is one attempt, and this file decides about another. Ray's own FailureConfig retries every
exception, so a wrong config or a loss that is not finite would cost a restart (20 s) for each retry before it is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from pipeline import checkpoint, storage
from pipeline.config import TrainConfig
from pipeline.training.ranks import Ranks, join

Say = Callable[[str], None]
CHECKPOINTS = "checkpoints"  # folder of a stage's checkpoints, below the stage's
STOP, BOOKKEEPING = "stop", "ray"  # beside them: the request to stop, and what Ray Train writes for itself
LOOK_EVERY_S, ASK_EVERY_S = 0.5, 2.0  # between looks for the request, and questions about the machines
# How long a group waits for its places, and how often it is tried before we give up: there is no room for it. Places may come
# with machines that take minutes to join. An elastic group takes fewer instead: it must ask again soon, because what it
# believes to be there may be a machine that has just gone (Ray counts them every 20 s, and those that are taken away too).
PATIENCE_S, STARTS = 300, 3
ELASTIC_PATIENCE_S, ELASTIC_STARTS = 30, 30
LETTING_GO_S = 3.0

# Of Ray Train. The end of a group is noticed by polling, every 2 s unless told otherwise; workers' prints would come twice.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}

# What would happen again: mistakes in config, data or code. Anything else (lost processes and connections, storage that does
# not answer) is tried again.
LASTING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NameError,
    ImportError,
    AssertionError,
    NotImplementedError,
)
LASTING_ERRNO = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
}


def tell(line: str) -> None:
    """Print at once, also where standard output is a file that somebody follows."""
    print(line, flush=True)


def run_group(
    work: Callable[[dict], dict | None], order: dict, config: TrainConfig, folder: str, say: Say = tell
) -> dict:
    """Run `work(order)` on every worker of a group until it is done; returns what the first rank returned.

    folder: of the stage. order: plain values; `stop` is added to it, for `StopRequest`. A group that died is started again
    and goes on from the latest checkpoint, up to `config.retries` times without a new one. An error that would come again is
    raised as it is. SIGTERM to this process asks the workers to save and end; then so does this process, by SystemExit.
    """
    patience = ELASTIC_PATIENCE_S if config.min_workers else PATIENCE_S
    for name, value in (SETTINGS | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience)}).items():
        os.environ.setdefault(name, value)
    stop, kept, failures = storage.join(folder, STOP), _steps(folder), 0
    storage.delete(stop)
    _tell_room(config, say)
    with _asked_to_stop(stop) as asked:
        while True:
            try:
                result = _attempt(work, {**order, "stop": stop}, config, folder)
            except TrainingFailedError as failure:
                error = _cause(failure)
                if _lasts(error):
                    raise error from None
                failures, kept = (failures + 1 if _steps(folder) == kept else 1), _steps(folder)
                if asked.is_set():
                    say(f"stopped while the workers were lost ({_line(error)}): {_going_on(kept)}")
                    raise SystemExit(128 + signal.SIGTERM) from failure
                if failures > config.retries:
                    retries = f"{config.retries} retries without a new checkpoint"
                    raise OSError(f"training failed, after {retries}: {_line(error)}") from failure
                say(f"lost the workers ({_line(error)}): starting them again, {failures} of {config.retries}")
                time.sleep(min(2.0**failures, 30.0))
                continue
            if asked.is_set():
                storage.delete(stop)
                say(f"stopped with {_going_on(_steps(folder))}")
                raise SystemExit(128 + signal.SIGTERM)
            if result.get("reason") != "stopped":  # stopped, but not by us: the machine is taken away, go on elsewhere
                return result
            say("the workers saved and ended because a machine of theirs is taken away: going on elsewhere")


def enter_group(config: TrainConfig) -> Ranks | None:
    """First line of a worker: threads, precision, device and place in the group; None for one that is left over (ranks.join)."""
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul)
    # Squares that RMSprop has decayed, and Gaussian windows, are denormal numbers: a hundred times slower, and as good as 0.
    torch.set_flush_denormal(True)
    device = get_device() if config.gpu else "cpu"
    if (ranks := join(config.batch // config.accumulate, config.lanes, device=device)) is None:
        _aside(_watch_machines, threading.Event())  # the others ask together with us
    return ranks


class StopRequest:
    """Whether the run is to end: it was asked to, or a machine of the group will be taken away.

    Made on every rank and called before every step; the loop makes what one rank wants known to all. What takes its time
    (an object store, an answer from Ray) happens aside, until it is closed.
    """

    def __init__(self, path: str, first: bool):
        self._asked = threading.Event()
        _aside(_watch_machines, self._asked)
        if first:
            _aside(_watch_file, path, self._asked)

    def __call__(self) -> bool:
        return self._asked.is_set()

    def close(self) -> None:
        """The loop is over: what waits for a request ends, as after one."""
        self._asked.set()


def _watch_file(path: str, asked: threading.Event) -> None:
    while not asked.wait(LOOK_EVERY_S):
        with contextlib.suppress(OSError):  # no answer this time: ask again
            if storage.exists(path):
                asked.set()


def _watch_machines(asked: threading.Event) -> None:
    """Ray knows when a node gets SIGTERM, or is drained, some time before it goes. All ranks ask together."""
    while not asked.wait(ASK_EVERY_S):
        try:
            if get_preemption_info() is not None:
                asked.set()
        except RuntimeError:  # these are not Ray Train's workers
            return


def _aside(work: Callable, *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, name=work.__name__, daemon=True).start()


def _attempt(work: Callable[[dict], dict | None], order: dict, config: TrainConfig, folder: str) -> dict:
    """One Ray Train run, under a name of its own: Ray would take an old name for a wish to go on from its records."""
    filesystem, path = storage.resolve(storage.join(folder, BOOKKEEPING))
    storage.make_folder(storage.join(folder, BOOKKEEPING))
    trainer = TorchTrainer(
        work,
        train_loop_config=order,
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,
            use_gpu=config.gpu,
            resources_per_worker=_resources(config),
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=ELASTIC_STARTS if config.min_workers else STARTS
            ),
        ),
    )
    try:
        return trainer.fit().return_value or {}
    finally:
        with contextlib.suppress(OSError):
            storage.delete(storage.join(folder, BOOKKEEPING))


def _resources(config: TrainConfig) -> dict[str, float]:
    return {"CPU": config.threads, **({"GPU": 1} if config.gpu else {})}


def _tell_room(config: TrainConfig, say: Say) -> None:
    """A line when the cluster is too small or too busy as it is; that may change, so this is no error yet."""
    least = config.min_workers or config.workers
    for name, each in _resources(config).items():
        needed, there = least * each, ray.cluster_resources().get(name, 0)
        if there < needed:
            found, then = f"the cluster has {there:g}", "nodes join"
        elif (free := _free(name, needed)) < needed:
            found, then = f"{free:g} of {there:g} are free", "others end"
        else:
            continue
        say(
            f"waiting for room: {least} workers x {each:g} {name} are asked for, {found}; it starts when {then}, else lower "
            f"--train.workers or {'--train.threads' if name == 'CPU' else 'leave out --train.gpu'}"
        )


def _free(name: str, needed: float) -> float:
    """What is free of a resource; a stage that has just ended is given a moment to let go of what it had."""
    until = time.monotonic() + LETTING_GO_S
    while (free := ray.available_resources().get(name, 0)) < needed and time.monotonic() < until:
        time.sleep(0.2)
    return free


@contextlib.contextmanager
def _asked_to_stop(stop: str) -> Iterator[threading.Event]:
    """While the block runs, SIGTERM is passed on to the workers by a file; a second one ends this process as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be received
        yield asked
        return

    def receive(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        asked.set()
        storage.publish_text(stop, "")

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _cause(failure: TrainingFailedError) -> BaseException:
    """The error behind Ray Train's: of a rank that failed by its own fault, if there is one."""
    if isinstance(failure, ControllerError):
        return failure.controller_failure
    if not isinstance(failure, WorkerGroupError):
        return failure
    errors = [getattr(error, "_base_exc", error) for _, error in sorted(failure.worker_failures.items())]
    return next((error for error in errors if _lasts(error)), errors[0] if errors else failure)


def _lasts(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in LASTING_ERRNO
    return isinstance(error, LASTING)


def _steps(folder: str) -> list[int]:
    """Steps of the checkpoints that are there."""
    return [checkpoint.step_of(path) for path in checkpoint.found(storage.join(folder, CHECKPOINTS))]


def _going_on(steps: list[int]) -> str:
    return f"a checkpoint at step {steps[-1]}: the same command goes on from there" if steps else "no checkpoint yet"


def _line(error: BaseException) -> str:
    words = str(error).split()
    return f"{type(error).__name__}: {' '.join(words)}"[:300]
