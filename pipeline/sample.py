"""What passes between the stages: one type for each arrow of the flow.

    sources -> ShardPlan, Sample or Rejected -> shards -> ShardRecord, Manifest -> loading -> Batch -> models -> Terms, Generated

Torch is named in annotations only, so that reading and sharding images does not pay for importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ShardPlan:
    """Which inputs of a source make one shard; fixed by the config and the source, never by who does the work.

    A source yields one Sample or Rejected for each of its positions start .. stop - 1, in order.
    """

    name: str  # of the shard, without ".tar": "train-00003"
    split: str  # one of SPLITS
    start: int
    stop: int
    rows: tuple = field(default=(), repr=False)  # what the source knows of each position, for sources that list them

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Sample:
    """One image with its captions, as it goes into a shard."""

    key: str  # unique in the data set, no dots or slashes: it names the tar members
    image: np.ndarray  # (H, W, C) uint8, C is 1 or 3
    captions: tuple[str, ...]  # as the source wrote them, at least one
    source: str  # where it came from, e.g. "train2017/000000000009.jpg" or "digits 17 204"
    split: str  # one of SPLITS
    original: tuple[int, int] = (0, 0)  # width and height before resizing; (0, 0): it was drawn at this size


@dataclass(frozen=True)
class Rejected:
    """An input that could not be used, and why."""

    key: str
    source: str
    split: str
    reason: str  # a few words that many inputs can share: they are counted by it
    captions: tuple[str, ...] = ()
    width: int = 0  # of the original, where it is known
    height: int = 0


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one finished tar; it exists only when the tar is whole."""

    name: str  # file name beside the manifest, e.g. "train-00003.tar"
    split: str
    samples: int
    pairs: int  # (image, caption) pairs: the sum of the samples' caption counts
    captions: tuple[int, ...]  # captions of each sample in tar order, so lanes need no tar
    bytes: int
    sha256: str
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rejected inputs


@dataclass(frozen=True)
class Manifest:
    """A finished data set: everything needed to address any of its samples without opening a tar."""

    folder: str  # where the shards lie: a local path, s3:// or gs://
    shards: tuple[ShardRecord, ...]  # in order of name
    size: int  # images are size x size
    channels: int
    digest: str  # sha256 over records and config: names the data set

    def split(self, name: str) -> tuple[ShardRecord, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == name)

    def pairs(self, split: str) -> int:
        return sum(shard.pairs for shard in self.split(split))


@dataclass
class Batch:
    """B captioned images as the models take them."""

    images: Tensor  # (B, C, H, W) float32 in [0, 1]
    words: Tensor  # (B, N) int64 word ids, padding_id where keep is False
    keep: Tensor  # (B, N) bool, True on real words; every row has at least one
    keys: tuple[str, ...]  # sample keys, for messages
    sentence: Tensor | None = None  # (B, S) sentence vectors, for the models that take one

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> Batch:
        move = lambda tensor: None if tensor is None else tensor.to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.images), move(self.words), move(self.keep), self.keys, move(self.sentence))


@dataclass
class Terms:
    """Named per-image losses in nats; nobody has to guess what was averaged or summed.

    `weights` multiplies a term in `total`, the quantity that is minimised (KL warm-up); the bound uses the terms as they are.
    """

    losses: dict[str, Tensor]  # name -> (B,), e.g. recon and kl
    weights: dict[str, float | Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.losses[name]

    @property
    def total(self) -> Tensor:
        """(B,) what training minimises."""
        return sum(loss * self.weights.get(name, 1.0) for name, loss in self.losses.items())

    @property
    def bound(self) -> Tensor:
        """(B,) nats: the lower bound on log p(image | caption), minus the unweighted sum of the terms."""
        return -sum(self.losses.values())


@dataclass
class Generated:
    """Images drawn from captions."""

    images: Tensor  # (B, C, H, W) in [0, 1]
    canvases: Tensor | None = None  # (T, B, C, H, W) in [0, 1], the drawing after each step
    alignments: Tensor | None = None  # (T, B, N), weight of each word at each step, rows sum to 1
    sharpened: Tensor | None = None  # (B, C, H, W) in [0, 1], the images after the sharpener
