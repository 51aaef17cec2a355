"""A drawing is a function of (weights, caption, seed, row): who is drawn beside it, and in what batches, changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config import DrawConfig
from pipeline.generate import draw_captions, row_noise
from pipeline.models.base import CaptionModel
from pipeline.models.build import build_model
from pipeline.sample import Generated
from pipeline.text.vocabulary import Vocabulary

CAPTIONS = ["a red cat", "two dogs sit on the grass .", "a cat"]
VOCABULARY = Vocabulary.build(CAPTIONS)


class Echo(CaptionModel):
    """Draws its noise and the sum of its words: what goes in comes out."""

    noise_shape = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(
        self, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor, steps: bool = False
    ) -> Generated:
        total = (words * keep).sum(1).float() + (0 if sentence is None else sentence.sum(1))
        images = torch.cat((noise.flatten(1), total[:, None]), 1).reshape(-1, 1, 1, 7)
        canvases = torch.stack((images, 2 * images)) if steps else None
        return Generated(images, canvases, torch.ones(2, *words.shape))

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        return keep.sum(1, keepdim=True).float()


def echo(captions: list[str] = CAPTIONS, seed: int = 5, *given: object, **options: object) -> Generated:
    return draw_captions(Echo(), VOCABULARY, captions, seed, *given, **options)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_the_size_of_the_batches_changes_no_drawing(batch: int) -> None:
    torch.testing.assert_close(echo(per_caption=3, batch=batch).images, echo(per_caption=3).images, rtol=0, atol=0)


def test_noise_is_a_function_of_seed_and_row_alone() -> None:
    noise = row_noise((2, 3), range(50), (7, 1))
    torch.testing.assert_close(row_noise((2, 3), [49, 3], (7, 1)), noise[[49, 3]], rtol=0, atol=0)
    assert len({tuple(row) for row in noise.flatten(1).tolist()}) == 50
    assert not torch.equal(row_noise((2, 3), range(50), (8, 1)), noise)
    assert abs(noise.mean()) < 0.25 and abs(noise.std() - 1) < 0.2


def test_equal_rows_get_equal_noise_whatever_the_caption() -> None:
    drawn = echo(rows=[4, 4, 9]).images.flatten(1)[:, :6]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match="2 rows of noise for 3 drawings"):
        echo(rows=[1, 2])


def test_drawings_of_a_caption_lie_together_and_take_its_words_and_its_sentence() -> None:
    totals = echo(per_caption=2).images.flatten(1)[:, 6]
    words, _ = VOCABULARY.encode(CAPTIONS)
    assert totals.tolist() == words.sum(1).repeat_interleave(2).tolist()
    sentences = torch.tensor([[10.0], [20.0], [30.0]])
    more = echo(per_caption=2, sentences=sentences, batch=1).images.flatten(1)[:, 6]
    assert (more - totals).tolist() == [10, 10, 20, 20, 30, 30]


def test_the_sharpener_gets_each_drawing_with_the_description_of_its_caption() -> None:
    def sharpener(images: Tensor, described: Tensor) -> Tensor:
        return images + described[..., None, None]

    drawn = echo(CAPTIONS, 5, sharpener, batch=2)
    assert (drawn.sharpened - drawn.images)[:, 0, 0, 0].round().tolist() == [3, 7, 2]
    assert echo().sharpened is None


def test_steps_are_kept_when_asked_for() -> None:
    assert echo().canvases is None
    drawn = echo(steps=True, batch=2)
    assert torch.equal(drawn.canvases, torch.stack((drawn.images, 2 * drawn.images)))
    assert drawn.alignments.shape == (2, 3, 7)


def test_no_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="no captions to draw"):
        echo([])


def test_draw_itself_draws_the_same_alone_and_among_others() -> None:
    torch.manual_seed(0)
    settings = DrawConfig(
        steps=3, read_size=3, write_size=3, latent=4, encoder=8, generator=8, language=4, align=4, start="scaled"
    )
    model = build_model(settings, len(VOCABULARY), 12, 3).eval()
    together = draw_captions(model, VOCABULARY, CAPTIONS, 1, per_caption=2, steps=True)
    one = draw_captions(model, VOCABULARY, [CAPTIONS[1]], 1, rows=[3], steps=True)
    torch.testing.assert_close(one.images[0], together.images[3])
    torch.testing.assert_close(one.canvases[:, 0], together.canvases[:, 3])
    torch.testing.assert_close(one.alignments[:, 0], together.alignments[:, 3])
    assert not torch.allclose(together.images[2], together.images[3])  # other noise
    assert not torch.allclose(together.images[0], together.images[4])  # other words
