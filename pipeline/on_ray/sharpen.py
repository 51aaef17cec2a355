"""Adversarial training of the sharpener on a Ray cluster: the loop of training/adversarial.py on every worker.

Between training and evaluation: the drawing model is read from its checkpoint and stays as it is; what comes out is a
checkpoint of the sharpener and its discriminator, in the format and with the promises of that of training.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.config import RunConfig, from_dict, to_dict
from pipeline.loading.stream import stream
from pipeline.models.lapgan import Levels
from pipeline.on_ray.group import CHECKPOINTS, Say, StopRequest, enter_group, run_group
from pipeline.on_ray.sentences import sentences_for
from pipeline.on_ray.train import first_rank_log, go_on
from pipeline.shards.manifest import load_manifest
from pipeline.training.adversarial import drawings_of, fit_adversarial, sharpener_state
from pipeline.training.state import TrainState


def sharpen(
    config: RunConfig, dataset: str, drawing: str, folder: str, tracking: tuple | None = None, say: Say = print
) -> dict:
    """Train a sharpener of the drawings of checkpoint `drawing`, in the stage's folder, from its latest checkpoint on.

    tracking: what `Tracker.open` takes, for the worker that logs. Returns why training ended, its step and its speed.
    """
    order = {"config": to_dict(config), "dataset": dataset, "drawing": drawing, "folder": folder, "tracking": tracking}
    return run_group(sharpen_worker, order, config.train, folder, say)


def sharpen_worker(order: dict) -> dict | None:
    """What each worker does. How many there are, and of what, is said by the config's `train`."""
    config = from_dict(RunConfig, order["config"])
    settings = config.sharpen
    if (ranks := enter_group(replace(config.train, batch=settings.batch, accumulate=1))) is None:
        return None
    say = partial(print, flush=True) if ranks.first else lambda line: None
    drawer, drawn, _ = checkpoint.load_model(order["drawing"])
    origin = Origin(config, drawn.vocabulary, drawn.size, drawn.channels)
    folder = storage.join(order["folder"], CHECKPOINTS)
    state = sharpener_state(drawer, origin.channels, origin.size, settings)
    for network in state.networks.values():
        network.to(ranks.device)  # before restoring: an optimizer's memory goes where its parameters are
    go_on(state, folder, settings.steps, ranks, say)
    manifest = load_manifest(order["dataset"])
    batches = stream(
        manifest,
        origin.vocabulary,
        batch=settings.batch,
        lanes=config.train.lanes,
        seed=settings.seed,
        step=state.step,
        rank=ranks.rank,
        ranks=ranks.size,
        words=config.train.words,
        pin=config.train.gpu,
        sentences=sentences_for(config, manifest.folder),
        log=say,
    )

    def save(state: TrainState, bound: float | None) -> None:
        if ranks.first:
            checkpoint.save(folder, state, origin, bound=bound, say=say)

    with (
        contextlib.closing(batches),
        contextlib.closing(StopRequest(order["stop"], ranks.first)) as stop,
        first_rank_log(order, ranks) as log,
    ):
        outcome = fit_adversarial(
            state,
            Levels([state.networks["sharpener"].generator]),
            batches,
            drawings_of(drawer, settings, ranks),
            settings,
            content=settings.content,
            ranks=ranks,
            log=log,
            save=save,
            stop=stop,
            say=say,
        )
    return {"reason": outcome.reason, "step": outcome.step, "images_per_s": round(outcome.images_per_s, 1)}
