"""Conditional VAEs, the paper's baselines: one latent vector an image, fully connected or convolutional, least squares.

Mansimov et al. 2016 (arXiv 1511.02793), section 4.2, compare alignDRAW with a Fully-Connected and a Conv-Deconv VAE "trained
with the least square loss"; the model is Kingma & Welling 2014 with the caption as a condition of both networks.

Choice: the paper names no layers, widths, latent size or optimizer; all of them are ours (config.VaeConfig).
Choice: least squares is -log p(x | y, z) of a Gaussian with a fixed standard deviation (0.15 of the range of a pixel, about
the error that is left on small photographs), so that it stands in nats beside the KL term. This bound is one on a density
of continuous pixels and not comparable with the Bernoulli bounds of DRAW (`bernoulli = False` says so); on equal footing are
bounds in which the image of `reconstruct` is the mean of a Bernoulli likelihood.
Choice: the mean is a sigmoid, so that it is an image and a Bernoulli mean.
"""

# B batch, S sentence width, Z latent width, H hidden width

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import VaeConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captions import SentenceVector
from pipeline.models.likelihood import gaussian_nll, standard_kl
from pipeline.sample import Batch, Generated, Terms

HALVINGS = 3  # of the image's side, by convolutions


class VaeModel(CaptionModel):
    """Conditional VAE with sentence vector s.

        Q(z | x, y) = N(mu, sigma^2),  [mu; log sigma^2] = linear(relu(linear([see(x); s])))         (1)
        P(z) = N(0, I)                                                                              (2)
        p(x | y, z) = prod_i N(x_i; sigmoid(paint(relu(linear([z; s]))))_i, deviation^2)             (3)

    see and paint: one fully connected layer, or three convolutions that halve the side and three that double it again.
    """

    bernoulli = False

    def __init__(self, config: VaeConfig, vocabulary: int, size: int, channels: int):
        super().__init__()
        self.config = config
        self.noise_shape = (config.latent,)
        self.sentence = SentenceVector(config.caption, vocabulary, config.language, config.sentence)
        self.sentence_width = self.sentence.width
        body = _fully_connected if config.body == "fc" else _convolutional
        self.see, self.paint, features = body(config, size, channels)
        self.infer = nn.Linear(features + self.sentence_width, config.hidden)
        self.posterior = nn.Linear(config.hidden, 2 * config.latent)  # mean, log variance
        self.generate = nn.Linear(config.latent + self.sentence_width, config.hidden)

    def encode(self, image: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """(1): image (B, C, H, W), sentence (B, S) -> mean, log std (B, Z) of Q."""
        hidden = self.infer(torch.cat((self.see(image), sentence), dim=1)).relu()
        mean, log_variance = self.posterior(hidden).chunk(2, dim=1)
        return mean, 0.5 * log_variance

    def decode(self, latent: Tensor, sentence: Tensor) -> Tensor:
        """The mean of (3): latent (B, Z), sentence (B, S) -> image (B, C, H, W) in [0, 1]."""
        return torch.sigmoid(self.paint(self.generate(torch.cat((latent, sentence), dim=1)).relu()))

    def reconstruct(self, batch: Batch, noise: Tensor) -> tuple[Terms, Tensor]:
        """One sample of Q: noise (B, Z) -> losses recon (of a density), kl (B,) in nats, and the mean image (B, C, H, W)."""
        sentence = self.describe(batch.words, batch.keep, batch.sentence)
        mean, log_std = self.encode(batch.images, sentence)
        image = self.decode(mean + log_std.exp() * noise, sentence)
        recon = gaussian_nll(image, batch.images, self.config.deviation)
        return Terms({"recon": recon, "kl": standard_kl(mean, log_std)}), image

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        return self.reconstruct(batch, noise)[0]

    def sample(
        self, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor, steps: bool = False
    ) -> Generated:
        """z from the prior is the noise (B, Z) itself; drawings are means, as the paper shows them."""
        return Generated(self.decode(noise, self.describe(words, keep, sentence)))

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """(B, S): the given sentence vector, else the mean of the word states."""
        return self.sentence(words, keep, sentence)


def _fully_connected(config: VaeConfig, size: int, channels: int) -> tuple[nn.Module, nn.Module, int]:
    """see: image -> (B, H); paint: (B, H) -> logits of the image; width of what `see` gives."""
    pixels = channels * size**2
    see = nn.Sequential(nn.Flatten(), nn.Linear(pixels, config.hidden), nn.ReLU())
    paint = nn.Sequential(nn.Linear(config.hidden, pixels), nn.Unflatten(1, (channels, size, size)))
    return see, paint, config.hidden


def _convolutional(config: VaeConfig, size: int, channels: int) -> tuple[nn.Module, nn.Module, int]:
    """The same; a 4x4 window and stride 2 halve a side (rounding down), and bring it back to what it was."""
    sides = [size >> halvings for halvings in range(HALVINGS + 1)]
    if sides[-1] < 1:
        raise ValueError(
            f"{HALVINGS} convolutions halve an image's side each: {size} pixels are too few, take 8 or more"
        )
    maps = [channels, *(config.maps << level for level in range(HALVINGS))]
    down, up = [], []
    for level in range(HALVINGS):
        finer, coarser, odd = maps[level], maps[level + 1], sides[level] % 2
        down += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1, output_padding=odd), *up]
    features = maps[-1] * sides[-1] ** 2
    paint = [nn.Linear(config.hidden, features), nn.Unflatten(1, (maps[-1], sides[-1], sides[-1])), *up]
    return nn.Sequential(*down, nn.Flatten()), nn.Sequential(*paint), features
