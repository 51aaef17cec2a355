"""The bound on the validation split while training runs: what "best" and early stopping are decided by.

Every validation uses the same noise for the same image, so two bounds differ by what was learned and not by luck, and the
number of ranks does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from pipeline.generate import row_noise
from pipeline.models.base import CaptionModel
from pipeline.sample import Batch

NOISE = 2  # second seed of this noise; training's is 1


@torch.no_grad()
def term_sums(
    model: CaptionModel, batches: Iterable[Batch], *, seed: int, first: int = 0, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Sums over images of each loss in nats, and their count as "images"; `first` is the place of the first in the split."""
    sums: Counter[str] = Counter()
    for batch in batches:
        noise = row_noise(model.noise_shape, range(first, first + len(batch)), (seed, NOISE), device)
        for name, losses in model.terms(batch.to(device), noise).losses.items():
            sums[name] += losses.double().sum().item()
        first += len(batch)
        sums["images"] += len(batch)
    return dict(sums)
