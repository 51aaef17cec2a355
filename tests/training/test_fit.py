"""The loop: what a step computes, that it is the same however it is split, and how it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline import checkpoint
from pipeline.config import RunConfig, TrainConfig
from pipeline.models.base import noise_rows
from pipeline.sample import Batch, Terms
from pipeline.text.vocabulary import Vocabulary
from pipeline.training import meter
from pipeline.training.fit import NotFinite, Outcome, backward, fit, kl_weight, take_step
from pipeline.training.ranks import ALONE, join, share
from pipeline.training.validation import term_sums
from tests.processes import KILLED, run_ranks
from tests.tiny import TinyModel, assert_close, assert_equal, everything, tiny_batches, tiny_config, tiny_state

# ---- what a step computes


def test_a_step_is_the_mean_over_images_clipped_and_given_to_the_papers_rule() -> None:
    config = tiny_config(kl_warmup=1.0, clip=0.3)
    state, slow = tiny_state(config), tiny_state(config).model
    batch = next(tiny_batches(config, 7))
    state.step = 7
    take_step(state, state.model, batch, config, ALONE)

    noise = noise_rows((2, 3), 8, (config.seed, 1, 7))
    total = 0
    for row in range(8):  # one image at a time
        one = Batch(batch.images[row : row + 1], batch.words[row : row + 1], batch.keep[row : row + 1], ("",))
        terms = slow.terms(one, noise[row : row + 1])
        total = total + terms["recon"][0] + (0.1 + 0.9 * 7 / 12) * terms["kl"][0]
    (total / 8).backward()
    clipped = 0
    for name, parameter in slow.named_parameters():
        gradient = parameter.grad.to_dense()
        if (norm := gradient.norm().item()) > 0.3:
            gradient, clipped = gradient * 0.3 / norm, clipped + 1
        expected = parameter.detach() - 0.01 * gradient / (0.1 * gradient**2 + 1e-6).sqrt()
        torch.testing.assert_close(state.model.get_parameter(name).detach(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < clipped < len(list(slow.parameters()))
    assert state.step == 8


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_a_batch_in_parts_gives_the_same_update(accumulate: int) -> None:
    def after(parts: int) -> dict[str, torch.Tensor]:
        config = tiny_config(accumulate=parts)
        state = tiny_state(config)
        fit(state, tiny_batches(config), config, say=lambda line: None)
        return everything(state)

    assert_close(after(accumulate), after(1))


def test_a_small_model_learns_eight_images_by_heart() -> None:
    config = tiny_config(steps=150, lr=0.05, optimizer="adam")
    state, batch = tiny_state(config), next(tiny_batches(config))
    batch.images.round_()
    bounds = []
    fit(state, iter([batch] * 150), config, log=lambda m, step: bounds.append(m["train/bound"]), say=lambda line: None)
    assert bounds[0] < -11  # 16 pixels x log 2
    assert bounds[-1] > bounds[0] + 3


def test_the_weight_of_the_kl_term_rises_from_a_tenth_to_one() -> None:
    config = TrainConfig(steps=100, kl_warmup=0.3)
    assert [kl_weight(config, step) for step in (0, 15, 30, 99)] == pytest.approx([0.1, 0.55, 1, 1])
    assert kl_weight(TrainConfig(steps=100), 0) == 1
    heavy = TrainConfig(steps=100, kl_warmup=0.3, kl_weight=3)
    assert [kl_weight(heavy, step) for step in (0, 15, 30, 99)] == pytest.approx([0.1, 1.55, 3, 3])
    assert kl_weight(TrainConfig(kl_weight=3), 0) == 3


# ---- going on after an end


def origin_of(config: TrainConfig) -> checkpoint.Origin:
    return checkpoint.Origin(RunConfig(name="tiny", train=config), Vocabulary.build(["a b c"]), 4, 1)


def run(
    folder: str, config: TrainConfig, *, kill_at: int | None = None, kill_rank: int = 0, stop_rank: int = -1
) -> tuple:
    """What Ray Train's worker does, without Ray: restore, train, save. One rank kills itself if asked to."""
    ranks = join(config.batch, config.lanes)
    if ranks is None:
        return None, {}
    state = tiny_state(config)
    if (kept := checkpoint.latest(folder)) is not None:
        kept.restore(state)

    def stop() -> bool:
        if state.step == kill_at and ranks.rank == kill_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return state.step == 6 and ranks.rank == stop_rank

    def save(state, bound) -> None:
        if ranks.first:
            checkpoint.save(folder, state, origin_of(config), bound=bound)

    batches = tiny_batches(config, state.step, ranks.rank, ranks.size)
    outcome = fit(state, batches, config, ranks=ranks, save=save, stop=stop, say=lambda line: None)
    return outcome, everything(state)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_run_that_was_interrupted_ends_as_the_undisturbed_one_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = tiny_config(optimizer=optimizer, schedule="cosine", warmup=3, kl_warmup=0.5)
    whole = run(str(tmp_path / "whole"), config)[1]
    first, _ = run(str(tmp_path / "parts"), config, stop_rank=0)
    assert (first.reason, first.step) == ("stopped", 7)
    last, parts = run(str(tmp_path / "parts"), config)
    assert (last.reason, last.step) == ("finished", 12)
    assert_equal(whole, parts)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_killed_rank_changes_no_bit_and_another_number_of_ranks_only_rounding(tmp_path: Path, ranks: int) -> None:
    config = tiny_config(optimizer="adam", schedule="cosine")
    alone = run(str(tmp_path / "alone"), config)[1]
    undisturbed = run_ranks(ranks, run, str(tmp_path / "whole"), config)
    disturbed = run_ranks(ranks, killed_then_again, str(tmp_path / "killed"), config, 7, ranks - 1)
    assert disturbed[-1] == KILLED
    resumed = run_ranks(ranks, run, str(tmp_path / "killed"), config)
    for (_, one), (_, other) in zip(undisturbed, resumed, strict=True):
        assert_equal(one, undisturbed[0][1])
        assert_equal(one, other)
    assert_close(undisturbed[0][1], alone)


def killed_then_again(folder: str, config: TrainConfig, step: int, rank: int) -> tuple:
    return run(folder, config, kill_at=step, kill_rank=rank)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    config = tiny_config(optimizer="adam")
    alone = run(str(tmp_path / "alone"), config)[1]
    run_ranks(2, killed_then_again, str(tmp_path / "moved"), config, 7, 0)
    (outcome, moved), *_ = run_ranks(4, run, str(tmp_path / "moved"), config)
    assert outcome.step == 12
    assert_close(moved, alone)


def test_ranks_that_do_not_divide_the_batch_are_left_over(tmp_path: Path) -> None:
    config = tiny_config(optimizer="adam")
    results = run_ranks(3, run, str(tmp_path / "three"), config)  # 8 rows and 4 lanes: two ranks train
    assert results[2] == (None, {})
    assert_equal(results[0][1], results[1][1])
    assert_close(results[0][1], run(str(tmp_path / "alone"), config)[1])
    assert [share(n, 100, 20) for n in (1, 2, 3, 4, 7, 20)] == [1, 2, 2, 4, 5, 20]


# ---- gradients of several processes


def gradients(config: TrainConfig) -> dict[str, torch.Tensor]:
    ranks = join(config.batch, config.lanes)
    state = tiny_state(config)
    network = ranks.wrap(state.model)
    backward(network, next(tiny_batches(config, 3, ranks.rank, ranks.size)), config, 3, ranks)
    return {name: parameter.grad.to_dense().clone() for name, parameter in state.model.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_have_the_gradients_of_one_on_the_whole_batch(accumulate: int) -> None:
    config = tiny_config(accumulate=accumulate)
    alone = gradients(config)
    for there in run_ranks(2, gradients, config):
        assert_close(there, alone, 1e-6)


def trained_as_over_nccl(config: TrainConfig) -> tuple:
    """What two GPUs would do, over gloo: only the name of the backend is NCCL's."""
    ranks = join(config.batch, config.lanes)
    name, dist.get_backend = dist.get_backend, lambda group=None: "nccl"
    try:
        state = tiny_state(config)
        network = ranks.wrap(state.model)
    finally:
        dist.get_backend = name
    for step in range(3):
        take_step(state, network, next(tiny_batches(config, step, ranks.rank, ranks.size)), config, ranks)
    return state.model.words.weight.grad.is_sparse, everything(state)["model.words.weight"]


def test_nccl_which_adds_up_no_sparse_gradients_gets_dense_ones() -> None:
    config = tiny_config()
    state = tiny_state(config)
    for step in range(3):
        take_step(state, state.model, next(tiny_batches(config, step)), config, ALONE)
    assert state.model.words.weight.grad.is_sparse, "that is what RMSprop asks for elsewhere"
    for sparse, words in run_ranks(2, trained_as_over_nccl, config):
        assert not sparse
        torch.testing.assert_close(words, state.model.words.weight.detach(), rtol=1e-4, atol=1e-5)


# ---- how it ends


def test_a_stop_asked_of_one_rank_ends_all_at_the_same_step_with_a_checkpoint(tmp_path: Path) -> None:
    results = run_ranks(2, stopped, str(tmp_path), tiny_config())
    assert [(outcome.reason, outcome.step) for outcome, _ in results] == [("stopped", 7)] * 2
    assert checkpoint.latest(str(tmp_path)).step == 7


def stopped(folder: str, config: TrainConfig) -> tuple:
    return run(folder, config, stop_rank=1)


def poisoned(folder: str, config: TrainConfig) -> tuple[str, dict, dict]:
    """A pixel of global batch 6 is not a number; the rank that does not have it must stop as well."""
    ranks = join(config.batch, config.lanes)
    state, seen = tiny_state(config), {}

    def batches():
        for batch in tiny_batches(config, 0, ranks.rank, ranks.size):
            seen.update(everything(state))
            if "6-3" in batch.keys:
                batch.images[batch.keys.index("6-3"), 0, 1, 1] = float("nan")
            yield batch

    def save(state, bound) -> None:
        if ranks.first:
            checkpoint.save(folder, state, origin_of(config), bound=bound)

    try:
        fit(state, batches(), config, ranks=ranks, save=save, say=lambda line: None)
    except NotFinite as error:
        return str(error), seen, everything(state)
    return "it went on", seen, everything(state)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_not_finite_stops_every_rank_before_the_update(tmp_path: Path, ranks: int) -> None:
    for message, before, after in run_ranks(ranks, poisoned, str(tmp_path), tiny_config()):
        assert message.startswith(
            "step 6: recon is not finite for 6-3; kl is not finite for 6-3; stopped before the update"
        )
        assert_equal(before, after)
    assert checkpoint.latest(str(tmp_path)).step == 5


class RootModel(TinyModel):
    """Its loss at 0 is finite, its gradient there is not."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.zeros(()))

    def terms(self, batch: Batch, noise: torch.Tensor) -> Terms:
        terms = super().terms(batch, noise)
        return Terms({**terms.losses, "root": self.root.sqrt().expand(len(batch))})


def test_a_gradient_that_is_not_finite_is_named_with_its_batch() -> None:
    config = tiny_config()
    state = tiny_state(config)
    state.networks["model"] = RootModel()
    before = everything(state)
    with pytest.raises(NotFinite, match=r"step 0: the gradient of root is not finite, in a batch of 0-0, 0-1, .*0-7;"):
        fit(state, tiny_batches(config), config)
    assert_equal(before, everything(state))


def test_training_ends_when_validation_stops_improving_and_the_best_was_saved() -> None:
    config = tiny_config(steps=50, validate_every=2, patience=3, save_every=100)
    state, saved, logged = tiny_state(config), [], []
    bounds = iter([-9.0, -8.0, -8.5, -7.0, -7.0, -7.5, -7.2])

    def validate() -> dict[str, float]:
        assert not state.model.training
        return {"recon": 10 * -next(bounds), "kl": 0.0, "images": 10}

    def save(state, bound) -> None:
        saved.append((state.step, bound, state.best, state.worse))

    outcome = fit(
        state, tiny_batches(config), config, validate=validate, save=save, log=lambda m, s: logged.append((s, m))
    )
    assert (outcome.reason, outcome.step) == ("early", 14) and state.model.training
    assert saved == [(2, -9, -9, 0), (4, -8, -8, 0), (8, -7, -7, 0), (14, -7.2, -7, 3)]
    assert [(step, m["val/bound"]) for step, m in logged if "val/bound" in m][:2] == [(2, -9), (4, -8)]
    assert fit(state, iter([]), config) == Outcome("early", 14, 0.0)  # an ended run takes no further step


@pytest.mark.parametrize("stop_at", [4, 16, 20, 28, 32])
def test_a_validation_that_a_stop_left_out_is_made_by_who_goes_on(tmp_path: Path, stop_at: int) -> None:
    config = tiny_config(steps=40, validate_every=4, patience=3, lr=0.1)

    def go(folder: Path, stop_at: int = 0) -> tuple:
        state, bounds = tiny_state(config), {}
        if (kept := checkpoint.latest(str(folder))) is not None:
            kept.restore(state)

        def validate() -> dict[str, float]:
            return term_sums(state.model, [next(tiny_batches(config, 1000))], seed=5)

        outcome = fit(
            state,
            tiny_batches(config, state.step),
            config,
            validate=validate,
            log=lambda metrics, step: bounds.update({step: metrics["val/bound"]} if "val/bound" in metrics else {}),
            save=lambda state, bound: checkpoint.save(str(folder), state, origin_of(config), bound=bound),
            stop=lambda: state.step == stop_at - 1,
            say=lambda line: None,
        )
        return outcome, bounds, everything(state), (state.best, state.worse)

    outcome, bounds, *rest = go(tmp_path / "whole")
    assert (outcome.reason, outcome.step) == ("early", 32) and rest[1][1] == 3, "the best is that of step 20"
    first, before, *_ = go(tmp_path / "parts", stop_at)
    assert (first.reason, first.step, stop_at in before) == ("stopped", stop_at, False)
    last, after, *again = go(tmp_path / "parts")
    assert (last.reason, last.step, before | after) == (outcome.reason, outcome.step, bounds)
    assert again[1] == rest[1]
    assert_equal(again[0], rest[0])
    best = [checkpoint.best(str(tmp_path / name)) for name in ("whole", "parts")]
    assert best[0].step == best[1].step and best[0].bound == best[1].bound is not None


def test_a_finished_run_takes_no_further_step() -> None:
    config = tiny_config()
    state = tiny_state(config)
    state.step = 12
    assert fit(state, iter([]), config) == Outcome("finished", 12, 0.0)


def test_validation_is_one_number_however_the_split_is_read() -> None:
    config = tiny_config()
    model, batches = tiny_state(config).model, [batch for batch, _ in zip(tiny_batches(config), range(3))]
    whole = term_sums(model, batches, seed=5)
    parts = [term_sums(model, batches[:1], seed=5), term_sums(model, batches[1:], seed=5, first=8)]
    assert whole["images"] == 24
    for name in whole:
        assert sum(part[name] for part in parts) == pytest.approx(whole[name], rel=1e-6)
    assert term_sums(model, batches, seed=5) == whole
    assert term_sums(model, batches, seed=6)["recon"] != whole["recon"]


# ---- what a person sees


def test_the_progress_line_tells_step_speed_bound_kl_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SAY_EVERY_S", 0.0)
    config, lines = tiny_config(), []
    fit(tiny_state(config), tiny_batches(config), config, say=lines.append)
    assert len(lines) == 12
    assert lines[3].startswith("step 4/12, ")
    for part in (" images/s, ", ", bound -1", " nats, KL ", "0 s left"):
        assert part in lines[3]


def test_metrics_are_means_over_the_steps_since_the_last_ones() -> None:
    def logged(every: int) -> list[tuple[int, dict[str, float]]]:
        config, found = tiny_config(log_every=every), []
        fit(
            tiny_state(config),
            tiny_batches(config),
            config,
            log=lambda m, s: found.append((s, m)),
            say=lambda line: None,
        )
        return found

    each, fourth = logged(1), logged(4)
    assert [step for step, _ in fourth] == [4, 8, 12]
    for number, (_, metrics) in enumerate(fourth):
        for name in ("train/bound", "train/recon", "train/kl"):
            assert metrics[name] == pytest.approx(sum(m[name] for _, m in each[4 * number : 4 * number + 4]) / 4)
    assert {"train/lr", "train/kl_weight", "train/images_per_s", "train/gradient_norm"} < set(fourth[0][1])


def test_durations_read_well() -> None:
    assert [meter.duration(s) for s in (0.4, 59, 61, 3599, 3600, 90_061)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 01 min",
    ]
