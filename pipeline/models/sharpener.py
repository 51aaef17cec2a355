"""The sharpener: a finest level of LAPGAN that adds edges to a blurry drawing, conditioned on its caption.

Mansimov et al. 2016 (arXiv 1511.02793), section 3.3 and their sharpen.py. It stands behind a drawing model that
stays as it is; training/adversarial.py trains it against a discriminator (lapgan.LevelDiscriminator) that is then dropped.

Choice: the sentence is the drawing model's own (`describe`: the mean of its word states; its skip-thought vector only where it
has one), so that a sharpener needs nothing that its model does not have. The paper's took skip-thought vectors.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.lapgan import LevelGenerator

# Choice: a Bernoulli mean is kept this far from 0 and 1. A clipped image has values that are exactly 0 or 1, and one real pixel
# that differs by a trace makes log p minus infinity. 0.001 is less than half a step of an 8-bit picture, hence invisible, and bounds
# the loss of a pixel by 6.9 nats; on a black background it costs 0.001 nats a pixel.
MARGIN = 1e-3


class Sharpener(nn.Module):
    """sharp = clip(drawing + G(0, relu(W s + b), drawing), 0, 1).

    G's noise is uniform on (-1, 1) in training and held at its mean 0 here, so a drawing has one sharpened image and the
    bound is defined with it as Bernoulli mean. Choice: 0 everywhere at use, also for pictures: the authors' code does so.
    """

    def __init__(self, channels: int, size: int, sentence: int, maps: int):
        super().__init__()
        self.generator = LevelGenerator(channels, size, sentence, maps)

    def forward(self, drawing: Tensor, sentence: Tensor) -> Tensor:
        """drawing (B, C, H, W) in [0, 1], sentence (B, S) -> sharpened (B, C, H, W) in [0, 1]."""
        mean_noise = drawing.new_zeros((len(drawing), *self.generator.noise_shape))
        return self.generator(mean_noise, drawing, sentence).clamp(0, 1)

    def mean(self, drawing: Tensor, sentence: Tensor) -> Tensor:
        """The sharpened image as mean of a Bernoulli likelihood: in [MARGIN, 1 - MARGIN], so log p is finite."""
        return self(drawing, sentence).clamp(MARGIN, 1 - MARGIN)
