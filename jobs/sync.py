"""Send to MLflow what its server missed while it was down, of every run in a folder:

    python -m jobs.sync --out out

Every stage keeps its records in a journal (pipeline/tracking.py). The next stage sends what is left; this job is for runs
that have no next stage, and for another server: MLFLOW_TRACKING_URI, else the server that `make up` started here.
"""

from __future__ import annotations

import argparse

from cluster import local
from jobs.arguments import absolute, entry
from pipeline import storage, tracking


def main(argv: list[str] | None = None) -> dict:
    """Sends what is unsent; {"uri", "records"}."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.sync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="out", help="the folder that the jobs were given")
    out = absolute(parser.parse_args(argv).out)
    uri = tracking.tracking_uri() or local.environment().get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise ValueError("no MLflow to send to: set MLFLOW_TRACKING_URI, or start one here with `make up`")
    folders = {name: storage.join(out, "runs", name) for name in storage.listing(storage.join(out, "runs"))}
    if not folders:
        raise ValueError(f"{out}/runs has no runs: give --out as the jobs had it")
    compared = storage.listing(storage.join(out, "compare"))
    folders |= {f"compare {name}": storage.join(out, "compare", name) for name in compared if "." not in name}
    try:
        counts = {name: tracking.sync(folder, uri) for name, folder in folders.items()}
    except tracking.unavailable() as error:
        raise ValueError(
            f"MLflow at {tracking.shown(uri)} does not take records ({tracking.brief(error)}); nothing is lost"
        ) from None
    for name, count in counts.items():
        print(f"{name}: {count} records sent" if count else f"{name}: all records were there")
    return {"uri": tracking.shown(uri), "records": sum(counts.values())}


if __name__ == "__main__":
    entry(main)
