"""Train the sharpener of a run's drawings, adversarially, data-parallel on Ray, from its latest checkpoint on:

    python -m jobs.sharpen digits-demo --out out
    python -m jobs.sharpen coco-aligndraw --out out --sharpen.steps 200 --train.workers 2

The run must be trained (jobs.train); its data set and its best checkpoint are taken. Stopped by a signal it saves first;
started again it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.arguments import entry, parse
from jobs.workspace import EXPERIMENT, Workspace
from pipeline import storage
from pipeline.config import BOUNDED, to_dict


def main(argv: Sequence[str] | None = None) -> dict:
    """The sharpener's checkpoint and how training ended."""
    arguments = parse(__doc__, argv)
    if (kind := arguments.config.model.kind) not in BOUNDED:
        raise ValueError(f"a {kind} does not reconstruct images: only {' and '.join(BOUNDED)} models can be sharpened")
    workspace = Workspace(arguments.out, arguments.config)
    with workspace.opened():
        if (result := workspace.finished("sharpen")) is not None:
            print(f"run {arguments.config.name} is sharpened: {result['checkpoint']}", flush=True)
            return result
        return _sharpen(workspace, workspace.require("train"))


def _sharpen(workspace: Workspace, trained: dict) -> dict:
    from pipeline import checkpoint
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.group import CHECKPOINTS
    from pipeline.on_ray.sharpen import sharpen
    from pipeline.shards.manifest import load_manifest
    from pipeline.tracking import tracking_uri

    config, folder = workspace.config, workspace.stage("sharpen")
    dataset, drawing = trained["dataset"], trained["checkpoint"]
    with workspace.tracker("sharpen") as tracker:
        tracker.params(to_dict(config))
        tracker.tags({"data": load_manifest(dataset).digest, "drawing": drawing})
        connect()
        tracking = (folder, EXPERIMENT, config.name, "sharpen", tracking_uri())
        outcome = sharpen(config, dataset, drawing, folder, tracking)
        last = checkpoint.best(storage.join(folder, CHECKPOINTS))
        for name in (checkpoint.WEIGHTS, checkpoint.META):
            tracker.artifact(storage.join(last.path, name), "checkpoint")
        return workspace.finish(
            "sharpen",
            {
                **outcome,
                "checkpoint": last.path,
                "checkpoint_step": last.step,
                "drawing": drawing,
                "dataset": dataset,
                "mlflow_run_id": tracker.run_id,
            },
        )


if __name__ == "__main__":
    entry(main)
