"""The captioner: what a picture shows, word by word, with soft attention over its places; for text -> image -> text.

Xu et al. 2015, Show, Attend and Tell (arXiv 1502.03044), sections 3.1 and 4.2.1 and kelvinxu/arctic-captions; the paper's talk
captioned its drawings with it. It is trained by fit.py like the systems that draw: its terms are a likelihood.

Choice: the features come from a small convolutional net that is trained with the captioner, where Xu et al. take those of a
VGG net trained on ImageNet: images are 32x32 or 60x60 here, and no weights come from outside. A learned vector for each
place is added, because a small net's windows do not show where in the image they lie.
Choice: id 0, padding elsewhere, starts and ends a caption. No dropout: a run stops at its best validation bound instead.
Choice: an image's features are normalised together (Wu & He 2018) and the attention's penalty weighs 0.02, theirs 1. The
penalty is least where attention is the same everywhere, and a small image explains but a few nats of its caption: on digits
with captions, 1,200 steps came to 3.5 nats a caption at weight 1, 2.8 at 0.1 and 2.0 at 0.02.
Choice: a beam is as wide at every step, and scores are log-probabilities of whole captions, not divided by their length.
"""

# B batch, N words, P places, D feature width, A attention width, H LSTM width, W word width, V vocabulary, K beam

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import CaptionerConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captions import Align
from pipeline.models.lstm import LSTMCell
from pipeline.sample import Batch, Terms

END = 0  # stands before the first word and after the last one


class Seen(NamedTuple):
    """An image as the attention looks at it."""

    places: Tensor  # (B, P, D) a_i
    projected: Tensor  # (B, P, A) U a_i

    def rows(self, which: Tensor) -> Seen:
        return Seen(self.places[which], self.projected[which])


class Captioner(CaptionModel):
    """Show, Attend and Tell with soft attention.

        a_i     = normalised(conv(x))_i + place_i                                    (1) i = 1 .. P
        h_0, c_0 = tanh(linear(mean_i a_i))                                          (2)
        alpha_t = align(h_{t-1}, a),  zhat_t = sigmoid(f(h_{t-1})) sum_i alpha_ti a_i  (3)
        h_t     = LSTM(h_{t-1}, [E y_{t-1}; zhat_t])                                 (4)
        p(y_t | y_{1:t-1}, x) = softmax(L_o tanh(E y_{t-1} + L_h h_t + L_z zhat_t))  (5)
        loss    = -sum_t log p(y_t | ..) + weight sum_i (1 - sum_t alpha_ti)^2       (6) doubly stochastic: every place is seen

    The tanh in (5) is the authors' code's.
    """

    noise_shape = (0,)  # nothing is drawn

    def __init__(self, config: CaptionerConfig, vocabulary: int, size: int, channels: int):
        super().__init__()
        self.config = config
        maps, features, hidden = config.maps, 4 * config.maps, config.hidden
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, maps, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(maps, 2 * maps, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(2 * maps, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.GroupNorm(1, features),
        )
        side = (size + 3) // 4  # after two strides of 2
        self.place = nn.Parameter(0.1 * torch.randn(side * side, features))
        self.start = nn.Linear(features, 2 * hidden)
        self.align = Align(features, hidden, config.attention)
        self.gate = nn.Linear(hidden, 1)
        self.words = nn.Embedding(vocabulary, config.word)
        self.cell = LSTMCell(hidden)
        self.cell_word = nn.Linear(config.word, 4 * hidden, bias=False)
        self.cell_context = nn.Linear(features, 4 * hidden, bias=False)
        self.out_hidden = nn.Linear(hidden, config.word)
        self.out_context = nn.Linear(features, config.word, bias=False)
        self.out = nn.Linear(config.word, vocabulary)

    # ---- the equations

    def look(self, images: Tensor) -> Seen:
        """(1): images (B, C, H, W) -> what attention works on."""
        places = self.convolutions(images).flatten(2).transpose(1, 2) + self.place
        return Seen(places, self.align.U(places))

    def begin(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """(2) -> hidden, memory (B, H)."""
        return torch.tanh(self.start(seen.places.mean(1))).chunk(2, dim=1)

    def step(
        self, seen: Seen, hidden: Tensor, memory: Tensor, word: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """(3)-(4) after a word's vector (B, W) -> state (B, H) x 2, the argument of tanh in (5) (B, W), alpha (B, P)."""
        everywhere = torch.ones(seen.places.shape[:2], dtype=torch.bool, device=word.device)
        context, alpha = self.align(seen.places, seen.projected, self.align.W(hidden), everywhere)
        context = torch.sigmoid(self.gate(hidden)) * context
        hidden, memory = self.cell(self.cell_word(word) + self.cell_context(context), hidden, memory)
        return (hidden, memory), word + self.out_hidden(hidden) + self.out_context(context), alpha

    def log_p(self, before: Tensor) -> Tensor:
        """(5): (..., W) -> (..., V) log-probabilities of the next word."""
        return self.out(torch.tanh(before)).log_softmax(-1)

    # ---- a caption's probability

    def tell(self, seen: Seen, words: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """words, keep (B, N) -> log p(caption | image) (B,) with its end, nats; attention of each step (B, N + 1, P).

        A caption of n words takes n + 1 steps; later ones have no attention and no probability.
        """
        words = words * keep  # padding is END
        given = self.words(nn.functional.pad(words, (1, 0), value=END))
        wanted = nn.functional.pad(words, (0, 1), value=END)
        asked = nn.functional.pad(keep, (1, 0), value=True)  # step t says word t, or the end after the last one
        state, befores, alphas = self.begin(seen), [], []
        for word in given.unbind(1):
            state, before, alpha = self.step(seen, *state, word)
            befores.append(before)
            alphas.append(alpha)
        log_p = self.log_p(torch.stack(befores, 1)).gather(2, wanted[..., None]).squeeze(2)
        return (log_p * asked).sum(1), torch.stack(alphas, 1) * asked[..., None]

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        """(6): losses caption, in nats, and attention (B,); the bound is minus their sum."""
        log_p, alphas = self.tell(self.look(batch.images), batch.words, batch.keep)
        uneven = (1 - alphas.sum(1)).square().sum(1)
        return Terms({"caption": -log_p, "attention": self.config.attend * uneven})

    # ---- a caption

    @torch.no_grad()
    def describe_image(self, image: Tensor, beam: int = 5, longest: int = 30) -> tuple[list[int], float]:
        """The likeliest caption that a beam finds for an image (C, H, W): its word ids and log p(caption | image), nats."""
        seen = self.look(image[None])

        def extend(state: tuple[Tensor, Tensor], words: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            state, before, _ = self.step(seen.rows(words.new_zeros(len(words))), *state, self.words(words))
            return self.log_p(before), state

        return beam_search(extend, self.begin(seen), beam, longest)


State = tuple[Tensor, ...]  # tensors with one row a hypothesis
Extend = Callable[[State, Tensor], tuple[Tensor, State]]


def beam_search(extend: Extend, state: State, beam: int, longest: int) -> tuple[list[int], float]:
    """The likeliest sequence, of at most `longest` words, among those a beam of K hypotheses meets, and its log p.

    extend(state, last words (K,)) -> log p of the next word (K, V), state; it begins with one row and END as last word. A
    sequence is complete with END. It is over when no hypothesis can get better than the best complete one: log p only falls.
    """
    device = state[0].device
    said, total = torch.zeros(1, 0, dtype=torch.long, device=device), torch.zeros(1, device=device)
    last = torch.full((1,), END, device=device)
    best: tuple[list[int], float] = [], float("-inf")
    while len(said):
        log_p, state = extend(state, last)
        scores = total[:, None] + log_p  # (K, V)
        if said.shape[1] == longest:  # now it can only end
            scores[:, :END] = scores[:, END + 1 :] = float("-inf")
        top, place = scores.flatten().topk(min(beam, scores.numel()))
        row, word = place // scores.shape[1], place % scores.shape[1]
        ends = (word == END) & (top > best[1])
        if ends.any():
            first = int(ends.nonzero()[0])
            best = said[row[first]].tolist(), top[first].item()
        live = ((word != END) & (top > best[1])).nonzero().squeeze(1)
        said = torch.cat((said[row[live]], word[live, None]), dim=1)
        total, last, state = top[live], word[live], tuple(part[row[live]] for part in state)
    return best
