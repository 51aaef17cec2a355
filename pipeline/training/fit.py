"""The likelihood loop: batches in, a trained model out; for every model that answers `terms` (models/base.py).

What surrounds it is handed in, so it runs alone, under Ray Train or in a test alike: `log` takes metrics, `save` keeps the
state, `validate` measures held-out images, `stop` says that somebody wants the process to end.

A run does not depend on how many ranks share it, nor on being interrupted: noise belongs to (seed, step, place in the
global batch), the learning rate and the weight of the KL term to the step, and `save` is called between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.sample import Batch, Terms
from pipeline.training.graph import Graph, differentiate
from pipeline.training.meter import Meter
from pipeline.training.optim import clip_gradients, gradient_norms, gradients_of, learning_rate, set_learning_rate
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.state import TrainState

NOISE = 1  # second seed of training's noise; validation's is 2


class NotFinite(ValueError):
    """A loss or a gradient is nan or infinite; the state is that before the step."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended."""

    reason: Literal["finished", "early", "stopped"]
    step: int
    images_per_s: float  # over all ranks, of this call, saving and validation not counted


def fit(
    state: TrainState,
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    ranks: Ranks = ALONE,
    validate: Callable[[], dict[str, float]] | None = None,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    save: Callable[[TrainState, float | None], None] = lambda state, bound: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train from `state.step` to `config.steps`, changing `state`.

    batches: this rank's rows of global batch `state.step` and those after it, without end. Called on every rank: validate,
    with the sums of this rank's share of the split (validation.term_sums); save, with the state and its validation bound,
    if just measured; stop. Called on the first rank: log and say.
    """
    state.model.train()
    network = Graph(state.model, ranks) if config.graph else ranks.wrap(state.model)
    meter, steps = Meter(config.steps, config.batch, state.step, _headline), config.steps

    def measure() -> tuple[float, bool]:
        """The bound on the validation split, nats, and whether it is the best so far."""
        with meter.paused():
            state.model.eval()
            held_out = _mean_over_ranks(validate(), ranks)
            state.model.train()
        bound = -sum(held_out.values())
        better = state.take_bound(bound)
        if ranks.first:
            log({"val/bound": bound, **{f"val/{name}": mean for name, mean in held_out.items()}}, state.step)
            praise = ", the best so far" if better else ""
            say(f"step {state.step}/{steps}: validation bound {bound:.2f} nats{praise}")
        return bound, better

    if validate is not None and state.measured < state.step and _validation_is_due(config, state.step):
        save(state, measure()[0])  # who was asked to stop here did not wait for it
    reason = _end(state, config)
    while reason is None:
        waited = time.perf_counter()
        batch = next(batches).to(ranks.device)
        meter.waited += time.perf_counter() - waited
        if meter.steps == 0 and isinstance(network, nn.parallel.DistributedDataParallel):
            _settle_buckets(network, batch, config.accumulate)
        stopping, sums, norm = take_step(state, network, batch, config, ranks, stop())
        meter.add(sums)

        bound, better = None, False
        if validate is not None and _validation_is_due(config, state.step, stopping):
            bound, better = measure()
        reason = _end(state, config) or ("stopped" if stopping else None)
        if ranks.first and (reason or state.step % config.log_every == 0):
            log(
                {**_metrics(meter.take(), config, state.step - 1), "train/gradient_norm": norm, **meter.speed()},
                state.step,
            )
        if ranks.first and (line := meter.line(last=reason is not None)):
            say(line)
        if reason or better or state.step % config.save_every == 0:
            with meter.paused():
                save(state, bound)
    return Outcome(reason, state.step, meter.images_per_s)


def take_step(
    state: TrainState, network: nn.Module | Graph, batch: Batch, config: TrainConfig, ranks: Ranks, stop: bool = False
) -> tuple[bool, dict[str, float], float]:
    """One optimizer step on this rank's rows; raises NotFinite, on all ranks, before it changes anything.

    Returns whether any rank wants to stop, the mean of each loss over the global batch (nats), and the norm of the gradient
    before it was clipped.
    """
    losses = backward(network, batch, config, state.step, ranks)
    gradients = gradients_of(state.model.parameters())
    norms = gradient_norms(gradients)
    bad_losses = (~torch.stack(list(losses.values())).isfinite()).sum()
    facts = [bad_losses, (~norms.isfinite()).sum(), torch.tensor(stop, device=ranks.device)]
    facts += [loss.double().sum() for loss in losses.values()]
    # the one thing ranks tell each other besides gradients, and the one wait for the device
    told = ranks.sum(torch.stack([fact.double() for fact in facts]))
    *told, norm = torch.cat((told, norms.norm()[None])).tolist()
    if told[0] or told[1]:
        raise NotFinite(_complaint(state, batch, losses, norms, ranks))
    clip_gradients(gradients, norms, config.clip, config.clip_each)
    set_learning_rate(state.optimizer, learning_rate(config, state.step))
    state.optimizer.step()
    state.step += 1
    return (
        told[2] > 0,
        {name: total / config.batch for name, total in zip(losses, told[3:], strict=True)},
        norm,
    )


def backward(
    network: nn.Module | Graph, batch: Batch, config: TrainConfig, step: int, ranks: Ranks
) -> dict[str, Tensor]:
    """Gradients of the global batch's mean loss, averaged over ranks; returns this rank's losses (b,) by name, in nats.

    The rows go through in `accumulate` parts, which changes memory and nothing else: ranks exchange gradients once.
    """
    rows = config.batch // ranks.size
    assert len(batch) == rows, f"rank {ranks.rank} of {ranks.size} got {len(batch)} rows of a batch of {config.batch}"
    model = getattr(network, "module", network)
    noise = ranks.noise(model.noise_shape, config.batch, (config.seed, NOISE, step))
    weights = {"kl": kl_weight(config, step)}
    if isinstance(network, Graph):
        return network.backward(batch, noise, weights)
    model.zero_grad(set_to_none=True)
    parts: list[dict[str, Tensor]] = []
    for part in torch.arange(rows).tensor_split(config.accumulate):
        last = len(parts) == config.accumulate - 1
        take = slice(int(part[0]), int(part[-1]) + 1)
        with nullcontext() if last or network is model else network.no_sync():
            parts.append(differentiate(network, _rows(batch, take), noise[take], weights, rows))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def kl_weight(config: TrainConfig, step: int) -> float:
    """Weight of the KL term: from 0.1 to `config.kl_weight` over the first `kl_warmup` of the steps, then that."""
    rise, start, end = config.kl_warmup * config.steps, 0.1, config.kl_weight
    return start + (end - start) * min(1.0, step / rise) if rise else end


def _metrics(losses: dict[str, float], config: TrainConfig, step: int) -> dict[str, float]:
    """Means of the losses, and what the schedule says, under the names they have in MLflow."""
    return {
        "train/bound": -sum(losses.values()),
        **{f"train/{name}": loss for name, loss in losses.items()},
        "train/lr": learning_rate(config, step),
        "train/kl_weight": kl_weight(config, step),
    }


def _headline(losses: dict[str, float]) -> str:
    """What a progress line says of the losses since the one before."""
    kl = f", KL {losses['kl']:.2f}" if "kl" in losses else ""
    return f"bound {-sum(losses.values()):.2f} nats{kl}"


def _end(state: TrainState, config: TrainConfig) -> Literal["finished", "early"] | None:
    """Why there is no further step to take, if so; a function of the state, so a finished run stays finished."""
    if state.step >= config.steps:
        return "finished"
    return "early" if config.patience and state.worse >= config.patience else None


def _validation_is_due(config: TrainConfig, step: int, stopping: bool = False) -> bool:
    """At the end always; in between not when somebody waits for this process to end: the one that goes on does it then."""
    return step == config.steps or bool(config.validate_every and step % config.validate_every == 0 and not stopping)


def _settle_buckets(network: nn.Module, batch: Batch, parts: int) -> None:
    """A backward pass whose gradients are thrown away.

    DistributedDataParallel re-packs its buckets after its first pass, and with more than two ranks the order in which a
    value is summed depends on its place in a bucket. So that a restarted run sums as the undisturbed one does, the first
    pass of either is not part of the training. It has as many rows as fit memory at once.
    """
    model, batch = network.module, _rows(batch, slice(-(-len(batch) // parts)))
    noise = torch.zeros((len(batch), *model.noise_shape), device=batch.images.device)
    Terms(network(batch, noise)).total.mean().backward()
    model.zero_grad(set_to_none=True)


def _rows(batch: Batch, take: slice) -> Batch:
    sentence = None if batch.sentence is None else batch.sentence[take]
    return Batch(batch.images[take], batch.words[take], batch.keep[take], batch.keys[take], sentence)


def _mean_over_ranks(sums: dict[str, float], ranks: Ranks) -> dict[str, float]:
    """Means over all images of all ranks' shares; a share may be empty."""
    names = next(filter(None, ranks.gather([name for name in sums if name != "images"])))
    here = [sums.get(name, 0.0) for name in [*names, "images"]]
    *totals, images = ranks.sum(torch.tensor(here, dtype=torch.float64, device=ranks.device)).tolist()
    return {name: total / images for name, total in zip(names, totals, strict=True)}


def _complaint(state: TrainState, batch: Batch, losses: dict[str, Tensor], norms: Tensor, ranks: Ranks) -> str:
    """One line, the same on every rank: what is not finite, and in which samples."""
    names = [name for name, parameter in state.model.named_parameters() if parameter.grad is not None]
    return (
        f"step {state.step}: {what_is_not_finite(losses, names, norms, batch.keys, ranks)}; stopped before the update, the last "
        "checkpoint is untouched: lower train.lr or train.clip, or look at these samples"
    )


def what_is_not_finite(
    losses: dict[str, Tensor], names: Sequence[str], norms: Tensor, keys: Sequence[str], ranks: Ranks
) -> str:
    """The losses (b,) that are nan or infinite and the samples they are of, on any rank; else the gradients that are, by the
    names of their parameters and their norms, and the samples of the batch. Called on all ranks together."""
    bad = {
        name: [keys[row] for row in (~loss.isfinite()).nonzero().flatten().tolist()] for name, loss in losses.items()
    }
    everywhere = ranks.gather((bad, list(keys)))
    terms = {name: [key for here, _ in everywhere for key in here[name]] for name in losses}
    if any(terms.values()):
        return "; ".join(f"{name} is not finite for {_some(found)}" for name, found in terms.items() if found)
    tensors = [name for name, norm in zip(names, norms.tolist(), strict=True) if norm - norm != 0]
    batch = _some([key for _, found in everywhere for key in found])
    return f"the gradient of {_some(tensors)} is not finite, in a batch of {batch}"


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
