"""LAPGAN on the rails of training: the worker that trains likelihoods trains its levels, keeps them and goes on with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint
from pipeline.config import to_dict
from pipeline.generate import draw_captions
from pipeline.on_ray.train import train_worker
from pipeline.recipes import find_recipe
from tests.processes import run_ranks
from tests.tiny import assert_equal


def order_of(folder: Path, dataset: str, steps: int) -> dict:
    config = find_recipe("tiny-lapgan")
    config = replace(config, train=replace(config.train, steps=steps, save_every=2, schedule="constant"))
    return {
        "config": to_dict(config),
        "dataset": dataset,
        "folder": str(folder),
        "tracking": None,
        "stop": f"{folder}/stop",
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_its_levels_go_on_from_their_checkpoint_bit_for_bit(dataset: str, tmp_path: Path, ranks: int) -> None:
    for steps in (4, 6):  # a constant learning rate: a longer run begins as a shorter one
        results = run_ranks(ranks, train_worker, order_of(tmp_path / "parts", dataset, steps))
        assert {(result["reason"], result["step"]) for result in results} == {("finished", steps)}
    run_ranks(ranks, train_worker, order_of(tmp_path / "whole", dataset, 6))
    parts, whole = (checkpoint.latest(f"{tmp_path}/{name}/checkpoints") for name in ("parts", "whole"))
    for network in ("model", "discriminator"):
        assert_equal(parts.networks[network], whole.networks[network])


def test_it_draws_from_captions_with_what_the_checkpoint_holds(dataset: str, tmp_path: Path) -> None:
    train_worker(order_of(tmp_path, dataset, 2))
    model, origin, step = checkpoint.load_model(checkpoint.best(f"{tmp_path}/checkpoints").path)
    captions = ["the digit 3 is at the top left of the image .", "the digit 4 is at the top left of the image ."]
    drawn = draw_captions(model, origin.vocabulary, captions, seed=0, per_caption=2).images
    assert step == 2 and drawn.shape == (4, 1, 60, 60)
    assert torch.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
