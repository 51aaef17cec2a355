"""Versions of a model in MLflow's registry: what is drawn with, what was drawn with before, and all that was tried.

It comes after evaluation, beside tracking. A version is a folder, an artifact of the run that made it:

    version.json                 recipe, config, data, metrics, git commit, and sha256 of the other files
    drawing/weights.safetensors, meta.json        an exported checkpoint (checkpoint.py): weights as safetensors, the rest JSON
    sharpener/weights.safetensors, meta.json      where the run has one

Reading one runs no code: there is no pickle in it, and files are compared with version.json, that with a tag of the registry.
Two aliases say which version is used: `champion`, and `previous`, the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.checkpoint import META, SAFE, Checkpoint, export
from pipeline.tracking import CLIENT, brief, shown, unavailable

CHAMPION, PREVIOUS = "champion", "previous"
ABOUT = "version.json"
ARTIFACT = "version"  # folder of a run's artifacts that holds its version
RUN, DIGEST = "run", "sha256"  # tags of a version: the run's name; sha256 of its version.json
PARTS = {"drawing": "model", "sharpener": "sharpener"}  # folder -> the network in its checkpoint
MAX_FILE = 2**34  # bytes


@dataclass(frozen=True)
class Version:
    """A version whose files are here, and verified."""

    number: int  # 0: not registered yet
    folder: str
    about: dict[str, Any]

    @property
    def drawing(self) -> str:
        """The checkpoint of the drawing model."""
        return storage.join(self.folder, "drawing")

    @property
    def sharpener(self) -> str | None:
        return storage.join(self.folder, "sharpener") if self.about["sharpened"] else None


def write_version(folder: str, drawing: Checkpoint, sharpener: Checkpoint | None, about: Mapping[str, Any]) -> Version:
    """Write a version's folder; version.json comes last. about: recipe, data, metrics, commit: whatever JSON holds."""
    files: dict[str, str] = {}
    for part, kept in (("drawing", drawing), ("sharpener", sharpener)):
        if kept is not None:
            export(kept, storage.join(folder, part), [PARTS[part]])
            files |= {f"{part}/{name}": _digest(storage.join(folder, part, name)) for name in (SAFE, META)}
    values = {**about, "sharpened": sharpener is not None, "files": files}
    storage.publish_text(storage.join(folder, ABOUT), json.dumps(values, indent=1, sort_keys=True))
    return Version(0, folder, values)


def read_version(folder: str, number: int = 0, digest: str | None = None) -> Version:
    """A version's folder, every file of it verified; ValueError if it is not what was written."""
    try:
        text = storage.read_bytes(storage.join(folder, ABOUT), limit=MAX_FILE)
    except FileNotFoundError:
        raise ValueError(f"{folder} is no model version: it has no {ABOUT}") from None
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise ValueError(f"{folder} is damaged: {ABOUT} is not what was registered (sha256 differs)")
    try:
        about = json.loads(text)
        files, parts = dict(about["files"]), ["drawing", *(["sharpener"] if about["sharpened"] else [])]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{folder} is damaged: {ABOUT} is not what was written") from None
    for name in (f"{part}/{name}" for part in parts for name in (SAFE, META)):
        path = storage.join(folder, name)
        if not storage.exists(path) or files.get(name) != _digest(path):
            raise ValueError(f"{folder} is damaged: {name} is missing, or not what was written (sha256 differs)")
    return Version(number, folder, about)


class Registry:
    """The versions of one name on an MLflow server. What the server does not answer is an OSError of one line."""

    def __init__(self, uri: str, name: str) -> None:
        for setting, value in CLIENT.items():
            os.environ.setdefault(setting, value)
        from mlflow import MlflowClient

        self.uri, self.name = uri, name
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def named(self, which: str | int) -> int | None:
        """The number of an alias, or a number that exists; None if there is no such version."""
        text = str(which)
        for version in self.versions():
            if text == str(version.version) or text in version.aliases:
                return int(version.version)
        return None

    def newest(self) -> tuple[int, dict[str, str]] | None:
        """Number and tags of the version that was registered last."""
        found = max(self.versions(), key=lambda version: int(version.version), default=None)
        return found and (int(found.version), dict(found.tags))

    def versions(self) -> list[Any]:
        """All versions, as MLflow has them, with their tags and aliases."""
        with self._asking():
            found, page = [], None
            while page is None or page:
                answer = self.client.search_model_versions(f"name = '{self.name}'", page_token=page or None)
                found += answer
                page = answer.token or ""
            # a search does not name aliases
            aliases = self.client.get_registered_model(self.name).aliases if found else {}
        for version in found:
            version.aliases = [alias for alias, number in aliases.items() if str(number) == str(version.version)]
        return found

    def register(self, version: Version, run_id: str, run: str, tags: Mapping[str, str]) -> int:
        """Upload a version's folder to a run and register it; its number. Done again for the same run, it is found."""
        for there in self.versions():
            if there.tags.get(RUN) == run:
                return int(there.version)
        with self._asking(), tempfile.TemporaryDirectory() as place:
            local = version.folder
            if storage.is_remote(local):
                local = place
                for name in (ABOUT, *version.about["files"]):
                    Path(place, name).parent.mkdir(parents=True, exist_ok=True)
                    Path(place, name).write_bytes(storage.read_bytes(storage.join(version.folder, name)))
            for name in (ABOUT, *version.about["files"]):
                folder = "/".join([ARTIFACT, *name.split("/")[:-1]])
                self.client.log_artifact(run_id, os.path.join(local, name), folder)
            if not self.client.search_registered_models(f"name = '{self.name}'"):
                self.client.create_registered_model(self.name)
            made = self.client.create_model_version(
                self.name,
                source=f"runs:/{run_id}/{ARTIFACT}",
                run_id=run_id,
                tags={RUN: run, DIGEST: _digest(storage.join(version.folder, ABOUT)), **tags},
            )
        return int(made.version)

    def fetch(self, number: int, folder: str) -> Version:
        """A registered version's files in a folder, unless they are there; verified."""
        with self._asking():
            there = self.client.get_model_version(self.name, str(number))
        digest = there.tags.get(DIGEST)
        if not there.run_id or digest is None:
            raise ValueError(f"version {number} of {self.name} was not registered by this project: it has no {DIGEST}")
        if not storage.exists(storage.join(folder, ABOUT)):
            with self._asking(), tempfile.TemporaryDirectory() as place:
                local = self.client.download_artifacts(there.run_id, ARTIFACT, place)
                about = read_version(local, number, digest).about
                for name in (*about["files"], ABOUT):
                    storage.publish_bytes(storage.join(folder, name), Path(local, name).read_bytes())
        return read_version(folder, number, digest)

    def promote(self, number: int) -> int | None:
        """Make a version the champion, and the one before it `previous`; the number of that one. Twice is as once."""
        before = self.named(CHAMPION)
        if before == number:
            return self.named(PREVIOUS)
        with self._asking():
            if before is not None:  # first: whatever happens now, the way back is kept
                self.client.set_registered_model_alias(self.name, PREVIOUS, str(before))
            self.client.set_registered_model_alias(self.name, CHAMPION, str(number))
        return before

    def roll_back(self, why: str) -> tuple[int, int]:
        """Make `previous` the champion again, and the champion `previous`; (new champion, old one). Twice undoes it."""
        champion, previous = self.named(CHAMPION), self.named(PREVIOUS)
        if champion is None or previous is None or champion == previous:
            raise ValueError(f"{self.name} has no version before its champion ({champion or 'none'}) to go back to")
        with self._asking():
            self.client.set_registered_model_alias(self.name, CHAMPION, str(previous))
            self.client.set_registered_model_alias(self.name, PREVIOUS, str(champion))
        self.tag(champion, {"decision": "rolled back", "why": why})
        self.tag(previous, {"decision": "champion again", "why": why})
        return previous, champion

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        with self._asking():
            for name, value in tags.items():
                self.client.set_model_version_tag(self.name, str(number), name, value)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Errors of the client in the block -> OSError in one line; our own stay what they are."""
        try:
            yield
        except unavailable() as error:
            raise OSError(f"the registry at {shown(self.uri)} refuses or does not answer: {brief(error)}") from error


def names(uri: str) -> list[str]:
    """Names under which this server has versions of ours."""
    registry = Registry(uri, "")
    with registry._asking():
        found = registry.client.search_registered_models(max_results=100)
    return [model.name for model in found if CHAMPION in model.aliases]


def _digest(path: str) -> str:
    return hashlib.sha256(storage.read_bytes(path, limit=MAX_FILE)).hexdigest()
