"""Train a recipe again on data that has grown, and use the result if it is better than what is used now:

    python -m jobs.retrain mnist-aligndraw --data data/mnist --out out --cron "0 3 * * 0"
    python -m jobs.retrain mnist-aligndraw --out out --rollback

New data? -> shard what is new -> train (--warm-start: from the champion's weights) -> sharpen -> evaluate -> compare with the
champion on the same held-out images -> promote, or keep the champion. Every retraining is a run of its own, OUT/runs/NAME-SLOT,
registered in MLflow as a version of NAME with the decision and its reason; the one in use has the alias `champion`.

The slot is the time it was due: --cron's last time, else --slot, else now. The same slot again goes on where it was.
jobs.schedule starts this job by a cron line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from jobs.arguments import Arguments, entry, parse
from jobs.workspace import STAGES, Workspace
from pipeline import storage
from pipeline.config import BOUNDED, to_dict
from pipeline.recipes import RECIPES
from pipeline.tracking import PARENT, Tracker, git_commit, tracking_uri

if TYPE_CHECKING:
    from pipeline.evaluation.compare import Gap
    from pipeline.registry import Registry, Version

DECIDE = "decide"  # the stage whose result is the decision
SLOT = "%Y%m%d-%H%M"  # UTC


@dataclass(frozen=True, kw_only=True)
class RetrainArguments(Arguments):
    slot: str | None = None
    """Names the run: letters, digits, - and _. None: the time, to the minute, UTC."""
    cron: str | None = None
    """A cron line: the slot is the last time, UTC, at which it was due. So what starts the job again names the same run."""
    always: bool = False
    """Also when the data has not changed since the last retraining."""
    warm_start: bool = False
    """Begin with the champion's weights; words that it does not know begin anew."""
    rollback: bool = False
    """Train nothing: make the version before the champion the champion again."""


def main(argv: Sequence[str] | RetrainArguments | None = None) -> dict:
    """What was decided, why, and which version is the champion now."""
    arguments = parse(__doc__, argv, RetrainArguments)
    config = arguments.config
    if config.model.kind not in BOUNDED:
        raise ValueError(f"a {config.model.kind} has no bound to compare: only {' and '.join(BOUNDED)} are retrained")
    if getattr(config.model, "caption", "") == "skipthought" and config.sentences in RECIPES:
        raise ValueError(
            f"--sentences {config.sentences} would train an encoder anew on every data set, and no two models could be compared: "
            "name the checkpoint of one, or the folder of the published weights"
        )
    slot = slot_of(arguments, datetime.now(UTC))
    if arguments.slot is arguments.cron is None and not arguments.rollback:
        print(f"slot {slot}: should this be interrupted, the same command with --slot {slot} goes on here", flush=True)
    if (uri := tracking_uri()) is None:
        raise ValueError("versions are kept in MLflow: set MLFLOW_TRACKING_URI, or submit the job (jobs.submit)")

    from pipeline.registry import Registry

    registry = Registry(uri, config.name)
    if arguments.rollback:
        return _roll_back(registry)
    lock = storage.join(arguments.out, "retrain", f"{config.name}.lock")
    with storage.locked(lock, partial(_busy, config.name)):
        return _retrain(arguments, slot, registry)


def _busy(name: str, holder: str) -> None:
    raise ValueError(f"{holder} retrains {name} already: wait for its end, or stop it")


def slot_of(arguments: RetrainArguments, now: datetime) -> str:
    """The name of this retraining, the same whenever and however often it is started for one time."""
    if arguments.cron is not None:
        return last_due(arguments.cron, now).strftime(SLOT)
    if arguments.slot is None:
        return now.strftime(SLOT)
    if not re.fullmatch(r"[\w-]{1,80}", arguments.slot):
        raise ValueError(f"--slot {arguments.slot!r}: letters, digits, - and _ are allowed, at most 80")
    return arguments.slot


def last_due(cron: str, now: datetime) -> datetime:
    """The last time up to now at which a cron line of five fields was due; 0 and 7 are Sundays. All times are UTC.

    Choice: UTC, where no hour is missing or comes twice.
    """
    from croniter import CroniterError, croniter

    if len(cron.split()) != 5:
        raise ValueError(f'--cron {cron!r}: five fields are expected: minute hour day month weekday, as "0 3 * * 0"')
    after = now.replace(microsecond=0) + timedelta(seconds=1)  # croniter looks before this, never at it
    try:
        return croniter(cron, after).get_prev(datetime)
    except CroniterError as error:
        raise ValueError(f"--cron {cron!r}: {error}") from None


def workspace_of(arguments: Arguments, slot: str) -> Workspace:
    """The run of a slot."""
    config = arguments.config
    return Workspace(arguments.out, dataclasses.replace(config, name=f"{config.name}-{slot}"))


def _retrain(arguments: RetrainArguments, slot: str, registry: Registry) -> dict:
    from pipeline.sources import open_source

    workspace = workspace_of(arguments, slot)
    with workspace.opened(), workspace.tracker(PARENT) as tracker:
        if (decided := workspace.finished(DECIDE)) is not None:
            print(f"{decided['decision']}: {decided['why']}", flush=True)
            return decided
        tracker.params(to_dict(workspace.config))
        tracker.tags({"slot": slot, "registered": registry.name})
        source = open_source(arguments.config.dataset, arguments.data)
        number, tags = registry.newest() or (0, {})
        if tags.get("source") == source.digest and tags["run"] != workspace.config.name and not arguments.always:
            _finish(arguments, tags["run"], number, registry)
            why = f"no new data since version {number} (source {source.digest[:10]}); --always retrains nevertheless"
            return _decide(workspace, tracker, "skipped", why, champion=registry.named("champion"))
        champion = _champion(arguments, registry)
        if champion is not None and arguments.warm_start:
            tracker.tags({"warm_start": champion.number})
        made = _stages(workspace, arguments, source, champion)
        return _choose(workspace, tracker, registry, champion, source.digest, made)


def _finish(arguments: RetrainArguments, run: str, number: int, registry: Registry) -> None:
    """A retraining that registered its version and was killed before it was promoted or kept is gone on with."""
    slot = run.removeprefix(f"{arguments.config.name}-")
    other = workspace_of(arguments, slot)
    if other.finished("compare") is not None and other.finished(DECIDE) is None:
        print(f"version {number} was registered but never promoted or kept: going on with {run}", flush=True)
        _retrain(arguments, slot, registry)


def _champion(arguments: Arguments, registry: Registry) -> Version | None:
    """The champion, its files below OUT where all workers can read them; None when there is none yet."""
    if (number := registry.named("champion")) is None:
        return None
    from pipeline import checkpoint

    version = registry.fetch(number, storage.join(arguments.out, "models", registry.name, str(number)))
    origin, wanted = checkpoint.load(version.drawing, optimizers=False).origin, arguments.config.dataset
    if (origin.size, origin.channels) != (wanted.size, wanted.channels):
        raise ValueError(
            f"the champion of {registry.name} draws {origin.size}x{origin.size}x{origin.channels} images, this data set has "
            f"{wanted.size}x{wanted.size}x{wanted.channels}: they cannot be compared, choose another --name"
        )
    return version


def _stages(workspace: Workspace, arguments: RetrainArguments, source: object, champion: Version | None) -> dict:
    """The results of the stages up to evaluation by name, each made by its own job, which skips what is done."""
    from jobs import evaluate, shard, sharpen, train
    from pipeline.shards.manifest import description

    given = Arguments(config=workspace.config, data=arguments.data, out=arguments.out)
    before = workspace.finished("shard")
    if before is not None and description(before["dataset"])["source_digest"] != source.digest:
        print(f"the data changed since {workspace.config.name} was begun: it begins again", flush=True)
        for stage in (*STAGES, "compare", "version"):
            storage.delete(workspace.stage(stage))
    print("== shard", flush=True)
    takes_over = _takes_over(arguments, source)
    made = {"shard": shard.main(shard.ShardArguments(**vars(given), retry_rejected=takes_over))}
    start = champion.drawing if champion is not None and arguments.warm_start else None
    given = train.TrainArguments(**vars(given), start_from=start)
    for stage in (train, sharpen, evaluate):
        name = stage.__name__.rpartition(".")[2]
        print(f"== {name}", flush=True)
        made[name] = stage.main(given)
    return made


def _takes_over(arguments: Arguments, source: object) -> bool:
    """Whether the data set can take shards over from one of the same config and older data: then only what is new is read.

    Sources that list their inputs can tell which are new. The others draw every sample from all of the data.
    """
    from pipeline.shards.manifest import dataset_folder, datasets

    folder = dataset_folder(arguments.out, arguments.config.dataset, source.digest)
    there = datasets(arguments.out, arguments.config.dataset)
    return bool(there) and folder not in there and all(plan.rows for plan in source.plan)


def _choose(
    workspace: Workspace, tracker: Tracker, registry: Registry, champion: Version | None, source: str, made: dict
) -> dict:
    """Compare, register, and promote or keep."""
    from pipeline import checkpoint
    from pipeline.registry import write_version

    trained, figures = made["train"], made["evaluate"]["metrics"]
    challenger = write_version(
        workspace.stage("version"),
        checkpoint.load(trained["checkpoint"], optimizers=False),
        checkpoint.load(made["sharpen"]["checkpoint"], optimizers=False),
        {
            "run": workspace.config.name,
            "config": to_dict(workspace.config),
            "data": made["shard"]["digest"],
            "dataset": trained["dataset"],
            "source": source,
            "metrics": figures,
            "step": trained["checkpoint_step"],
            "commit": git_commit(),
        },
    )
    choice = _choice(workspace, champion, made, tracker)
    decision, why = "promoted" if choice["promote"] else "kept", choice["why"]
    if not tracker.flush(60) or tracker.run_id is None:
        raise OSError("MLflow did not take the run in a minute: the same command with the same --slot goes on here")
    tags = {"decision": decision, "why": why, "source": source, "data": made["shard"]["digest"], "commit": git_commit()}
    number = registry.register(challenger, tracker.run_id, workspace.config.name, tags)
    if choice["promote"]:
        registry.promote(number)
    return _decide(workspace, tracker, decision, why, champion=registry.named("champion"), version=number)


def _choice(workspace: Workspace, champion: Version | None, made: dict, tracker: Tracker) -> dict:
    """Whether to promote, and why: made once for a run, and again only if another run's version became champion since."""
    from pipeline.evaluation.compare import decide

    number = champion and champion.number
    kept = workspace.finished("compare")
    if kept is not None and (kept["against"] == number or champion.about["run"] == workspace.config.name):
        return kept
    if champion is None:
        return workspace.finish("compare", {"against": None, "promote": True, "why": "it is the first version"})
    bound, guards = _compare(workspace, champion, made)
    for name, gap in {"bound": bound, **guards}.items():
        values = {f"compare/{name}": gap.mean, f"compare/{name}_low": gap.low, f"compare/{name}_high": gap.high}
        tracker.metrics({name: value for name, value in values.items() if math.isfinite(value)}, number)
    promote, why = decide(bound, guards)
    why = f"against version {number}: {why}"
    return workspace.finish("compare", {"against": number, "promote": promote, "why": why})


def _compare(workspace: Workspace, champion: Version, made: dict) -> tuple[Gap, dict[str, Gap]]:
    """The gap of the bounds, and those of the guards, from what both models do on the challenger's test split."""
    from pipeline.evaluation import values
    from pipeline.evaluation.compare import guard_gaps, paired_gap
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.score import Order, evaluate, judge_file

    settings, dataset = workspace.config.evaluation, made["train"]["dataset"]
    old = Order(dataset, champion.drawing, champion.sharpener, settings)
    print(f"== compare with version {champion.number} on the test split of {dataset}", flush=True)
    connect()
    measured = evaluate(old, judge_file(workspace.out, made["shard"]["digest"], settings.judge_steps))
    mine = values.from_bytes(storage.read_bytes(made["evaluate"]["values"]))
    bounds = ("test/bound", "test/sharpened/bound")
    gaps = {
        name: paired_gap(measured.values[name], mine[name]) for name in bounds if name in measured.values.keys() & mine
    }
    guards = guard_gaps(measured.figures, made["evaluate"]["metrics"]) | gaps
    return guards.pop("test/bound"), guards


def _decide(workspace: Workspace, tracker: Tracker, decision: str, why: str, **facts: int | None) -> dict:
    """The decision as a tag, a line and the result of the run."""
    named = {name: number for name, number in facts.items() if number is not None}
    tracker.tags({"decision": decision, "why": why, **named})
    print(f"{decision}: {why}", flush=True)
    result = {"run": workspace.config.name, "decision": decision, "why": why, **named, "mlflow_run_id": tracker.run_id}
    return workspace.finish(DECIDE, result)


def _roll_back(registry: Registry) -> dict:
    why = f"rolled back by hand at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    now, before = registry.roll_back(why)
    print(f"{why}: version {now} is the champion of {registry.name} again, instead of version {before}", flush=True)
    return {"decision": "rolled back", "why": why, "champion": now, "previous": before}


if __name__ == "__main__":
    entry(main)
