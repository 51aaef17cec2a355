"""Optimizer, learning rate and clipping, from the config.

The paper's are RMSprop with the constant under the root and a norm limit for every tensor on its own (the
authors' coco/alignDraw.py, lines 405-425). Adam with warm-up, cosine decay and one limit for all tensors together is
what learns in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.config import SharpenConfig, TrainConfig

BLOCK = 1 << 16  # values of a tensor that RMSprop takes at a time on a CPU: its four passes then run in the cache


class RMSprop(Optimizer):
    """h = decay h + (1 - decay) g^2,  p = p - lr g / sqrt(h + epsilon).

    torch.optim.RMSprop divides by sqrt(h) + epsilon instead: while h is small, as it is at the start, its steps are larger.

    Rows of a sparse gradient that are missing have a gradient of 0: their p stays, their h decays. That is made up for when
    the row is next seen, so a step costs as much as there are words in the batch, not in the vocabulary.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, decay: float = 0.9, epsilon: float = 1e-6):
        super().__init__(parameters, {"lr": lr, "decay": decay, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["square"] = torch.zeros_like(parameter)
                if parameter.grad.is_sparse:
                    self._update_rows(parameter, state, **group)
                    continue
                if "seen" in state:  # its gradients were sparse until now: what their missing rows are due
                    passed = state.pop("steps") - state.pop("seen")
                    state["square"].mul_((group["decay"] ** passed)[:, None])
                for p, g, h in _blocks(parameter, parameter.grad, state["square"]):
                    h.mul_(group["decay"]).addcmul_(g, g, value=1 - group["decay"])
                    p.addcdiv_(g, (h + group["epsilon"]).sqrt_(), value=-group["lr"])

    def _update_rows(self, parameter: nn.Parameter, state: dict, lr: float, decay: float, epsilon: float, **_) -> None:
        rows, g = parameter.grad.indices()[0], parameter.grad.values()
        if "seen" not in state:  # the last step that saw each row; loading makes floats of them, exact up to 2^24
            state["steps"], state["seen"] = 0, parameter.new_zeros(len(parameter))
        state["steps"] += 1
        passed = state["steps"] - state["seen"][rows]
        h = state["square"][rows].mul_((decay**passed)[:, None]).addcmul_(g, g, value=1 - decay)
        state["square"][rows] = h
        state["seen"][rows] = state["steps"]
        parameter.index_add_(0, rows, g / (h + epsilon).sqrt_(), alpha=-lr)


def make_optimizer(
    model: nn.Module, config: TrainConfig | SharpenConfig, betas: tuple[float, float] = (0.9, 0.999)
) -> Optimizer:
    """The optimizer a config names, over all parameters of a model; betas: how slowly Adam forgets.

    For RMSprop the gradients of word tables become sparse: a batch has few words of many. Adam's momentum also moves the
    words that a batch does not have.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr)
    if config.optimizer == "rmsprop":
        for table in (module for module in model.modules() if isinstance(module, nn.Embedding)):
            table.sparse = True
        return RMSprop(model.parameters(), lr=config.lr)
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=betas, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of optimizer step 0, 1, ...: a function of the step, so a restart needs no scheduler's state."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "drop":
        return config.lr * warm * (0.1 if step >= config.drop_at * config.steps else 1.0)
    if config.schedule == "cosine":
        left = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, left)))
    return config.lr * warm


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The numbers of all gradients, as norms and clipping need them; those of a sparse gradient are its rows (n, width)."""
    numbers = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # a word that a batch has twice: one row, the sum
        numbers.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    return numbers


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """(n,) the L2 norm of each gradient; not finite exactly where a gradient is not (or its square overflows)."""
    return torch.stack(torch._foreach_norm(gradients))


def clip_gradients(gradients: Sequence[Tensor], norms: Tensor, limit: float, each: bool) -> None:
    """Scale gradients down, in place, to norms of at most `limit`: each on its own, or all as one vector."""
    total = norms if each else norms.norm().expand(len(gradients))
    torch._foreach_mul_(gradients, list((limit / total.clamp(min=limit)).unbind()))


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same elements of each tensor, some at a time: whole tensors on a GPU, where launches cost more than memory."""
    if tensors[0].is_cuda or tensors[0].numel() <= BLOCK or not all(tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return zip(*(tensor.view(-1).split(BLOCK) for tensor in tensors), strict=True)
