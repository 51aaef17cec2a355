"""Every recipe is whole: its config survives a checkpoint, its model has the size it says, and its tiny twin learns."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.arguments import parse
from pipeline import storage
from pipeline.config import RunConfig, from_dict, to_dict
from pipeline.models.build import build_model
from pipeline.on_ray.train import READERS
from pipeline.recipes import RECIPES, find_recipe
from pipeline.shards.manifest import VOCABULARY, load_manifest
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.fit import fit
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState

TINY = sorted(name for name in RECIPES if name.startswith("tiny-"))
ADVERSARIAL = {"lapgan"}  # kinds of models without a likelihood: training/adversarial.py has its own tests


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_named_as_it_is_called_and_comes_back_from_json(name):
    config = find_recipe(name)
    assert config.name == name
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert RECIPES[name].__doc__ or name.startswith("tiny-"), f"{name} does not say what it is"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_field_of_a_recipe_is_a_flag(name):
    config = parse("python -m jobs.train", [name, "--train.seed", "7"]).config
    assert config == replace(find_recipe(name), train=replace(find_recipe(name).train, seed=7))
    field = next(key for key, value in to_dict(config.model).items() if type(value) is int)
    changed = parse("python -m jobs.train", [name, f"--model.{field}", "12"]).config
    assert changed.model == replace(config.model, **{field: 12})


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_builds_at_its_full_size(name):
    """Without memory for its weights; 25,323 words are COCO's."""
    config = find_recipe(name)
    with torch.device("meta"):
        model = build_model(config.model, 25_323, config.dataset.size, config.dataset.channels)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000


def test_every_system_has_a_tiny_twin():
    def system_of(name: str, *fields: str) -> tuple:
        model = find_recipe(name).model
        return tuple(getattr(model, field, None) for field in ("kind", *fields))

    for fields in (("caption", "body", "values"), ("prior",)):
        systems = {system_of(name, *fields) for name in RECIPES}
        given = {system for system in systems if system[:2] in {("vae", "skipthought"), ("lapgan", "skipthought")}}
        assert systems - given <= {system_of(name, *fields) for name in TINY}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_encoder_that_a_recipe_names_makes_vectors_of_the_width_its_model_takes(name):
    config = find_recipe(name)
    if getattr(config.model, "caption", None) == "skipthought":
        assert find_recipe(config.sentences).model.sentence == config.model.sentence


@pytest.mark.parametrize("name", [name for name in TINY if find_recipe(name).model.kind not in ADVERSARIAL])
def test_a_tiny_recipe_learns(name, dataset):
    """On the drawn digits, through the reader and the loop that training uses: the loss of the last steps is lower."""
    config = find_recipe(name)
    train = replace(config.train, steps=24, warmup=4, log_every=1)
    manifest = load_manifest(dataset)
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    model = build_model(config.model, len(vocabulary), manifest.size, manifest.channels, train.seed)
    losses = []
    read, _ = READERS[config.model.kind]
    batches = read(
        manifest, vocabulary, batch=train.batch, lanes=train.lanes, seed=0, sentences=made_up_vectors(config.model)
    )
    outcome = fit(
        TrainState.of(model, make_optimizer(model, train)),
        batches,
        train,
        log=lambda metrics, step: losses.append(-metrics["train/bound"]),
        say=lambda line: None,
    )
    batches.close()
    assert outcome.step == 24 and len(losses) == 24
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    # ranks that train together wait for the gradient of every parameter
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("job", ["evaluate", "figures"])
@pytest.mark.parametrize("name", ["tiny-captioner", "tiny-skipthought"])
def test_a_job_that_needs_drawings_refuses_a_model_that_draws_nothing(name, job, tmp_path):
    with pytest.raises(ValueError, match="draws nothing: its only stages are jobs.shard and jobs.train"):
        importlib.import_module(f"jobs.{job}").main([name, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["tiny-captioner", "--train.judged", "4"], "train.judged: a captioner draws nothing that could be judged"),
        (["flickr-aligndraw-batch-reversed", "--train.workers", "2"], "turns round the batch as one process has it"),
        (["coco-aligndraw-batch-reversed", "--train.accumulate", "2"], "turns round the batch as one process has it"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse("python -m jobs.train", words)


def made_up_vectors(config):
    """Sentence vectors that are a function of the caption, for the models that take some."""
    if getattr(config, "caption", None) != "skipthought":
        return None

    def vectors(captions):
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=config.sentence) for text in captions])

    return vectors
