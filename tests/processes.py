"""Real processes for tests: a group of ranks over gloo, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

KILLED = "killed"  # what a rank that died without a word returns
TIMEOUT_S = 60


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """work(*arguments) in `ranks` processes that form one gloo group; what each returned, its exception, or KILLED.

    The processes are forked from one that has imported torch and started no thread, so a group costs half a second.
    """
    context = forking()
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            here, there = context.Pipe()
            task = (there, f"file://{folder}/meeting", rank, ranks, work, arguments)
            processes.append(context.Process(target=_rank, args=task, daemon=True))
            processes[-1].start()
            there.close()
            pipes.append(here)
        try:
            return _collect(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def forking() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported the slow packages already, and have no threads yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed", "torch.nn.parallel", "torch._dynamo", "pyarrow.fs", "ray.train.torch"]
    )
    return context


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], TIMEOUT_S)
        assert ready, f"ranks {sorted(set(range(len(pipes))) - set(results))} did not answer in {TIMEOUT_S} s"
        for rank, pipe in enumerate(pipes):
            if pipe in ready:
                try:
                    results[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    results[rank] = KILLED
    return [results[rank] for rank in range(len(pipes))]


def _rank(pipe: Connection, meeting: str, rank: int, ranks: int, work: Callable[..., Any], arguments: tuple) -> None:
    import torch
    import torch.distributed as dist

    torch.set_flush_denormal(True)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        result = work(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = error
    pipe.send_bytes(pickle.dumps(result))  # by value: `send` would share tensors through a process that is about to end
    # A rank that is ready first would close its connections while another still makes or reads them, so it stays until
    # the last has answered and the other end is closed, as under Ray Train. One that failed must not: others wait for it.
    if not isinstance(result, Exception):
        pipe.poll(None)
    os._exit(0)
