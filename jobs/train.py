"""Train a recipe's model on its data set, data-parallel on Ray, from its latest checkpoint on:

    python -m jobs.train mnist-aligndraw --data data/mnist --out out
    python -m jobs.train digits-demo --out out --train.steps 200 --train.workers 2
    python -m jobs.train digits-demo --out out --name longer --train.lr 0.0005 \
        --start-from out/runs/digits-demo/train/checkpoints/step-00005000

Stopped by a signal it saves first; started again it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.arguments import Arguments, entry, parse
from jobs.workspace import EXPERIMENT, Workspace
from pipeline import storage
from pipeline.config import to_dict

if TYPE_CHECKING:
    from pipeline.checkpoint import Origin


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    start_from: str | None = None
    """A checkpoint's folder: training begins with its weights; words that it does not know begin anew. None: at random."""


def main(argv: Sequence[str] | None = None) -> dict:
    """The best checkpoint and how training ended."""
    arguments = parse(__doc__, argv, TrainArguments)
    workspace = Workspace(arguments.out, arguments.config)
    with workspace.opened():
        if (result := workspace.finished("train")) is not None:
            print(
                f"run {arguments.config.name} is finished: {result['step']} steps, {result['checkpoint']}", flush=True
            )
            return result
        return _train(workspace, arguments)


def _train(workspace: Workspace, arguments: TrainArguments) -> dict:
    from pipeline import checkpoint
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.group import CHECKPOINTS
    from pipeline.on_ray.score import JUDGED, judge_file, prepare_judge
    from pipeline.on_ray.train import origin_of, train
    from pipeline.shards.manifest import find_dataset, load_manifest
    from pipeline.sources import open_source
    from pipeline.tracking import tracking_uri

    config, folder = workspace.config, workspace.stage("train")
    source = open_source(config.dataset, arguments.data).digest if arguments.data else None
    dataset = find_dataset(workspace.out, config.dataset, source)
    manifest = load_manifest(dataset)
    with workspace.tracker("train") as tracker:
        tracker.params(to_dict(config))
        tracker.tags({"data": manifest.digest})
        if arguments.start_from is not None and not checkpoint.found(storage.join(folder, CHECKPOINTS)):
            _start(origin_of(config, manifest), storage.join(folder, CHECKPOINTS), arguments.start_from)
            tracker.tags({"start_from": arguments.start_from})
        connect()
        judge = None
        if config.train.judged and config.dataset.source in JUDGED:
            judge = judge_file(workspace.out, manifest.digest, config.evaluation.judge_steps)
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


def _start(origin: Origin, folder: str, path: str) -> None:
    """Make a checkpoint of step 0 in a folder, with the weights of the one at a path: training goes on from there."""
    from pipeline import checkpoint
    from pipeline.on_ray.train import new_state
    from pipeline.training.warm import take_weights

    other, state, words = checkpoint.load(path, optimizers=False), new_state(origin), origin.vocabulary.words
    for name, network in state.networks.items():
        try:
            known = take_weights(network, other.networks.get(name, {}), words, other.origin.vocabulary.words)
        except ValueError as differs:
            raise ValueError(f"training cannot start from {path}: {differs}; begin without its weights") from None
    checkpoint.save(folder, state, origin)
    print(f"starting from {path}, which knew {known} of {len(words)} words", flush=True)


if __name__ == "__main__":
    entry(main)
