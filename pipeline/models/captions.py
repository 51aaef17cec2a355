"""From a caption to the vector that conditions a drawing step: the words' BiLSTM, and three ways to use it.

Mansimov et al. 2016 (arXiv 1511.02793): alignDRAW attends to the words anew at each step, noalignDRAW takes the mean of their
states, skipthoughtDRAW takes a sentence vector from outside.
"""

# B batch, N words of the longest caption, L language LSTM width in each direction, M = 2L, G generator width

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.models.lstm import LSTMCell


class WordStates(nn.Module):
    """Bidirectional LSTM over the words: h_k = [forward state of word k; backward state of word k].

    No embedding layer: a word picks its row of a (vocabulary x 4L) matrix of gate inputs, one matrix a direction
    (1-of-K times a matrix in the paper). One learned initial state serves both directions; cells start at 0.

    Choice: the backward direction reads each caption from its own last word to its first. The authors' code reverses the
    order of the batch there instead of the order of the words (coco/alignDraw.py, line 94), and reverse="batch" does as it
    does: in training the second LSTM reads another caption of the batch, left to right, the last one for the first image and
    so on, for which one process must have the whole batch. Where that caption is shorter it stays at its last word (theirs
    are of equal length). When a model is measured or draws it reads the caption itself, left to right, as when the authors
    draw one caption many times: a drawing or a bound must not depend on what else is in its batch.
    """

    def __init__(self, vocabulary: int, width: int, reverse: str = "words"):
        super().__init__()
        self.reverse = reverse
        self.width = 2 * width
        self.forward_words = nn.Embedding(vocabulary, 4 * width)
        self.backward_words = nn.Embedding(vocabulary, 4 * width)
        self.forward_cell = LSTMCell(width)
        self.backward_cell = LSTMCell(width)
        self.start = nn.Parameter(torch.zeros(width))

    def forward(self, words: Tensor, keep: Tensor) -> Tensor:
        """words (B, N) ids, keep (B, N) bool, words first and padding after them -> states (B, N, M), 0 on padding."""
        ahead = self._run(self.forward_cell, self.forward_words(words))
        if self.reverse == "words":
            back = reversal(keep)  # (B, N) the step that belongs to each word
            read = words.gather(1, back)
        else:
            read, others = (words.flip(0), keep.flip(0)) if self.training else (words, keep)
            back = torch.arange(words.shape[1], device=words.device).minimum(others.sum(1, keepdim=True) - 1)
        behind = self._run(self.backward_cell, self.backward_words(read))
        behind = behind.gather(1, back[..., None].expand_as(behind))
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

        e_k = v . tanh(U h_k + W g + b),   alpha = softmax over k of e,   s = sum_k alpha_k m_k

    h_k: state of word k, the key; g: generator state of the step before; m_k: what word k gives, in the paper h_k again.
    Unlike the authors' code, a batch may mix caption lengths: `keep` masks padding.
    """

    def __init__(self, words: int, generator: int, width: int):
        super().__init__()
        self.U = nn.Linear(words, width)  # its bias is b
        self.W = nn.Linear(generator, width, bias=False)
        self.v = nn.Linear(width, 1, bias=False)

    def forward(self, values: Tensor, projected: Tensor, query: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """values (B, N, M), projected = U(states) (B, N, A), query = W(g) (B, A) -> s (B, M), alpha (B, N) summing to 1.

        `projected` does not depend on the step, so the caller computes it once.
        """
        energy = _Energy.apply(projected, query, self.v.weight[0])  # (B, N)
        alpha = energy.masked_fill(~keep, -torch.inf).softmax(dim=1)
        return torch.bmm(alpha[:, None], values).squeeze(1), alpha


class _Energy(torch.autograd.Function):
    """(B, N, A), (B, A), (A,) -> v . tanh(projected + query) (B, N), with a derivative of its own.

    The tanh of all words is the largest tensor of a drawing step. It is made a few captions at a time, which a CPU's cache
    holds, and made again for the derivative instead of kept for all steps.
    """

    @staticmethod
    def forward(ctx, projected: Tensor, query: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(projected, query, v)
        parts = _captions_at_a_time(projected)
        return torch.cat([(p + q[:, None]).tanh_() @ v for p, q in zip(projected.split(parts), query.split(parts))])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projected, query, v = ctx.saved_tensors
        for_projected, for_query, for_v = torch.empty_like(projected), torch.empty_like(query), torch.zeros_like(v)
        tensors = (projected, query, gradient, for_projected, for_query)
        for p, q, g, for_p, for_q in zip(*(tensor.split(_captions_at_a_time(projected)) for tensor in tensors)):
            hidden = (p + q[:, None]).tanh_()
            for_v.addmv_(hidden.flatten(0, 1).t(), g.flatten())
            torch.mul(g[..., None], v, out=for_p)
            for_p.addcmul_(for_p, hidden.square_(), value=-1)
            torch.sum(for_p, 1, out=for_q)
        return for_projected, for_query, for_v


def _captions_at_a_time(projected: Tensor) -> int:
    """As many as have 512 KiB of float32 numbers, on a CPU."""
    return len(projected) if projected.is_cuda else max(1, (1 << 17) // projected[0].numel())


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
