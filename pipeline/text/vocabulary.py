"""Words and their ids. Built from the training captions alone and saved beside the manifest and in every checkpoint.

Captions stay text in the shards, so another vocabulary needs no new shards. Paper section 4: lower case, split as the Penn
Treebank is: '.', ',' and "'s" are words of their own, hyphenated words stay whole; words that training never saw share one
id; there is no frequency cut-off.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PADDING = 0
UNKNOWN = 1
SPECIAL = ("<padding>", "<unknown>")  # no caption holds these: '<' and '>' are words of their own

# A number (3.50, 10:30), a word without its 's (t-shirt, isn't), an 's, or any other mark.
# Choice: of the treebank's splits of contractions only 's is made; "isn't" stays one word.
_WORD = re.compile(r"\d+(?:[.,:]\d+)+|\w+(?:(?!'s\b)[-']\w+)*|'s\b|[^\w\s]")


def tokenize(caption: str) -> list[str]:
    """Lower-case words and marks of a caption, in order."""
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


@dataclass(frozen=True)
class Vocabulary:
    """Known words in order of their ids; the first two are the padding and the unknown word."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:2] != SPECIAL or len(set(self.words)) != len(self.words):
            raise ValueError(
                f"a vocabulary starts with {' '.join(SPECIAL)} and names each word once; got {self.words[:2]}"
            )

    @classmethod
    def build(cls, captions: Iterable[str]) -> Vocabulary:
        """All words of the captions, the most frequent first, equally frequent ones by alphabet."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        return cls((*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))))

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def numbers(self, caption: str) -> list[int]:
        """The caption's word ids; a caption without any word is one unknown word."""
        return [self.ids.get(word, UNKNOWN) for word in tokenize(caption)] or [UNKNOWN]

    def encode(self, captions: Sequence[str], words: int = 0) -> tuple[Tensor, Tensor]:
        """B captions -> ids (B, N) int64, padded, and keep (B, N) bool, True on words. N is `words`, at which longer captions
        are cut, or, where that is 0, the length of the longest."""
        import torch

        rows = [self.numbers(caption)[: words or None] for caption in captions]
        width = words or max(map(len, rows), default=1)
        ids = torch.tensor([row + [PADDING] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(-1, width)
        keep = torch.arange(width) < torch.tensor([len(row) for row in rows]).reshape(-1, 1)
        return ids, keep

    def unknown(self, captions: Iterable[str]) -> Counter[str]:
        """The captions' words that are not known, with how often they occur."""
        return Counter(word for caption in captions for word in tokenize(caption) if word not in self.ids)

    def to_json(self) -> str:
        return json.dumps(self.words[len(SPECIAL) :], ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        try:
            words = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a vocabulary: {error}") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("not a vocabulary: it is a JSON list of words")
        return cls((*SPECIAL, *words))
