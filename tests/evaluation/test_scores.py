"""What captions and the mean sentence say of an image; against one image and one caption at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import DrawConfig
from pipeline.evaluation.scores import score_any, score_caption, score_mean, sum_sentences
from pipeline.models.build import build_model
from pipeline.sample import Batch
from pipeline.text.vocabulary import Vocabulary

CAPTIONS = ["a red cat", "two dogs sit on the grass .", "a cat", "the grass"]
VOCABULARY = Vocabulary.build(CAPTIONS)
IMAGES = torch.rand((5, 1, 12, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["align", "mean"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = dict(steps=3, read_size=3, write_size=3, latent=4, encoder=8, generator=8, language=4, align=4)
    return build_model(DrawConfig(caption=request.param, start="scaled", **sizes), len(VOCABULARY), 12, 1).eval()


NOISE = torch.randn((5, 3, 4), generator=torch.Generator().manual_seed(1))


def alone(model: torch.nn.Module, image: int, caption: str) -> float:
    """The bound of one image under one caption, without any batch or padding."""
    words, keep = VOCABULARY.encode([caption])
    batch = Batch(IMAGES[image : image + 1], words, keep, ("",))
    return float(model.terms(batch, NOISE[image : image + 1]).bound.detach())


def encoded(captions: list[str]) -> list[tuple]:
    return [(*pair, None) for pair in zip(*VOCABULARY.encode(captions), strict=True)]


def test_a_caption_scores_every_image_as_it_would_alone(model: torch.nn.Module) -> None:
    for caption, one in zip(CAPTIONS, encoded(CAPTIONS), strict=True):
        scores = score_caption(model, IMAGES, *one, NOISE)
        assert scores.tolist() == pytest.approx([alone(model, i, caption) for i in range(5)], rel=1e-5)


def test_the_mean_sentence_is_the_mean_of_descriptions_however_they_are_batched(model: torch.nn.Module) -> None:
    words, keep = VOCABULARY.encode(CAPTIONS)
    together = sum_sentences(model, Batch(IMAGES[:4], words, keep, ("",) * 4))
    each = [sum_sentences(model, Batch(IMAGES[:1], *VOCABULARY.encode([caption]), ("",))) for caption in CAPTIONS]
    assert together[0] == sum(number for number, _ in each) == 4
    np.testing.assert_allclose(together[1], sum(total for _, total in each), rtol=1e-5)


def test_of_one_caption_the_mean_sentence_is_that_caption_to_a_model_that_averages_words() -> None:
    torch.manual_seed(0)
    sizes = dict(steps=3, read_size=3, write_size=3, latent=4, encoder=8, generator=8, language=4)
    model = build_model(DrawConfig(caption="mean", start="scaled", **sizes), len(VOCABULARY), 12, 1).eval()
    _, total = sum_sentences(model, Batch(IMAGES[:1], *VOCABULARY.encode(["a red cat"]), ("",)))
    scores = score_mean(model, IMAGES, torch.from_numpy(total).float(), NOISE)
    assert scores.tolist() == pytest.approx([alone(model, i, "a red cat") for i in range(5)], rel=1e-5)


def test_the_mean_over_captions_is_one_of_probabilities_not_of_their_logarithms(model: torch.nn.Module) -> None:
    scores = score_any(model, IMAGES, encoded(CAPTIONS), NOISE)
    each = np.array([[alone(model, i, caption) for i in range(5)] for caption in CAPTIONS])
    shift = each.max(0)
    np.testing.assert_allclose(scores, np.log(np.exp(each - shift).mean(0)) + shift, rtol=1e-5)
