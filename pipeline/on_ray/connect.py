"""The way every job reaches Ray."""

from __future__ import annotations

import os

import ray


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a submitted job; without it start Ray here, on loopback alone.

    ConnectionError when there is no Ray at the address.
    """
    alone = {}
    if "RAY_ADDRESS" not in os.environ:
        alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if not ray.is_initialized():
        ray.init(logging_level="WARNING", **alone)
