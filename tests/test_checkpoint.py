"""Checkpoints: whole or not at all, verified, kept and removed as promised, and enough to rebuild the model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import checkpoint, storage
from pipeline.config import DrawConfig, RunConfig, TrainConfig
from pipeline.models.base import noise_rows
from pipeline.models.build import build_model
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState
from tests.processes import forking
from tests.tiny import assert_equal, everything

MODEL = DrawConfig(
    steps=2, read_size=3, write_size=3, latent=4, encoder=8, generator=8, language=4, align=4, start="scaled"
)
CONFIG = RunConfig(name="tiny", model=MODEL, train=TrainConfig(optimizer="adam"))
ORIGIN = checkpoint.Origin(
    CONFIG, Vocabulary.build(["the digit 3 is on the left .", "a dog's ball"]), size=12, channels=3
)


def new_state(seed: int = 0) -> TrainState:
    model = build_model(MODEL, len(ORIGIN.vocabulary), 12, 3, seed)
    return TrainState.of(model, make_optimizer(model, CONFIG.train))


def trained(step: int, seed: int = 0) -> TrainState:
    """A state at a step, with weights of its own and an optimizer that remembers something."""
    state = new_state(seed)
    generator = torch.Generator().manual_seed(step)
    for parameter in state.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    state.optimizer.step()
    state.step = step
    return state


def steps_of(folder: str) -> list[int]:
    return [int(path.rpartition("-")[2]) for path in checkpoint.found(folder)]


def quiet(line: str) -> None:
    pass


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for checkpoints, on disk and in an object store."""
    return (
        str(tmp_path / "checkpoints")
        if request.param == "local"
        else request.getfixturevalue("bucket") + "/run/checkpoints"
    )


@pytest.fixture(scope="module")
def s3_server() -> str:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket; credentials and address reach pyarrow the way users give them, by the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    storage._remote_filesystem.cache_clear()
    import urllib.request

    name = f"bucket{os.urandom(4).hex()}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT")).close()
    yield f"s3://{name}"
    storage._remote_filesystem.cache_clear()


# ---- what comes back


def test_what_is_restored_is_what_was_saved_bit_for_bit(folder: str) -> None:
    state = trained(7)
    state.best, state.worse = -12.5, 2
    checkpoint.save(folder, state, ORIGIN, bound=-13.25)
    other = new_state(seed=9)
    kept = checkpoint.latest(folder)
    kept.restore(other)
    assert_equal(everything(state), everything(other))
    assert (other.step, other.best, other.worse, kept.bound) == (7, -12.5, 2, -13.25)


def test_the_files_alone_rebuild_model_vocabulary_and_config_in_another_process(tmp_path: Path) -> None:
    state = trained(3)
    path = checkpoint.save(str(tmp_path), state, ORIGIN)
    program = f"""
import torch
from pipeline.checkpoint import load_model
from pipeline.models.base import noise_rows
model, origin, step = load_model({path!r})
assert not model.training
words, keep = origin.vocabulary.encode(["the digit 3", "a ball"])
drawn = model.sample(words, keep, None, noise_rows(model.noise_shape, 2, (5,))).images
torch.save([drawn, repr(origin), step], {str(tmp_path / "drawn.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    drawn, origin, step = torch.load(tmp_path / "drawn.pt", weights_only=True)
    words, keep = ORIGIN.vocabulary.encode(["the digit 3", "a ball"])
    here = state.model.sample(words, keep, None, noise_rows(state.model.noise_shape, 2, (5,))).images
    torch.testing.assert_close(drawn, here)
    assert (origin, step) == (repr(ORIGIN), 3)


def test_two_networks_and_two_optimizers_go_into_one_checkpoint(tmp_path: Path) -> None:
    def duel(seed: int) -> TrainState:
        torch.manual_seed(seed)
        networks = {"generator": nn.Conv2d(2, 3, 3), "discriminator": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))}
        generator = torch.optim.SGD(networks["generator"].parameters(), lr=0.1, momentum=0.5)
        discriminator = torch.optim.Adam(networks["discriminator"].parameters())
        networks["generator"](torch.ones(1, 2, 4, 4)).sum().backward()
        networks["discriminator"](torch.randn(5, 4)).square().sum().backward()
        generator.step()
        discriminator.step()
        return TrainState(networks, {"generator": generator, "discriminator": discriminator}, step=4)

    state, other = duel(1), duel(2)
    checkpoint.save(str(tmp_path), state, ORIGIN)
    checkpoint.latest(str(tmp_path)).restore(other)
    assert_equal(everything(state), everything(other))


# ---- what is damaged, foreign or newer


def damage(path: str, name: str, how: str) -> None:
    content = bytearray(storage.read_bytes(f"{path}/{name}"))
    if how == "one bit":
        content[len(content) // 2] ^= 1
    storage.publish_bytes(f"{path}/{name}", bytes(content[: len(content) // 2] if how == "cut" else content))


@pytest.mark.parametrize("how", ["one bit", "cut", "missing"])
@pytest.mark.parametrize("name", ["weights.pt", "optimizers.pt"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(folder: str, name: str, how: str) -> None:
    good, bad = checkpoint.save(folder, trained(1), ORIGIN), checkpoint.save(folder, trained(2), ORIGIN)
    if how == "missing":
        storage.delete(f"{bad}/{name}")
    else:
        damage(bad, name, how)
    lines = []
    assert checkpoint.latest(folder, lines.append).path == good
    assert len(lines) == 1
    assert bad in lines[0] and name in lines[0] and "using the one before it" in lines[0]


@pytest.mark.parametrize("how", ["one bit", "cut"])
def test_a_damaged_description_is_noticed_too(tmp_path: Path, how: str) -> None:
    good, bad = (checkpoint.save(str(tmp_path), trained(step), ORIGIN) for step in (1, 2))
    damage(bad, "meta.json", how)
    lines = []
    assert checkpoint.latest(str(tmp_path), lines.append).path == good
    assert "meta.json is not what was written" in lines[0]


def test_where_all_are_damaged_none_is_left_and_every_one_was_named(tmp_path: Path) -> None:
    for step in (1, 2):
        damage(checkpoint.save(str(tmp_path), trained(step), ORIGIN), "weights.pt", "one bit")
    lines = []
    assert checkpoint.latest(str(tmp_path), lines.append) is None
    assert len(lines) == 2


def test_a_damaged_checkpoint_is_replaced_when_training_comes_by_again(tmp_path: Path) -> None:
    for step in (1, 2):
        path = checkpoint.save(str(tmp_path), trained(step), ORIGIN)
    damage(path, "weights.pt", "cut")
    checkpoint.save(str(tmp_path), trained(2), ORIGIN)
    assert checkpoint.latest(str(tmp_path)).step == 2


def test_a_later_damaged_checkpoint_goes_once_training_has_passed_it_by(tmp_path: Path) -> None:
    for step in (4, 7):
        path = checkpoint.save(str(tmp_path), trained(step), ORIGIN)
    damage(path, "weights.pt", "cut")
    checkpoint.save(str(tmp_path), trained(6), ORIGIN)
    assert steps_of(str(tmp_path)) == [4, 6]


def test_a_checkpoint_of_a_newer_version_says_so(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), trained(1), ORIGIN)
    path = checkpoint.save(str(tmp_path), trained(2), ORIGIN)
    meta = json.loads(Path(path, "meta.json").read_text())
    meta |= {"format": checkpoint.FORMAT + 1, "version": "7.0"}
    Path(path, "meta.json").write_text(json.dumps(meta))
    for read in (checkpoint.load, checkpoint.load_model, lambda path: checkpoint.latest(str(tmp_path))):
        with pytest.raises(ValueError, match=r"format 2, made by version 7\.0 .* use the newer version"):
            read(path)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = checkpoint.save(str(tmp_path / "c"), trained(1), ORIGIN)
    torch.save({"model": Evil()}, f"{path}/weights.pt")
    meta = json.loads(Path(path, "meta.json").read_text())
    meta.pop("sha256")
    meta["files"]["weights.pt"]["sha256"] = checkpoint.hashlib.sha256(Path(path, "weights.pt").read_bytes()).hexdigest()
    Path(path, "meta.json").write_text(json.dumps({**meta, "sha256": checkpoint._digest_of(meta)}))
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.load_model(path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no meta\.json"):
        checkpoint.load_model(str(tmp_path))
    with pytest.raises(ValueError, match="has no whole checkpoint: train first"):
        checkpoint.best(str(tmp_path))


# ---- what is kept


def test_the_last_two_and_the_best_are_kept(folder: str) -> None:
    bounds = {2: -9.0, 4: -5.0, 6: None, 8: -7.0, 10: None, 12: -6.0, 14: None}
    for step, bound in bounds.items():
        checkpoint.save(folder, trained(step), ORIGIN, bound=bound)
    assert steps_of(folder) == [4, 12, 14]
    assert checkpoint.best(folder).step == 4
    assert checkpoint.latest(folder).step == 14


def test_the_best_is_the_last_where_nothing_was_measured_and_the_next_best_where_it_is_damaged(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for step in (1, 2):
        checkpoint.save(folder, trained(step), ORIGIN)
    assert checkpoint.best(folder).step == 2
    for step, bound in ((3, -5.0), (4, -6.0)):
        path = checkpoint.save(folder, trained(step), ORIGIN, bound=bound)
        if step == 3:
            best = path
    damage(best, "weights.pt", "one bit")
    assert checkpoint.best(folder, quiet).step == 4


def test_orphans_of_a_crash_are_swept_and_never_read(folder: str) -> None:
    checkpoint.save(folder, trained(1), ORIGIN)
    storage.make_folder(f"{folder}/step-00000002")
    storage.publish_bytes(f"{folder}/step-00000002/weights.pt", b"half of a checkpoint")
    assert checkpoint.latest(folder).step == 1
    lines = []
    checkpoint.save(folder, trained(3), ORIGIN, say=lines.append)
    assert lines == [f"{folder}/step-00000002 was never finished: removed"]
    assert storage.listing(folder) == ["step-00000001", "step-00000003"]


def save_for_ever(folder: str, first: int, saved: Connection) -> None:
    for step in count(first):
        checkpoint.save(folder, trained(step), ORIGIN, say=quiet)
        saved.send(step)


def test_a_writer_killed_at_any_moment_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """A process saves step after step as fast as it can and is killed at moments that nobody chose."""
    last = 0
    for moment in (0.0, 0.013, 0.029, 0.043):
        here, there = forking().Pipe(duplex=False)
        child = forking().Process(target=save_for_ever, args=(str(tmp_path), last + 1, there), daemon=True)
        child.start()
        there.close()
        saved = [here.recv(), here.recv()]
        time.sleep(moment)
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                saved.append(here.recv())
        kept = checkpoint.latest(str(tmp_path), quiet)
        assert kept.step in (saved[-1], saved[-1] + 1)  # the next one may be whole, and unsaid
        last = kept.step
        state = new_state(seed=3)
        kept.restore(state)
        assert_equal(everything(state), everything(trained(last)))


def test_a_full_disk_leaves_no_part_and_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(str(tmp_path), trained(1), ORIGIN)
    real = torch.save

    def full(content: dict, path: Path) -> None:
        real(content, path)
        if "optimizers" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(str(tmp_path), trained(2), ORIGIN)
    assert storage.listing(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(str(tmp_path)).step == 1


def test_a_bound_that_is_measured_later_costs_no_checkpoint_even_on_a_full_disk(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a validation step, the same step is saved again by who goes on, and the bound with it."""
    state = trained(2)
    path = checkpoint.save(folder, state, ORIGIN)
    state.take_bound(-7.0)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "publish_text", lambda path, text: no_space())
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(folder, state, ORIGIN, bound=-7.0)
    assert checkpoint.latest(folder).bound is None
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("networks and optimizers are there already"))
    assert checkpoint.save(folder, state, ORIGIN, bound=-7.0) == path
    kept = checkpoint.latest(folder)
    assert (kept.bound, kept.best, kept.measured) == (-7.0, -7.0, 2)
    restored = new_state(seed=3)
    kept.restore(restored)
    assert_equal(everything(restored), everything(state))


def no_space() -> None:
    raise OSError(28, "No space left on device")


def test_what_was_written_wrong_is_noticed_before_the_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(str(tmp_path), trained(step), ORIGIN)
    real = checkpoint._publish

    def broken(path: str, name: str, content: dict) -> dict:
        facts = real(path, name, content)
        damage(path, name, "one bit")
        return facts

    monkeypatch.setattr(checkpoint, "_publish", broken)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.save(str(tmp_path), trained(3), ORIGIN)
    assert steps_of(str(tmp_path)) == [1, 2]


def test_a_checkpoint_knows_the_config_it_was_made_with(tmp_path: Path) -> None:
    origin = replace(ORIGIN, config=replace(CONFIG, train=replace(CONFIG.train, lr=0.125, workers=4)))
    checkpoint.save(str(tmp_path), trained(1), origin)
    assert checkpoint.latest(str(tmp_path)).origin == origin
