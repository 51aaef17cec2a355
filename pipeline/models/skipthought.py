"""Skip-thought vectors: one vector a sentence, from recurrent encoders that learn to say what a neighbouring sentence says.

Kiros et al. 2015 (arXiv 1506.06726), sections 2.1 and 3, and ryankiros/skip-thoughts. skipthoughtDRAW, LAPGAN and the VAEs of
the paper take this vector for the caption. The encoders carry either the published weights (text/skipthought.py reads them)
or our own, trained here on captions by fit.py like every other model: its terms are a likelihood.

Choice: the neighbours of a caption are the other captions of its image (loading/neighbours.py); a caption that is alone with
its image has only itself, which makes it an autoencoder there. Neighbours have no order, so there is one decoder, not one
for the sentence before and one for the one after.
Choice: uni- and bidirectional encoders are trained together, the decoder sees both; Kiros et al. train them apart. All sizes
are ours (config.SkipThoughtConfig).
"""

# B batch, N words, E width of a word's vector, S width of a sentence's, V vocabulary

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import SkipThoughtConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captions import reversal
from pipeline.sample import Batch, Terms

END = 0  # padding elsewhere; stands before a sentence's first word and after its last one


class CombineSkip(nn.Module):
    """combine-skip = [uni-skip; bi-skip]: the last states of a GRU, and of two GRUs of half its width, one in each direction.

        r = sigmoid(W_r x + U_r h + b_r),   u = sigmoid(W_u x + U_u h + b_u)
        h' = u h + (1 - u) tanh(W x + r (U h) + b)

    These are torch's gates (its order r, u, then the update), with one bias of each of its two left at 0.
    """

    def __init__(self, word: int, sentence: int):
        super().__init__()
        if sentence % 4:
            raise ValueError(
                f"a sentence vector of {sentence} numbers: half are uni-skip, quarters bi-skip, so take 4 n"
            )
        self.uni = nn.GRU(word, sentence // 2, batch_first=True)
        self.ahead = nn.GRU(word, sentence // 4, batch_first=True)
        self.behind = nn.GRU(word, sentence // 4, batch_first=True)

    @classmethod
    def of(cls, uni: Mapping[str, np.ndarray], bi: Mapping[str, np.ndarray]) -> CombineSkip:
        """With the published arrays of uni_skip.npz and bi_skip.npz."""
        made = cls(uni["encoder_W"].shape[0], 2 * uni["encoder_Ux"].shape[0])
        with torch.no_grad():
            for cell, arrays, name in (
                (made.uni, uni, "encoder"),
                (made.ahead, bi, "encoder"),
                (made.behind, bi, "encoder_r"),
            ):
                for parameter, gates, update in (
                    (cell.weight_ih_l0, "W", "Wx"),
                    (cell.weight_hh_l0, "U", "Ux"),
                    (cell.bias_ih_l0, "b", "bx"),
                ):
                    both = np.concatenate([arrays[f"{name}_{gates}"], arrays[f"{name}_{update}"]], axis=-1)
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(both.T)))
                cell.bias_hh_l0.zero_()
        return made.eval()

    def forward(self, uni: Tensor, bi: Tensor, keep: Tensor) -> Tensor:
        """Word vectors of the two encoders (B, N, E), keep (B, N) -> (B, S), as the states are."""
        last = keep.sum(1) - 1
        back = reversal(keep)[..., None].expand_as(bi)
        runs = ((self.uni, uni), (self.ahead, bi), (self.behind, bi.gather(1, back)))
        rows = torch.arange(len(keep), device=keep.device)
        return torch.cat([gru(words)[0][rows, last] for gru, words in runs], dim=1)


def normalize_halves(vectors: Tensor) -> Tensor:
    """(B, S) -> (B, S): uni-skip and bi-skip are each of length 1."""
    return torch.cat([nn.functional.normalize(half, dim=1) for half in vectors.chunk(2, dim=1)], dim=1)


class SkipThought(CaptionModel):
    """Encoders of a caption, and the decoder that teaches them to tell what its neighbour says.

        s = combine-skip(x_1 .. x_n)
        p(y_t | y_{1:t-1}, s) = softmax(L_o h_t),   h_t = GRU(h_{t-1}, [y_{t-1}; s])

    Batches hold pairs: words and keep (B, 2, N) of a caption and of its neighbour.
    """

    noise_shape = (0,)  # nothing is drawn

    def __init__(self, config: SkipThoughtConfig, vocabulary: int, size: int, channels: int):
        super().__init__()
        self.sentence_width = config.sentence
        self.uni_words = nn.Embedding(vocabulary, config.word)
        self.bi_words = nn.Embedding(vocabulary, config.word)
        self.encoder = CombineSkip(config.word, config.sentence)
        self.decoder = nn.GRU(config.word + config.sentence, config.decoder, batch_first=True)
        self.out = nn.Linear(config.decoder, vocabulary)

    def encode(self, words: Tensor, keep: Tensor) -> Tensor:
        """words, keep (B, N) -> (B, S), not normalised."""
        return self.encoder(self.uni_words(words), self.bi_words(words), keep)

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        """-log p(neighbour | caption) (B,), nats of all its words and its end."""
        (words, says), (keep, asked) = batch.words.unbind(1), batch.keep.unbind(1)
        says = says * asked  # padding is END
        wanted = nn.functional.pad(says, (0, 1), value=END)
        given = self.uni_words(nn.functional.pad(says, (1, 0), value=END))
        asked = nn.functional.pad(asked, (1, 0), value=True)  # one step more than words
        sentence = self.encode(words, keep)[:, None].expand(-1, given.shape[1], -1)
        states, _ = self.decoder(torch.cat((given, sentence), dim=2))
        nll = torch.zeros(asked.shape, device=asked.device, dtype=states.dtype)
        nll[asked] = nn.functional.cross_entropy(self.out(states[asked]), wanted[asked], reduction="none")
        return Terms({"neighbour": nll.sum(1)})

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """(B, S): the skip-thought vector, its halves normalised."""
        return sentence if sentence is not None else normalize_halves(self.encode(words, keep))
