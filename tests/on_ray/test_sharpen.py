"""Sharpening as its job runs it: real drawings, shards and processes; the loop itself is tested in training/."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs import sharpen as job
from jobs.arguments import parse
from jobs.workspace import Workspace
from pipeline import checkpoint, storage
from pipeline.config import RunConfig, to_dict
from pipeline.loading.stream import ordered
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.on_ray import sharpen as sharpening
from pipeline.on_ray.group import StopRequest
from pipeline.on_ray.sharpen import sharpen_worker
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import VOCABULARY, load_manifest
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState
from tests.processes import run_ranks
from tests.tiny import assert_close, assert_equal

STEPS = 6


def config_of(**sharpened: object) -> RunConfig:
    base = find_recipe("tiny-aligndraw")
    changes = {"steps": STEPS, "save_every": 2, "log_every": 1, **sharpened}
    return replace(base, sharpen=replace(base.sharpen, **changes))


@pytest.fixture(scope="module")
def drawing(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a drawing model that has not learned to draw; what it draws is blurry enough."""
    config, manifest = config_of(), load_manifest(dataset)
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    model = build_model(config.model, len(vocabulary), manifest.size, manifest.channels)
    state = TrainState.of(model, make_optimizer(model, config.train))
    origin = checkpoint.Origin(config, vocabulary, manifest.size, manifest.channels)
    return checkpoint.save(str(tmp_path_factory.mktemp("train") / "checkpoints"), state, origin)


def order_of(folder: Path, dataset: str, drawing: str, config: RunConfig) -> dict:
    return {
        "config": to_dict(config),
        "dataset": dataset,
        "drawing": drawing,
        "folder": str(folder),
        "tracking": None,
        "stop": f"{folder}/stop",
    }


def kept(folder: Path) -> dict[str, Tensor]:
    """Both networks of the last checkpoint of a stage, and what their optimizers remember."""
    last = checkpoint.latest(f"{folder}/checkpoints")
    assert last.step == STEPS
    tensors = {f"{net}.{name}": value for net, weights in last.networks.items() for name, value in weights.items()}
    for name, optimizer in last.optimizers.items():
        for number, memory in optimizer["state"].items():
            tensors |= {f"{name}.{number}.{key}": torch.as_tensor(value) for key, value in memory.items()}
    return tensors


def stopped_worker(order: dict) -> dict | None:
    """`sharpen_worker` that is asked to stop in its third step."""

    class ThirdStep(StopRequest):
        steps = 0

        def __call__(self) -> bool:
            self.steps += 1
            return self.steps == 3

    sharpening.StopRequest = ThirdStep
    return sharpen_worker(order)


def test_the_job_trains_with_two_workers_on_ray_what_one_process_trains(
    ray_cluster: str, dataset: str, drawing: str, tmp_path: Path
) -> None:
    words = ["tiny-aligndraw", "--out", str(tmp_path), "--train.workers", "2", "--sharpen.steps", str(STEPS)]
    words += ["--sharpen.log-every", "1"]
    with pytest.raises(ValueError, match="no finished train stage in .*: first run python -m jobs.train"):
        job.main(words)
    workspace = Workspace(str(tmp_path), parse(job.__doc__, words).config)
    storage.make_folder(workspace.stage("train"))
    workspace.finish("train", {"checkpoint": drawing, "dataset": dataset})

    made, folder = job.main(words), Path(workspace.stage("sharpen"))
    assert (made["reason"], made["step"], made["drawing"]) == ("finished", STEPS, drawing)
    assert checkpoint.load_sharpener(made["checkpoint"]).generator.layers[0].in_channels == 3
    sharpen_worker(order_of(tmp_path / "alone", dataset, drawing, config_of()))
    assert_close(kept(folder), kept(tmp_path / "alone"), 2e-3)
    points = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    logged = {(name, point["step"]) for point in points for name in point.get("metrics", {})}
    names = ("discriminator", "generator", "squared_error", "real", "fake")
    assert {(f"train/{name}", step) for name in names for step in range(1, STEPS + 1)} <= logged
    assert job.main(words) == made


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_sharpening_goes_on_bit_for_bit(dataset: str, drawing: str, tmp_path: Path, ranks: int) -> None:
    order = order_of(tmp_path / "parts", dataset, drawing, config_of())
    assert {result["reason"] for result in run_ranks(ranks, stopped_worker, order)} == {"stopped"}
    assert checkpoint.latest(str(tmp_path / "parts" / "checkpoints")).step == 3
    assert {result["reason"] for result in run_ranks(ranks, sharpen_worker, order)} == {"finished"}
    run_ranks(ranks, sharpen_worker, order_of(tmp_path / "whole", dataset, drawing, config_of()))
    assert_equal(kept(tmp_path / "parts"), kept(tmp_path / "whole"))


@torch.no_grad()
def test_the_checkpoint_alone_sharpens_the_drawings_it_was_trained_on(
    dataset: str, drawing: str, tmp_path: Path
) -> None:
    config = config_of(steps=30, lr=5e-3, content=1.0)
    with torch.enable_grad():
        sharpen_worker(order_of(tmp_path, dataset, drawing, config))
    sharpener = checkpoint.load_sharpener(checkpoint.best(f"{tmp_path}/checkpoints").path)
    drawer, origin, _ = checkpoint.load_model(drawing)
    batch = next(ordered(load_manifest(dataset), origin.vocabulary, "test", batch=12))
    _, drawn = drawer.reconstruct(batch, noise_rows(drawer.noise_shape, 12, (0,)))
    sharp = sharpener.mean(drawn, drawer.describe(batch.words, batch.keep, batch.sentence))
    assert (sharp - batch.images).square().sum() < (drawn - batch.images).square().sum()
    assert torch.isfinite(torch.nn.functional.binary_cross_entropy(sharp, batch.images))


def test_a_batch_that_does_not_divide_among_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="sharpen.batch: 9 does not divide among 2 workers"):
        config = config_of(batch=9)
        replace(config, train=replace(config.train, workers=2))


@pytest.mark.parametrize("recipe", ["tiny-lapgan", "tiny-captioner"])
def test_a_system_that_does_not_reconstruct_is_refused(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(ValueError, match="does not reconstruct images: only draw and vae models can be sharpened"):
        job.main([recipe, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
