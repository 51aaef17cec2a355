"""Skip-thought encoders against a loop over words and gates, and the published weights' format with weights made up here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.config import SkipThoughtConfig
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.models.skipthought import END, CombineSkip, normalize_halves
from pipeline.sample import Batch
from pipeline.text.skipthought import (
    PART,
    SentenceVectors,
    distinct,
    mark_of,
    open_published,
    read_part,
    write_part,
)

VOCABULARY = 11
SMALL = SkipThoughtConfig(word=3, sentence=8, decoder=5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru_of_the_authors(arrays, name, vectors):
    """skipthoughts.py, gru_layer: the last state for the word vectors of one sentence."""
    W, b, U, Wx, bx, Ux = (arrays[f"{name}_{array}"] for array in ("W", "b", "U", "Wx", "bx", "Ux"))
    width = len(bx)
    h = np.zeros(width)
    for x in vectors:
        gates = x @ W + b + h @ U
        r, u = sigmoid(gates[:width]), sigmoid(gates[width:])
        candidate = np.tanh(x @ Wx + bx + r * (h @ Ux))
        h = u * h + (1 - u) * candidate
    return h


def encoder_arrays(random, word, width, names):
    shapes = {"W": (word, 2 * width), "b": (2 * width,), "U": (width, 2 * width)}
    shapes |= {"Wx": (word, width), "bx": (width,), "Ux": (width, width)}
    return {
        f"{name}_{array}": random.normal(0, 0.7, shape).astype(np.float32)
        for name in names
        for array, shape in shapes.items()
    }


WORDS = ["the", "UNK", "dog", "cat", "'s", ".", "sits"]


@pytest.fixture
def published(tmp_path):
    """A folder in the format of the published weights, with 5 numbers a word and vectors of 4 + 2 x 2 numbers."""
    random = np.random.default_rng(0)
    (tmp_path / "dictionary.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    for name in ("utable.npy", "btable.npy"):
        np.save(tmp_path / name, random.normal(size=(len(WORDS), 5)).astype(np.float32))
    np.savez(tmp_path / "uni_skip.npz", Wemb=np.zeros((2, 5)), **encoder_arrays(random, 5, 4, ["encoder"]))
    np.savez(tmp_path / "bi_skip.npz", **encoder_arrays(random, 5, 2, ["encoder", "encoder_r"]))
    return tmp_path


def test_vectors_from_published_weights_equal_the_authors_equations_word_by_word(published):
    captions = ["The dog 's cat sits .", "dog", "a zebra sits", "", "the cat"]
    weights = open_published(str(published))
    found = normalize_halves(CombineSkip.of(weights.uni, weights.bi)(*map(torch.from_numpy, weights.look_up(captions))))
    uni, bi = (dict(np.load(published / name)) for name in ("uni_skip.npz", "bi_skip.npz"))
    tables = [np.load(published / name) for name in ("utable.npy", "btable.npy")]
    read = [["the", "dog", "'s", "cat", "sits", "."], ["dog"], ["UNK", "UNK", "sits"], ["UNK"], ["the", "cat"]]
    for row, words in zip(found.detach().numpy(), read):
        u, b = ([table[WORDS.index(word)] for word in words] for table in tables)
        halves = [
            gru_of_the_authors(uni, "encoder", u),
            np.concatenate([gru_of_the_authors(bi, "encoder", b), gru_of_the_authors(bi, "encoder_r", b[::-1])]),
        ]
        np.testing.assert_allclose(row, np.concatenate([half / np.sqrt((half**2).sum()) for half in halves]), rtol=1e-4)


def test_the_published_widths_make_4800_numbers():
    encoder = CombineSkip(620, 4800)
    assert (encoder.uni.hidden_size, encoder.ahead.hidden_size, encoder.behind.hidden_size) == (2400, 1200, 1200)


def damage_pickled(folder):
    np.save(folder / "utable.npy", np.array([[1.0, "a"], None], dtype=object), allow_pickle=True)


def damage_short_table(folder):
    np.save(folder / "btable.npy", np.zeros((3, 5), np.float32))


def damage_cut_npz(folder):
    content = (folder / "uni_skip.npz").read_bytes()
    (folder / "uni_skip.npz").write_bytes(content[: len(content) // 2])


def damage_missing_array(folder):
    arrays = dict(np.load(folder / "bi_skip.npz"))
    del arrays["encoder_r_Ux"]
    np.savez(folder / "bi_skip.npz", **arrays)


def damage_wrong_shape(folder):
    np.savez(folder / "uni_skip.npz", **encoder_arrays(np.random.default_rng(0), 6, 4, ["encoder"]))


def damage_other_width(folder):
    np.savez(folder / "uni_skip.npz", **encoder_arrays(np.random.default_rng(0), 5, 5, ["encoder"]))


def damage_no_unknown(folder):
    (folder / "dictionary.txt").write_text("the\ndog\n")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "btable.npy").unlink(), "lacks btable.npy"),
        (damage_pickled, "numpy.save"),
        (damage_short_table, "one for each of the 7 words"),
        (damage_cut_npz, "no published encoder"),
        (damage_missing_array, "encoder_r_Ux"),
        (damage_wrong_shape, "has shape"),
        (damage_other_width, "twice as wide"),
        (damage_no_unknown, "no word UNK"),
    ],
)
def test_what_is_no_published_weight_is_refused_with_one_line(published, damage, complaint):
    damage(published)
    with pytest.raises(ValueError, match=complaint) as refused:
        open_published(str(published))
    assert "\n" not in str(refused.value) and str(published) in str(refused.value)


def test_the_mark_tells_weights_apart(published):
    before = mark_of(str(published))
    assert mark_of(str(published)) == before
    (published / "dictionary.txt").write_text("\n".join(WORDS[::-1]) + "\n")
    assert mark_of(str(published)) != before


# ---- our own


def pairs(count: int = 3) -> Batch:
    """Captions of 5, 1 and 3 words, and neighbours of 2, 4 and 1 words."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.tensor([[5, 2], [1, 4], [3, 1]])[:count]
    keep = torch.arange(5) < lengths[..., None]
    words = torch.randint(2, VOCABULARY, (count, 2, 5), generator=random) * keep
    return Batch(torch.empty(count, 0), words, keep, tuple("abc"[:count]))


def loss_of_one(p, words, says):
    """-log p(neighbour | caption): two lists of ids, and the numbers of a model by name."""

    def cell(name, x, h):
        wi, wh, bi, bh = (p[f"{name}.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        n = len(h)
        seen, told = wi @ x + bi, wh @ h + bh
        r, u = torch.sigmoid(seen[:n] + told[:n]), torch.sigmoid(seen[n : 2 * n] + told[n : 2 * n])
        return u * h + (1 - u) * torch.tanh(seen[2 * n :] + r * told[2 * n :])

    sentence = []
    for name, table, order in (("uni", "uni", 1), ("ahead", "bi", 1), ("behind", "bi", -1)):
        h = torch.zeros(p[f"encoder.{name}.weight_hh_l0"].shape[1], dtype=torch.float64)
        for word in words[::order]:
            h = cell(f"encoder.{name}", p[f"{table}_words.weight"][word], h)
        sentence.append(h)
    sentence = torch.cat(sentence)
    h, before, nll = torch.zeros(SMALL.decoder, dtype=torch.float64), END, 0
    for word in [*says, END]:
        h = cell("decoder", torch.cat((p["uni_words.weight"][before], sentence)), h)
        scores = p["out.weight"] @ h + p["out.bias"]
        nll, before = nll - torch.log(scores[word].exp() / scores.exp().sum()), word
    return nll


def test_the_loss_and_all_gradients_equal_a_loop_over_words():
    model = build_model(SMALL, VOCABULARY, 4, 1, seed=5).double()
    batch = pairs()
    loss = model.terms(batch, noise_rows(model.noise_shape, 3, (1,)))["neighbour"]
    loss.mean().backward()
    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    lists = [[words[keep].tolist() for words, keep in zip(*row)] for row in zip(batch.words, batch.keep)]
    expected = torch.stack([loss_of_one(twin, *row) for row in lists])
    expected.mean().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        theirs = twin[name].grad
        scale = theirs.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-6, atol=1e-9 * scale, msg=lambda m, n=name: n + m)


def test_a_vector_does_not_depend_on_the_padding_beside_it_and_its_halves_have_length_one():
    model = build_model(SMALL, VOCABULARY, 4, 1, seed=5).double()
    batch = pairs()
    words, keep = batch.words[:, 0], batch.keep[:, 0]
    together = model.describe(words, keep, None)
    torch.testing.assert_close(together.view(3, 2, 4).norm(dim=2), torch.ones(3, 2).double())
    scribbled = model.describe(torch.where(keep, words, 7), keep, None)
    torch.testing.assert_close(scribbled, together)
    for row in range(3):
        own = words[row][keep[row]][None]
        torch.testing.assert_close(model.describe(own, torch.ones_like(own, dtype=torch.bool), None)[0], together[row])


def test_captions_of_one_picture_come_to_lie_closer_than_those_of_others():
    """Four pictures with three captions each that share no words: only being neighbours tells that they belong together."""
    captions = torch.arange(2, 26).view(4, 3, 2)  # two words each, all different
    model = build_model(SkipThoughtConfig(word=8, sentence=16, decoder=16), 26, 4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    random, losses = torch.Generator().manual_seed(0), []
    every = captions.view(12, 2)
    keep = torch.ones(12, 2, 2, dtype=torch.bool)
    for _ in range(250):
        other = (torch.arange(12) % 3 + torch.randint(1, 3, (12,), generator=random)) % 3
        says = captions[torch.arange(12) // 3, other]
        loss = model.terms(Batch(torch.empty(12, 0), torch.stack((every, says), 1), keep, ()), torch.zeros(12, 0)).total
        losses.append(loss.mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert losses[0] > 2 * math.log(26)
    assert sum(losses[-20:]) / 20 < 1.4 * math.log(2)  # which of the two neighbours it is, cannot be known
    vectors = model.describe(every, keep[:, 0], None).detach()
    near = (vectors @ vectors.T / 2).view(4, 3, 4, 3).transpose(1, 2)  # cosines of (picture, picture, caption, caption)
    same = near[torch.arange(4), torch.arange(4)][:, ~torch.eye(3, dtype=torch.bool)].mean()
    others = near[~torch.eye(4, dtype=torch.bool)].mean()
    assert same > others + 0.3


# ---- vectors on disk


def test_vectors_are_read_by_caption_and_others_are_encoded_once_asked_for(tmp_path):
    random = np.random.default_rng(0)
    captions = distinct([f"caption {number}" for number in random.permutation(PART + 10)] * 2)
    assert len(captions) == PART + 10 and captions == sorted(captions)
    vectors = random.normal(size=(len(captions), 4)).astype(np.float32)
    for number in (0, 1):
        write_part(str(tmp_path), number, vectors[number * PART : (number + 1) * PART])
    asked = []

    def encode(new):
        asked.append(list(new))
        return np.array([[len(text), 0.1, 0, 0] for text in new])

    look_up = SentenceVectors(str(tmp_path), captions, encode)
    rows = [5, PART + 3, 0, 5]
    found = look_up([captions[row] for row in rows])
    assert found.dtype == np.float32 and not asked
    np.testing.assert_array_equal(found, vectors[rows].astype(np.float16).astype(np.float32))
    mixed = look_up(["new", captions[7], "other", "new"])
    assert asked == [["new", "other"]]
    np.testing.assert_allclose(mixed[1], vectors[7], rtol=1e-3)
    np.testing.assert_array_equal(mixed[[0, 2, 3], 0], [3, 5, 3])
    assert mixed[0, 1] == np.float32(np.float16(0.1))  # rounded like the others
    assert read_part(str(tmp_path), 1).shape == (10, 4)


def test_vectors_are_read_from_an_object_store_too(bucket):
    write_part(f"{bucket}/vectors", 0, np.eye(3))
    look_up = SentenceVectors(f"{bucket}/vectors", ["a", "b", "c"], lambda texts: np.zeros((len(texts), 3)))
    np.testing.assert_array_equal(look_up(["c", "a"]), [[0, 0, 1], [1, 0, 0]])
