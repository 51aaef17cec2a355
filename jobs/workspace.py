"""The folder of a run: its config, its stages, what is finished, and a lock so that two runs never share it.

OUT/shards/<data set>/            tars and their manifest, shared by all runs on the same data
OUT/runs/<name>/config.json       the run's complete config; another config under the same name is refused
OUT/runs/<name>/<stage>/          what a stage makes; result.json is written last and means: done
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from pipeline import storage
from pipeline.config import BOUNDED, DRAWLESS, RunConfig, difference, from_dict, to_dict
from pipeline.tracking import PARENT, Tracker, tracking_uri

EXPERIMENT = "caption-canvas"  # MLflow's experiment, for all runs
STAGES = ("shard", "train", "sharpen", "evaluate", "figures")

# How a run is executed, not what it computes: a run may go on with other values
EXECUTION = {
    "dataset": ("max_rejected",),
    "train": (
        "workers",
        "min_workers",
        "threads",
        "gpu",
        "graph",
        "matmul",
        "retries",
        "accumulate",
        "judged",
        "log_every",
        "save_every",
    ),
    "sharpen": ("log_every", "save_every"),
    "evaluation": ("workers", "gpu"),
}
_HELD: set[str] = set()  # folders of runs whose lock this process holds


class Workspace:
    """Where one run lives below `out`."""

    def __init__(self, out: str, config: RunConfig):
        self.out, self.config = out, config
        self.folder = storage.join(out, "runs", config.name)

    def stage(self, name: str) -> str:
        """Folder of a stage."""
        return storage.join(self.folder, name)

    def tracker(self, stage: str) -> Tracker:
        """The tracked run of a stage, or their parent's (stage "experiment"); MLFLOW_TRACKING_URI says where it is sent."""
        folder = self.folder if stage == PARENT else self.stage(stage)
        return Tracker.open(folder, EXPERIMENT, self.config.name, stage, tracking_uri())

    @contextlib.contextmanager
    def opened(self) -> Iterator[Workspace]:
        """The run's folder, for this process alone; ValueError if the run exists with another config or is being worked on."""
        storage.make_folder(self.folder)
        with self.locked():
            for folder in (self.folder, *map(self.stage, STAGES)):
                storage.sweep(folder)  # what writers that were killed left
            self._match_config()
            yield self

    def finished(self, stage: str) -> dict | None:
        """What a stage made, or None if it has not finished."""
        path = storage.join(self.stage(stage), "result.json")
        return json.loads(storage.read_text(path)) if storage.exists(path) else None

    def finish(self, stage: str, result: dict) -> dict:
        """Mark a stage as done; a crash before this line means that it runs again, from its last checkpoint."""
        storage.publish_text(storage.join(self.stage(stage), "result.json"), json.dumps(result, indent=1))
        return result

    def require(self, stage: str) -> dict:
        """What an earlier stage made; ValueError says which job makes it."""
        if (result := self.finished(stage)) is None:
            job = f"python -m jobs.{stage} {self.config.name} --out {self.out}"
            raise ValueError(f"run {self.config.name} has no finished {stage} stage in {self.out}: first run {job}")
        return result

    def check_draws(self) -> None:
        """ValueError for a model that draws nothing: its run ends with training."""
        if (kind := self.config.model.kind) in DRAWLESS:
            raise ValueError(f"a {kind} draws nothing: its only stages are jobs.shard and jobs.train")

    def left_out(self) -> dict[str, str]:
        """The stages that the run's system does not have, and why."""
        kind = self.config.model.kind
        if kind in DRAWLESS:
            return dict.fromkeys(STAGES[2:], f"a {kind} draws nothing")
        return {} if kind in BOUNDED else {"sharpen": f"a {kind} reconstructs no images that could be sharpened"}

    def _match_config(self) -> None:
        path, mine = storage.join(self.folder, "config.json"), to_dict(self.config)
        if storage.exists(path):
            # through the config: a field that was added since the run began had its default
            before = to_dict(from_dict(RunConfig, json.loads(storage.read_text(path))))
            if changed := difference(computed(before), computed(mine)):
                raise ValueError(
                    f"run {self.config.name} exists in {self.out} with another config ({'; '.join(changed)}): "
                    f"choose another --name or --out, or remove {self.folder}"
                )
        else:
            storage.publish_text(path, json.dumps(mine, indent=1))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock (storage.locked): two processes that work on one run would mix their checkpoints.

        Within a process it may be held again: the experiment holds it while its stages run.
        """
        if self.folder in _HELD:
            yield
            return

        def busy(holder: str) -> None:
            raise ValueError(
                f"{self.folder} is in use by {holder}: wait for it, stop it, or choose another --name or --out"
            )

        with storage.locked(storage.join(self.folder, "lock"), busy):
            _HELD.add(self.folder)
            try:
                yield
            finally:
                _HELD.remove(self.folder)


def computed(config: dict) -> dict:
    """A run's config without what only says how it is executed."""
    return {
        name: {key: value for key, value in part.items() if key not in EXECUTION.get(name, ())}
        if isinstance(part, dict)
        else part
        for name, part in config.items()
    }
