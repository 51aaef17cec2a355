"""Versions in a real registry: written, registered, fetched, promoted and rolled back, and never believed unverified."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint
from pipeline.checkpoint import Origin
from pipeline.models.build import build_model
from pipeline.recipes import find_recipe
from pipeline.registry import CHAMPION, PREVIOUS, Registry, Version, names, read_version, write_version
from pipeline.text.vocabulary import Vocabulary
from pipeline.tracking import Tracker
from pipeline.training.adversarial import sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState
from pipeline.training.warm import take_weights

CONFIG = find_recipe("tiny-aligndraw")
WORDS = Vocabulary.build(["the digit three is on the left .", "a red dog"])


def model_of(vocabulary: Vocabulary, seed: int) -> torch.nn.Module:
    return build_model(CONFIG.model, len(vocabulary), 12, 1, seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[checkpoint.Checkpoint, checkpoint.Checkpoint]:
    """Checkpoints of a drawing model and of its sharpener."""
    folder, model = tmp_path_factory.mktemp("trained"), model_of(WORDS, 1)
    origin = Origin(CONFIG, WORDS, 12, 1)
    drawing = checkpoint.save(str(folder / "train"), TrainState.of(model, make_optimizer(model, CONFIG.train)), origin)
    sharpener = checkpoint.save(str(folder / "sharpen"), sharpener_state(model, 1, 12, CONFIG.sharpen), origin)
    return checkpoint.load(drawing), checkpoint.load(sharpener)


def written(folder: Path, trained: tuple, **about: object) -> Version:
    return write_version(str(folder), *trained, {"run": "r", "metrics": {"test/bound": -1.5}, **about})


def test_a_version_is_the_checkpoint_in_files_that_others_can_read(tmp_path: Path, trained: tuple) -> None:
    version = read_version(written(tmp_path / "v", trained).folder)
    assert version.about["metrics"] == {"test/bound": -1.5}
    files = sorted(str(path.relative_to(tmp_path / "v")) for path in (tmp_path / "v").rglob("*") if path.is_file())
    parts = [f"{part}/{name}" for part in ("drawing", "sharpener") for name in ("meta.json", "weights.safetensors")]
    assert files == [*parts, "version.json"]
    tensors = load_file(tmp_path / "v" / "drawing" / "weights.safetensors")  # by the library, not by us
    state = trained[0].networks["model"]
    assert {f"model/{name}" for name in state} == set(tensors)
    assert all(torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in state.items())
    model, origin, step = checkpoint.load_model(version.drawing)
    assert origin.vocabulary == WORDS and origin.config == CONFIG and step == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    sharpener = checkpoint.load_sharpener(version.sharpener)
    expected = trained[1].networks["sharpener"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in sharpener.state_dict().items())
    with pytest.raises(ValueError, match="without its optimizers"):
        checkpoint.load(version.drawing)


@pytest.mark.parametrize("name", ["version.json", "drawing/weights.safetensors", "sharpener/meta.json"])
def test_a_version_that_was_changed_is_refused_and_the_file_named(tmp_path: Path, trained: tuple, name: str) -> None:
    version = written(tmp_path / "v", trained)
    path = tmp_path / "v" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged: {name}"):
        read_version(version.folder, digest="0" * 64 if name == "version.json" else None)
    path.unlink()
    with pytest.raises(ValueError, match=name):
        read_version(version.folder)


def test_versions_are_registered_once_promoted_and_rolled_back(tmp_path: Path, trained: tuple, mlflow_server) -> None:
    name = f"model-{uuid.uuid4().hex[:8]}"
    registry = Registry(mlflow_server.uri, name)
    assert registry.newest() is None and registry.named(CHAMPION) is None and name not in names(mlflow_server.uri)
    with pytest.raises(ValueError, match="no version before its champion"):
        registry.roll_back("why")
    made = []
    for run in ("one", "two", "three"):
        version = written(tmp_path / run, trained, run=run)
        with Tracker.open(tmp_path / "runs" / run, "registry", run, "experiment", mlflow_server.uri) as tracker:
            assert tracker.flush(60)
            made.append(registry.register(version, tracker.run_id, run, {"source": f"data of {run}"}))
            assert registry.register(version, tracker.run_id, run, {}) == made[-1]  # a second try of the same run
    assert made == [1, 2, 3]
    number, tags = registry.newest()
    assert number == 3 and tags["source"] == "data of three" and tags["run"] == "three"
    fetched = registry.fetch(2, str(tmp_path / "fetched"))
    assert fetched.about["run"] == "two" and checkpoint.load_model(fetched.drawing)[1].vocabulary == WORDS
    assert registry.fetch(2, str(tmp_path / "fetched")).about == fetched.about

    def aliases() -> tuple[int | None, int | None]:
        return registry.named(CHAMPION), registry.named(PREVIOUS)

    for number, after in ((1, (1, None)), (2, (2, 1)), (2, (2, 1)), (3, (3, 2))):
        registry.promote(number)
        assert aliases() == after
    assert registry.roll_back("worse in the field") == (2, 3)
    assert aliases() == (2, 3) and registry.named("3") == 3 and registry.named("9") is None
    assert registry.client.get_model_version(name, "3").tags["decision"] == "rolled back"
    registry.roll_back("it was not")
    assert aliases() == (3, 2) and name in names(mlflow_server.uri)


def test_a_version_that_somebody_put_in_its_place_is_refused(tmp_path: Path, trained: tuple, mlflow_server) -> None:
    name = f"model-{uuid.uuid4().hex[:8]}"
    registry, version = Registry(mlflow_server.uri, name), written(tmp_path / "v", trained)
    with Tracker.open(tmp_path / "run", "registry", "run", "experiment", mlflow_server.uri) as tracker:
        assert tracker.flush(60)
        registry.register(version, tracker.run_id, "run", {})
        (tmp_path / "other").mkdir()
        about = json.loads((tmp_path / "v" / "version.json").read_text())
        (tmp_path / "other" / "version.json").write_text(json.dumps({**about, "metrics": {}}))
        registry.client.log_artifact(tracker.run_id, str(tmp_path / "other" / "version.json"), "version")
    with pytest.raises(ValueError, match="not what was registered"):
        registry.fetch(1, str(tmp_path / "fetched"))
    registry.client.create_model_version(name, source=f"runs:/{tracker.run_id}/version", run_id=tracker.run_id)
    with pytest.raises(ValueError, match="not registered by this project"):
        registry.fetch(2, str(tmp_path / "fetched"))


def test_a_registry_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(OSError, match="the registry at http://127.0.0.1:9 refuses or does not answer") as error:
        Registry("http://127.0.0.1:9", "any").newest()
    assert "\n" not in str(error.value)


def test_a_warm_start_finds_words_by_what_they_say() -> None:
    old, new = Vocabulary.build(["cat dog dog"]), Vocabulary.build(["dog bird bird cat"])
    assert old.ids["dog"] != new.ids["dog"]
    source, model, fresh = model_of(old, 1), model_of(new, 2), model_of(new, 2)
    assert take_weights(model, source.state_dict(), new.words, old.words) == 4  # padding, unknown, cat, dog
    seen = 0
    for name, tensor in model.state_dict().items():
        before, given = fresh.state_dict()[name], source.state_dict()[name]
        if tensor.shape == given.shape:
            assert torch.equal(tensor, given), name
            continue
        seen += 1
        for word in ("<padding>", "<unknown>", "cat", "dog"):
            assert torch.equal(tensor[new.ids[word]], given[old.ids[word]])
        assert torch.equal(tensor[new.ids["bird"]], before[new.ids["bird"]])
    assert seen == 2  # a matrix for each direction of the caption LSTM


def test_a_warm_start_from_another_architecture_is_refused_and_changes_nothing() -> None:
    model = model_of(WORDS, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wider = build_model(replace(CONFIG.model, latent=9), len(WORDS), 12, 1)
    with pytest.raises(ValueError, match="other shapes"):
        take_weights(model, wider.state_dict(), WORDS.words, WORDS.words)
    with pytest.raises(ValueError, match="other parameters"):
        take_weights(model, {}, WORDS.words, WORDS.words)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
