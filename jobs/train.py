"""Train a recipe's model on its data set, data-parallel on Ray, from its latest checkpoint on:

    python -m jobs.train mnist-aligndraw --data data/mnist --out out
    python -m jobs.train digits-demo --out out --train.steps 200 --train.workers 2

Stopped by a signal it saves first; started again it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.arguments import entry, parse
from jobs.workspace import EXPERIMENT, Workspace
from pipeline import storage
from pipeline.config import to_dict


def main(argv: Sequence[str] | None = None) -> dict:
    """The best checkpoint and how training ended."""
    arguments = parse(__doc__, argv)
    workspace = Workspace(arguments.out, arguments.config)
    with workspace.opened():
        if (result := workspace.finished("train")) is not None:
            print(
                f"run {arguments.config.name} is finished: {result['step']} steps, {result['checkpoint']}", flush=True
            )
            return result
        return _train(workspace, arguments.data)


def _train(workspace: Workspace, data: str | None) -> dict:
    from pipeline import checkpoint
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.group import CHECKPOINTS
    from pipeline.on_ray.score import JUDGED, judge_file, prepare_judge
    from pipeline.on_ray.train import train
    from pipeline.shards.manifest import find_dataset, load_manifest
    from pipeline.sources import open_source
    from pipeline.tracking import tracking_uri

    config, folder = workspace.config, workspace.stage("train")
    source = open_source(config.dataset, data).digest if data else None
    dataset = find_dataset(workspace.out, config.dataset, source)
    with workspace.tracker("train") as tracker:
        tracker.params(to_dict(config))
        tracker.tags({"data": load_manifest(dataset).digest})
        connect()
        judge = None
        if config.train.judged and config.dataset.source in JUDGED:
            judge = judge_file(workspace.out, load_manifest(dataset).digest, config.evaluation.judge_steps)
            prepare_judge(dataset, config.evaluation, judge)
        tracking = (folder, EXPERIMENT, config.name, "train", tracking_uri())
        outcome = train(config, dataset, folder, tracking, judge=judge)
        best = checkpoint.best(storage.join(folder, CHECKPOINTS))
        for name in (checkpoint.WEIGHTS, checkpoint.META):
            tracker.artifact(storage.join(best.path, name), "checkpoint")
        return workspace.finish(
            "train",
            {
                **outcome,
                "checkpoint": best.path,
                "checkpoint_step": best.step,
                "validation_bound": best.bound,
                "dataset": dataset,
                "mlflow_run_id": tracker.run_id,
            },
        )


if __name__ == "__main__":
    entry(main)
