"""A warm start: training begins with another model's weights instead of random ones.

The other model may have been trained on older data, so words are matched by what they say, not by their numbers; a word that it
never saw keeps its random start. Everything else must have the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def take_weights(
    model: nn.Module, weights: Mapping[str, Tensor], words: Sequence[str], other_words: Sequence[str]
) -> int:
    """Copy a state dict into a model; how many of the model's words the other one knew.

    words, other_words: of the two vocabularies, in order of their ids. ValueError, and nothing copied, where the models differ.
    """
    mine = model.state_dict()
    if mine.keys() != weights.keys():
        raise ValueError(f"it has other parameters: {_some(mine.keys() ^ weights.keys())}")
    by_word = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == len(words)
    }
    differ = [
        name
        for name, tensor in mine.items()
        if (tensor.shape[1:] if name in by_word else tensor.shape)
        != (weights[name].shape[1:] if name in by_word else weights[name].shape)
    ]
    if differ:
        raise ValueError(f"it has other shapes: {_some(differ)}")
    places = {word: place for place, word in enumerate(other_words)}
    known = [(place, places[word]) for place, word in enumerate(words) if word in places]
    to, come = (torch.tensor(rows, dtype=torch.int64) for rows in zip(*known, strict=True))
    for name, tensor in mine.items():
        if name in by_word:
            tensor[to] = weights[name][come]
        else:
            tensor.copy_(weights[name])
    return len(known)


def _some(names: object, most: int = 4) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
