"""Words and ids, compared with rules written as a loop over characters, and with texts that no caption writer would write."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.vocabulary import PADDING, SPECIAL, UNKNOWN, Vocabulary, tokenize

CAPTIONS = st.lists(
    st.text(alphabet=st.sampled_from("aAbB.,'’-3 \n<>é"), max_size=12) | st.text(max_size=12), max_size=8
)


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A man's T-shirt, isn't red.", "a man 's t-shirt , isn't red ."),
        ("The dogs' bowl costs $3.50 at 10:30", "the dogs ' bowl costs $ 3.50 at 10:30"),
        ("It’s so-called", "it 's so-called"),
        ("cat,dog and/or 1,000 birds...", "cat , dog and / or 1,000 birds . . ."),
        ("  many   blanks\tand\nlines ", "many blanks and lines"),
        ("a 'quoted' word -- dash", "a ' quoted ' word - - dash"),
        ("the digit 9 is at the top left of the image .", "the digit 9 is at the top left of the image ."),
        ("a bird's-eye view", "a bird 's - eye view"),
        ("'s", "'s"),
        ("", ""),
    ],
)
def test_captions_fall_into_words(caption: str, words: str) -> None:
    assert tokenize(caption) == words.split()


def tokens_by_hand(caption: str) -> list[str]:
    """The same rules, character by character, for texts without numbers."""
    text, words, i = caption.lower().replace("’", "'"), [], 0

    def letter(k: int) -> bool:
        return 0 <= k < len(text) and (text[k].isalnum() or text[k] == "_")

    def possessive(k: int) -> bool:
        return text[k : k + 2] == "'s" and not letter(k + 2)

    while i < len(text):
        if text[i].isspace():
            i += 1
        elif possessive(i):
            words.append("'s")
            i += 2
        elif letter(i):
            start = i
            while letter(i) or (text[i : i + 1] in ("-", "'") and letter(i + 1) and not possessive(i)):
                i += 1
            words.append(text[start:i])
        else:
            words.append(text[i])
            i += 1
    return words


@given(st.text(alphabet="abs'’-.,! \n<é_", max_size=20))
def test_words_are_those_of_the_rules_written_as_a_loop(caption: str) -> None:
    assert tokenize(caption) == tokens_by_hand(caption)


@given(st.text(max_size=40))
def test_nothing_but_blanks_and_case_is_lost(caption: str) -> None:
    assert "".join(tokenize(caption)) == "".join(caption.lower().replace("’", "'").split())
    assert all(word and not any(c.isspace() for c in word) for word in tokenize(caption))


@given(CAPTIONS)
def test_words_are_ordered_by_frequency_then_alphabet_whatever_the_order_of_captions(captions: list[str]) -> None:
    vocabulary = Vocabulary.build(captions)
    assert vocabulary.words[:2] == SPECIAL
    counts = Counter(word for caption in captions for word in tokenize(caption))
    for left, right in zip(vocabulary.words[2:], vocabulary.words[3:], strict=False):
        assert counts[left] > counts[right] or (counts[left] == counts[right] and left < right)
    assert set(vocabulary.words[2:]) == set(counts), "no frequency cut-off"
    shuffled = random.Random(0).sample(captions, len(captions))
    assert Vocabulary.build(shuffled) == vocabulary


@given(CAPTIONS, CAPTIONS, st.integers(0, 6))
def test_encoding_keeps_words_in_order_and_marks_padding(known: list[str], captions: list[str], words: int) -> None:
    vocabulary = Vocabulary.build(known)
    ids, keep = vocabulary.encode(captions, words)
    width = words or max([max(1, len(tokenize(caption))) for caption in captions], default=1)
    assert ids.shape == keep.shape == (len(captions), width)
    for caption, row, kept in zip(captions, ids.tolist(), keep.tolist(), strict=True):
        expected = [word if word in vocabulary.ids else "<unknown>" for word in tokenize(caption)] or ["<unknown>"]
        expected = expected[:width]
        assert [vocabulary.words[i] for i in row] == expected + ["<padding>"] * (width - len(expected))
        assert kept == [True] * len(expected) + [False] * (width - len(expected))
    assert (ids[~keep] == PADDING).all() and keep[:, 0].all()


@given(CAPTIONS)
def test_json_gives_the_same_vocabulary_back(captions: list[str]) -> None:
    vocabulary = Vocabulary.build(captions)
    text = vocabulary.to_json().encode("utf-8").decode("utf-8")
    assert Vocabulary.from_json(text) == vocabulary
    assert Vocabulary.from_json(text).to_json() == vocabulary.to_json()


def test_a_caption_cannot_name_the_padding_or_the_unknown_word() -> None:
    vocabulary = Vocabulary.build(["<padding> <unknown> <padding>"])
    assert vocabulary.words == (*SPECIAL, "<", ">", "padding", "unknown")
    assert PADDING not in vocabulary.numbers("<padding>") and UNKNOWN not in vocabulary.numbers("<unknown>")


def test_unknown_words_share_one_id_and_are_reported() -> None:
    vocabulary = Vocabulary.build(["a red dog ."])
    captions = ["A zebra, a red Zebra.", "a dog"]
    ids, keep = vocabulary.encode(captions)
    assert (ids == UNKNOWN).sum() == 3 and keep.sum() == 7 + 2
    assert vocabulary.unknown(captions) == {"zebra": 2, ",": 1}
    assert vocabulary.encode([""])[0].tolist() == [[UNKNOWN]]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", "a"]', '["<padding>"]', "[" * 10**5, '"a"', "null"])
def test_what_is_no_vocabulary_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="vocabulary") as error:
        Vocabulary.from_json(text)
    assert "\n" not in str(error.value)


def test_the_size_on_real_captions(shared_data: Path) -> None:
    """No published figure for Flickr8k with this tokenizer; the count is checked against splitting by hand."""
    document = json.loads((shared_data / "flickr8k" / "annotations" / "captions_train.json").read_text())
    captions = [annotation["caption"] for annotation in document["annotations"]]
    vocabulary = Vocabulary.build(captions)
    plain = [c for c in captions if not any(mark.isdigit() for mark in c)]
    assert set(Vocabulary.build(plain).words[2:]) == {word for c in plain for word in tokens_by_hand(c)}
    assert 7_000 < len(vocabulary) < 9_000 and vocabulary.words[2:6] == ("a", ".", "in", "the")
