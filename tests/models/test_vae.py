"""The VAEs against their equations, written with loops and torch.distributions: one image, one pixel at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipeline.config import VaeConfig
from pipeline.evaluation.bound import bernoulli_cost
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.models.likelihood import gaussian_nll
from pipeline.sample import Batch
from tests.models.test_draw import captioned_images

VOCABULARY = 11
SMALL = VaeConfig(latent=3, hidden=5, maps=2, deviation=0.3, language=3, sentence=9)


def random_model(config: VaeConfig, channels: int, size: int):
    model = build_model(config, VOCABULARY, size, channels, seed=5).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return model


# ---- the transcription


def convolve(image, weight, bias):
    """4x4 windows, stride 2, a border of one zero: every output pixel on its own."""
    side = image.shape[1]
    out = torch.zeros(len(weight), side // 2, side // 2, dtype=torch.float64)
    rows = []
    for k in range(len(weight)):
        for r in range(side // 2):
            for c in range(side // 2):
                total = bias[k]
                for i in range(4):
                    for j in range(4):
                        y, x = 2 * r + i - 1, 2 * c + j - 1
                        if 0 <= y < side and 0 <= x < side:
                            total = total + weight[k, :, i, j] @ image[:, y, x]
                rows.append(total)
    return torch.stack(rows).view_as(out)


def spread(image, weight, bias, side):
    """The reverse: every input pixel adds its 4x4 window, scaled, to an output of the given side."""
    out = [[bias.clone() for _ in range(side)] for _ in range(side)]
    for r in range(image.shape[1]):
        for c in range(image.shape[2]):
            for i in range(4):
                for j in range(4):
                    y, x = 2 * r + i - 1, 2 * c + j - 1
                    if 0 <= y < side and 0 <= x < side:
                        out[y][x] = out[y][x] + image[:, r, c] @ weight[:, :, i, j]
    return torch.stack([torch.stack(row) for row in out]).permute(2, 0, 1)


def loss_of_one(p, config, image, sentence, noise):
    """-log p(x | z), KL and mean image of one image (C, S, S)."""
    linear = lambda name, v: p[f"{name}.weight"] @ v + p[f"{name}.bias"]  # noqa: E731
    channels, side, _ = image.shape
    if config.body == "fc":
        seen = linear("see.1", image.flatten()).relu()
    else:
        seen = image
        for layer in (0, 2, 4):
            seen = convolve(seen, p[f"see.{layer}.weight"], p[f"see.{layer}.bias"]).relu()
        seen = seen.flatten()
    both = linear("posterior", linear("infer", torch.cat((seen, sentence))).relu())
    q = Normal(both[: config.latent], (both[config.latent :] / 2).exp())
    kl = kl_divergence(q, Normal(torch.zeros(config.latent).double(), 1.0)).sum()
    hidden = linear("generate", torch.cat((q.mean + q.stddev * noise, sentence))).relu()
    hidden = linear("paint.0", hidden)
    if config.body == "fc":
        logits = hidden.view(channels, side, side)
    else:
        sides = [side, side // 2, side // 4, side // 8]
        hidden = hidden.view(-1, sides[3], sides[3])
        for layer, finer in ((3, sides[2]), (5, sides[1]), (7, sides[0])):
            hidden = spread(hidden.relu(), p[f"paint.{layer}.weight"], p[f"paint.{layer}.bias"], finer)
        logits = hidden
    mean = 1 / (1 + torch.exp(-logits))
    return -Normal(mean, config.deviation).log_prob(image).sum(), kl, mean


CASES = [
    pytest.param(replace(SMALL, caption="skipthought"), 1, 7, id="fully connected, given sentence"),
    pytest.param(SMALL, 3, 5, id="fully connected, colour, mean of word states"),
    pytest.param(replace(SMALL, body="conv", caption="skipthought"), 1, 8, id="convolutional, given sentence"),
    pytest.param(replace(SMALL, body="conv"), 3, 15, id="convolutional, colour, odd sides, mean of word states"),
]


@pytest.mark.parametrize(("config", "channels", "size"), CASES)
def test_losses_and_all_gradients_equal_the_transcribed_equations(config, channels, size):
    model = random_model(config, channels, size)
    batch = captioned_images(channels, size, config.sentence if config.caption == "skipthought" else 0)
    noise = noise_rows(model.noise_shape, 3, (9,)).double()
    terms, mean = model.reconstruct(batch, noise)
    terms.total.mean().backward()

    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    # word states have their own proof in test_draw.py; here the twin's gradients flow through them by the same code
    sentences = torch.func.functional_call(
        model.sentence,
        {name.removeprefix("sentence."): value for name, value in twin.items() if name.startswith("sentence.")},
        (batch.words, batch.keep, batch.sentence),
    )
    expected = [loss_of_one(twin, config, batch.images[i], sentences[i], noise[i]) for i in range(3)]
    (sum(recon + kl for recon, kl, _ in expected) / 3).backward()

    torch.testing.assert_close(terms["recon"], torch.stack([e[0] for e in expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["kl"], torch.stack([e[1] for e in expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, torch.stack([e[2] for e in expected]), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        theirs = twin[name].grad
        scale = theirs.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-6, atol=1e-9 * scale, msg=lambda m, n=name: n + m)


def test_the_least_squares_cost_is_half_the_squared_error_and_a_constant_at_deviation_one():
    image, mean = torch.rand(4, 3, 6, 6).double(), torch.rand(4, 3, 6, 6).double()
    squares = ((image - mean) ** 2).sum((1, 2, 3))
    constant = 108 * 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(mean, image, 1.0), 0.5 * squares + constant)
    torch.testing.assert_close(
        gaussian_nll(image, image, 0.1), torch.full((4,), constant + 108 * math.log(0.1)).double()
    )


@pytest.mark.parametrize("body", ["fc", "conv"])
def test_a_drawing_is_the_mean_of_the_decoder_at_the_noise_and_depends_on_the_caption(body):
    model = random_model(replace(SMALL, body=body), 1, 9)
    batch, noise = captioned_images(1, 9), noise_rows(model.noise_shape, 3, (4,)).double()
    drawn = model.sample(batch.words, batch.keep, None, noise).images
    assert drawn.shape == batch.images.shape and 0 < drawn.min() and drawn.max() < 1
    torch.testing.assert_close(drawn, model.decode(noise, model.describe(batch.words, batch.keep, None)))
    other = model.sample(batch.words.flip(0), batch.keep.flip(0), None, noise).images
    assert not torch.allclose(drawn[0], other[0])


@pytest.mark.parametrize("body", ["fc", "conv"])
def test_a_given_sentence_vector_replaces_the_mean_of_the_word_states(body):
    model = random_model(replace(SMALL, body=body), 1, 9)
    batch, noise = captioned_images(1, 9), noise_rows(model.noise_shape, 3, (4,)).double()
    vectors = model.describe(batch.words, batch.keep, None)
    given = Batch(batch.images, batch.words, batch.keep, (), vectors)
    torch.testing.assert_close(model.terms(given, noise).total, model.terms(batch, noise).total)


def test_a_model_of_sentence_vectors_says_that_it_has_none():
    model = random_model(replace(SMALL, caption="skipthought"), 1, 9)
    batch = captioned_images(1, 9)
    with pytest.raises(ValueError, match="the batch has none"):
        model.terms(batch, noise_rows(model.noise_shape, 3, (4,)).double())


def test_sides_too_small_to_be_halved_are_refused():
    with pytest.raises(ValueError, match="8 or more"):
        build_model(replace(SMALL, body="conv"), VOCABULARY, 7, 1)


def test_sizes_of_the_papers_images_come_out_as_they_went_in():
    for size in (8, 28, 32, 60):
        model = build_model(replace(SMALL, body="conv"), VOCABULARY, size, 3)
        assert model.decode(torch.zeros(1, 3), torch.zeros(1, 6)).shape == (1, 3, size, size)


@pytest.mark.parametrize("body", ["fc", "conv"])
def test_it_learns_which_image_a_caption_stands_for(body):
    """Two captions, two pictures: after training, a drawing from the prior is the picture of its caption."""
    config = replace(SMALL, body=body, hidden=24, maps=4, deviation=0.15, language=6)
    model = build_model(config, VOCABULARY, 8, 1)
    pictures = torch.zeros(2, 1, 8, 8)
    pictures[0, :, :, :4] = pictures[1, :, 4:] = 1
    words = torch.tensor([[2, 3], [2, 4]])
    batch = Batch(pictures, words, torch.ones(2, 2, dtype=torch.bool), ("a", "b"))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    bounds, bernoulli = [], []
    for step in range(150):
        terms, mean = model.reconstruct(batch, noise_rows(model.noise_shape, 2, (step,)))
        bounds.append(terms.bound.mean().item())
        bernoulli.append(-(bernoulli_cost(mean.clamp(1e-3, 1 - 1e-3), pictures) + terms["kl"]).mean().item())
        optimizer.zero_grad()
        terms.total.mean().backward()
        optimizer.step()
    drawn = model.sample(words, batch.keep, None, noise_rows(model.noise_shape, 2, (1000,))).images
    assert bounds[-1] > 40 > -200 > bounds[0]  # of a density: at most 64 * 0.978 = 62.6 nats
    assert bernoulli[-1] > -10 > -40 > bernoulli[0]  # 64 coin flips cost 44.4 nats
    assert (drawn - pictures).abs().mean() < 0.1 < (drawn - pictures.flip(0)).abs().mean()
