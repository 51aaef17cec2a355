"""The adversarial loop: what a step computes, that it is the same however it is split, that it fools and that it sharpens."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline import checkpoint
from pipeline.config import LapganConfig, RunConfig, SharpenConfig, TrainConfig
from pipeline.models.base import CaptionModel, noise_rows
from pipeline.models.build import build_model
from pipeline.models.lapgan import LevelDiscriminator, LevelGenerator, Levels
from pipeline.models.laplacian import enlarge, scales, shrink
from pipeline.sample import Batch, Terms
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.adversarial import (
    DRAWING,
    DROPOUT,
    GENERATOR,
    Example,
    Players,
    adversarial_state,
    discriminator_loss,
    drawings_of,
    fit_adversarial,
    generator_loss,
    lapgan_state,
    pyramids_of,
    sharpener_state,
    take_step,
)
from pipeline.training.fit import NotFinite
from pipeline.training.ranks import join
from pipeline.training.state import TrainState
from tests.processes import KILLED, run_ranks
from tests.tiny import assert_close, assert_equal, everything

SIZE, WORDS = 12, 5


class Blur(CaptionModel):
    """A drawing model that draws every image without its detail, a little darker by chance."""

    noise_shape = (2,)
    sentence_width = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, self.sentence_width)

    def reconstruct(self, batch: Batch, noise: Tensor) -> tuple[Terms, Tensor]:
        blurred = enlarge(shrink(batch.images, SIZE // 3), SIZE)
        return Terms({}), blurred * (1 - 0.1 * torch.sigmoid(noise).mean(1)[:, None, None, None])

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        return self.words(words).mean(1)


def config_of(**changes: object) -> SharpenConfig:
    small = {"steps": 10, "batch": 8, "maps": 3, "optimizer": "adam", "lr": 2e-3, "save_every": 4, "log_every": 3}
    return SharpenConfig(**{**small, **changes})


def batches_of(config: SharpenConfig | TrainConfig, step: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Rows rank::ranks of global batches: white boxes on black, the caption says how wide."""
    for number in count(step):
        generator = torch.Generator().manual_seed(number)
        words = torch.randint(WORDS, (config.batch, 1), generator=generator)
        corner = torch.randint(1, 4, (config.batch, 2, 1, 1), generator=generator)
        place = torch.arange(SIZE)
        rows = (place[:, None] >= corner[:, 0]) & (place[:, None] < corner[:, 0] + 6)
        columns = (place >= corner[:, 1]) & (place < corner[:, 1] + 3 + words[:, :, None])
        images = (rows & columns).float()[:, None]
        mine = slice(rank, None, ranks)
        keys = tuple(f"{number}-{row}" for row in range(config.batch))[mine]
        yield Batch(images[mine], words[mine], torch.ones_like(words[mine], dtype=torch.bool), keys)


def train(state: TrainState, config: SharpenConfig, **options: object):
    """Sharpen the drawings of `Blur`, on one rank."""
    return fit_adversarial(
        state,
        Levels([state.networks["sharpener"].generator]),
        batches_of(config, state.step),
        drawings_of(Blur(), config),
        config,
        content=config.content,
        **{"say": lambda line: None, **options},
    )


# ---- what a step computes


def test_losses_are_the_cross_entropies_of_the_paper() -> None:
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64)
    fake = logits.flip(0) / 2
    for real_logit, fake_logit, loss, fooled in zip(
        logits.tolist(), fake.tolist(), discriminator_loss(logits, fake).tolist(), generator_loss(fake).tolist()
    ):
        real, fake_ = 1 / (1 + math.exp(-real_logit)), 1 / (1 + math.exp(-fake_logit))
        assert loss == pytest.approx(-(math.log(real) + math.log(1 - fake_)) / 2)
        assert fooled == pytest.approx(-math.log(fake_))
    zero = torch.zeros(2)
    assert discriminator_loss(zero, zero).tolist() == pytest.approx([math.log(2)] * 2)
    sure = torch.tensor([-200.0, 200.0])  # logits, not probabilities: no logarithm of 0
    assert torch.isfinite(discriminator_loss(sure, -sure)).all() and torch.isfinite(generator_loss(sure)).all()


def test_a_step_is_one_update_of_the_discriminator_and_then_one_of_the_generator() -> None:
    """Against the definition, in float64, one image after the other and by plain gradient descent."""
    config = config_of(optimizer="sgd", lr=0.05, content=0.3, batch=4)

    def start() -> TrainState:
        state = sharpener_state(Blur(), 1, SIZE, config)
        torch.manual_seed(3)
        for network in state.networks.values():
            network.double()
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.2)
        state.step = 6
        return state

    batch = next(batches_of(config, 6))
    (example,) = drawings_of(Blur(), config)(batch, 6)
    given = Example(example.coarse.double(), example.sentence.double(), example.real.double())

    fast = start()
    players = Players.of(fast, Levels([fast.networks["sharpener"].generator]))
    _, measured = take_step(fast, players, [given], batch.keys, config, config.content)
    assert fast.step == 7

    slow = start()
    generator, discriminator = slow.networks["sharpener"].generator, slow.networks["discriminator"][0]
    latent = noise_rows((1, SIZE, SIZE), 4, (config.seed, GENERATOR, 6, 0))
    drop = noise_rows((2, *discriminator.noise_shape), 4, (config.seed, DROPOUT, 6, 0))
    rows = [slice(row, row + 1) for row in range(4)]

    def descend(network: nn.Module, loss: Tensor) -> float:
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
        return loss.item()

    def drawn(row: slice) -> Tensor:
        return generator(latent[row], given.coarse[row], given.sentence[row])

    loss = 0
    for row in rows:
        real = torch.sigmoid(discriminator(given.real[row], given.sentence[row], drop[row, 0]))[0]
        fake = torch.sigmoid(discriminator(drawn(row).detach(), given.sentence[row], drop[row, 1]))[0]
        loss = loss - (real.log() + (1 - fake).log()) / 2
    assert measured["discriminator"] == pytest.approx(descend(discriminator, loss / 4))

    shown = [drawn(row).detach() for row in rows]  # before its update
    loss, squares = 0, 0
    for row in rows:
        fake = torch.sigmoid(discriminator(drawn(row), given.sentence[row], drop[row, 1]))[0]
        squares = squares + ((drawn(row) - given.real[row]) ** 2).sum()
        loss = loss - fake.log()
    descend(generator, (loss + 0.3 * squares) / 4)
    assert measured["generator"] == pytest.approx(loss.item() / 4)
    assert measured["squared_error"] == pytest.approx(squares.item() / 4)
    changes = [(image - example.coarse[row]).abs().mean().item() for row, image in zip(rows, shown, strict=True)]
    assert measured["change"] == pytest.approx(sum(changes) / 4)
    assert_close(everything(fast), everything(slow), 1e-9)


def test_examples_are_drawings_beside_their_images_and_the_drawing_model_stays_as_it_is() -> None:
    config, drawer = config_of(), Blur()
    before = {name: value.clone() for name, value in drawer.state_dict().items()}
    batch = next(batches_of(config, 2))
    (example,) = drawings_of(drawer, config)(batch, 2)
    noise = noise_rows((2,), 8, (config.seed, DRAWING, 2))
    assert torch.equal(example.coarse, drawer.reconstruct(batch, noise)[1])
    assert torch.equal(example.real, batch.images)
    assert torch.equal(example.sentence, drawer.words(batch.words[:, 0]))
    assert not example.sentence.requires_grad

    state = sharpener_state(drawer, 1, SIZE, config)
    levels = Levels([state.networks["sharpener"].generator])
    fit_adversarial(state, levels, batches_of(config), drawings_of(drawer, config), config, say=lambda line: None)
    assert_equal(dict(drawer.state_dict()), before)


def test_levels_train_side_by_side_as_they_do_alone() -> None:
    config = config_of(steps=3)

    def build(sizes: list[int]) -> tuple[TrainState, Levels]:
        generators, discriminators = Levels(), Levels()
        for size in sizes:
            torch.manual_seed(size)
            generators.append(LevelGenerator(1, size, 3, 2))
            discriminators.append(LevelDiscriminator(1, size, 3, 2))
        return adversarial_state("model", generators, discriminators, config), generators

    def examples(sizes: list[int]):
        def of(batch: Batch, step: int) -> list[Example]:
            sentence = batch.words.float().repeat(1, 3)
            scaled = [(shrink(batch.images, size), size) for size in sizes]
            return [Example(enlarge(shrink(image, 6), size), sentence, image) for image, size in scaled]

        return of

    def run(sizes: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
        state, generators = build(sizes)
        logged: dict[str, float] = {}
        options = {"log": lambda metrics, step: logged.update(metrics), "say": lambda line: None}
        fit_adversarial(state, generators, batches_of(config), examples(sizes), config, **options)
        return state.networks["model"][0].state_dict(), logged

    both, logged = run([9, SIZE])
    alone, single = run([9])
    assert_close(both, alone, 1e-6)
    assert logged["train/level0/discriminator"] == pytest.approx(single["train/discriminator"])
    assert "train/level1/squared_error" in logged


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update() -> None:
    config = config_of()
    state = sharpener_state(Blur(), 1, SIZE, config)
    train(state, config_of(steps=2))
    with torch.no_grad():
        state.networks["discriminator"][0].last.bias.fill_(math.nan)
    before = everything(state)
    first = next(batches_of(config, 2)).keys[0]
    with pytest.raises(
        NotFinite, match=f"step 2: discriminator is not finite for {first}, .*before the discriminator's"
    ):
        train(state, config)
    after = everything(state)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
    assert state.step == 2


# ---- what it learns


def test_a_short_training_makes_drawings_crisper_and_brings_them_nearer_to_the_images() -> None:
    config = config_of(steps=150, batch=16, maps=8, lr=4e-3, content=0.1)
    state, drawer = sharpener_state(Blur(), 1, SIZE, config), Blur()
    lines: list[dict[str, float]] = []
    outcome = train(state, config, log=lambda metrics, step: lines.append(metrics))
    assert (outcome.reason, outcome.step) == ("finished", 150)
    batch = next(batches_of(config_of(batch=64), 10_000))
    (example,) = drawings_of(drawer, config_of(batch=64))(batch, 10_000)
    with torch.no_grad():
        sharp = state.networks["sharpener"](example.coarse, example.sentence)

    def grey(images: Tensor) -> float:
        """Share of pixels that are neither black nor white: the real boxes have none."""
        return ((images > 0.1) & (images < 0.9)).float().mean().item()

    assert grey(sharp) < 0.7 * grey(example.coarse)
    assert (sharp - batch.images).square().mean() < 0.8 * (example.coarse - batch.images).square().mean()
    assert 0 <= lines[-1]["train/fake"] <= 1 and lines[-1]["train/images_per_s"] > 0


def test_a_lapgan_learns_where_images_are_bright() -> None:
    """Pixel by pixel, the mean of its drawings comes to resemble the mean of the real images."""
    config = TrainConfig(steps=150, batch=16, lanes=4, optimizer="adam", lr=2e-3)
    small = LapganConfig(levels=2, caption="mean", latent=8, hidden=64, maps=6, language=8)
    model = build_model(small, WORDS, SIZE, 1)
    batch = next(batches_of(config_of(batch=256), 10_000))
    noise = noise_rows(model.noise_shape, 256, (1,))

    @torch.no_grad()
    def gap() -> float:
        drawn = model.sample(batch.words, batch.keep, None, noise).images
        return (drawn.mean(0) - batch.images.mean(0)).square().mean().item()

    state, before = lapgan_state(model, config), gap()
    frozen = {name: value.clone() for name, value in model.sentence.state_dict().items()}
    outcome = fit_adversarial(
        state, model.generators, batches_of(config), pyramids_of(model), config, say=lambda line: None
    )
    assert outcome.reason == "finished"
    assert gap() < 0.4 * before
    assert_equal(dict(model.sentence.state_dict()), frozen)


def test_a_level_of_lapgan_learns_from_the_real_image_of_its_size() -> None:
    model = build_model(LapganConfig(levels=3, caption="mean", latent=2, hidden=4, maps=1, language=2), WORDS, 36, 1)
    batch = next(batches_of(config_of()))
    batch.images = torch.rand(8, 1, 36, 36)
    first, second, third = pyramids_of(model)(batch, 0)
    assert [one.real.shape[-1] for one in (first, second, third)] == [9, 18, 36]
    assert torch.equal(third.real, batch.images)
    assert not first.coarse.any()
    for below, one in ((first, second), (second, third)):
        torch.testing.assert_close(one.coarse, enlarge(below.real, one.real.shape[-1]))
        slow = one.real.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        torch.testing.assert_close(below.real, slow)
    assert all(map(torch.equal, (first.real, second.real, third.real), scales(batch.images, model.sizes)))


# ---- going on after an end


def run(folder: str, config: SharpenConfig, kill_at: int | None = None) -> dict[str, Tensor]:
    """What a Ray worker does, without Ray: restore, train, save; the first rank kills itself if asked to."""
    ranks = join(config.batch)
    if ranks is None:
        return {}
    state = sharpener_state(Blur(), 1, SIZE, config)
    if (kept := checkpoint.latest(folder, say=lambda line: None)) is not None:
        kept.restore(state)
    origin = checkpoint.Origin(RunConfig(name="tiny", sharpen=config), Vocabulary.build(["a b c"]), SIZE, 1)

    def stop() -> bool:
        if state.step == kill_at and ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    def save(state: TrainState, bound: float | None) -> None:
        if ranks.first:
            checkpoint.save(folder, state, origin, bound=bound)

    fit_adversarial(
        state,
        Levels([state.networks["sharpener"].generator]),
        batches_of(config, state.step, ranks.rank, ranks.size),
        drawings_of(Blur(), config, ranks),
        config,
        content=config.content,
        ranks=ranks,
        save=save,
        stop=stop,
        say=lambda line: None,
    )
    return everything(state)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_killed_rank_changes_no_bit_of_either_network_and_more_ranks_only_rounding(
    tmp_path: Path, optimizer: str, ranks: int
) -> None:
    config = config_of(content=0.2, optimizer=optimizer)
    alone = run(str(tmp_path / "alone"), config)
    whole = run_ranks(ranks, run, str(tmp_path / "whole"), config)
    broken = run_ranks(ranks, run, str(tmp_path / "broken"), config, 6)
    assert KILLED in broken
    (found,) = checkpoint.found(str(tmp_path / "broken"))
    assert found.endswith("step-00000004")
    resumed = run_ranks(ranks, run, str(tmp_path / "broken"), config)
    for tensors in [*whole, *resumed]:
        assert_equal(tensors, whole[0])
    assert_close(whole[0], alone, 1e-4 if ranks > 1 else 0)


def test_a_sharpener_is_loaded_from_its_checkpoint_alone(tmp_path: Path) -> None:
    config = config_of(steps=4)
    tensors = run(str(tmp_path), config)
    sharpener = checkpoint.load_sharpener(checkpoint.found(str(tmp_path))[-1])
    assert not sharpener.training
    for name, value in sharpener.state_dict().items():
        assert torch.equal(value, tensors[f"sharpener.{name}"])
