"""A rank's forward and backward pass as one CUDA graph: recorded at the first step, launched as a whole at every other.

A step of T drawings is some ten thousand small operations, and a GPU is done with each before the CPU has asked for the next.
A graph is asked for once. Its price: every step has the same shapes at the same places in memory, so captions are padded to
`train.words` and each batch is copied to where the first one lay, and nothing inside may wait for the CPU.

Recorded as PyTorch describes (CUDA semantics, "Whole-network capture"). DistributedDataParallel stays outside: every matrix is
used in all T steps, so gradients are complete only when the pass ends, and are then averaged over ranks all at once.

Never run on a GPU by us: tested is all but the recording itself, which a CPU replaces by running the pass again.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.models.base import CaptionModel
from pipeline.sample import Batch, Terms
from pipeline.training.ranks import Ranks, make_dense

WARM_UP = 3  # passes before the recording: libraries allocate their workspaces


class Graph:
    """Stands where `Ranks.wrap`'s module would: `module` is the model."""

    def __init__(self, model: CaptionModel, ranks: Ranks) -> None:
        self.module, self.ranks = model.to(ranks.device), ranks
        make_dense(model)
        self.batch: Batch | None = None  # where every batch is copied to
        self.replay: Callable[[], None] = self._run

    def backward(self, batch: Batch, noise: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
        """This rank's rows and their noise -> their losses (b,) by name, nats.

        The gradient of the global batch's mean, its terms weighted, is left in the parameters; the next call overwrites both.
        Raises ValueError for rows of another shape than the first ones'.
        """
        if first := self.batch is None:
            self.batch, self.noise = deepcopy(batch), noise.clone()
            self.weights = {name: noise.new_tensor(value) for name, value in weights.items()}
        for fixed, new in zip([*_tensors(self.batch), self.noise], [*_tensors(batch), noise], strict=True):
            if fixed.shape != new.shape:
                raise ValueError(
                    f"a CUDA graph was recorded for {tuple(fixed.shape)}, not {tuple(new.shape)}: leave out --train.graph"
                )
            fixed.copy_(new, non_blocking=True)
        for name, value in weights.items():
            self.weights[name].fill_(value)
        if first and self.ranks.device.type == "cuda":
            self._record()
        self.replay()
        self._average()
        return self.losses

    def _run(self) -> None:
        """The pass on what lies in `batch`, `noise` and `weights`."""
        self.module.zero_grad(set_to_none=True)
        self.losses = differentiate(self.module, self.batch, self.noise, self.weights, len(self.batch))

    def _record(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the threads that load batches may allocate page-locked memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        self.replay = graph.replay

    def _average(self) -> None:
        """The parameters' gradients become the means over ranks."""
        if self.ranks.size == 1:
            return
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        flat = self.ranks.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.ranks.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def differentiate(
    network: nn.Module, batch: Batch, noise: Tensor, weights: dict[str, float | Tensor], rows: int
) -> dict[str, Tensor]:
    """Losses (b,) by name, nats; the gradients of their weighted sum over `rows` are added to the parameters'."""
    losses = network(batch, noise)
    (Terms(losses, weights).total.sum() / rows).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _tensors(batch: Batch) -> list[Tensor]:
    return [part for part in (batch.images, batch.words, batch.keep, batch.sentence) if part is not None]
