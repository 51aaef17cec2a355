"""The model against the equations, transcribed a second time: one image, one step, one gate at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline.config import DrawConfig
from pipeline.models import captions
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.recipes import find_recipe
from pipeline.sample import Batch

VOCABULARY = 11
SMALL = DrawConfig(
    steps=3, read_size=3, write_size=2, latent=4, encoder=6, generator=5, language=3, align=7, sentence=9
)


def captioned_images(channels: int, size: int = 7, sentence: int = 0) -> Batch:
    """Three random images with captions of 5, 1 and 3 words."""
    random = torch.Generator().manual_seed(3)
    keep = torch.arange(5) < torch.tensor([[5], [1], [3]])
    words = torch.randint(2, VOCABULARY, (3, 5), generator=random) * keep
    images = torch.rand(3, channels, size, size, generator=random, dtype=torch.float64)
    vectors = torch.randn(3, sentence, generator=random, dtype=torch.float64) if sentence else None
    return Batch(images, words, keep, ("a", "b", "c"), vectors)


def random_model(config: DrawConfig, channels: int, size: int = 7):
    """Weights far from any start value, so that no term is hidden by a zero."""
    model = build_model(config, VOCABULARY, size, channels, seed=5).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return model


# ---- the transcription: equations of the paper and of its authors' code, nothing of the model but its numbers


def lstm(p, cell, gates, h, c):
    """One LSTM step on vectors; gates in the order input, forget, output, update."""
    total = gates + p[f"{cell}.recurrent.weight"] @ h + p[f"{cell}.recurrent.bias"]
    n = len(h)
    i, f, o = (torch.sigmoid(total[k * n : (k + 1) * n]) for k in range(3))
    c = f * c + i * torch.tanh(total[3 * n :])
    return o * torch.tanh(c), c


def two_lstms(p, gates, h, c, where):
    """The generator's step where its last `where` units are an LSTM of their own."""
    after = []
    for units in (list(range(len(h) - where)), list(range(len(h) - where, len(h)))):
        rows = [gate * len(h) + unit for gate in range(4) for unit in units]
        own = {
            "own.recurrent.weight": p["generator.recurrent.weight"][rows][:, units],
            "own.recurrent.bias": p["generator.recurrent.bias"][rows],
        }
        after.append(lstm(own, "own", gates[rows], h[units], c[units]))
    return [torch.cat(pair) for pair in zip(*after)]


def word_states(p, words):
    """[h_k^fwd ; h_k^bwd] of one caption (a list of ids, no padding)."""
    start = p["language.start"]
    states = {"forward": [], "backward": []}
    for direction, order in (("forward", words), ("backward", words[::-1])):
        h, c = start, torch.zeros_like(start)
        for word in order:
            h, c = lstm(p, f"language.{direction}_cell", p[f"language.{direction}_words.weight"][word], h, c)
            states[direction].append(h)
    return [torch.cat(pair) for pair in zip(states["forward"], states["backward"][::-1])]


def filters(p, layer, h, count, side, where):
    """F_x, F_y as lists of rows, and gamma; DRAW equations 19-26, counting from 1. Of h only the last `where`, 0: all."""
    seen = p[f"{layer}.weight"][:, -where:] @ h[-where:]
    gx, gy, log_variance, log_stride, log_gamma = seen + p[f"{layer}.bias"]
    stride = (side - 1) / (count - 1) * torch.exp(log_stride)
    both = []
    for g in (gx, gy):
        centre = (side + 1) / 2 * (g + 1)
        rows = []
        for i in range(1, count + 1):
            mean = centre + (i - count / 2 - 0.5) * stride
            row = torch.stack(
                [torch.exp(-((a - mean) ** 2) / (2 * torch.exp(log_variance))) for a in range(1, side + 1)]
            )
            rows.append(row / (row.sum() + 1e-4))
        both.append(torch.stack(rows))
    return both[0], both[1], torch.exp(log_gamma)


def attended(p, layer, states, values, h):
    """What attention adds up for a generator state, and the words' weights."""
    energy = torch.stack(
        [
            p[f"{layer}.v.weight"][0]
            @ torch.tanh(p[f"{layer}.U.weight"] @ h_k + p[f"{layer}.W.weight"] @ h + p[f"{layer}.U.bias"])
            for h_k in states
        ]
    )
    alpha = torch.exp(energy) / torch.exp(energy).sum()
    return sum(a * v_k for a, v_k in zip(alpha, values)), alpha


def paint(p, config, z, s, theirs, h_gen, c_gen, canvas):
    """Generative LSTM and write: s is what it is told, theirs (if not None) what its units that decide where are told."""
    channels, side, _ = canvas.shape
    gates = p["generator_latent.weight"] @ z + p["generator_sentence.weight"] @ s
    if theirs is not None:
        for row in range(4 * config.generator):
            if row % config.generator >= config.generator - config.where:
                gates[row] = p["generator_latent.weight"][row] @ z + p["generator_sentence.weight"][row] @ theirs
    if config.where:
        h_gen, c_gen = two_lstms(p, gates, h_gen, c_gen, config.where)
    else:
        h_gen, c_gen = lstm(p, "generator", gates, h_gen, c_gen)
    f_x, f_y, gamma = filters(p, "write_window", h_gen, config.write_size, side, config.where)
    what = slice(config.generator - config.where)
    patch = (p["write.weight"][:, what] @ h_gen[what] + p["write.bias"]).view(
        config.write_size, channels, config.write_size
    )
    return h_gen, c_gen, canvas + torch.stack([f_y.T @ patch[:, k] @ f_x / gamma for k in range(channels)])


def loss_of_one(p, config, image, words, sentence, noise):
    """-log p(x | z) and KL of one image (C, S, S) with one caption, and the alignments of the steps."""
    channels, side, _ = image.shape
    states = word_states(p, words) if config.caption in ("align", "mean") else None
    if config.dropout:  # units whose noise is among the lowest share are left out
        left_out = torch.distributions.Normal(0.0, 1.0).cdf(noise[config.steps :].flatten()) < config.dropout
        kept = torch.where(left_out, 0.0, 1 / (1 - config.dropout))[: len(states[0])]
        states = [h_k * kept for h_k in states]
    values = [p["value_words.weight"][word] for word in words] if config.values == "words" else states
    canvas = p["canvas_start"].permute(1, 0, 2)  # rows, channels, columns -> channels, rows, columns
    h_inf, h_gen = p["encoder_start"], p["generator_start"]
    c_inf, c_gen = torch.zeros_like(h_inf), torch.zeros_like(h_gen)
    kl, alphas = torch.zeros((), dtype=torch.float64), []
    for t in range(config.steps):
        # the prior of this step's latent
        if t == 0 or config.prior == "standard":
            mean_p, log_std_p = torch.zeros(config.latent).double(), torch.zeros(config.latent).double()
        else:
            both = torch.tanh(p["prior.weight"] @ h_gen + p["prior.bias"])
            mean_p, log_std_p = both[: config.latent], both[config.latent :]
        # read, inference LSTM, posterior
        f_x, f_y, gamma = filters(p, "read_window", h_gen, config.read_size, side, config.where)
        error = image - torch.sigmoid(canvas)
        glimpses = [gamma * f_y @ plane @ f_x.T for plane in (*image, *error)]
        patch = torch.stack([glimpse[i] for i in range(config.read_size) for glimpse in glimpses]).flatten()
        gates = p["encoder_patch.weight"] @ patch + p["encoder_generator.weight"] @ h_gen
        h_inf, c_inf = lstm(p, "encoder", gates, h_inf, c_inf)
        both = p["posterior.weight"] @ h_inf + p["posterior.bias"]
        mean_q, log_std_q = both[: config.latent], 0.5 * both[config.latent :]
        z = mean_q + torch.exp(log_std_q) * noise[t]
        q = torch.distributions.Normal(mean_q, torch.exp(log_std_q))
        prior = torch.distributions.Normal(mean_p, torch.exp(log_std_p))
        kl = kl + torch.distributions.kl_divergence(q, prior).sum()
        # the caption, generative LSTM, write
        if config.caption == "align":
            s, alpha = attended(p, "align", states, values, h_gen)
            alphas.append(alpha)
        else:
            s = sum(states) / len(states) if config.caption == "mean" else sentence
            if config.caption == "none":
                s = torch.zeros(1, dtype=torch.float64)
        theirs = attended(p, "align_where", states, values, h_gen)[0] if config.align_where else None
        h_gen, c_gen, canvas = paint(p, config, z, s, theirs, h_gen, c_gen, canvas)
    mean = torch.sigmoid(canvas)
    recon = -(image * torch.log(mean) + (1 - image) * torch.log(1 - mean)).sum()
    return recon, kl, alphas, mean


CASES = [
    pytest.param(replace(SMALL, steps=1), 1, id="grey, 1 step"),
    pytest.param(SMALL, 1, id="grey, 3 steps"),
    pytest.param(replace(SMALL, steps=4, read_size=2, write_size=3), 3, id="colour, 4 steps"),
    pytest.param(replace(SMALL, values="words"), 1, id="grey, values of the words alone"),
    pytest.param(replace(SMALL, dropout=0.4), 1, id="grey, some units of the word states left out"),
    pytest.param(replace(SMALL, dropout=0.4, values="words"), 1, id="grey, the same where the values are of the words"),
    pytest.param(replace(SMALL, prior="standard"), 1, id="grey, the prior of DRAW"),
    pytest.param(
        replace(SMALL, values="words", where=2, align_where=True, prior="standard"), 1, id="grey, all that is ours"
    ),
    pytest.param(replace(SMALL, where=2), 3, id="colour, what and where apart"),
    pytest.param(replace(SMALL, caption="mean"), 3, id="colour, noalign"),
    pytest.param(replace(SMALL, caption="skipthought"), 1, id="grey, skipthought"),
    pytest.param(replace(SMALL, caption="none"), 1, id="grey, no caption"),
]


@pytest.mark.parametrize(("config", "channels"), CASES)
def test_losses_and_all_gradients_equal_the_transcribed_equations(config, channels):
    model = random_model(config, channels)
    batch = captioned_images(channels, sentence=config.sentence if config.caption == "skipthought" else 0)
    noise = noise_rows(model.noise_shape, 3, (9,)).double()

    terms, mean = model.reconstruct(batch, noise)
    terms.total.mean().backward()

    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    expected = []
    for row in range(3):
        words = batch.words[row][batch.keep[row]].tolist()
        sentence = None if batch.sentence is None else batch.sentence[row]
        expected.append(loss_of_one(twin, config, batch.images[row], words, sentence, noise[row]))
    (sum(recon + kl for recon, kl, _, _ in expected) / 3).backward()

    torch.testing.assert_close(terms["recon"], torch.stack([e[0] for e in expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["kl"], torch.stack([e[1] for e in expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, torch.stack([e[3] for e in expected]), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        theirs = twin[name].grad
        scale = theirs.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, theirs, rtol=1e-6, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("config", "channels"), CASES)
def test_generation_runs_the_same_step_with_latents_from_the_prior(config, channels):
    """Inference with a posterior that copies the prior must draw what `sample` draws: checked by feeding z through Q."""
    model = random_model(config, channels)
    batch = captioned_images(channels, sentence=config.sentence if config.caption == "skipthought" else 0)
    noise = noise_rows(model.noise_shape, 3, (2,)).double()
    with torch.no_grad():
        drawn = model.sample(batch.words, batch.keep, batch.sentence, noise, steps=True)
        caption, weights = model._caption(batch.words, batch.keep, batch.sentence), model._weights(infer=True)
        drawing = model._blank(3, weights)
        for t in range(config.steps):
            latent = noise[:, t]
            if t > 0 and config.prior == "learned":
                both = torch.tanh(drawing.hidden @ model.prior.weight.T + model.prior.bias)
                latent = both[:, : config.latent] + both[:, config.latent :].exp() * latent
            drawing = model.step(drawing, latent, caption, weights)
    assert drawn.canvases.shape == (config.steps, 3, channels, 7, 7)
    torch.testing.assert_close(drawn.images, torch.sigmoid(drawing.canvas).transpose(1, 2))
    torch.testing.assert_close(drawn.images, drawn.canvases[-1])
    assert model.sample(batch.words, batch.keep, batch.sentence, noise).canvases is None


def test_a_caption_in_a_batch_of_mixed_lengths_gets_the_same_result_as_alone():
    model = random_model(SMALL, 1)
    batch = captioned_images(1)
    noise = noise_rows(model.noise_shape, 3, (4,)).double()
    together = model.terms(batch, noise)
    drawn = model.sample(batch.words, batch.keep, None, noise)
    for row in range(3):
        length = int(batch.keep[row].sum())
        alone = Batch(
            batch.images[row : row + 1], batch.words[row : row + 1, :length], batch.keep[row : row + 1, :length], ()
        )
        torch.testing.assert_close(model.terms(alone, noise[row : row + 1]).total, together.total[row : row + 1])
        single = model.sample(alone.words, alone.keep, None, noise[row : row + 1])
        torch.testing.assert_close(single.images, drawn.images[row : row + 1])


def test_where_words_are_the_values_a_step_is_told_nothing_but_which_words_there_are_and_how_much_of_each():
    model = random_model(replace(SMALL, values="words"), 1)
    keep = torch.ones(1, 3, dtype=torch.bool)
    told = {ids: model._caption(torch.tensor([ids]), keep, None) for ids in ((2, 3, 4), (5, 3, 7))}
    one, other = told.values()
    assert one.values[0, 1].equal(other.values[0, 1]), "the same word among others"
    assert not torch.allclose(one.projected[0, 1], other.projected[0, 1]), "attention knows the others"
    torch.testing.assert_close(
        model.describe(torch.tensor([[2, 3, 4]]), keep, None), model.describe(torch.tensor([[4, 2, 3]]), keep, None)
    )


def test_dropout_is_part_of_training_only_and_leaves_out_its_share_with_the_mean_kept():
    with_dropout, without = (random_model(replace(SMALL, dropout=share), 1) for share in (0.3, 0.0))
    batch, noise = captioned_images(1), noise_rows(with_dropout.noise_shape, 3, (4,)).double()
    assert not torch.allclose(with_dropout.terms(batch, noise).total, without.terms(batch, noise).total)
    measured = with_dropout.eval().terms(batch, noise).total
    assert measured.equal(without.terms(batch, noise[:, : SMALL.steps]).total)
    drawn = with_dropout.train().sample(batch.words, batch.keep, None, noise).images
    assert drawn.equal(without.sample(batch.words, batch.keep, None, noise).images)

    kept = with_dropout._kept(noise_rows(with_dropout.noise_shape, 10_000, (5,))[:, SMALL.steps :])
    assert kept.shape == (10_000, 1, 6) and kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert kept.mean(0).numpy() == pytest.approx(1, abs=0.03)  # five standard errors


@pytest.mark.parametrize("changes", [{"dropout": 1.0}, {"dropout": -0.1}, {"dropout": 0.5, "caption": "mean"}])
def test_dropout_is_a_share_and_of_the_states_attention_is_led_by(changes):
    with pytest.raises(ValueError, match=r"DrawConfig.dropout: .* with --model.caption align a share below 1"):
        replace(SMALL, **changes)


def test_energies_and_their_gradients_do_not_depend_on_how_many_captions_are_taken_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(6)
    shapes = ((7, 5, 4), (7, 4), (4,))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True) for shape in shapes]
    plain = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    (torch.tanh(plain[0] + plain[1][:, None]) @ plain[2]).sin().sum().backward()
    for most in (1, 3, 7):
        monkeypatch.setattr(captions, "_captions_at_a_time", lambda projected, most=most: most)
        for tensor in inputs:
            tensor.grad = None
        captions._Energy.apply(*inputs).sin().sum().backward()
        for ours, theirs in zip(inputs, plain):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_alignments_sum_to_one_and_are_zero_on_padding():
    model = random_model(SMALL, 1)
    batch = captioned_images(1)
    alignments = model.sample(batch.words, batch.keep, None, noise_rows(model.noise_shape, 3, (4,)).double()).alignments
    assert alignments.shape == (SMALL.steps, 3, 5)
    torch.testing.assert_close(alignments.sum(2), torch.ones(SMALL.steps, 3, dtype=torch.float64))
    assert (alignments[:, ~batch.keep] == 0).all()
    assert (alignments[:, batch.keep] > 0).all()


def test_what_stands_in_the_padding_changes_nothing():
    model = random_model(SMALL, 1)
    batch = captioned_images(1)
    noise = noise_rows(model.noise_shape, 3, (4,)).double()
    scribbled = Batch(batch.images, torch.where(batch.keep, batch.words, 7), batch.keep, ())
    assert torch.equal(model.terms(batch, noise).total, model.terms(scribbled, noise).total)


@pytest.mark.parametrize("caption", ["align", "mean", "skipthought"])
def test_the_caption_changes_the_drawing_and_the_order_of_its_words_does(caption):
    config = replace(SMALL, caption=caption)
    model = random_model(config, 1)
    noise = noise_rows(model.noise_shape, 1, (4,)).double()
    keep = torch.ones(1, 3, dtype=torch.bool)
    if caption == "skipthought":
        draw = lambda vector: model.sample(torch.zeros(1, 3).long(), keep, vector, noise).images  # noqa: E731
        assert not torch.allclose(draw(torch.ones(1, 9).double()), draw(-torch.ones(1, 9).double()))
        return
    first, second, swapped = (
        model.sample(torch.tensor([ids]), keep, None, noise).images for ids in ([2, 3, 4], [2, 3, 5], [4, 3, 2])
    )
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, swapped)


def test_a_sentence_vector_given_to_a_model_with_word_states_replaces_the_attended_one():
    model = random_model(replace(SMALL, caption="mean"), 1)
    batch = captioned_images(1)
    noise = noise_rows(model.noise_shape, 3, (4,)).double()
    vectors = model.describe(batch.words, batch.keep, None)
    given = Batch(batch.images, batch.words, batch.keep, (), vectors)
    torch.testing.assert_close(model.terms(given, noise).total, model.terms(batch, noise).total)


@pytest.mark.parametrize("where", [-1, 5])
def test_where_is_decided_by_some_units_but_not_by_all(where):
    with pytest.raises(ValueError, match=rf"DrawConfig.where: {where} is not allowed; 0, or fewer units"):
        replace(SMALL, where=where)


def test_an_attention_of_its_own_is_for_units_that_decide_where():
    for changes in ({}, {"where": 2, "caption": "mean"}):
        with pytest.raises(ValueError, match=r"DrawConfig.align_where: True is not allowed; only with --model.where"):
            replace(SMALL, align_where=True, **changes)


def test_what_is_painted_and_where_can_be_told_by_two_captions():
    config = replace(SMALL, values="words", where=2, align_where=True, prior="standard")
    model = random_model(config, 1)
    batch = captioned_images(1)
    noise = noise_rows(model.noise_shape, 3, (6,)).double()
    others = batch.words.flip(0), batch.keep.flip(0)
    drawn = model.sample(batch.words, batch.keep, None, noise, where=others)

    p = dict(model.named_parameters())
    for row in range(3):
        told = [caption[row][keep[row]].tolist() for caption, keep in ((batch.words, batch.keep), others)]
        states = [word_states(p, words) for words in told]
        values = [[p["value_words.weight"][word] for word in words] for words in told]
        h, c, canvas = p["generator_start"], torch.zeros(config.generator).double(), p["canvas_start"].permute(1, 0, 2)
        for t in range(config.steps):
            s, _ = attended(p, "align", states[0], values[0], h)
            theirs, _ = attended(p, "align_where", states[1], values[1], h)
            h, c, canvas = paint(p, config, noise[row, t], s, theirs, h, c, canvas)
        torch.testing.assert_close(drawn.images[row], torch.sigmoid(canvas))
    same = model.sample(batch.words, batch.keep, None, noise, where=(batch.words, batch.keep))
    torch.testing.assert_close(same.images, model.sample(batch.words, batch.keep, None, noise).images)
    with pytest.raises(ValueError, match="one attention for what and where"):
        random_model(SMALL, 1).sample(batch.words, batch.keep, None, noise, where=others)


def test_words_are_the_values_of_an_attention_only():
    with pytest.raises(ValueError, match="only with --model.caption align"):
        replace(SMALL, caption="mean", values="words")


@pytest.mark.parametrize(
    ("recipe", "vocabulary", "size", "channels", "published"),
    [("coco-aligndraw", 25_323, 32, 3, 33.10e6), ("mnist-aligndraw", 23, 60, 1, 2.37e6)],
)
def test_parameter_counts_are_the_papers(recipe, vocabulary, size, channels, published):
    """As the authors print them. Counted by hand below from the sizes alone; no difference is left to explain."""
    config = find_recipe(recipe).model
    e, g, z, n, a = config.encoder, config.generator, config.latent, config.language, config.align
    m, read, write, pixels = 2 * n, config.read_size, config.write_size, channels * size**2
    by_hand = {
        "words: rows of gate inputs, two directions": 2 * vocabulary * 4 * n,
        "language: recurrent weights, gate biases, one initial state": 2 * (4 * n * n + 4 * n) + n,
        "align: U, W, b, v": m * a + g * a + a + a,
        "inference LSTM: patch and error, generator, recurrent, bias, initial state": 4
        * e
        * (2 * channels * read**2 + g + e + 1)
        + e,
        "posterior: mean and log variance": 2 * (e * z + z),
        "generative LSTM: latent, sentence, recurrent, bias, initial state": 4 * g * (z + m + g + 1) + g,
        "prior: mean and log std": 2 * (g * z + z),
        "windows: five numbers to read, five to write": 2 * (5 * g + 5),
        "write patch": channels * write**2 * (g + 1),
        "canvas c_0": pixels,
    }
    model = build_model(config, vocabulary, size, channels)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(by_hand.values())
    assert math.isclose(count, published, rel_tol=2e-3)


def test_the_bound_of_a_tiny_model_rises_on_eight_images():
    config = replace(find_recipe("tiny-aligndraw").model, canvas=0.0)
    model = build_model(config, VOCABULARY, 12, 1)
    random = torch.Generator().manual_seed(0)
    images = (torch.rand(8, 1, 12, 12, generator=random) > 0.7).float()
    batch = Batch(
        images, torch.randint(2, VOCABULARY, (8, 4), generator=random), torch.ones(8, 4, dtype=torch.bool), ()
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    bounds = []
    for step in range(120):
        terms = model.terms(batch, noise_rows(model.noise_shape, 8, (step,)))
        bounds.append(terms.bound.mean().item())
        optimizer.zero_grad()
        terms.total.mean().backward()
        optimizer.step()
    coin_flips = -144 * math.log(2)
    assert bounds[0] == pytest.approx(coin_flips, rel=0.3)
    assert sum(bounds[-10:]) / 10 > coin_flips + 20


def test_initial_weights_are_a_function_of_the_seed():
    first, again, other = (build_model(SMALL, VOCABULARY, 7, 1, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["write.weight"], other["write.weight"])


def test_noise_is_a_function_of_the_seed_and_does_not_repeat():
    first = noise_rows((2, 3), 4, (1, 2))
    assert torch.equal(first, noise_rows((2, 3), 4, (1, 2)))
    assert not torch.equal(first, noise_rows((2, 3), 4, (2, 1)))
    assert not torch.equal(first, noise_rows((2, 3), 4, (1, 3)))
    many = noise_rows((100,), 1000, (5,))
    assert abs(many.mean().item()) < 0.02 and abs(many.std().item() - 1) < 0.02
