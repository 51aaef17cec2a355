"""The lower bound on log p(image | caption), taken apart, and the two figures it has to be read against.

It measures a trained model on a split, before and after sharpening (paper section 5.2 and appendix, table of bounds). Pixels
are real numbers in [0, 1], so the Bernoulli cost of an image cannot fall below its own entropy, the *floor*; painting every
image in its flat mean colour costs *flat*. A bound means something between the two.

Choice: of an image's captions the first is taken, for all systems the same; the paper averages over all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.base import CaptionModel
from pipeline.sample import Batch


def bernoulli_cost(means: Tensor, images: Tensor) -> Tensor:
    """-log p of images (B, C, H, W) under pixel means of the same shape in (0, 1): (B,) nats."""
    cost = torch.xlogy(images, means) + torch.special.xlog1py(1 - images, -means)
    return -cost.flatten(1).sum(1)


def entropy_floor(images: Tensor) -> Tensor:
    """(B,) nats: what an image costs when every pixel's mean is the pixel itself; no model can cost less."""
    return bernoulli_cost(images, images)


def flat_cost(images: Tensor) -> Tensor:
    """(B,) nats: what an image costs when it is painted in its own mean colour."""
    return bernoulli_cost(images.mean((2, 3), keepdim=True).expand_as(images), images)


@torch.no_grad()
def image_bounds(
    model: CaptionModel, batch: Batch, noise: Tensor, sharpener: nn.Module | None = None
) -> dict[str, Tensor]:
    """noise (B, *noise_shape) -> (B,) float64 nats by name: bound = -(recon + kl); floor, flat; sharpened/recon, sharpened/bound.

    After sharpening the same sample of the posterior is used, with the sharpened image (`sharpener.mean`, kept off 0 and 1)
    as Bernoulli mean; the KL stays. A model that was trained with another likelihood is measured with its image as Bernoulli
    mean, too, so that all systems stand on equal footing; its own bound is own/bound.
    """
    terms, drawn = model.reconstruct(batch, noise)
    found = dict(terms.losses)
    if not model.bernoulli:
        found |= {"own/bound": terms.bound, "recon": bernoulli_cost(drawn.clamp(1e-6, 1 - 1e-6), batch.images)}
    found |= {
        "bound": -(found["recon"] + found["kl"]),
        "floor": entropy_floor(batch.images),
        "flat": flat_cost(batch.images),
    }
    if sharpener is not None:
        sharp = sharpener.mean(drawn, model.describe(batch.words, batch.keep, batch.sentence))
        found["sharpened/recon"] = bernoulli_cost(sharp, batch.images)
        found["sharpened/bound"] = -(found["sharpened/recon"] + found["kl"])
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} is not finite for {batch.keys[int((~torch.isfinite(values)).nonzero()[0])]}")
    return {name: values.double().cpu() for name, values in found.items()}
