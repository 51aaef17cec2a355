"""Everything that training changes: what a checkpoint holds and a restart needs, and nothing else.

Nothing random is in it. The order of the samples, their noise and the learning rate are functions of (seed, step), so the
step is the whole position of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer


@dataclass
class TrainState:
    """Networks and optimizers by name: one of each, "model", for a likelihood; two of each for the sharpener."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    step: int = 0  # optimizer steps taken
    best: float | None = None  # best validation bound so far, nats an image
    worse: int = 0  # validations since then
    measured: int = 0  # the step of the last validation

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> TrainState:
        """The state of likelihood training before its first step."""
        return cls({"model": model}, {"model": optimizer})

    @property
    def model(self) -> nn.Module:
        return self.networks["model"]

    @property
    def optimizer(self) -> Optimizer:
        return self.optimizers["model"]

    def take_bound(self, bound: float) -> bool:
        """Note a validation bound; whether it is the best so far."""
        self.measured = self.step
        better = math.isfinite(bound) and (self.best is None or bound > self.best)
        self.best, self.worse = (bound, 0) if better else (self.best, self.worse + 1)
        return better
