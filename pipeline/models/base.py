"""The two promises of every model that draws from captions, and the one way noise reaches it.

Noise is handed in, never drawn inside: the caller makes it from (seed, step, place in the global batch), so a training run
does not depend on how many workers it has, and a drawing is a function of (weights, caption, seed).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.sample import Batch, Generated, Terms


class CaptionModel(nn.Module):
    """Base of the systems with a lower bound. `noise_shape` is one image's standard normal noise, e.g. (T, Z)."""

    noise_shape: tuple[int, ...]
    sentence_width: int  # S of `describe`
    bernoulli = True  # whether recon of `terms` is the Bernoulli cost of the image of `reconstruct`

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        """noise (B, *noise_shape) -> losses (B,) by name in nats, from one Monte-Carlo sample of the posterior."""
        raise NotImplementedError

    def reconstruct(self, batch: Batch, noise: Tensor) -> tuple[Terms, Tensor]:
        """The same sample's terms and its image mean (B, C, H, W) in [0, 1]: what the sharpener refines for its bound."""
        raise NotImplementedError

    def sample(
        self, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor, steps: bool = False
    ) -> Generated:
        """words, keep (B, N), sentence (B, S) or None, noise (B, *noise_shape) -> drawings from the prior.

        steps: with the canvas after each step, from a model that draws in steps.
        """
        raise NotImplementedError

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """(B, S) one vector a caption, which conditions the sharpener and averages to retrieval's mean sentence."""
        raise NotImplementedError

    def forward(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """What DistributedDataParallel calls: the losses of `terms` as a dict."""
        return self.terms(batch, noise).losses


def noise_rows(shape: tuple[int, ...], rows: int, seed: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """(rows, *shape) standard normal, a function of seed and the kind of device; a rank takes its own rows of it.

    Choice: training draws on the device that trains (every rank draws the whole batch's, on a CPU longer than a GPU's step
    takes); whatever is measured or looked at draws on the CPU, so that it does not depend on the device.
    """
    generator = torch.Generator(device).manual_seed(_mix(seed))
    return torch.randn((rows, *shape), generator=generator, device=device)


def _mix(seed: tuple[int, ...]) -> int:
    """One 63-bit seed from several numbers (FNV-1a over their 64-bit words), so (1, 2) and (2, 1) differ."""
    mixed = 0xCBF29CE484222325
    for number in seed:
        for byte in int(number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"):
            mixed = ((mixed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return mixed >> 1
