"""Text -> image -> text, with a captioner that was taught four pictures, and with words counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import CaptionerConfig
from pipeline.evaluation.captioning import (
    caption_images,
    draw_distractors,
    ease_of,
    offer,
    score_captions,
    score_offered,
)
from pipeline.evaluation.retrieval import ranks, summary
from pipeline.models.build import build_model
from pipeline.sample import Batch
from pipeline.text.vocabulary import Vocabulary

CAPTIONS = ("a red cat .", "two dogs", "the sky is blue , very blue", "a cat")
VOCABULARY = Vocabulary.build(CAPTIONS)


@pytest.fixture(scope="module")
def taught():
    """A captioner that knows which of four pictures has which caption; the pictures."""
    model = build_model(CaptionerConfig(maps=4, attention=8, hidden=16, word=8), len(VOCABULARY), 8, 1)
    images = torch.zeros(4, 1, 8, 8)
    for number in range(4):
        images[number, 0, 4 * (number // 2) : 4 * (number // 2) + 4, 4 * (number % 2) : 4 * (number % 2) + 4] = 1
    batch = Batch(images, *VOCABULARY.encode(CAPTIONS), tuple("abcd"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        model.terms(batch, torch.zeros(4, 0)).total.mean().backward()
        optimizer.step()
    return model, images


def test_it_says_the_captions_of_the_pictures_it_was_taught(taught):
    model, images = taught
    assert caption_images(model, VOCABULARY, images) == list(CAPTIONS)


def test_a_score_is_the_sum_of_the_words_log_probabilities_one_after_the_other(taught):
    model, images = taught
    scores = score_captions(model, VOCABULARY, images[:1], [CAPTIONS])[0]
    with torch.no_grad():
        for column, caption in enumerate(CAPTIONS):
            seen = model.look(images[:1])
            state, total, before = model.begin(seen), 0.0, 0
            for word in [*VOCABULARY.numbers(caption), 0]:
                state, hidden, _ = model.step(seen, *state, model.words(torch.tensor([before])))
                total, before = total + model.log_p(hidden)[0, word].item(), word
            assert scores[column] == pytest.approx(total, rel=1e-4)


def test_true_captions_come_first_for_their_pictures_and_by_chance_for_pictures_that_are_mixed_up(taught):
    model, images = taught
    ease = ease_of(model, VOCABULARY, images.mean(0), CAPTIONS)
    right, _ = score_offered(model, VOCABULARY, images, offer(CAPTIONS, 3, 0), ease)
    assert right.shape == (4, 4)
    assert summary(ranks(right, np.zeros(4, int)), 4)["r_at_1"] == 1.0
    wrong, _ = score_offered(model, VOCABULARY, images.roll(1, 0), offer(CAPTIONS, 3, 0), ease)
    assert summary(ranks(wrong, np.zeros(4, int)), 4)["r_at_1"] == 0.0


def test_the_ratio_takes_away_what_a_caption_gains_from_any_image(taught):
    model, images = taught
    mean = images.mean(0)
    plain, ratio = score_offered(
        model, VOCABULARY, images, offer(CAPTIONS, 2, 5), ease_of(model, VOCABULARY, mean, CAPTIONS)
    )
    offered = [[true, *others] for true, others in zip(CAPTIONS, draw_distractors(CAPTIONS, 2, 5))]
    expected = [[score_captions(model, VOCABULARY, mean[None], [[text]])[0, 0] for text in row] for row in offered]
    np.testing.assert_allclose(plain - ratio, expected, rtol=1e-4)


def test_distractors_are_other_texts_each_once_and_a_function_of_the_seed():
    captions = [f"caption {number % 30}" for number in range(60)]  # every text twice
    drawn = draw_distractors(captions, 20, seed=1)
    for caption, others in zip(captions, drawn):
        assert caption not in others and len(set(others)) == 20 and set(others) <= set(captions)
    assert drawn == draw_distractors(captions, 20, seed=1) != draw_distractors(captions, 20, seed=2)
    assert drawn[:7] == draw_distractors([*captions[:7], *captions[30:], *captions[7:30]], 20, seed=1)[:7]
    counts = np.unique(np.concatenate(draw_distractors(captions * 50, 20, seed=1)), return_counts=True)[1]
    assert len(counts) == 30 and counts.min() > 0.9 * counts.max()
    with pytest.raises(ValueError, match="only 30 different captions"):
        draw_distractors(captions, 30, seed=1)
