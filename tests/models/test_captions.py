"""The authors' slip, reproduced: with equal weights in both directions, the second LSTM's states are another caption's first."""

from __future__ import annotations

import torch

from pipeline.models.captions import WordStates

WORDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [2, 0, 0, 0]])
KEEP = WORDS > 0


def twin_states(**options: object) -> WordStates:
    """Random weights, the same for both directions."""
    torch.manual_seed(0)
    states = WordStates(9, 4, **options)
    with torch.no_grad():
        for parameter in states.parameters():
            parameter.normal_()
    states.backward_words.load_state_dict(states.forward_words.state_dict())
    states.backward_cell.load_state_dict(states.forward_cell.state_dict())
    return states


def test_in_training_the_second_lstm_reads_the_mirrored_row_of_the_batch_left_to_right() -> None:
    states = twin_states(reverse="batch").train()
    found = states(WORDS, KEEP)
    for row, other in ((0, 2), (1, 1), (2, 0)):
        alone = states(WORDS[other : other + 1], KEEP[other : other + 1])[0, :, :4]  # left to right, by the first LSTM
        for place in range(int(KEEP[row].sum())):
            last = min(place, int(KEEP[other].sum()) - 1)
            torch.testing.assert_close(found[row, place, 4:], alone[last])
    assert not found[~KEEP].any()


def test_a_loaded_model_reads_the_caption_itself_whatever_else_is_in_its_batch() -> None:
    states = twin_states(reverse="batch").eval()
    found = states(WORDS, KEEP)
    torch.testing.assert_close(found[..., 4:], found[..., :4])
    torch.testing.assert_close(found[:1], states(WORDS[:1], KEEP[:1]))


def test_without_the_slip_it_reads_right_to_left() -> None:
    found = twin_states()(WORDS, KEEP)
    mirrored = twin_states()(torch.tensor([[6, 5, 4, 3]]), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(found[0, :, 4:], mirrored[0, :, :4].flip(0))
