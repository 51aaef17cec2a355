"""Sentence vectors for a run: an encoder is trained once on Ray, its vectors are kept, and training reads them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoint
from pipeline.loading.neighbours import groups_of
from pipeline.on_ray import sentences
from pipeline.on_ray.sentences import DONE, Home, prepare_sentences, sentences_for
from pipeline.on_ray.train import train
from pipeline.recipes import find_recipe
from pipeline.sample import SPLITS
from pipeline.shards.manifest import load_manifest
from pipeline.text.skipthought import part_path
from tests.models.test_skipthought import WORDS, encoder_arrays


@pytest.fixture(scope="module")
def own(dataset, tmp_path_factory) -> str:
    """A copy of the data set, so that what is put beside it disturbs nobody."""
    return shutil.copytree(dataset, tmp_path_factory.mktemp("own") / Path(dataset).name).as_posix()


@pytest.fixture(scope="module")
def trained(own, ray_cluster, tmp_path_factory) -> tuple[str, list[str], dict]:
    """skipthoughtDRAW trained from nothing: its folder, what was said, and the outcome."""
    folder, said = tmp_path_factory.mktemp("run").as_posix(), []
    return folder, said, train(find_recipe("tiny-skipthoughtdraw"), own, folder, None, said.append)


def test_training_makes_the_encoder_and_the_vectors_first_and_then_the_model(own, trained):
    folder, said, outcome = trained
    config = find_recipe("tiny-skipthoughtdraw")
    assert outcome["step"] == config.train.steps
    assert any("training the sentence encoder tiny-skipthought" in line for line in said)
    home = Home(config, own)
    encoder = checkpoint.best(f"{home.stage}/checkpoints")
    assert encoder.step == find_recipe("tiny-skipthought").train.steps
    assert json.loads(Path(home.folder, DONE).read_text()) == {"captions": len(home.captions), "width": 16}
    weights = checkpoint.latest(f"{folder}/checkpoints").networks["model"]
    assert weights["generator_sentence.weight"].shape[1] == 16


def test_a_vector_is_what_the_trained_encoder_says_of_the_caption(own, trained):
    config = find_recipe("tiny-skipthoughtdraw")
    look_up = sentences_for(config, own)
    model, origin, _ = checkpoint.load_model(checkpoint.best(f"{Home(config, own).stage}/checkpoints").path)
    known = next(texts[0] for _, texts in groups_of(load_manifest(own), "test"))
    new = "the digit 3 is in space ."
    with torch.no_grad():
        expected = [model.describe(*origin.vocabulary.encode([text]), None)[0].numpy() for text in (known, new)]
    np.testing.assert_allclose(look_up([known, new]), expected, atol=2e-3)  # half precision of numbers up to 1


def test_all_captions_of_all_splits_have_a_vector_on_disk(own, trained):
    look_up = sentences_for(find_recipe("tiny-skipthoughtdraw"), own)
    look_up.encode = None  # nothing needs to be encoded any more
    every = [text for split in SPLITS for _, texts in groups_of(load_manifest(own), split) for text in texts]
    assert look_up(every).shape == (len(every), 16)
    halves = look_up(every).reshape(len(every), 2, 8)
    np.testing.assert_allclose((halves**2).sum(2), 1, atol=1e-2)


def test_what_is_there_is_not_made_again_and_a_missing_file_alone_is(own, trained, ray_cluster):
    config = find_recipe("tiny-skipthoughtdraw")

    def no_training(*_):
        raise AssertionError("the encoder is there")

    prepare_sentences(config, own, None, no_training, no_training)
    home = Home(config, own)
    path = Path(part_path(home.folder, 0))
    before = path.read_bytes()
    path.unlink()
    Path(home.folder, DONE).unlink()
    said = []
    prepare_sentences(config, own, None, no_training, said.append)
    assert path.read_bytes() == before and "1 of 1 files" in said[0]


def test_a_model_that_takes_none_gets_none(own):
    config = find_recipe("tiny-aligndraw")
    prepare_sentences(config, own, None, None)
    assert sentences_for(config, own) is None


def test_the_checkpoint_of_an_encoder_serves_other_runs(own, trained, ray_cluster):
    config = find_recipe("tiny-skipthoughtdraw")
    path = checkpoint.best(f"{Home(config, own).stage}/checkpoints").path
    other = replace(config, sentences=path)
    prepare_sentences(other, own, None, None, lambda line: None)
    captions = ["the digit 1 is at the top left of the image .", "new"]
    np.testing.assert_array_equal(sentences_for(other, own)(captions), sentences_for(config, own)(captions))


def test_published_weights_serve_too(own, ray_cluster, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "dictionary.txt").write_text("\n".join([*WORDS, "digit"]) + "\n", "utf-8")
    for name in ("utable.npy", "btable.npy"):
        np.save(tmp_path / name, random.normal(size=(len(WORDS) + 1, 5)).astype(np.float32))
    np.savez(tmp_path / "uni_skip.npz", **encoder_arrays(random, 5, 4, ["encoder"]))
    np.savez(tmp_path / "bi_skip.npz", **encoder_arrays(random, 5, 2, ["encoder", "encoder_r"]))
    base = find_recipe("tiny-skipthoughtdraw")
    config = replace(base, sentences=str(tmp_path), model=replace(base.model, sentence=8))
    prepare_sentences(config, own, None, None, lambda line: None)
    look_up = sentences_for(config, own)
    assert look_up(["the digit", "the dog"]).shape == (2, 8)
    assert not np.allclose(*look_up(["the digit", "the dog"]))
    with pytest.raises(ValueError, match="--model.sentence 8"):
        prepare_sentences(replace(config, model=replace(base.model, sentence=12)), own, None, None, lambda line: None)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere", "is no recipe .*tiny-skipthought.*, no checkpoint"),
        ("tiny-aligndraw", "is a recipe for draw, not for a sentence encoder"),
    ],
)
def test_what_is_no_encoder_is_refused_with_one_line(own, source, complaint):
    config = replace(find_recipe("tiny-skipthoughtdraw"), sentences=source)
    with pytest.raises(ValueError, match=complaint):
        sentences_for(config, own)


def test_the_wrong_width_is_told_before_an_encoder_is_trained(own):
    base = find_recipe("tiny-skipthoughtdraw")
    config = replace(base, sentences="coco-skipthought", model=replace(base.model, sentence=4800))
    with pytest.raises(ValueError, match="--model.sentence 1200"):
        prepare_sentences(config, own, None, None, lambda line: None)


def test_vectors_that_are_not_there_yet_are_told(own):
    config = replace(find_recipe("tiny-skipthoughtdraw"), sentences="coco-skipthought")
    with pytest.raises(ValueError, match="jobs.train makes them"):
        sentences_for(config, own)


def test_rows_of_any_length_are_encoded_in_their_place():
    texts = ["w" * (7 * number % 100) for number in range(150)]
    found = sentences._sorted_by_length(lambda part: torch.tensor([[len(t), 1.0, 3.0, 4.0] for t in part]), texts)
    np.testing.assert_allclose(found[:, 0] / found[:, 1], [len(text) for text in texts], rtol=1e-5)
    np.testing.assert_allclose(found[:, 2:], [[0.6, 0.8]] * 150, rtol=1e-6)
