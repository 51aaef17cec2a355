"""Measure a trained run on its test split, with workers on Ray: bounds, retrieval, similarity, and a judge of drawn digits:

    python -m jobs.evaluate digits-demo --out out
    python -m jobs.evaluate coco-aligndraw --out out --evaluation.workers 8 --evaluation.queries 1000

The run must be trained (jobs.train); if it has a sharpener (jobs.sharpen), everything is measured before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.arguments import entry, parse
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.config import BOUNDED, to_dict

VALUES = "values.npz"  # what the figures are means of, image by image (pipeline/evaluation/values.py)


def main(argv: Sequence[str] | None = None) -> dict:
    """All figures by name, a table of the main ones, and the file of what they are means of."""
    arguments = parse(__doc__, argv)
    workspace = Workspace(arguments.out, arguments.config)
    workspace.check_draws()
    with workspace.opened():
        trained, sharpened = workspace.require("train"), workspace.finished("sharpen")
        measured = {"drawing": trained["checkpoint"], "sharpener": sharpened["checkpoint"] if sharpened else None}
        result = workspace.finished("evaluate")
        if result is not None and measured.items() <= result.items() and "values" in result:
            print(f"run {arguments.config.name} is evaluated:\n\n{result['table']}\n", flush=True)
            return result
        return _evaluate(workspace, trained, measured)


def _evaluate(workspace: Workspace, trained: dict, measured: dict) -> dict:
    from pipeline.evaluation import values
    from pipeline.evaluation.report import run_table
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.score import Order, evaluate, judge_file
    from pipeline.shards.manifest import load_manifest

    config, folder = workspace.config, workspace.stage("evaluate")
    with workspace.tracker("evaluate") as tracker:
        digest = load_manifest(trained["dataset"]).digest
        tracker.params(to_dict(config))
        tracker.tags({"data": digest, **measured})
        connect()
        bounded = config.model.kind in BOUNDED
        if not bounded:
            print(f"a {config.model.kind} has no bound: neither that nor retrieval by it is measured", flush=True)
        apart = getattr(config.model, "align_where", False)
        order = Order(trained["dataset"], measured["drawing"], measured["sharpener"], config.evaluation, bounded, apart)
        kept = judge_file(workspace.out, digest, config.evaluation.judge_steps)
        found = evaluate(order, kept, log=lambda line: print(line, flush=True))
        tracker.metrics(found.figures, trained["checkpoint_step"])
        table = run_table(found.figures)
        print(f"\n{table}\n", flush=True)
        storage.publish_text(storage.join(folder, "table.md"), table + "\n")
        storage.publish_bytes(storage.join(folder, VALUES), values.to_bytes(found.values))
        for name in ("table.md", VALUES):
            tracker.artifact(storage.join(folder, name))
        result = {
            **measured,
            "metrics": found.figures,
            "table": table,
            "values": storage.join(folder, VALUES),
            "mlflow_run_id": tracker.run_id,
        }
        return workspace.finish("evaluate", result)


if __name__ == "__main__":
    entry(main)
