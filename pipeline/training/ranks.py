"""The processes that train together: who takes part, what they agree on, and the model that averages their gradients.

One process is the case of one rank: nothing is sent, the model stays as it is. Ray Train, torchrun or a test start the
processes and their default process group; this file does not care which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.base import noise_rows


@dataclass(frozen=True)
class Ranks:
    """This process among those that train."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None: all processes
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over ranks, the same bits on all of them."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def noise(self, shape: tuple[int, ...], batch: int, seed: tuple[int, ...]) -> Tensor:
        """This rank's rows of a global batch's noise (batch / size, *shape), on its device."""
        return noise_rows(shape, batch, seed, self.device)[self.rank :: self.size]

    def gather(self, thing: Any) -> list[Any]:
        """What every rank hands in, in order of rank."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing, group=self.group)
        return things

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over ranks; its parameters are those of `model`."""
        model.to(self.device)
        if self.size == 1:
            return model
        if dist.get_backend(self.group) == "nccl":
            make_dense(model)
        return nn.parallel.DistributedDataParallel(model, process_group=self.group, gradient_as_bucket_view=True)


def make_dense(model: nn.Module) -> None:
    """Word tables get dense gradients, where sparse ones cannot be used: NCCL does not add them up, and how many rows one has
    is known only to who waits for it. RMSprop (optim.py) takes either, from one step to the next."""
    for table in (part for part in model.modules() if isinstance(part, nn.Embedding)):
        table.sparse = False


ALONE = Ranks()


def join(*divided: int, device: torch.device | str = "cpu") -> Ranks | None:
    """This process's place, once its default process group (if any) exists; None for one that is left over.

    Every rank takes an equal share of the batch and of the lanes. An elastic group may come with a number of processes
    that does not divide them; then as many train as do, and the others have nothing to do.
    """
    device = torch.device(device)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks(device=device)
    rank, here = dist.get_rank(), dist.get_world_size()
    size = share(here, *divided)
    group = None if size == here else dist.new_group(range(size))  # a collective call: those left over make it too
    return Ranks(rank, size, group, device) if rank < size else None


def share(processes: int, *divided: int) -> int:
    """The largest number of ranks, at most `processes`, among which each of the numbers divides evenly."""
    return next(n for n in range(processes, 0, -1) if all(number % n == 0 for number in divided))
