"""Train and evaluate several systems on the same shards, and put them side by side: the paper's tables and one page:

    python -m jobs.compare --data data/coco --out out --recipes coco-aligndraw coco-noaligndraw coco-fc-vae coco-captioner
    python -m jobs.compare --out out --recipes tiny-aligndraw tiny-lapgan --name two --train.steps 50

Each recipe is a run of its own, OUT/runs/RECIPE, made by jobs.experiment; what is done is skipped, so the same command goes on
after an interruption. Fields of the config (--train.steps 50) hold for all recipes. The first recipe that draws is the one that
the others are compared with. A captioner among the recipes, or a trained one named by --captioner, is shown what they drew.

Result: OUT/compare/NAME/ with tables.md and report/index.html; in MLflow one run "compare NAME" with the ids of the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from jobs import experiment
from jobs.arguments import Arguments, absolute, entry, parse
from jobs.artist import SUBJECTS
from jobs.workspace import EXPERIMENT, Workspace, computed
from pipeline import storage
from pipeline.config import BOUNDED, DRAWLESS, RunConfig, difference, from_dict, to_dict
from pipeline.tracking import PARENT, Tracker, tracking_uri

if TYPE_CHECKING:
    from pipeline.evaluation.compare import Gap
    from pipeline.evaluation.tables import System
    from pipeline.on_ray.score import Order

TABLES, FIGURES, REPORT = "tables.md", "figures.json", "report"


@dataclass(frozen=True)
class Comparison:
    """What is to be compared, and where it goes."""

    name: str
    data: str | None
    out: str
    configs: tuple[RunConfig, ...]  # of the recipes, in the order given
    captioner: Workspace | None  # a run that exists, named by --captioner

    @property
    def folder(self) -> str:
        return storage.join(self.out, "compare", self.name)

    @property
    def systems(self) -> list[Workspace]:
        """The runs that draw."""
        return [Workspace(self.out, config) for config in self.configs if config.model.kind not in DRAWLESS]

    @property
    def teller(self) -> Workspace | None:
        """The captioner that is shown the drawings, if there is one."""
        told = [Workspace(self.out, config) for config in self.configs if config.model.kind == "captioner"]
        return self.captioner or next(iter(told), None)


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs what is missing of every recipe; where the tables and the page are, and the ids of the runs."""
    comparison = _parse(argv)

    def busy(holder: str) -> None:
        raise ValueError(f"comparison {comparison.name} is in use by {holder}: wait for it, or choose another --name")

    with storage.locked(f"{comparison.folder}.lock", busy):
        _match(comparison)
        runs = {}
        for config in comparison.configs:
            print(f"\n==== {config.name}", flush=True)
            runs[config.name] = experiment.main(Arguments(config=config, data=comparison.data, out=comparison.out))
        made_from = _made_from(comparison)
        path = storage.join(comparison.folder, "result.json")
        if storage.exists(path):
            result = json.loads(storage.read_text(path))
            if result["made_from"] == made_from:
                print(f"\n{storage.read_text(result['tables'])}\nPage     {result['page']}", flush=True)
                return result
            print("runs have changed since they were compared: comparing again", flush=True)
            storage.delete(comparison.folder)
            _match(comparison)
        return _compare(comparison, runs, made_from)


def _compare(comparison: Comparison, runs: dict[str, dict], made_from: str) -> dict:
    """Tables, page and MLflow run of runs that are finished."""
    from jobs.compare_page import build_page, names_of
    from pipeline.evaluation import tables as made

    systems, teller = comparison.systems, comparison.teller
    names = names_of([run.config for run in systems])
    rows = [_system(name, run) for name, run in zip(names, systems, strict=True)]
    gaps = _gaps(comparison, names)
    told, captions = _tell(comparison, names) if teller else ({}, 0)
    tables = [made.bound_table(rows), made.retrieval_table(rows), made.ways_table(rows)]
    if full := made.full_table(rows):
        tables.insert(2, full)
    if gaps:
        tables.append(made.gap_table(names[0], gaps))
    if any("judge/accuracy" in row.figures for row in rows):
        tables.append(made.faithfulness_table(rows))
    if told:
        tables.append(made.telling_table(told, captions))

    folder, identities = comparison.folder, {name: run["mlflow_run_id"] for name, run in runs.items()}
    with Tracker.open(folder, EXPERIMENT, f"compare {comparison.name}", PARENT, tracking_uri()) as tracker:
        tracker.params({"recipes": " ".join(runs), "first": systems[0].config.name})
        tracker.tags({"data": _data_of(comparison), **{f"run.{name}": run for name, run in identities.items() if run}})
        tracker.metrics(_metrics(systems, rows, gaps), 0)
        content = "\n".join(f"## {table.heading}\n\n{table.markdown}\n\n{table.note}\n" for table in tables)
        links = "\n".join(f"- {name}: {run['mlflow'] or run['folder']}" for name, run in runs.items())
        files = {
            TABLES: f"{content}\n## Runs\n\n{links}\n",
            FIGURES: json.dumps(
                {"systems": [vars(row) for row in rows], "gaps": gaps, "told": told}, indent=1, default=vars
            ),
        }
        for name, text in files.items():
            storage.publish_text(storage.join(folder, name), text)
            tracker.artifact(storage.join(folder, name))
        print(f"\n{files[TABLES]}", flush=True)
        shown = [(table.heading, table.markdown, table.note) for table in tables]
        page = build_page(storage.join(folder, REPORT), _title(systems), systems, shown, teller)
        tracker.artifact(storage.join(folder, REPORT), REPORT)
        tracker.flush()
        print(f"Page     {page}", flush=True)
        if tracker.url:
            print(f"MLflow   {tracker.url}", flush=True)
        result = {
            "name": comparison.name,
            "tables": storage.join(folder, TABLES),
            "figures": storage.join(folder, FIGURES),
            "page": page,
            "runs": identities,
            "mlflow_run_id": tracker.run_id,
            "mlflow": tracker.url,
            "made_from": made_from,
        }
        storage.publish_text(storage.join(folder, "result.json"), json.dumps(result, indent=1))
        return result


# ---- what is compared


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(argv: Sequence[str] | None) -> Comparison:
    """The comparison that the command line asks for; ValueError if its systems cannot stand side by side."""
    parser = _Parser(
        prog="python -m jobs.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipes", nargs="+", required=True, metavar="RECIPE", help="the systems; the first is the base"
    )
    parser.add_argument("--data", help="folder of the source, as for jobs.experiment")
    parser.add_argument("--out", default="out", help="folder of everything that is made")
    parser.add_argument("--name", default="systems", help="names the comparison")
    parser.add_argument("--captioner", metavar="RUN", help="a trained captioner's run in OUT, to be shown the drawings")
    options, fields = parser.parse_known_args(argv)
    if not re.fullmatch(r"[\w-]{1,80}", options.name):
        raise ValueError(f"--name {options.name!r}: letters, digits, - and _ are allowed, at most 80")
    if repeated := sorted({name for name in options.recipes if options.recipes.count(name) > 1}):
        raise ValueError(f"--recipes: {', '.join(repeated)} is named twice")
    configs = tuple(_config(recipe, fields) for recipe in options.recipes)
    _check_alike(configs)
    out = absolute(options.out)
    captioner = options.captioner and _trained_captioner(out, options.captioner, configs[0])
    return Comparison(options.name, options.data and absolute(options.data), out, configs, captioner)


def _config(recipe: str, fields: list[str]) -> RunConfig:
    try:
        return parse(experiment.__doc__, [recipe, *fields]).config
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from None


def _check_alike(configs: Sequence[RunConfig]) -> None:
    """Systems are compared in pairs: on the same shards, by the same measurements."""
    drawing = [config for config in configs if config.model.kind not in DRAWLESS]
    if not drawing:
        raise ValueError(f"none of {', '.join(config.name for config in configs)} draws: there is nothing to compare")
    for part, those in (("dataset", configs), ("evaluation", drawing)):
        for config in those[1:]:
            wanted, other = (computed(to_dict(one))[part] for one in (those[0], config))
            if changed := difference(wanted, other):
                raise ValueError(
                    f"{config.name} and {those[0].name} cannot be compared, their {part} differs ({'; '.join(changed)}): "
                    f"say it for all, as --{part}.FIELD VALUE"
                )


def _trained_captioner(out: str, run: str, other: RunConfig) -> Workspace:
    path = storage.join(out, "runs", run, "config.json")
    if not storage.exists(path):
        raise ValueError(f"--captioner {run}: there is no such run in {out}")
    found = Workspace(out, from_dict(RunConfig, json.loads(storage.read_text(path))))
    if found.config.model.kind != "captioner":
        raise ValueError(f"--captioner {run}: it is a {found.config.model.kind}")
    found.require("train")
    if computed(to_dict(found.config))["dataset"] != computed(to_dict(other))["dataset"]:
        raise ValueError(f"--captioner {run}: it was trained on another data set than these systems")
    return found


def _match(comparison: Comparison) -> None:
    """Write down what is compared; ValueError if the name has tables of other systems."""
    path = storage.join(comparison.folder, "compared.json")
    mine = [[config.name, computed(to_dict(config))] for config in comparison.configs]
    mine += [["--captioner", comparison.captioner.config.name]] if comparison.captioner else []
    if (
        storage.exists(storage.join(comparison.folder, TABLES))
        and (before := json.loads(storage.read_text(path))) != mine
    ):
        raise ValueError(
            f"comparison {comparison.name} exists in {comparison.out}, of {', '.join(name for name, _ in before)} with other "
            f"fields or in another order: choose another --name, or remove {comparison.folder}"
        )
    storage.make_folder(comparison.folder)
    storage.publish_text(path, json.dumps(mine, indent=1))


def _made_from(comparison: Comparison) -> str:
    """A digest of all results that the comparison is made from."""
    runs = [*comparison.systems, *([comparison.teller] if comparison.teller else [])]
    results = [run.finished(stage) for run in runs for stage in ("train", "sharpen", "evaluate")]
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


# ---- the rows


def _system(name: str, run: Workspace) -> System:
    from pipeline.evaluation.published import published_of
    from pipeline.evaluation.tables import System

    trained = run.require("train")
    cost = {key: trained[key] for key in ("step", "seconds", "cpu_seconds", "parameters") if key in trained}
    cost["images"] = trained["step"] * run.config.train.batch
    return System(name, run.require("evaluate")["metrics"], cost, published_of(run.config.model))


def _gaps(comparison: Comparison, names: Sequence[str]) -> dict[str, dict[str, Gap]]:
    """The differences of the other systems to the first, by name of system and figure."""
    from pipeline.evaluation.compare import value_gaps
    from pipeline.evaluation.values import from_bytes

    found = []
    for run in comparison.systems:
        result = run.require("evaluate")
        if "values" not in result:
            raise ValueError(
                f"run {run.config.name} was evaluated by an earlier version, which kept no values by image: remove "
                f"{run.stage('evaluate')}, and the same command measures again"
            )
        found.append((result["metrics"], from_bytes(storage.read_bytes(result["values"]))))
    (figures, first), seed = found[0], comparison.systems[0].config.evaluation.seed
    return {
        name: value_gaps(first, values, figures, seed) for name, (_, values) in zip(names[1:], found[1:], strict=True)
    }


def _tell(comparison: Comparison, names: Sequence[str]) -> tuple[dict[str, dict[str, float]], int]:
    """Figures of the captioner's rankings by what it is shown, real images first; of how many captions."""
    from pipeline.evaluation.retrieval import summary
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.retell import Telling, retell

    connect()
    teller = comparison.teller.require("train")
    kept, told, captions = storage.join(comparison.out, "told"), {}, 0
    real = dataclasses.replace(_order(comparison.systems[0]), model="", sharpener=None)
    orders = [("real images", real), *zip(names, map(_order, comparison.systems), strict=True)]
    for name, order in orders:
        if order.dataset != teller["dataset"]:
            raise ValueError(f"the captioner was trained on {teller['dataset']}, {name} on {order.dataset}")
        print(f"== the captioner looks at {'' if name == 'real images' else 'drawings of '}{name}", flush=True)
        places, candidates = retell(Telling(order, teller["checkpoint"]), kept, lambda line: print(line, flush=True))
        for shown in sorted({key.partition("/")[0] for key in places}):
            row = f"{name}, sharpened" if shown == "sharpened" else name
            plain, ratio = (
                summary(places[f"{shown}{way}"], candidates, seed=order.settings.seed) for way in ("", "/ratio")
            )
            told[row] = plain | {f"ratio/{key}": value for key, value in ratio.items()}
            captions = len(places[shown])
    return told, captions


def _order(run: Workspace) -> Order:
    from pipeline.on_ray.score import Order

    trained, sharpened = run.require("train"), run.finished("sharpen")
    refine = sharpened["checkpoint"] if sharpened else None
    kind = run.config.model.kind
    return Order(trained["dataset"], trained["checkpoint"], refine, run.config.evaluation, kind in BOUNDED)


def _metrics(systems: Sequence[Workspace], rows: Sequence[System], gaps: dict[str, dict[str, Gap]]) -> dict[str, float]:
    """Every figure as RUN/FIGURE, every difference as RUN/minus_first/FIGURE with its ends."""
    metrics = {}
    for run, row in zip(systems, rows, strict=True):
        metrics |= {f"{run.config.name}/{name}": value for name, value in row.figures.items()}
        for name, gap in gaps.get(row.name, {}).items():
            for end, value in (("", gap.mean), ("_low", gap.low), ("_high", gap.high)):
                metrics[f"{run.config.name}/minus_first/{name}{end}"] = value
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _data_of(comparison: Comparison) -> str:
    from pipeline.shards.manifest import load_manifest

    return load_manifest(comparison.systems[0].require("train")["dataset"]).digest


def _title(systems: Sequence[Workspace]) -> str:
    return f"{len(systems)} systems on {SUBJECTS[systems[0].config.dataset.source]}"


if __name__ == "__main__":
    entry(main)
