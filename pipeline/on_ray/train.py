"""Training of a recipe's model on a Ray cluster: its loop, its batches and its checkpoints, on every worker."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.config import RunConfig, from_dict, to_dict
from pipeline.loading.neighbours import ordered_neighbours, stream_neighbours
from pipeline.loading.stream import ordered, stream
from pipeline.models.build import build_model
from pipeline.models.lapgan import Lapgan
from pipeline.on_ray.effort import Effort
from pipeline.on_ray.group import CHECKPOINTS, Say, StopRequest, enter_group, run_group, tell
from pipeline.on_ray.score import drawn_shares
from pipeline.on_ray.sentences import prepare_sentences, sentences_for
from pipeline.sample import Manifest
from pipeline.shards.manifest import VOCABULARY, description, load_manifest
from pipeline.text.vocabulary import Vocabulary
from pipeline.tracking import Tracker
from pipeline.training.adversarial import fit_adversarial, lapgan_state, pyramids_of
from pipeline.training.fit import fit
from pipeline.training.optim import make_optimizer
from pipeline.training.ranks import Ranks
from pipeline.training.state import TrainState
from pipeline.training.validation import term_sums

# kind of model -> how its training and validation batches are read: images with a caption, or captions alone
READERS = defaultdict(lambda: (stream, ordered), skipthought=(stream_neighbours, ordered_neighbours))


def train(
    config: RunConfig,
    dataset: str,
    folder: str,
    tracking: tuple | None = None,
    say: Say = tell,
    judge: str | None = None,
) -> dict:
    """Train the config's model on the data set, in the stage's folder, from its latest checkpoint on.

    tracking: what `Tracker.open` takes, for the worker that logs. judge: the file of a judge of digits, who looks at drawings
    at every validation. Returns why training ended, its step, its speed and cost.
    """
    prepare_sentences(config, dataset, tracking, train, say)
    order = {"config": to_dict(config), "dataset": dataset, "folder": folder, "tracking": tracking, "judge": judge}
    return run_group(train_worker, order, config.train, folder, say)


def train_worker(order: dict) -> dict | None:
    """What each worker does."""
    config = from_dict(RunConfig, order["config"])
    if (ranks := enter_group(config.train)) is None:
        return None
    say = tell if ranks.first else lambda line: None
    manifest = load_manifest(order["dataset"])
    origin = origin_of(config, manifest)
    folder = storage.join(order["folder"], CHECKPOINTS)
    state = start(origin, folder, ranks, say)
    effort = Effort(order["folder"], state.step, ranks)
    read, read_in_order = READERS[config.model.kind]
    vectors = sentences_for(config, manifest.folder)
    shared = {"words": config.train.words, "pin": config.train.gpu, "sentences": vectors}
    batches = read(
        manifest,
        origin.vocabulary,
        batch=config.train.batch,
        lanes=config.train.lanes,
        seed=config.train.seed,
        step=state.step,
        rank=ranks.rank,
        ranks=ranks.size,
        log=say,
        **shared,
    )

    def validate() -> dict[str, float]:
        if order.get("judge") and ranks.first:
            facts, judge = description(manifest.folder)["facts"], storage.read_bytes(order["judge"])
            shares = drawn_shares(state.model, origin.vocabulary, vectors, facts, judge, config.train.judged)
            log({f"val/drawn/{group}/right": share for group, share in shares.items()}, state.step)
            say(f"step {state.step}: drawn all right: " + ", ".join(f"{g} {s:.0%}" for g, s in shares.items()))
        first, count = share_of(manifest, config.train.validate_images, ranks)
        if count == 0:
            return {}
        held_out = read_in_order(
            manifest, origin.vocabulary, "val", batch=config.train.batch, start=first, limit=count, **shared
        )
        return term_sums(state.model, held_out, seed=config.train.seed, first=first, device=ranks.device)

    def save(state: TrainState, bound: float | None) -> None:
        if ranks.first:
            checkpoint.save(folder, state, origin, bound=bound, say=say)
        effort.keep()

    with (
        contextlib.closing(batches),
        contextlib.closing(StopRequest(order["stop"], ranks.first)) as stop,
        first_rank_log(order, ranks) as log,
    ):
        around = {"ranks": ranks, "log": log, "save": save, "stop": stop, "say": say}
        if isinstance(lapgan := state.model, Lapgan):
            outcome = fit_adversarial(state, lapgan.generators, batches, pyramids_of(lapgan), config.train, **around)
        else:
            outcome = fit(state, batches, config.train, validate=validate, **around)
    return {
        "reason": outcome.reason,
        "step": outcome.step,
        "images_per_s": round(outcome.images_per_s, 1),
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        **{name: round(spent, 1) for name, spent in effort.spent.items()},
    }


def origin_of(config: RunConfig, manifest: Manifest) -> Origin:
    """What a model of the config on a data set is made from."""
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(manifest.folder, VOCABULARY)))
    return Origin(config, vocabulary, manifest.size, manifest.channels)


def start(origin: Origin, folder: str, ranks: Ranks, say: Say) -> TrainState:
    """The state to train from: the latest checkpoint's, else that of step 0."""
    state = new_state(origin)
    for network in state.networks.values():
        network.to(ranks.device)  # before restoring: an optimizer's memory goes where its parameters are
    go_on(state, folder, origin.config.train.steps, ranks, say)
    return state


def new_state(origin: Origin) -> TrainState:
    """The state of step 0, a function of the config."""
    config = origin.config
    model = build_model(config.model, len(origin.vocabulary), origin.size, origin.channels, config.train.seed)
    if isinstance(model, Lapgan):
        return lapgan_state(model, config.train)
    return TrainState.of(model, make_optimizer(model, config.train))


def go_on(state: TrainState, folder: str, steps: int, ranks: Ranks, say: Say) -> None:
    """Restore the latest checkpoint, if there is one. OSError if a file system showed the ranks different ones."""
    if (kept := checkpoint.latest(folder, say)) is not None:
        kept.restore(state)
        say(f"going on from step {state.step} of {steps} ({kept.path})")
    if len(seen := set(ranks.gather(state.step))) > 1:
        raise OSError(
            f"workers found different checkpoints (steps {sorted(seen)}) in {folder}: is it one folder for all?"
        )


def share_of(manifest: Manifest, images: int, ranks: Ranks) -> tuple[int, int]:
    """First image, and how many, of the validation split that a rank measures."""
    there = sum(record.samples for record in manifest.split("val"))
    total = min(images or there, there)
    first, last = (total * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return first, last - first


@contextlib.contextmanager
def first_rank_log(order: dict, ranks: Ranks) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A function that records metrics: in the tracked run on the first rank, nowhere on the others."""
    if not ranks.first or order["tracking"] is None:
        yield lambda metrics, step: None
        return
    with Tracker.open(*order["tracking"]) as tracker:
        yield tracker.metrics
