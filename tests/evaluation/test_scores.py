"""What captions and the mean sentence say of an image; against one image and one caption at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import DrawConfig, VaeConfig
from pipeline.evaluation.scores import score_any, score_caption, score_mean, sum_sentences
from pipeline.models.build import build_model
from pipeline.sample import Batch
from pipeline.text.vocabulary import Vocabulary

CAPTIONS = ["a red cat", "two dogs sit on the grass .", "a cat", "the grass"]
VOCABULARY = Vocabulary.build(CAPTIONS)
IMAGES = torch.rand((5, 1, 12, 12), generator=torch.Generator().manual_seed(0))


VECTORS = dict(zip(CAPTIONS, torch.randn((4, 6), generator=torch.Generator().manual_seed(2)), strict=True))
DRAW = dict(steps=3, read_size=3, write_size=3, latent=4, encoder=8, generator=8, language=4, align=4, start="scaled")
VAE = dict(latent=4, hidden=16, maps=2, language=4)
SYSTEMS = {
    "alignDRAW": DrawConfig(**DRAW),
    "alignDRAW, values words": DrawConfig(values="words", where=3, align_where=True, dropout=0.5, **DRAW),
    "noalignDRAW": DrawConfig(caption="mean", **DRAW),
    "skipthoughtDRAW": DrawConfig(caption="skipthought", sentence=6, **DRAW),
    "Fully-Connected VAE": VaeConfig(body="fc", **VAE),
    "Conv-Deconv VAE": VaeConfig(body="conv", **VAE),
    "Conv-Deconv VAE with sentence vectors": VaeConfig(body="conv", caption="skipthought", sentence=6, **VAE),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(SYSTEMS[request.param], len(VOCABULARY), 12, 1).eval()


def vectors(model: torch.nn.Module, captions: list[str]) -> list[torch.Tensor | None]:
    """Sentence vectors of captions for the systems that take them."""
    return [VECTORS[caption] if model.config.caption == "skipthought" else None for caption in captions]


def noise(model: torch.nn.Module) -> torch.Tensor:
    return torch.randn((5, *model.noise_shape), generator=torch.Generator().manual_seed(1))


def alone(model: torch.nn.Module, image: int, caption: str) -> float:
    """The bound of one image under one caption, without any batch or padding."""
    words, keep = VOCABULARY.encode([caption])
    vector = vectors(model, [caption])[0]
    batch = Batch(IMAGES[image : image + 1], words, keep, ("",), None if vector is None else vector[None])
    return float(model.terms(batch, noise(model)[image : image + 1]).bound.detach())


def encoded(model: torch.nn.Module, captions: list[str]) -> list[tuple]:
    return list(zip(*VOCABULARY.encode(captions), vectors(model, captions), strict=True))


def test_a_caption_scores_every_image_as_it_would_alone(model: torch.nn.Module) -> None:
    for caption, one in zip(CAPTIONS, encoded(model, CAPTIONS), strict=True):
        scores = score_caption(model, IMAGES, *one, noise(model))
        assert scores.tolist() == pytest.approx([alone(model, i, caption) for i in range(5)], rel=1e-5)


def test_the_mean_sentence_is_the_mean_of_descriptions_however_they_are_batched(model: torch.nn.Module) -> None:
    def summed(captions: list[str]) -> tuple[int, np.ndarray]:
        given = vectors(model, captions)
        sentence = None if given[0] is None else torch.stack(given)
        number = len(captions)
        return sum_sentences(model, Batch(IMAGES[:number], *VOCABULARY.encode(captions), ("",) * number, sentence))

    together, each = summed(CAPTIONS), [summed([caption]) for caption in CAPTIONS]
    assert together[0] == sum(number for number, _ in each) == 4
    np.testing.assert_allclose(together[1], sum(total for _, total in each), rtol=1e-5)


def test_of_one_caption_the_mean_sentence_is_that_caption_to_a_model_that_averages_words() -> None:
    torch.manual_seed(0)
    model = build_model(SYSTEMS["noalignDRAW"], len(VOCABULARY), 12, 1).eval()
    _, total = sum_sentences(model, Batch(IMAGES[:1], *VOCABULARY.encode(["a red cat"]), ("",)))
    scores = score_mean(model, IMAGES, torch.from_numpy(total).float(), noise(model))
    assert scores.tolist() == pytest.approx([alone(model, i, "a red cat") for i in range(5)], rel=1e-5)


def test_the_mean_over_captions_is_one_of_probabilities_not_of_their_logarithms(model: torch.nn.Module) -> None:
    scores = score_any(model, IMAGES, encoded(model, CAPTIONS), noise(model))
    each = np.array([[alone(model, i, caption) for i in range(5)] for caption in CAPTIONS])
    shift = each.max(0)
    np.testing.assert_allclose(scores, np.log(np.exp(each - shift).mean(0)) + shift, rtol=1e-5)
