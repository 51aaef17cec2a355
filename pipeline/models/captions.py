"""From a caption to the vector that conditions a drawing step: the words' BiLSTM, and three ways to use it.

Mansimov et al. 2016 (arXiv 1511.02793): alignDRAW attends to the words anew at each step, noalignDRAW takes the mean of their
states, skipthoughtDRAW takes a sentence vector from outside.
"""

# B batch, N words of the longest caption, L language LSTM width in each direction, M = 2L, G generator width

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.lstm import LSTMCell


class WordStates(nn.Module):
    """Bidirectional LSTM over the words: h_k = [forward state of word k; backward state of word k].

    No embedding layer: a word picks its row of a (vocabulary x 4L) matrix of gate inputs, one matrix a direction
    (1-of-K times a matrix in the paper). One learned initial state serves both directions; cells start at 0.

    Choice: the backward direction reads each caption from its own last word to its first. The authors' code reverses the
    order of the batch there instead of the order of the words (paper.md 1.3).
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.forward_words = nn.Embedding(vocabulary, 4 * width)
        self.backward_words = nn.Embedding(vocabulary, 4 * width)
        self.forward_cell = LSTMCell(width)
        self.backward_cell = LSTMCell(width)
        self.start = nn.Parameter(torch.zeros(width))
        self.width = 2 * width

    def forward(self, words: Tensor, keep: Tensor) -> Tensor:
        """words (B, N) ids, keep (B, N) bool, words first and padding after them -> states (B, N, M), 0 on padding."""
        back = reversal(keep)  # (B, N)
        ahead = self._run(self.forward_cell, self.forward_words(words))
        behind = self._run(self.backward_cell, self.backward_words(words.gather(1, back)))
        behind = behind.gather(1, back[..., None].expand_as(behind))  # each state back to its own word
        return torch.cat((ahead, behind), dim=2) * keep[..., None]

    def _run(self, cell: LSTMCell, gates: Tensor) -> Tensor:
        """gate inputs (B, N, 4L) -> states (B, N, L), from the first to the last."""
        hidden = self.start.expand(len(gates), -1)
        memory = torch.zeros_like(hidden)
        states = []
        for gate in gates.unbind(1):
            hidden, memory = cell(gate, hidden, memory)
            states.append(hidden)
        return torch.stack(states, dim=1)


def reversal(keep: Tensor) -> Tensor:
    """(B, N) -> for each row the places of its words from last to first, then its padding: its own inverse."""
    count = keep.sum(1, keepdim=True)
    place = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return torch.where(keep, count - 1 - place, place)


class Align(nn.Module):
    """Soft attention over the words, once a drawing step (Bahdanau et al. 2015; alignDRAW's align).

        e_k = v . tanh(U h_k + W g + b),   alpha = softmax over k of e,   s = sum_k alpha_k h_k

    h_k: state of word k; g: generator state of the step before. Unlike the authors' code, a batch may mix caption
    lengths: `keep` masks padding.
    """

    def __init__(self, words: int, generator: int, width: int):
        super().__init__()
        self.U = nn.Linear(words, width)  # its bias is b
        self.W = nn.Linear(generator, width, bias=False)
        self.v = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor, projected: Tensor, query: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """states (B, N, M), projected = U(states) (B, N, A), query = W(g) (B, A) -> s (B, M), alpha (B, N) summing to 1.

        `projected` does not depend on the step, so the caller computes it once.
        """
        energy = self.v(torch.tanh(projected + query[:, None])).squeeze(2)  # (B, N)
        alpha = energy.masked_fill(~keep, -torch.inf).softmax(dim=1)
        return torch.bmm(alpha[:, None], states).squeeze(1), alpha


def mean_of_words(states: Tensor, keep: Tensor) -> Tensor:
    """(B, N, M), (B, N) -> (B, M): mean over the words that are kept."""
    return (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


class SentenceVector(nn.Module):
    """One vector a caption, for the systems that do not look at single words: it is given, or made of own word states.

    Choice: where no sentence vectors are given, it is the mean of the states of a BiLSTM that is trained with the system, as
    in noalignDRAW, so that a system works without anybody else's weights.
    """

    def __init__(self, caption: str, vocabulary: int, language: int, sentence: int):
        super().__init__()
        self.states = WordStates(vocabulary, language) if caption == "mean" else None
        self.width = sentence if self.states is None else self.states.width

    def forward(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """words, keep (B, N), sentence (B, S) or None -> (B, S): the given vector, if there is one."""
        if sentence is not None:
            return sentence
        if self.states is None:
            raise ValueError("this model draws from sentence vectors (caption = skipthought): the batch has none")
        return mean_of_words(self.states(words, keep), keep)
