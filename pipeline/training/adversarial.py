"""The two-optimizer loop of generators and their discriminators: the sharpener's one level, or all levels of LAPGAN.

A step updates the discriminator, then the generator against the new one (Goodfellow et al. 2014 with the non-saturating
loss, one update of each, as in LAPGAN). Levels share a step and nothing else: a level of LAPGAN learns from real images
of its size, not from what the level below it draws.

`log`, `save`, `stop` and what a run may depend on are as in fit.py: noise and dropout belong to (seed, step, place in the
global batch), so neither the number of ranks nor an interruption changes the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.config import SharpenConfig, TrainConfig
from pipeline.models.base import CaptionModel
from pipeline.models.lapgan import Lapgan, LevelDiscriminator, Levels
from pipeline.models.laplacian import enlarge, scales
from pipeline.models.sharpener import Sharpener
from pipeline.sample import Batch
from pipeline.training.fit import NotFinite, Outcome, what_is_not_finite
from pipeline.training.meter import Meter
from pipeline.training.optim import gradient_norms, learning_rate, make_optimizer, set_learning_rate
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.state import TrainState

DRAWING, GENERATOR, DROPOUT = 5, 6, 7  # second seeds of our noises; training, validation, drawings and bounds have 1-4

BETAS = (0.5, 0.999)  # Choice: Adam forgets faster than usual, since each network keeps changing the other's gradient


@dataclass(frozen=True)
class Example:
    """What a level learns from: rows of an image without its detail, the sentence, and the image with its detail."""

    coarse: Tensor  # (b, C, H, W) in [0, 1]: a drawing, or an enlarged smaller image
    sentence: Tensor  # (b, S)
    real: Tensor  # (b, C, H, W) in [0, 1]


Examples = Callable[[Batch, int], list[Example]]  # this rank's rows of the batch of a step -> an example a level

# ---- losses: of each row, from the logits of being real


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(b,), (b,) -> (b,) nats: -log D(real) - log(1 - D(fake)), halved, so that one who guesses pays log 2."""
    return 0.5 * (F.softplus(-real) + F.softplus(fake))


def generator_loss(fake: Tensor) -> Tensor:
    """(b,) -> (b,) nats: -log D(fake). Unlike log(1 - D(fake)) it has a gradient where the discriminator is sure."""
    return F.softplus(-fake)


# ---- what is trained


def sharpener_state(drawer: CaptionModel, channels: int, size: int, config: SharpenConfig) -> TrainState:
    """A sharpener of this model's drawings and its discriminator before their first step, a function of the config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sharpener = Sharpener(channels, size, drawer.sentence_width, config.maps)
        discriminator = Levels([LevelDiscriminator(channels, size, drawer.sentence_width, config.maps)])
    return adversarial_state("sharpener", sharpener, discriminator, config)


def lapgan_state(model: Lapgan, config: TrainConfig) -> TrainState:
    """A LAPGAN and new discriminators before their first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        discriminators = model.discriminators()
    return adversarial_state("model", model, discriminators, config)


def adversarial_state(
    name: str, generator: nn.Module, discriminator: Levels, config: SharpenConfig | TrainConfig
) -> TrainState:
    """Two networks and their two optimizers; `name` is what the checkpoint calls the one that draws.

    Choice: plain gradient descent where the config says sgd. Eyescream's momentum starts at 0 and rises by 0.0008 an epoch,
    to 0.005 in the paper's six.
    """
    networks = {name: generator, "discriminator": discriminator}
    return TrainState(networks, {each: make_optimizer(net, config, BETAS) for each, net in networks.items()})


def drawings_of(drawer: CaptionModel, config: SharpenConfig, ranks: Ranks = ALONE) -> Examples:
    """Examples of the sharpener: the frozen model's drawing of an image beside the image.

    Choice: the drawing is the model's reconstruction, so that the missing detail is that of the image beside it. The paper
    trained on images shrunk and enlarged again, whose blur is not that of a drawing.
    """
    drawer.requires_grad_(False).eval().to(ranks.device)

    @torch.no_grad()
    def examples(batch: Batch, step: int) -> list[Example]:
        noise = ranks.noise(drawer.noise_shape, config.batch, (config.seed, DRAWING, step))
        _, drawing = drawer.reconstruct(batch, noise)
        return [Example(drawing, drawer.describe(batch.words, batch.keep, batch.sentence), batch.images)]

    return examples


def pyramids_of(model: Lapgan) -> Examples:
    """Examples of LAPGAN: at each size the real image beside the enlarged smaller one; nothing beside the smallest."""

    @torch.no_grad()
    def examples(batch: Batch, step: int) -> list[Example]:
        sentence = model.describe(batch.words, batch.keep, batch.sentence)
        real = scales(batch.images, model.sizes)
        coarse = [torch.zeros_like(real[0])]
        coarse += [enlarge(smaller, image.shape[-1]) for smaller, image in zip(real, real[1:], strict=False)]
        return [Example(below, sentence, image) for below, image in zip(coarse, real, strict=True)]

    return examples


# ---- the loop


def fit_adversarial(
    state: TrainState,
    generators: Levels,
    batches: Iterator[Batch],
    examples: Examples,
    config: SharpenConfig | TrainConfig,
    *,
    content: float = 0.0,
    ranks: Ranks = ALONE,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    save: Callable[[TrainState, float | None], None] = lambda state, bound: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train from `state.step` to `config.steps`, changing `state`; there is no bound, so `save` gets None for it.

    generators: the levels of the network in `state` that draws. batches: this rank's rows of global batch `state.step` and
    those after it. content: weight of the squared error to the real image, summed over an image, in the generator's loss.
    Of a TrainConfig, what is about likelihoods (clip, kl_weight, validation) does not apply.
    """
    players = Players.of(state, generators, ranks)
    meter = Meter(config.steps, config.batch, state.step, _headline)
    reason = "finished" if state.step >= config.steps else None
    while reason is None:
        waited = time.perf_counter()
        batch = next(batches).to(ranks.device)
        meter.waited += time.perf_counter() - waited
        given = examples(batch, state.step)
        if meter.steps == 0 and ranks.size > 1:
            players.settle_buckets(given)
        stopping, means = take_step(state, players, given, batch.keys, config, content, ranks, stop())
        meter.add(means)
        reason = "finished" if state.step >= config.steps else "stopped" if stopping else None
        if ranks.first and (reason or state.step % config.log_every == 0):
            log({**{f"train/{name}": mean for name, mean in meter.take().items()}, **meter.speed()}, state.step)
        if ranks.first and (line := meter.line(last=reason is not None)):
            say(line)
        if reason or state.step % config.save_every == 0:
            with meter.paused():
                save(state, None)
    return Outcome(reason or "finished", state.step, meter.images_per_s)


@dataclass(frozen=True)
class Side:
    """The generators or the discriminators of all levels, as a step uses them."""

    name: str
    levels: Levels
    wrapped: nn.Module  # the levels under DDP: its backward pass averages gradients over ranks
    optimizer: Optimizer

    def update(
        self, step: int, rate: float, losses: dict[str, Tensor], keys: Sequence[str], ranks: Ranks = ALONE
    ) -> None:
        """One optimizer step; NotFinite before it if a gradient is not. Gradients are averages, so all ranks see the same.

        losses: those of this rank's rows (b,), and keys: of their samples, are what the error names.
        """
        named = dict(self.levels.named_parameters())
        norms = gradient_norms([parameter.grad for parameter in named.values()])
        if not norms.isfinite().all():
            what = what_is_not_finite(losses, [f"{self.name}.{name}" for name in named], norms, keys, ranks)
            raise NotFinite(
                f"step {step}: {what}; stopped before the {self.name}'s update, the last checkpoint is untouched: lower the "
                "learning rate, or look at these samples"
            )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()


@dataclass(frozen=True)
class Players:
    """Both sides of the game."""

    generator: Side
    discriminator: Side

    @classmethod
    def of(cls, state: TrainState, generators: Levels, ranks: Ranks = ALONE) -> Players:
        (drawing,) = set(state.networks) - {"discriminator"}
        discriminators = state.networks["discriminator"]
        for levels in (generators, discriminators):
            levels.train().to(memory_format=torch.channels_last)  # convolutions are 10-20 % faster so
        wrapped = [ranks.wrap(levels) for levels in (generators, discriminators)]
        return cls(
            Side("generator", generators, wrapped[0], state.optimizers[drawing]),
            Side("discriminator", discriminators, wrapped[1], state.optimizers["discriminator"]),
        )

    def settle_buckets(self, given: list[Example]) -> None:
        """A backward pass of each side whose gradients are thrown away; fit.py says why."""
        shapes = [(len(one.real), *net.noise_shape) for one, net in zip(given, self.generator.levels, strict=True)]
        coarse = [
            (one.real.new_zeros(shape), one.coarse, one.sentence) for one, shape in zip(given, shapes, strict=True)
        ]
        real = [(one.real, one.sentence) for one in given]
        for side, inputs in ((self.generator, coarse), (self.discriminator, real)):
            sum(output.mean() for output in side.wrapped(inputs)).backward()
            side.levels.zero_grad(set_to_none=True)


def take_step(
    state: TrainState,
    players: Players,
    given: list[Example],
    keys: Sequence[str],
    config: SharpenConfig | TrainConfig,
    content: float = 0.0,
    ranks: Ranks = ALONE,
    stop: bool = False,
) -> tuple[bool, dict[str, float]]:
    """One update of each side on this rank's rows, whose samples `keys` name; raises NotFinite, on all ranks, before the
    update that would spread it.

    Returns whether any rank wants to stop, and means over the global batch: the two losses in nats, the squared error of an
    image, what the generator changed of a pixel (0: it has died), and how sure the discriminator is that real and
    generated images are real.
    """
    rows = config.batch // ranks.size
    rate = learning_rate(config, state.step) if isinstance(config, TrainConfig) else config.lr
    generator, discriminator = players.generator, players.discriminator
    assert all(len(one.real) == rows for one in given), (
        f"rank {ranks.rank}: not {rows} rows of a batch of {config.batch}"
    )

    def noise(kind: int, level: int, shape: tuple[int, ...]) -> Tensor:
        return ranks.noise(shape, config.batch, (config.seed, kind, state.step, level))

    latents = [noise(GENERATOR, level, net.noise_shape) for level, net in enumerate(generator.levels)]
    masks = [noise(DROPOUT, level, (2, *net.noise_shape)) for level, net in enumerate(discriminator.levels)]
    images = generator.wrapped([(z, one.coarse, one.sentence) for z, one in zip(latents, given, strict=True)])

    # Real and generated rows go through together: DDP expects one forward pass for each backward pass.
    logits = discriminator.wrapped(
        [
            (torch.cat((one.real, image.detach())), one.sentence.repeat(2, 1), mask.transpose(0, 1).flatten(0, 1))
            for image, one, mask in zip(images, given, masks, strict=True)
        ]
    )
    verdicts = [logit.chunk(2) for logit in logits]  # real (b,), fake (b,)
    told = [discriminator_loss(real, fake) for real, fake in verdicts]
    discriminator.levels.zero_grad(set_to_none=True)
    (sum(loss.sum() for loss in told) / rows).backward()
    prefixes = [f"level{level}/" if len(given) > 1 else "" for level in range(len(given))]
    discriminator.update(state.step, rate, _named("discriminator", prefixes, told), keys, ranks)

    # The new discriminator is asked for the gradient of the images alone, so it is not the wrapped one and its own
    # parameters are left alone; from the images on it is the wrapped generators' backward pass.
    shown = [image.detach().requires_grad_() for image in images]
    judged = discriminator.levels(
        [(image, one.sentence, mask[:, 1]) for image, one, mask in zip(shown, given, masks, strict=True)]
    )
    fooled = [generator_loss(logit) for logit in judged]
    missed = [(image - one.real).square().flatten(1).sum(1) for image, one in zip(shown, given, strict=True)]
    objective = sum((fool + content * miss).sum() for fool, miss in zip(fooled, missed, strict=True)) / rows
    generator.levels.zero_grad(set_to_none=True)
    torch.autograd.backward(images, torch.autograd.grad(objective, shown))
    losses = _named("generator", prefixes, fooled) | _named("squared_error", prefixes, missed)
    generator.update(state.step, rate, losses, keys, ranks)

    state.step += 1
    sums = {}
    changed = [(image - one.coarse).abs().flatten(1).mean(1) for image, one in zip(shown, given, strict=True)]
    for prefix, tell, fool, miss, change, (real, fake) in zip(
        prefixes, told, fooled, missed, changed, verdicts, strict=True
    ):
        measured = {"discriminator": tell, "generator": fool, "squared_error": miss, "change": change}
        measured |= {"real": real.sigmoid(), "fake": fake.sigmoid()}
        sums |= {prefix + name: values.detach().double().sum() for name, values in measured.items()}
    facts = [torch.tensor(float(stop), dtype=torch.float64, device=ranks.device), *sums.values()]
    stopping, *totals = ranks.sum(torch.stack(facts)).tolist()
    return stopping > 0, {name: total / config.batch for name, total in zip(sums, totals, strict=True)}


def _named(name: str, prefixes: Sequence[str], losses: Sequence[Tensor]) -> dict[str, Tensor]:
    """Losses of the levels by the names they are logged under."""
    return {f"{prefix}{name}": loss.detach() for prefix, loss in zip(prefixes, losses, strict=True)}


def _headline(means: dict[str, float]) -> str:
    """What a progress line says: the finest level, which is the last."""
    of = {name.rpartition("/")[2]: mean for name, mean in means.items()}
    return (
        f"discriminator {of['discriminator']:.2f}, generator {of['generator']:.2f} nats, "
        f"squared error {of['squared_error']:.1f}"
    )
