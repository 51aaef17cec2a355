"""The way every job reaches Ray."""

from __future__ import annotations

import os

import ray


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a submitted job; without it start Ray here, on loopback alone.

    ConnectionError when there is no Ray at the address.
    """
    # with its dashboard, on loopback too: Ray Train asks it whether the controller lives, and complains where it is not
    alone = {} if "RAY_ADDRESS" in os.environ else {"_node_ip_address": "127.0.0.1"}
    if not ray.is_initialized():
        ray.init(logging_level="WARNING", **alone)
