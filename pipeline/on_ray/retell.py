"""Text -> image -> text on workers: how a captioner ranks the true caption of what systems draw, and of the real images.

It comes after evaluation, for systems that are compared (jobs.compare). The captioner is a run of its own, trained on real
images of the same data set; what it makes of the true image is what a drawing can reach at best (evaluation/captioning.py).
What a block gives is a function of (checkpoints, data set, seed, image number), as in score.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from pipeline import checkpoint, storage
from pipeline.evaluation import values
from pipeline.evaluation.captioning import ease_of, offer, score_offered
from pipeline.evaluation.retrieval import ranks
from pipeline.models.captioner import Captioner
from pipeline.on_ray.pool import Block, Pool
from pipeline.on_ray.score import Order, Scorer, read_split
from pipeline.shards.manifest import load_manifest
from pipeline.text.vocabulary import Vocabulary

TOLD = 200  # test captions at most. Choice: a captioner reads a hundred captions an image, which takes longer than to draw it
DISTRACTORS = 99
MEAN_IMAGES = 2_000  # training images at most whose mean is the mean image
IMAGES_A_BLOCK = 10
Log = Callable[[str], None]


@dataclass(frozen=True)
class Telling:
    """Whose drawings are shown to which captioner; an order without a model: the real images."""

    order: Order
    captioner: str  # checkpoint


class Teller:
    """One worker's captioner, and the model whose drawings it looks at, opened when first needed."""

    def __init__(self, telling: Telling) -> None:
        self.telling, self.artist = telling, Scorer(telling.order)

    @cached_property
    def captioner(self) -> tuple[Captioner, Vocabulary]:
        model, origin, _ = checkpoint.load_model(self.telling.captioner)
        return model.to(self.artist.device).eval(), origin.vocabulary

    @cached_property
    def offered(self) -> list[list[str]]:
        """For the captions of the test split, what the captioner is to choose from: the true one comes first."""
        captions = self.artist.test[1]
        return offer(captions, min(DISTRACTORS, len(set(captions)) - 1), self.artist.seed)

    @cached_property
    def ease(self) -> dict[str, float]:
        """How likely each caption is for the mean image, nats: the same for all that is shown."""
        mean = read_split(self.artist.manifest, "train", MEAN_IMAGES)[0].double().mean(0).float() / 255
        return ease_of(*self.captioner, mean.to(self.artist.device), self.artist.test[1])

    def tell(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Places (count, 2) of the true captions of test images, by log p and by its ratio ("ratio"), for all that is shown:
        drawn, sharpened; or true."""
        offered, shown = self.offered[start : start + count], self._shown(start, count)
        images = torch.cat([shown[name] for name in shown]).to(self.artist.device)
        scores = score_offered(*self.captioner, images, offered * len(shown), self.ease)
        found = {}
        for way, score in zip(("", "/ratio"), scores, strict=True):
            places = ranks(score, np.zeros(len(score), np.int64))
            found |= {f"{name}{way}": part for name, part in zip(shown, np.split(places, len(shown)), strict=True)}
        return found

    def _shown(self, start: int, count: int) -> dict[str, Tensor]:
        """Images (count, C, H, W) in [0, 1] by what they are."""
        images, captions = (part[start : start + count] for part in self.artist.test)
        if not self.telling.order.model:
            return {"true": images / 255}
        drawn = self.artist.draw(captions, 1, range(start, start + count))
        return {"drawn": drawn.images, **({} if drawn.sharpened is None else {"sharpened": drawn.sharpened})}


def retell(telling: Telling, folder: str, log: Log = print) -> tuple[dict[str, np.ndarray], int]:
    """Places (n, 2) of the true caption by what is shown, and among how many; kept in a file of the folder for next time."""
    path = storage.join(folder, f"{_digest_of(telling)}.npz")
    if storage.exists(path):
        found = values.from_bytes(storage.read_bytes(path))
        return found, int(found.pop("candidates"))
    manifest, settings = load_manifest(telling.order.dataset), telling.order.settings
    images = min(TOLD, sum(record.samples for record in manifest.split("test")))
    starts = range(0, images, IMAGES_A_BLOCK)
    blocks = [Block("tell", (start, min(IMAGES_A_BLOCK, images - start))) for start in starts]
    with Pool(partial(Teller, telling), workers=settings.workers, gpu=settings.gpu, log=log) as pool:
        parts = pool.run({"": blocks})[""]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    candidates = 1 + min(DISTRACTORS, len(set(read_split(manifest, "test")[1])) - 1)
    storage.publish_bytes(path, values.to_bytes({**found, "candidates": np.array(candidates)}))
    return found, candidates


def _digest_of(telling: Telling) -> str:
    """Names what the result depends on: the checkpoints' contents, the data set and the seed."""
    order = telling.order
    metas = [order.model, order.sharpener, telling.captioner]
    content = [path and storage.read_text(storage.join(path, checkpoint.META)) for path in metas]
    about = [*content, load_manifest(order.dataset).digest, order.settings.seed, TOLD, DISTRACTORS, MEAN_IMAGES]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
