"""What a captioner makes of drawings and of real images, block by block; against its scores one caption at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.evaluation.captioning import score_captions
from pipeline.generate import draw_captions
from pipeline.models.build import build_model
from pipeline.on_ray.retell import Teller, Telling, _digest_of
from pipeline.on_ray.score import Order, read_split
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import VOCABULARY
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.adversarial import sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState


@pytest.fixture(scope="module")
def telling(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Telling:
    """An untrained drawing model with a sharpener, and an untrained captioner that has likes and dislikes."""
    folder, paths = tmp_path_factory.mktemp("models"), []
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    for name in ("tiny-aligndraw", "tiny-captioner"):
        recipe = find_recipe(name)
        model = build_model(recipe.model, len(vocabulary), 60, 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        origin = Origin(recipe, vocabulary, 60, 1)
        state = TrainState.of(model, make_optimizer(model, recipe.train))
        paths.append(checkpoint.save(f"{folder}/{name}", state, origin))
        if name == "tiny-aligndraw":
            state = sharpener_state(model, 1, 60, recipe.sharpen)
            with torch.no_grad():
                for parameter in state.networks["sharpener"].parameters():
                    parameter.add_(0.05)
            sharpener = checkpoint.save(f"{folder}/sharpener", state, origin)
    return Telling(Order(dataset, paths[0], sharpener, find_recipe("tiny-aligndraw").evaluation), paths[1])


def test_true_captions_are_ranked_among_all_the_others_for_what_is_drawn_from_them(telling: Telling) -> None:
    teller = Teller(telling)
    found = teller.tell(5, 3)
    assert set(found) == {"drawn", "sharpened", "drawn/ratio", "sharpened/ratio"}
    images, captions = teller.artist.test
    model, vocabulary = teller.captioner
    assert len(teller.offered[0]) == len(set(captions)) == len(teller.ease)
    mean_image = read_split(teller.artist.manifest, "train")[0].float().mean(0) / 255
    drawn = draw_captions(teller.artist.model, vocabulary, captions[5:8], 0, teller.artist.sharpener, rows=range(5, 8))
    torch.testing.assert_close(teller._shown(5, 3), {"drawn": drawn.images, "sharpened": drawn.sharpened})
    for name, shown in (("drawn", drawn.images), ("sharpened", drawn.sharpened)):
        for row in range(3):
            own = captions[5 + row]
            others = sorted(set(captions) - {own})
            plain, ease = (
                np.array([score_captions(model, vocabulary, image[None], [[text]])[0, 0] for text in [own, *others]])
                for image in (shown[row], mean_image)
            )
            for way, score in (("", plain), ("/ratio", plain - ease)):
                better = int((score[1:] > score[0] + 1e-4).sum())
                assert abs(found[f"{name}{way}"][row].sum() - better) <= 1, "ties are broken fairly, rounding is not"


def test_without_a_model_it_looks_at_the_real_images(telling: Telling) -> None:
    real = replace(telling, order=replace(telling.order, model="", sharpener=None))
    found = Teller(real).tell(0, 4)
    assert set(found) == {"true", "true/ratio"} and found["true"].shape == (4, 2)
    parts = [Teller(real).tell(start, 2)["true"] for start in (0, 2)]
    assert np.concatenate(parts).tolist() == found["true"].tolist()


def test_a_result_is_kept_under_what_it_depends_on(telling: Telling, tmp_path: Path) -> None:
    order = telling.order
    others = [
        replace(telling, order=replace(order, sharpener=None)),
        replace(telling, order=replace(order, model="", sharpener=None)),
        replace(telling, order=replace(order, settings=replace(order.settings, seed=1))),
        replace(telling, captioner=order.model),
    ]
    assert len({_digest_of(one) for one in [telling, *others]}) == 5
    elsewhere = replace(telling, order=replace(order, settings=replace(order.settings, workers=2, queries=9)))
    assert _digest_of(elsewhere) == _digest_of(telling)
