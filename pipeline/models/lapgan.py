"""LAPGAN conditioned on a sentence vector: a small image from noise, then a residual a level, each level a GAN of its own.

Denton et al. 2015 (arXiv 1506.05751); the sizes are those of its class-conditional code (facebook/eyescream) with a sentence
vector in the place of the class, as Mansimov et al. 2016 (arXiv 1511.02793) compare with and sharpen by.

A level is a generator and a discriminator with the same two signatures on every level, so that one loop trains them all
(training/adversarial.py):  generator(noise, coarse, sentence) -> image,  discriminator(image, sentence, noise) -> logit.
Noise is handed in standard normal, like that of every model (base.py), and becomes what the authors draw: 0 stays its mean.

Choice: the paper gives no sizes for its LAPGAN; levels and maps are those it has in common with eyescream, the widths of the
smallest level those of LAPGAN on CIFAR (1200 and 600).
Choice: levels see pixels in [0, 1], clamped between them when an image is drawn, where eyescream standardises each pixel; the rate
stays as the config's schedule has it, and the last step's weights are used, not those of the least Parzen distance.
"""

# B batch, C channels, S sentence width, F width of the discriminator's dropped layers, Z width of the smallest level's noise

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.config import LapganConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captions import SentenceVector
from pipeline.models.laplacian import enlarge, pyramid_sizes
from pipeline.sample import Generated


def uniform(noise: Tensor) -> Tensor:
    """Standard normal -> uniform on (-1, 1), elementwise: twice the normal distribution function, minus 1."""
    return torch.erf(noise / math.sqrt(2))


class SentenceMap(nn.Module):
    """A sentence vector as one more channel of an image: relu(W s + b), a value a pixel."""

    def __init__(self, sentence: int, size: int):
        super().__init__()
        self.size, self.linear = size, nn.Linear(sentence, size * size)

    def forward(self, sentence: Tensor) -> Tensor:
        """(B, S) -> (B, 1, size, size)."""
        return self.linear(sentence).relu().view(-1, 1, self.size, self.size)


class LevelGenerator(nn.Module):
    """Adds the detail that is missing from a coarse image, as the sentence and the noise say.

        image = coarse + conv5(relu(conv7(relu(conv7([noise; relu(W s + b); coarse])))))

    The image is not clipped: outside [0, 1] the discriminator's gradient must still reach the generator.

    Choice: the last layer starts at zero, so that a level starts as the identity and a short training can only add to it.
    """

    def __init__(self, channels: int, size: int, sentence: int, maps: int):
        super().__init__()
        self.noise_shape = (1, size, size)
        self.sentence = SentenceMap(sentence, size)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 2, maps, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(maps, maps, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(maps, channels, 5, padding=2),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, noise: Tensor, coarse: Tensor, sentence: Tensor) -> Tensor:
        """noise (B, 1, H, W), coarse (B, C, H, W), sentence (B, S) -> image (B, C, H, W)."""
        return coarse + self.layers(torch.cat((uniform(noise), self.sentence(sentence), coarse), dim=1))


class LevelDiscriminator(nn.Module):
    """Tells real images from generated ones that go with a sentence.

        logit = w . dropout(relu(conv5 stride 2(relu(conv5([image; relu(W s + b)]))))) + b

    It sees coarse image and residual as their sum, like eyescream's. The halves that dropout leaves out come from noise
    that is handed in, not from a generator inside: with that a step is the same on any number of workers.
    """

    def __init__(self, channels: int, size: int, sentence: int, maps: int):
        super().__init__()
        if size < 9:
            raise ValueError(f"an image of side {size} is too small for a level: two 5x5 windows need 9 pixels")
        side = (size - 4 - 5) // 2 + 1  # without padding: 32 -> 28 -> 12
        self.noise_shape = (maps * side * side,)
        self.sentence = SentenceMap(sentence, size)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, maps, 5), nn.ReLU(), nn.Conv2d(maps, maps, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.last = nn.Linear(maps * side * side, 1)

    def forward(self, image: Tensor, sentence: Tensor, noise: Tensor | None = None) -> Tensor:
        """image (B, C, H, W), sentence (B, S), noise (B, F), None: no dropout -> logit (B,) of being real."""
        seen = self.layers(torch.cat((image, self.sentence(sentence)), dim=1))
        return self.last(drop_half(seen, noise)).squeeze(1)


class FirstGenerator(nn.Module):
    """The smallest level, a plain GAN: image = sigmoid(linear(relu(linear(relu(linear([noise; s])))))).

    Choice: a sigmoid, so that it is an image; the authors' images are standardised and theirs is linear.
    """

    def __init__(self, channels: int, size: int, sentence: int, latent: int, hidden: int):
        super().__init__()
        self.noise_shape = (latent,)
        self.layers = nn.Sequential(
            nn.Linear(latent + sentence, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels * size**2),
            nn.Sigmoid(),
            nn.Unflatten(1, (channels, size, size)),
        )

    def forward(self, noise: Tensor, coarse: Tensor, sentence: Tensor) -> Tensor:
        """noise (B, Z), sentence (B, S) -> image (B, C, h, w); there is nothing coarser, what is given as it is not used."""
        return self.layers(torch.cat((uniform(noise), sentence), dim=1))


class FirstDiscriminator(nn.Module):
    """Of the smallest level: logit = w . dropout(relu(linear(dropout(relu(linear([image; s])))))) + b."""

    def __init__(self, channels: int, size: int, sentence: int, hidden: int):
        super().__init__()
        self.noise_shape = (2 * hidden,)
        self.first = nn.Linear(channels * size**2 + sentence, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, image: Tensor, sentence: Tensor, noise: Tensor | None = None) -> Tensor:
        """image (B, C, h, w), sentence (B, S), noise (B, F), None: no dropout -> logit (B,) of being real."""
        first, second = (None, None) if noise is None else noise.chunk(2, dim=1)
        seen = drop_half(self.first(torch.cat((image.flatten(1), sentence), dim=1)).relu(), first)
        return self.last(drop_half(self.second(seen).relu(), second)).squeeze(1)


def drop_half(features: Tensor, noise: Tensor | None) -> Tensor:
    """(B, F): features where noise > 0, doubled; all of them as they are without noise. Dropout 0.5."""
    return features if noise is None else 2 * features * (noise > 0)


class Levels(nn.ModuleList):
    """Networks of one kind, one a level, as one module: DistributedDataParallel wraps all of them at once."""

    def forward(self, inputs: list[tuple[Tensor, ...]]) -> list[Tensor]:
        """The inputs of each level -> its output."""
        return [level(*given) for level, given in zip(self, inputs, strict=True)]


class Lapgan(CaptionModel):
    """The stack of generators: each level's image, enlarged, is what the next adds detail to. It has no bound.

    Choice: without given sentence vectors a caption is the mean of the states of a BiLSTM that stays as it started. Such
    random encoders tell sentences apart (Wieting & Kiela 2019, arXiv 1901.10444), and levels that train apart need one
    sentence vector that none of them changes.
    """

    def __init__(self, config: LapganConfig, vocabulary: int, size: int, channels: int):
        super().__init__()
        self.config, self.channels = config, channels
        self.sizes = pyramid_sizes(size, config.levels)
        self.sentence = SentenceVector(config.caption, vocabulary, config.language, config.sentence)
        self.sentence.requires_grad_(False)
        self.sentence_width = width = self.sentence.width
        self.generators = Levels([FirstGenerator(channels, self.sizes[0], width, config.latent, config.hidden)])
        for side in self.sizes[1:]:
            self.generators.append(LevelGenerator(channels, side, width, config.maps))
        self.noise_shape = (sum(math.prod(level.noise_shape) for level in self.generators),)

    def discriminators(self) -> Levels:
        """New discriminators, one a level; they train the generators and are no part of the model."""
        config, width = self.config, self.sentence_width
        levels = Levels([FirstDiscriminator(self.channels, self.sizes[0], width, config.hidden // 2)])
        for side in self.sizes[1:]:
            levels.append(LevelDiscriminator(self.channels, side, width, config.maps))
        return levels

    def sample(
        self, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor, steps: bool = False
    ) -> Generated:
        """noise (B, all levels') -> drawings. Images are clipped between levels: that is what the next one was trained on."""
        vector = self.describe(words, keep, sentence)
        shapes = [level.noise_shape for level in self.generators]
        parts = noise.split([math.prod(shape) for shape in shapes], dim=1)
        image = noise.new_zeros((len(words), self.channels, self.sizes[0], self.sizes[0]))
        for level, side, part, shape in zip(self.generators, self.sizes, parts, shapes, strict=True):
            image = level(part.unflatten(1, shape), enlarge(image, side), vector).clamp(0, 1)
        return Generated(image)

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """(B, S): the given sentence vector, else the mean of random word states."""
        return self.sentence(words, keep, sentence)
