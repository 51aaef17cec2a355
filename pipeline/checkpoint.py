"""Checkpoints: everything a run needs to go on, and everything a reader needs to rebuild its model, in one folder.

    <stage>/checkpoints/step-00000200/weights.pt       state dicts of the networks
                                      optimizers.pt    state dicts of the optimizers
                                      meta.json        step, bound, config, vocabulary, image size, digests; written last

A checkpoint exists once its meta.json does: each file is published whole (pipeline/storage.py), on disk and in an object
store alike, and its sha256 is checked whenever it is read. Tensors are read with `weights_only=True`: a file cannot run code.
The same format serves one network (drawing) and several (the sharpener's two, with their optimizers).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pipeline
from pipeline import storage
from pipeline.config import RunConfig, from_dict, to_dict
from pipeline.models.base import CaptionModel
from pipeline.models.build import build_model
from pipeline.models.sharpener import Sharpener
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.state import TrainState

FORMAT = 1  # raised when an older version could not read what a newer one writes
META, WEIGHTS, OPTIMIZERS = "meta.json", "weights.pt", "optimizers.pt"
SAFE = "weights.safetensors"  # the weights of an exported checkpoint, which has no optimizers
# Of a TrainState, besides its networks and optimizers. The first versions had no `measured`.
POSITION = ("step", "best", "worse", "measured")
KEEP = 2  # latest checkpoints kept, besides the best one


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Origin:
    """What a model was made for; with it a checkpoint stands alone."""

    config: RunConfig
    vocabulary: Vocabulary
    size: int  # images are size x size pixels
    channels: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    path: str
    step: int
    bound: float | None  # on the validation split, nats, where it was measured
    best: float | None
    worse: int
    measured: int
    origin: Origin
    networks: dict[str, dict[str, Tensor]]  # state dicts by name
    optimizers: dict[str, dict[str, Any]]  # empty where only the weights were asked for

    def restore(self, state: TrainState) -> None:
        """Put networks and optimizers back as they were; their names carry no "module.", so any number of ranks can."""
        for name, network in state.networks.items():
            network.load_state_dict(self.networks[name])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(self.optimizers[name])
        for name in POSITION:
            setattr(state, name, getattr(self, name))

    def model(self) -> CaptionModel:
        """The drawing model, rebuilt from the config and ready to draw."""
        origin = self.origin
        model = build_model(origin.config.model, len(origin.vocabulary), origin.size, origin.channels)
        model.load_state_dict(self.networks["model"])
        return model.eval()

    def sharpener(self) -> Sharpener:
        """The sharpener of a run's drawings, rebuilt and ready to use."""
        origin, weights = self.origin, self.networks["sharpener"]
        width = weights["generator.sentence.linear.weight"].shape[1]
        sharpener = Sharpener(origin.channels, origin.size, width, origin.config.sharpen.maps)
        sharpener.load_state_dict(weights)
        return sharpener.eval()


def save(
    folder: str, state: TrainState, origin: Origin, *, bound: float | None = None, say: Callable[[str], None] = print
) -> str:
    """Write the state under `folder` and return the checkpoint's path; then remove what is no longer needed.

    Kept are the latest `KEEP` and the one with the best validation bound. Nothing older goes before the new one has been
    read back. One process writes into a folder (the first rank, under the run's lock).
    """
    path = storage.join(folder, f"step-{state.step:08}")
    sweep(folder, say)
    facts = {"bound": bound, **{name: getattr(state, name) for name in POSITION}}
    networks = {name: network.state_dict() for name, network in state.networks.items()}
    if (files := _files_of(path, networks)) is not None:  # restored from it, and measured since: nothing else is new
        _publish_meta(path, facts, origin, files)
        _retain(folder, state.step)
        return path
    storage.delete(storage.join(path, META))  # a damaged one of this step: no checkpoint while it is rewritten
    try:
        files = {
            WEIGHTS: _publish(path, WEIGHTS, networks),
            OPTIMIZERS: _publish(path, OPTIMIZERS, {name: one.state_dict() for name, one in state.optimizers.items()}),
        }
        _publish_meta(path, facts, origin, files)
        verify(path)
    except BaseException:  # also KeyboardInterrupt: a part of a checkpoint must not fill the disk
        storage.delete(path)
        raise
    _retain(folder, state.step)
    return path


def export(checkpoint: Checkpoint, path: str, networks: Sequence[str]) -> None:
    """Write some networks of a checkpoint as one that other programs can read: weights as safetensors, no optimizers.

    `load` reads it like any other; training cannot go on from it.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{network}/{name}": tensor.contiguous().clone()
        for network in networks
        for name, tensor in checkpoint.networks[network].items()
    }
    with storage.publishing(storage.join(path, SAFE)) as part:
        save_file(tensors, part)
        files = {SAFE: _described(part)}
    facts = {name: getattr(checkpoint, name) for name in ("bound", *POSITION)}
    _publish_meta(path, facts, checkpoint.origin, files)
    verify(path)


def load(path: str, *, optimizers: bool = True) -> Checkpoint:
    """Read a checkpoint and verify it; `Damaged` if it is not what was written, ValueError if it is from the future."""
    meta = _read_meta(path)
    if SAFE in meta["files"]:
        if optimizers:
            raise ValueError(f"{path} was exported without its optimizers: training cannot go on from it")
        tensors = {WEIGHTS: _networks_of(_read_file(path, SAFE, meta))}
    else:
        names = [WEIGHTS, OPTIMIZERS] if optimizers else [WEIGHTS]
        tensors = {
            name: torch.load(io.BytesIO(_read_file(path, name, meta)), weights_only=True, map_location="cpu")
            for name in names
        }
    origin = Origin(
        config=from_dict(RunConfig, meta["config"]),
        vocabulary=Vocabulary.from_json(meta["vocabulary"]),
        size=meta["image"]["size"],
        channels=meta["image"]["channels"],
    )
    facts = {"measured": meta["step"], **{name: meta[name] for name in ("bound", *POSITION) if name in meta}}
    return Checkpoint(
        path=path, origin=origin, networks=tensors[WEIGHTS], optimizers=tensors.get(OPTIMIZERS, {}), **facts
    )


def latest(folder: str, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The last whole checkpoint under a folder; a damaged one is passed over with a line that says so."""
    return _first_whole(reversed(found(folder)), True, say)


def best(folder: str, say: Callable[[str], None] = print) -> Checkpoint:
    """The checkpoint with the best validation bound, without its optimizers; the last one where no bound was measured."""
    by_bound = sorted(found(folder), key=lambda path: (_bound(path), path), reverse=True)
    if (checkpoint := _first_whole(by_bound, False, say)) is None:
        raise ValueError(f"{folder} has no whole checkpoint: train first")
    return checkpoint


def load_model(path: str) -> tuple[CaptionModel, Origin, int]:
    """A checkpoint's drawing model in evaluation mode, what it was made for, and its step: from the files alone."""
    checkpoint = load(path, optimizers=False)
    return checkpoint.model(), checkpoint.origin, checkpoint.step


def load_sharpener(path: str) -> Sharpener:
    """A checkpoint's sharpener in evaluation mode: from the files alone."""
    return load(path, optimizers=False).sharpener()


def found(folder: str) -> list[str]:
    """Paths of the checkpoints under a folder, by step; whether they are whole is known once they are read."""
    paths = [storage.join(folder, name) for name in storage.listing(folder) if name.startswith("step-")]
    return [path for path in paths if storage.exists(storage.join(path, META))]


def verify(path: str) -> None:
    """Read every file of a checkpoint back; `Damaged` unless all are as they were written."""
    meta = _read_meta(path)
    for name in meta["files"]:
        _read_file(path, name, meta)


def sweep(folder: str, say: Callable[[str], None] = print) -> None:
    """Remove what writers that were killed left behind: checkpoints without meta.json."""
    whole = set(found(folder))
    for name in storage.listing(folder):
        path = storage.join(folder, name)
        if name.startswith("step-") and path not in whole:
            say(f"{path} was never finished: removed")
            storage.delete(path)


def _first_whole(paths: Any, optimizers: bool, say: Callable[[str], None]) -> Checkpoint | None:
    for path in paths:
        try:
            return load(path, optimizers=optimizers)
        except Damaged as damage:
            say(f"{damage}; using the one before it")
    return None


def _retain(folder: str, step: int) -> None:
    """Remove all but the latest ones, up to `step`, and the best of them; later ones are damaged, or we had begun there."""
    paths = [path for path in found(folder) if step_of(path) <= step]
    measured = [path for path in paths if _bound(path) > float("-inf")]
    kept = {*paths[-KEEP:], *([max(measured, key=_bound)] if measured else [])}
    for path in set(found(folder)) - kept:
        storage.delete(storage.join(path, META))  # first: from here on it is an orphan, not a damaged checkpoint
        storage.delete(path)


def _files_of(path: str, networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any] | None:
    """What a whole checkpoint of exactly these networks says of its files; None if there is none."""
    if not storage.exists(storage.join(path, META)):
        return None
    try:
        there = load(path).networks
    except Damaged:
        return None
    same = there.keys() == networks.keys() and all(
        there[network].keys() == tensors.keys()
        and all(torch.equal(there[network][name], tensor.cpu()) for name, tensor in tensors.items())
        for network, tensors in networks.items()
    )
    return _read_meta(path)["files"] if same else None


def _publish(path: str, name: str, content: dict) -> dict[str, Any]:
    """Write one file whole; its size and digest."""
    with storage.publishing(storage.join(path, name)) as part:
        torch.save(content, part)
        return _described(part)


def _described(file: Path) -> dict[str, Any]:
    """What meta.json says of a file beside it."""
    with open(file, "rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _publish_meta(path: str, facts: Mapping[str, Any], origin: Origin, files: Mapping[str, Any]) -> None:
    """Write meta.json, with which the checkpoint exists. facts: the bound, and what `POSITION` names."""
    meta = {
        "format": FORMAT,
        "version": pipeline.__version__,
        **facts,
        "config": to_dict(origin.config),
        "vocabulary": origin.vocabulary.to_json(),
        "image": {"size": origin.size, "channels": origin.channels},
        "files": files,
    }
    storage.publish_text(storage.join(path, META), json.dumps({**meta, "sha256": _digest_of(meta)}))


def _networks_of(content: bytes) -> dict[str, dict[str, Tensor]]:
    """State dicts by network, from the bytes of an exported checkpoint's weights."""
    from safetensors.torch import load as read_tensors

    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(content).items():
        network, _, parameter = name.partition("/")
        networks.setdefault(network, {})[parameter] = tensor
    return networks


def _read_file(path: str, name: str, meta: dict) -> bytes:
    try:
        content = storage.read_bytes(storage.join(path, name))
    except FileNotFoundError:
        raise Damaged(f"{path} is damaged: {name} is missing") from None
    if hashlib.sha256(content).hexdigest() != meta["files"][name]["sha256"]:
        raise Damaged(f"{path} is damaged: {name} is not what was written (sha256 differs)")
    return content


def _read_meta(path: str) -> dict:
    try:
        meta = json.loads(storage.read_text(storage.join(path, META)))
        digest, newer = meta.pop("sha256"), meta["format"] > FORMAT
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint: it has no {META}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{path} is damaged: {META} is not what was written") from None
    if newer:
        raise ValueError(
            f"{path} has checkpoint format {meta['format']}, made by version {meta.get('version')} of this project; "
            f"this is version {pipeline.__version__} and reads up to format {FORMAT}: use the newer version"
        )
    if digest != _digest_of(meta):
        raise Damaged(f"{path} is damaged: {META} is not what was written (sha256 differs)")
    return meta


def _digest_of(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def step_of(path: str) -> int:
    return int(path.rpartition("-")[2])


def _bound(path: str) -> float:
    """The validation bound a checkpoint states; minus infinity where it states none, or cannot be read."""
    try:
        bound = _read_meta(path)["bound"]
    except Damaged:
        bound = None
    return float("-inf") if bound is None else bound
