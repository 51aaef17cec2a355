"""Sentence vectors for the models that take one (caption = skipthought): made once a data set, then looked up.

    <data set>/sentences/<where from>-<digest>/train/            checkpoints of an encoder that was trained here
                                               vectors-00000.npy of all captions of the data set (text/skipthought.py)
                                               vectors.json      written last: the vectors are whole

RunConfig.sentences says where they come from: a recipe, a checkpoint or the published weights. All of it lies beside the
shards, so every run on the data set shares it, and an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch

from pipeline import checkpoint, storage
from pipeline.config import RunConfig, digest_of
from pipeline.loading.neighbours import groups_of
from pipeline.models.skipthought import CombineSkip, SkipThought, normalize_halves
from pipeline.on_ray.group import CHECKPOINTS, Say
from pipeline.on_ray.pool import Block, Pool
from pipeline.recipes import RECIPES, find_recipe
from pipeline.sample import SPLITS
from pipeline.shards.manifest import load_manifest
from pipeline.text.skipthought import (
    PART,
    WORDS,
    Encode,
    SentenceVectors,
    distinct,
    mark_of,
    open_published,
    part_path,
    read_part,
    write_part,
)

DONE = "vectors.json"
ROWS = 64  # captions encoded at a time, of similar lengths


def takes_sentences(config: RunConfig) -> bool:
    """Whether the run's model takes sentence vectors."""
    return getattr(config.model, "caption", None) == "skipthought"


def sentences_for(config: RunConfig, dataset: str) -> SentenceVectors | None:
    """Captions -> (n, S) sentence vectors for a run on a data set, prepared before; None if its model takes none."""
    if not takes_sentences(config):
        return None
    home = Home(config, dataset)
    if not storage.exists(storage.join(home.folder, DONE)):
        raise ValueError(f"{home.folder} has no sentence vectors yet: jobs.train makes them before it trains")
    return SentenceVectors(home.folder, home.captions, partial(_encode_lazily, home))


def prepare_sentences(
    config: RunConfig, dataset: str, tracking: tuple | None, train: Callable[..., dict], say: Say = print
) -> None:
    """Make the vectors of all captions of a data set, unless they are there or the run's model takes none.

    train, tracking: on_ray.train.train and what it takes, for an encoder that is trained first; its curves are those of a
    stage "sentences" of the run.
    """
    if not takes_sentences(config):
        return
    home = Home(config, dataset)
    done = storage.join(home.folder, DONE)
    with storage.locked(f"{home.folder}.lock", cache(lambda holder: say(f"waiting for {holder}: {home.folder}"))):
        if not storage.exists(done):
            _train_encoder(home, tracking, train, say)
            width = _write_vectors(home, say)
            storage.publish_text(done, json.dumps({"captions": len(home.captions), "width": width}))
    _check_width(home, json.loads(storage.read_text(done))["width"])


def _train_encoder(home: Home, tracking: tuple | None, train: Callable[..., dict], say: Say) -> None:
    """Train the encoder, if it is to be trained and has not been."""
    result = storage.join(home.stage, "result.json")
    if home.recipe is None or storage.exists(result):
        return
    _check_width(home, home.recipe.model.sentence)  # before the hours that training takes
    say(f"training the sentence encoder {home.source} on the captions of {home.dataset}")
    if tracking is not None:
        _, experiment, run, _, address = tracking
        tracking = (home.stage, experiment, run, "sentences", address)
    storage.publish_text(result, json.dumps(train(home.recipe, home.dataset, home.stage, tracking, say)))


def _write_vectors(home: Home, say: Say) -> int:
    """Encode the captions whose files are missing, on as many workers as evaluation takes; the width of a vector."""
    parts = range(-(-len(home.captions) // PART))
    missing = [number for number in parts if not storage.exists(part_path(home.folder, number))]
    say(f"encoding {len(home.captions)} captions: {len(missing)} of {len(parts)} files of vectors are missing")
    if missing:
        workers = min(home.config.evaluation.workers, len(missing))
        with Pool(partial(Home, home.config, home.dataset), workers=workers, log=say) as pool:
            pool.run({"": [Block("write", (number,)) for number in missing]})
    return read_part(home.folder, 0).shape[1]


def _check_width(home: Home, width: int) -> None:
    if width != home.config.model.sentence:
        raise ValueError(
            f"{home.source} gives sentence vectors of {width} numbers, the model takes {home.config.model.sentence}: "
            f"set --model.sentence {width}"
        )


@dataclass(frozen=True)
class Home:
    """The folder of a run's sentence vectors, and what they are made with; also the worker that makes them."""

    config: RunConfig
    dataset: str

    @property
    def source(self) -> str:
        return self.config.sentences

    @cached_property
    def recipe(self) -> RunConfig | None:
        """The run that trains the encoder on this data set; None for weights that exist."""
        if self.source not in RECIPES:
            return None
        found = find_recipe(self.source)
        if found.model.kind != "skipthought":
            raise ValueError(f"sentences: {self.source} is a recipe for {found.model.kind}, not for a sentence encoder")
        return replace(found, dataset=self.config.dataset)

    @cached_property
    def folder(self) -> str:
        if self.recipe is not None:
            name, digest = self.source, digest_of(self.recipe)
        elif storage.exists(meta := storage.join(self.source, checkpoint.META)):
            name, digest = "checkpoint", hashlib.sha256(storage.read_bytes(meta)).hexdigest()
        elif not storage.is_remote(self.source) and storage.exists(storage.join(self.source, WORDS)):
            name, digest = "published", mark_of(self.source)
        else:
            raise ValueError(
                f"sentences: {self.source} is no recipe ({', '.join(_recipes())}), no checkpoint of such a run and no local "
                f"folder with the published weights ({WORDS} and four more files)"
            )
        return storage.join(self.dataset, "sentences", f"{name}-{digest[:10]}")

    @property
    def stage(self) -> str:
        """Folder of the encoder's training."""
        return storage.join(self.folder, "train")

    @cached_property
    def captions(self) -> list[str]:
        """All captions of the data set, in the order of their vectors."""
        manifest = load_manifest(self.dataset)
        return distinct([text for split in SPLITS for _, texts in groups_of(manifest, split) for text in texts])

    @cached_property
    def encode(self) -> Encode:
        """The encoder, ready to use: captions -> (n, S)."""
        if self.recipe is None and not storage.exists(storage.join(self.source, checkpoint.META)):
            published = open_published(self.source)
            encoder = CombineSkip.of(published.uni, published.bi)
            return partial(_sorted_by_length, lambda texts: encoder(*map(torch.from_numpy, published.look_up(texts))))
        best = self.source if self.recipe is None else checkpoint.best(storage.join(self.stage, CHECKPOINTS)).path
        model, origin, _ = checkpoint.load_model(best)
        if not isinstance(model, SkipThought):
            raise ValueError(
                f"sentences: {best} is a checkpoint of {origin.config.model.kind}, not of a sentence encoder"
            )
        return partial(_sorted_by_length, lambda texts: model.encode(*origin.vocabulary.encode(texts)))

    def write(self, number: int) -> None:
        """A block of the pool: one file of vectors."""
        write_part(self.folder, number, self.encode(self.captions[number * PART : (number + 1) * PART]))


@torch.no_grad()
def _sorted_by_length(encode: Callable[[list[str]], torch.Tensor], captions: list[str]) -> np.ndarray:
    """Captions -> normalised vectors (n, S), a few of similar lengths at a time: little padding, little memory."""
    order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
    vectors: list[np.ndarray] = [np.empty(0)] * len(captions)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        found = normalize_halves(encode([captions[place] for place in places])).numpy()
        for place, vector in zip(places, found, strict=True):
            vectors[place] = vector
    return np.stack(vectors)


def _encode_lazily(home: Home, captions: list[str]) -> np.ndarray:
    """The encoder is opened only once a caption comes that the data set does not have."""
    return home.encode(captions)


def _recipes() -> list[str]:
    return sorted(name for name, make in RECIPES.items() if make().model.kind == "skipthought")
