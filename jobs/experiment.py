"""The main job: a recipe from its data to pictures, each stage skipped when its result is already there:

    python -m jobs.experiment digits-demo --out out
    python -m jobs.experiment coco-aligndraw --data data/coco --out out --train.steps 200

shard -> train -> sharpen -> evaluate -> figures: every stage is a job of its own too, and this one calls them in order.
Stages that a system does not have are left out: LAPGAN has no sharpener, a captioner ends with training.
Interrupted, it goes on where it was when it is started again. In MLflow it is one run with a nested run for each stage.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.arguments import Arguments, entry, parse
from jobs.train import TrainArguments
from jobs.workspace import STAGES, Workspace
from pipeline import storage
from pipeline.config import to_dict
from pipeline.tracking import PARENT, Tracker


@dataclass(frozen=True, kw_only=True)
class ExperimentArguments(TrainArguments):
    fresh: bool = False
    """Start over: first remove what an earlier run of this name made. Shards stay, they depend on their source alone."""


def main(argv: Sequence[str] | Arguments | None = None) -> dict:
    """Runs what is missing of the stages; where everything is, and the numbers of the evaluation."""
    arguments = parse(__doc__, argv, ExperimentArguments)
    workspace = Workspace(arguments.out, arguments.config)
    if arguments.fresh:
        if (start := arguments.start_from) and f"{start}/".startswith(f"{workspace.folder}/"):
            raise ValueError(f"--fresh would remove {start}, from which training is to start: take another --name")
        _remove(workspace)
    with workspace.opened(), workspace.tracker(PARENT) as tracker:
        tracker.params(to_dict(arguments.config))
        stages = _run(workspace, arguments)
        return _summary(workspace, stages, tracker)


def _run(workspace: Workspace, given: Arguments) -> dict[str, dict]:
    """Every stage's result: the one that is there, or one made now, and then all after it, which were made from others."""
    results, made, left_out = {}, False, workspace.left_out()
    for stage in STAGES:
        if stage in left_out:
            print(f"== {stage}: left out, {left_out[stage]}", flush=True)
            continue
        if (result := workspace.finished(stage)) is not None and not made:
            print(f"== {stage}: done before, in {workspace.stage(stage)}", flush=True)
        else:
            if result is not None:
                storage.delete(workspace.stage(stage))
            print(f"== {stage}", flush=True)
            began = time.monotonic()
            result = importlib.import_module(f"jobs.{stage}").main(given)
            # training that jobs.train did on these very shards stays: it needs no shard stage of its own
            made = stage != "shard" or (workspace.finished("train") or result)["dataset"] != result["dataset"]
            print(f"== {stage}: done in {time.monotonic() - began:.0f} s", flush=True)
        results[stage] = result
    return results


def _remove(workspace: Workspace) -> None:
    """Empty the run's folder, if no other process works in it."""
    storage.make_folder(workspace.folder)
    with workspace.locked():
        for name in storage.listing(workspace.folder):
            if name != "lock":
                storage.delete(storage.join(workspace.folder, name))


def _summary(workspace: Workspace, results: dict[str, dict], tracker: Tracker) -> dict:
    """Print the table and where to look; the job's result."""
    metrics, shown = _figures(results), results.get("figures", {})
    picture, page = shown.get("picture"), shown.get("page")
    tracker.tags({"data": results["shard"]["digest"]})
    tracker.metrics(metrics, results["train"]["checkpoint_step"])
    for made in filter(None, (picture, page)):
        tracker.artifact(made)
    tracker.flush()
    if "evaluate" in results:
        print(f"\n{results['evaluate']['table']}\n")
    if picture is not None:
        print(f"Picture  {picture}")
    if page is not None:
        print(f"Page     {page}")
    if tracker.url:
        print(f"MLflow   {tracker.url}")
    return {
        "run": workspace.config.name,
        "folder": workspace.folder,
        "picture": picture,
        "page": page,
        "mlflow_run_id": tracker.run_id,
        "mlflow": tracker.url,
        "metrics": metrics,
    }


def _figures(results: dict[str, dict]) -> dict[str, float]:
    """The numbers of the evaluation; of a system that has none, what training measured on the validation split."""
    if "evaluate" in results:
        return results["evaluate"]["metrics"]
    bound = results["train"]["validation_bound"]
    return {} if bound is None else {"val/bound": bound}


if __name__ == "__main__":
    entry(main)
