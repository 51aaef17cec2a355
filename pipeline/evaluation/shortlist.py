"""The candidates of a retrieval query: the true image and those most like it, so that only the caption can tell them apart.

Paper section 5.2: a shortlist of 100 by Euclidean distance in the last fully connected layer of a VGG-like CIFAR-10 network
(torch.ch blog, 2015). `Choice:` digits are compared by the judge's hidden layer; photographs by that network where its
weights are given (`evaluation.features`), and by their pixels shrunk to 8x8 where not: neighbours then share layout and
colour, which is an easier test than sharing a subject.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def shortlists(features: np.ndarray, captions: Sequence[str], queries: Sequence[int], size: int) -> np.ndarray:
    """features (n, F) and captions (n) of all images, queries: indices (Q) -> candidates (Q, size): the query's image, then
    the nearest, ties by index. With few images `size` is lowered to what every query has.

    Choice: an image with the very caption of the query is no wrong answer, so it is no candidate. Captions of digits repeat.
    """
    texts = np.unique(np.asarray(captions), return_inverse=True)[1]
    others = len(texts) - np.bincount(texts)[texts]
    size = min(size, 1 + int(others[list(queries)].min()))
    features = features.astype(np.float64)
    squares = (features**2).sum(1)
    chosen = np.empty((len(queries), size), np.int64)
    for row, query in enumerate(queries):
        distance = squares - 2 * features @ features[query]  # squared, less a constant of the query
        distance[texts == texts[query]] = np.inf
        distance[query] = -np.inf
        chosen[row] = np.argsort(distance, kind="stable")[:size]
    return chosen


def pixel_features(images: Tensor) -> np.ndarray:
    """images (n, C, H, W) -> (n, C * 64): colours of an 8x8 version."""
    return functional.adaptive_avg_pool2d(images, 8).flatten(1).numpy()


class VggFeatures(nn.Module):
    """The 512 features before the classifier of the VGG-like CIFAR-10 net of the torch.ch blog (cifar.torch, vgg_bn_drop).

    Weights: a .safetensors file of this module's state_dict, `mean` and `std` of the training images' RGB included.
    Choice: RGB standardised by channel; the blog's YUV with local contrast normalisation belongs to its own weights.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for block in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
            for maps in block:
                layers += [nn.Conv2d(width, maps, 3, padding=1), nn.BatchNorm2d(maps), nn.ReLU()]
                width = maps
            layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(512, 512)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], resized to 32x32 -> (B, 512)."""
        images = functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
        images = (images - self.mean[:, None, None]) / self.std[:, None, None]
        return self.hidden(self.convolutions(images).flatten(1))


def load_vgg(content: bytes) -> VggFeatures:
    """The net from the bytes of a .safetensors file; ValueError when it is something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    net = VggFeatures()
    try:
        net.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"evaluation.features is not a .safetensors file of VggFeatures: {error}") from None
    return net.eval()


@torch.no_grad()
def vgg_features(net: VggFeatures, images: Tensor, batch: int = 256) -> np.ndarray:
    """images (n, C, H, W) -> (n, 512)."""
    return torch.cat([net(part.expand(-1, 3, -1, -1)) for part in images.split(batch)]).numpy()
