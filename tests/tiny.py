"""A caption model of a few hundred parameters and its batches: training's machinery is tested without waiting for DRAW."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.models.base import CaptionModel
from pipeline.sample import Batch, Terms
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState

WORDS, SIZE, LATENT = 7, 4, 3


class TinyModel(CaptionModel):
    """A linear conditional VAE: 4 x 4 grey images, captions of 3 words."""

    noise_shape = (2, LATENT)  # two samples, so that noise has more than one axis

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 5)
        self.encoder = nn.Linear(SIZE * SIZE + 5, 2 * LATENT)
        self.decoder = nn.Linear(LATENT + 5, SIZE * SIZE)

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        image, sentence = batch.images.flatten(1), self.words(batch.words).mean(1)
        mean, log_std = self.encoder(torch.cat((image, sentence), 1)).chunk(2, dim=1)
        latent = mean + log_std.exp() * noise.mean(1)
        logits = self.decoder(torch.cat((latent, sentence), 1))
        recon = nn.functional.binary_cross_entropy_with_logits(logits, image, reduction="none").sum(1)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        return Terms({"recon": recon, "kl": kl})


def tiny_config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch": 8, "lanes": 4, "lr": 0.01, "save_every": 5, "log_every": 4, **changes})


def tiny_state(config: TrainConfig, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = TinyModel()
    return TrainState.of(model, make_optimizer(model, config))


def tiny_batches(config: TrainConfig, step: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Rows rank::ranks of global batches `step`, `step + 1`, ...: each a function of its number."""
    for number in count(step):
        generator = torch.Generator().manual_seed(number)
        images = torch.rand((config.batch, 1, SIZE, SIZE), generator=generator)
        words = torch.randint(WORDS, (config.batch, 3), generator=generator)
        keys = tuple(f"{number}-{row}" for row in range(config.batch))
        mine = slice(rank, None, ranks)
        yield Batch(images[mine], words[mine], torch.ones_like(words[mine], dtype=torch.bool), keys[mine])


def everything(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of a state by name: weights and what the optimizers remember."""
    tensors = {}
    for name, network in state.networks.items():
        tensors |= {f"{name}.{key}": value.detach().clone() for key, value in network.state_dict().items()}
    for name, optimizer in state.optimizers.items():
        for number, memory in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{number}.{key}": torch.as_tensor(value).clone() for key, value in memory.items()}
    return tensors


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        least = max(tolerance**2, 1e-8) if name.endswith("exp_avg_sq") else tolerance  # squares of gradients are small
        torch.testing.assert_close(
            one[name], other[name], rtol=tolerance, atol=least, msg=lambda m, n=name: f"{n}: {m}"
        )
