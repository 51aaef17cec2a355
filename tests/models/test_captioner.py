"""The captioner against its equations, one image and one word at a time in float64, and beam search against all sequences."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from pipeline.config import CaptionerConfig
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.models.captioner import END, beam_search
from pipeline.sample import Batch
from tests.models.test_draw import VOCABULARY, captioned_images, lstm

SMALL = CaptionerConfig(maps=2, attention=5, hidden=4, word=3, attend=0.7)


def random_model(config: CaptionerConfig = SMALL, channels: int = 1, size: int = 7):
    model = build_model(config, VOCABULARY, size, channels, seed=5).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return model


# ---- the transcription


def convolve(image, weight, bias, stride):
    """Every output pixel on its own; the border is half a window of zeros."""
    half, side = weight.shape[2] // 2, image.shape[1]
    out = []
    for kernel, b in zip(weight, bias):
        for y in range(0, side, stride):
            for x in range(0, side, stride):
                total = b
                for i in range(weight.shape[2]):
                    for j in range(weight.shape[3]):
                        if 0 <= y + i - half < side and 0 <= x + j - half < side:
                            total = total + kernel[:, i, j] @ image[:, y + i - half, x + j - half]
                out.append(total)
    small = math.ceil(side / stride)
    return torch.stack(out).view(len(weight), small, small)


def loss_of_one(p, config, image, words):
    """-log p(caption | image), the attention's penalty and alphas of one image (C, S, S) and caption (a list of ids)."""
    linear = lambda name, v: p[f"{name}.weight"] @ v + p.get(f"{name}.bias", 0)  # noqa: E731
    seen = image
    for layer, stride in ((0, 2), (2, 2), (4, 1), (6, 1)):
        weight, bias = p[f"convolutions.{layer}.weight"], p[f"convolutions.{layer}.bias"]
        seen = convolve(seen, weight, bias, stride).relu()
    spread = ((seen - seen.mean()) ** 2).mean()
    scaled = (seen - seen.mean()) / torch.sqrt(spread + 1e-5)
    seen = scaled * p["convolutions.8.weight"][:, None, None] + p["convolutions.8.bias"][:, None, None]
    side = seen.shape[1]
    places = [seen[:, i // side, i % side] + p["place"][i] for i in range(side * side)]
    h, c = torch.tanh(linear("start", sum(places) / len(places))).chunk(2)
    nll, alphas, before = 0, [], END
    for word in [*words, END]:
        energy = torch.stack(
            [linear("align.v", torch.tanh(linear("align.U", a) + linear("align.W", h)))[0] for a in places]
        )
        alpha = energy.exp() / energy.exp().sum()
        alphas.append(alpha)
        context = torch.sigmoid(linear("gate", h)) * sum(weight * a for weight, a in zip(alpha, places))
        given = p["words.weight"][before]
        h, c = lstm(p, "cell", linear("cell_word", given) + linear("cell_context", context), h, c)
        scores = linear("out", torch.tanh(given + linear("out_hidden", h) + linear("out_context", context)))
        nll = nll - torch.log(scores[word].exp() / scores.exp().sum())
        before = word
    penalty = config.attend * sum((1 - sum(alpha[i] for alpha in alphas)) ** 2 for i in range(len(places)))
    return nll, penalty, torch.stack(alphas)


@pytest.mark.parametrize(("channels", "size"), [(1, 7), (3, 8)])
def test_losses_and_all_gradients_equal_the_transcribed_equations(channels, size):
    model = random_model(channels=channels, size=size)
    batch = captioned_images(channels, size)  # captions of 5, 1 and 3 words
    terms = model.terms(batch, noise_rows(model.noise_shape, 3, (1,)))
    terms.total.mean().backward()
    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    captions = [words[keep].tolist() for words, keep in zip(batch.words, batch.keep)]
    expected = [loss_of_one(twin, SMALL, image, words) for image, words in zip(batch.images, captions)]
    (sum(nll + penalty for nll, penalty, _ in expected) / 3).backward()

    torch.testing.assert_close(terms["caption"], torch.stack([e[0] for e in expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["attention"], torch.stack([e[1] for e in expected]), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        theirs = twin[name].grad
        scale = theirs.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-6, atol=1e-9 * scale, msg=lambda m, n=name: n + m)

    _, alphas = model.tell(model.look(batch.images), batch.words, batch.keep)
    for row, (words, (_, _, alpha)) in enumerate(zip(captions, expected)):
        torch.testing.assert_close(alphas[row, : len(words) + 1], alpha)
        assert not alphas[row, len(words) + 1 :].any()


def test_the_probabilities_of_all_captions_of_up_to_two_words_and_of_longer_ones_sum_to_one():
    model = random_model()
    image, rest = captioned_images(1).images[:1], 0.0
    captions = [c for n in range(3) for c in itertools.product(range(1, VOCABULARY), repeat=n)]
    words = torch.tensor([[*caption, *[0] * (2 - len(caption))] for caption in captions])
    keep = torch.tensor([[n < len(caption) for n in range(2)] for caption in captions])
    with torch.no_grad():
        seen = model.look(image).rows(torch.zeros(len(captions), dtype=torch.long))
        log_p, _ = model.tell(seen, words, keep)
        for first, second in itertools.product(range(1, VOCABULARY), repeat=2):  # those that do not end after two words
            state, seen_one, total = model.begin(model.look(image)), model.look(image), 0.0
            for given, wanted in ((END, first), (first, second), (second, None)):
                state, before, _ = model.step(seen_one, *state, model.words(torch.tensor([given])))
                p = model.log_p(before)[0]
                total += p[wanted].item() if wanted is not None else math.log1p(-p[END].exp().item())
            rest += math.exp(total)
    assert log_p.exp().sum().item() + rest == pytest.approx(1)


# ---- beam search: a toy language whose next word depends on all words before it


def toy(vocabulary: int, seed: int, sharp: float = 1.0):
    """log p of the next word after a sequence, and `extend` for it; a hypothesis' state is its words so far, as digits."""

    def log_p(said: tuple[int, ...]) -> torch.Tensor:
        random = torch.Generator().manual_seed(hash((seed, said)) % 2**31)
        return (sharp * torch.randn(vocabulary, generator=random, dtype=torch.float64)).log_softmax(0)

    def extend(state, words):
        (said,) = state
        said = torch.cat((said, words[:, None]), dim=1)
        return torch.stack([log_p(tuple(row[1:].tolist())) for row in said]), (said,)

    return log_p, extend, (torch.empty(1, 0, dtype=torch.long),)


def score(log_p, words, end: bool = True) -> float:
    return sum(log_p(tuple(words[:i]))[word].item() for i, word in enumerate([*words, *([END] if end else [])]))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("vocabulary", "longest"), [(2, 5), (3, 4), (5, 3), (4, 1), (4, 0)])
def test_a_beam_that_is_wide_enough_finds_what_trying_all_sequences_finds(vocabulary, longest, seed):
    log_p, extend, state = toy(vocabulary, seed)
    every = (c for n in range(longest + 1) for c in itertools.product(range(1, vocabulary), repeat=n))
    best = max(every, key=lambda words: score(log_p, words))
    found, value = beam_search(extend, state, vocabulary ** (longest + 1), longest)
    assert found == list(best)
    assert value == pytest.approx(score(log_p, best), rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_a_narrow_beam_states_the_true_score_of_what_it_finds_and_is_greedy_at_width_one(seed):
    log_p, extend, state = toy(6, seed, sharp=2.0)
    greedy = []
    while len(greedy) < 4 and (word := int(log_p(tuple(greedy)).argmax())) != END:
        greedy.append(word)
    for beam in (1, 2, 3):
        found, value = beam_search(extend, state, beam, 4)
        assert value == pytest.approx(score(log_p, found), rel=1e-6)
        assert len(found) <= 4 and END not in found
        if beam == 1:
            assert found == greedy


def test_two_hypotheses_find_what_greed_misses():
    """Word 1 looks best, but what follows it is uncertain; word 2 leads to a likelier whole."""
    table = {
        (): [0.01, 0.52, 0.47],
        (1,): [0.34, 0.33, 0.33],
        (2,): [0.98, 0.01, 0.01],
    }

    def extend(state, words):
        said = torch.cat((state[0], words[:, None]), dim=1)
        rows = [table.get(tuple(row[1:].tolist()), [1 / 3] * 3) for row in said]
        return torch.tensor(rows, dtype=torch.float64).log(), (said,)

    start = (torch.empty(1, 0, dtype=torch.long),)
    assert beam_search(extend, start, 1, 3)[0] == [1]
    words, value = beam_search(extend, start, 2, 3)
    assert words == [2] and value == pytest.approx(math.log(0.47 * 0.98))


def test_the_beams_caption_has_the_probability_that_the_model_gives_it():
    model, image = random_model(), captioned_images(1).images[0]
    words, value = model.describe_image(image, beam=3, longest=6)
    asked = torch.tensor([words or [0]])
    with torch.no_grad():
        log_p, _ = model.tell(model.look(image[None]), asked, torch.ones_like(asked, dtype=torch.bool) * bool(words))
    assert value == pytest.approx(log_p.item(), rel=1e-6)


def test_it_learns_to_say_what_it_sees():
    """Four images, a bright corner each, with a sentence each: after training it says the right one of each."""
    model = build_model(replace(SMALL, maps=4, attention=8, hidden=16, word=8), VOCABULARY, 8, 1)
    images = torch.zeros(4, 1, 8, 8)
    for number in range(4):
        images[number, 0, 4 * (number // 2) : 4 * (number // 2) + 4, 4 * (number % 2) : 4 * (number % 2) + 4] = 1
    captions = [[2, 3], [2, 4, 5], [6], [7, 3, 2, 8]]
    words = torch.tensor([caption + [0] * (4 - len(caption)) for caption in captions])
    batch = Batch(images, words, words > 0, tuple("abcd"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        terms = model.terms(batch, torch.zeros(4, 0))
        losses.append(terms["caption"].mean().item())
        optimizer.zero_grad()
        terms.total.mean().backward()
        optimizer.step()
    assert losses[0] > 3.5 * math.log(VOCABULARY) * 0.8  # 3.5 words and ends, each one of 11
    assert losses[-1] < 0.2
    assert [model.describe_image(image)[0] for image in images] == captions
