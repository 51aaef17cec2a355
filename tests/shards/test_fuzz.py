"""Damaged shards, records and manifests give a result or one clear line; the long version is fuzz_shards.py itself."""

from __future__ import annotations

import pytest

from tests.shards.fuzz_shards import READERS
from tests.sources.fuzz_sources import fuzz


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(reader: str) -> None:
    outcomes = fuzz(reader, 400, seed=1, readers=READERS)
    assert outcomes["refused"] > 50
