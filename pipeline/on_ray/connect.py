"""The way every job reaches Ray."""

from __future__ import annotations

import os
import re
import socket

import ray

# Times that a task is tried again which Ray ended because the machine's memory was full. Ray waits 1 s before the first and
# twice as long before each one more, up to a minute; without a number from us it would never give up.
OOM_RETRIES = 8


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a submitted job; without it start Ray here, on loopback alone.

    OSError in one line when there is no Ray at the address, or none comes up here.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    # with its dashboard, on loopback too: Ray Train asks it whether the controller lives, and complains where it is not
    alone = {} if address else {"_node_ip_address": "127.0.0.1"}
    os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
    try:
        if address and (named := re.fullmatch(r"([\w.-]+):(\d+)", address)):  # Ray would try an empty one for ever
            socket.create_connection((named[1], int(named[2])), timeout=30).close()
        ray.init(logging_level="WARNING", **alone)
    except Exception as error:  # Ray raises what it has at hand, often a bare Exception
        where = f"Ray at {address} could not be joined" if address else "Ray did not start on this machine"
        raise OSError(
            f"{where} ({' '.join(str(error).split())[:300].rstrip('.')}): if the machine is too busy, or its memory full, "
            "type the command again when it is less so"
        ) from error
