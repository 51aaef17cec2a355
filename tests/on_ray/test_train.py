"""Training as jobs run it: the real model and loader, in real processes that are killed, stopped and lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from jobs import train as job
from pipeline import checkpoint, storage
from pipeline.config import RunConfig, to_dict
from pipeline.loading.stream import stream
from pipeline.models.build import build_model
from pipeline.on_ray import group
from pipeline.on_ray import train as training
from pipeline.on_ray.group import StopRequest, run_group
from pipeline.on_ray.score import Order, Scorer
from pipeline.on_ray.train import share_of, train_worker
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import VOCABULARY, load_manifest
from pipeline.text.vocabulary import Vocabulary
from pipeline.tracking import history
from pipeline.training.fit import NotFinite, backward
from pipeline.training.optim import make_optimizer
from pipeline.training.ranks import Ranks, join
from pipeline.training.state import TrainState
from tests.processes import KILLED, run_ranks
from tests.tiny import assert_close, assert_equal, everything

STEPS = 24


def config_of(**train: object) -> RunConfig:
    base = find_recipe("tiny-aligndraw")
    changes = {"steps": STEPS, "save_every": 3, "log_every": 1, "validate_every": 6, "workers": 1, **train}
    return replace(base, train=replace(base.train, **changes))


def order_of(folder: Path | str, dataset: str, config: RunConfig, **more: object) -> dict:
    return {
        "config": to_dict(config),
        "dataset": dataset,
        "folder": str(folder),
        "tracking": None,
        "stop": f"{folder}/stop",
        **more,
    }


ELASTIC = config_of(workers=2, min_workers=1, threads=2, retries=1)


def kept(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of the last checkpoint of a stage."""
    last = checkpoint.latest(f"{folder}/checkpoints")
    state = TrainState.of(model := last.model(), make_optimizer(model, last.origin.config.train))
    last.restore(state)
    assert state.step == STEPS
    return everything(state)


def scripted_worker(order: dict) -> dict | None:
    """`train_worker` that takes its time over each step, and in which one rank may kill itself once."""
    script = order["script"]

    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0 and "sizes" in script:
        with open(script["sizes"], "a") as file:
            file.write(f"{size}\n")

    class Scripted(StopRequest):
        steps = 0

        def __call__(self) -> bool:
            self.steps += 1
            time.sleep(script["pause_s"] if size > 1 or "always" in script else 0)
            if rank == 1 and self.steps == script.get("kill_at") and not (mark := Path(script["killed"])).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__()

    training.StopRequest = Scripted
    return train_worker(order)


# ---- through Ray


def test_nothing_is_lost_when_driver_job_and_worker_are_ended_one_after_the_other(
    ray_cluster: str, dataset: str, tmp_path: Path
) -> None:
    config, folder = config_of(workers=2), tmp_path / "train"
    tracking = [str(folder), "tests", "tiny", "train", None]
    order = order_of(folder, dataset, config, tracking=tracking, script={"pause_s": 0.15})

    first = driver(ray_cluster, order, tmp_path)
    wait_for(lambda: step_of(folder) >= 6, first)
    first.kill()
    first.wait()

    second, before = driver(ray_cluster, order, tmp_path), step_of(folder)
    wait_for(lambda: step_of(folder) > before, second)
    second.terminate()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 143, said
    assert f"stopped with a checkpoint at step {step_of(folder)}: the same command goes on from there" in said
    assert before < step_of(folder) < STEPS

    killed = str(tmp_path / "killed")
    script = {"pause_s": 0.0, "kill_at": 2, "killed": killed}
    lines = []
    outcome = run_group(scripted_worker, {**order, "script": script}, config.train, str(folder), lines.append)
    assert Path(killed).exists()
    assert any("lost the workers" in line for line in lines)
    assert (outcome["reason"], outcome["step"]) == ("finished", STEPS)
    assert sorted(os.listdir(folder)) == ["checkpoints", "effort.json", "tracking.jsonl"]

    undisturbed = order_of(tmp_path / "undisturbed", dataset, config)
    run_ranks(2, train_worker, undisturbed)
    assert_equal(kept(folder), kept(tmp_path / "undisturbed"))
    points = [json.loads(line) for line in Path(folder, "tracking.jsonl").read_text().splitlines()]
    points = [(name, point["step"]) for point in points if "metrics" in point for name in point["metrics"]]
    assert len(points) == len(set(points))
    assert {step for name, step in points if name == "train/bound"} == set(range(1, STEPS + 1))


def test_elastic_training_goes_on_with_fewer_when_a_machine_is_taken_away(
    ray_environment: dict[str, str], dataset: str, tmp_path: Path
) -> None:
    """Two workers of two CPUs each, on two machines of a Ray of their own: what Ray knew of others would decide here."""
    folder, sizes = tmp_path / "train", tmp_path / "sizes"
    order = order_of(folder, dataset, ELASTIC, script={"pause_s": 0.8, "sizes": str(sizes)})
    program = f"from tests.on_ray.test_train import lose_a_machine; lose_a_machine({order!r})"
    surroundings = {**os.environ, "RAY_TMPDIR": ray_environment["HOME"], "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    said, outcome = json.loads(done.stdout.splitlines()[-1])
    assert said == ["the workers saved and ended because a machine of theirs is taken away: going on elsewhere"]
    assert sizes.read_text().split() == ["2", "1"]
    assert (outcome["reason"], outcome["step"]) == ("finished", STEPS)
    train_worker(order_of(tmp_path / "undisturbed", dataset, ELASTIC))
    assert_close(kept(folder), kept(tmp_path / "undisturbed"), 2e-3)


def lose_a_machine(order: dict) -> None:
    """A driver on a Ray of two machines, one of which is drained after a few steps and gone soon after; prints what was said."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    limits = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**limits, "include_dashboard": False})
    try:
        second, folder, lines = cluster.add_node(**limits), order["folder"], []
        ray.init(address=cluster.address, log_to_driver=False)

        def take_away() -> None:
            """What a cloud does to a spot machine: notice, then the end."""
            while step_of(folder) < 3:
                time.sleep(0.1)
            deadline = int(time.time() * 1000) + 60_000
            ray._raylet.GcsClient(address=cluster.address).drain_node(
                second.node_id, DRAIN_NODE_REASON_PREEMPTION, "wanted elsewhere", deadline
            )
            while not lines:
                time.sleep(0.1)
            cluster.remove_node(second, allow_graceful=False)

        threading.Thread(target=take_away, daemon=True).start()
        outcome = run_group(scripted_worker, order, ELASTIC.train, folder, lines.append)
        print(json.dumps([lines, outcome]))
    finally:
        ray.shutdown()
        cluster.shutdown()


def drive(order: dict) -> None:
    """A driver: what jobs/train.py does, around a slower worker."""
    import ray

    ray.init(log_to_driver=False)
    run_group(scripted_worker, order, config_of(workers=2).train, order["folder"])


def driver(address: str, order: dict, folder: Path) -> subprocess.Popen:
    program = f"from tests.on_ray.test_train import drive; drive({order!r})"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "RAY_ADDRESS": address},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def step_of(folder: Path | str) -> int:
    """The step of the last checkpoint that is there."""
    return max(map(checkpoint.step_of, checkpoint.found(f"{folder}/checkpoints")), default=0)


def wait_for(what: Callable[[], bool], process: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.1)


# ---- the same worker without Ray


@pytest.mark.parametrize(("asked", "worst"), [("highest", 1e-6), ("medium", 2e-2)])
def test_a_worker_multiplies_as_precisely_as_asked(asked: str, worst: float) -> None:
    try:
        group.enter_group(replace(config_of().train, matmul=asked))
        assert torch.get_float32_matmul_precision() == asked
        left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
        exact = left.double() @ right.double()
        assert ((left @ right).double() - exact).norm() / exact.norm() < worst
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_flush_denormal(False)


def test_the_number_of_workers_changes_nothing_but_rounding(dataset: str, tmp_path: Path) -> None:
    for ranks in (1, 2, 4):
        results = run_ranks(ranks, train_worker, order_of(tmp_path / f"of-{ranks}", dataset, config_of()))
        assert [result["step"] for result in results] == [STEPS] * ranks
    assert_close(kept(tmp_path / "of-2"), kept(tmp_path / "of-1"), 2e-3)
    assert_close(kept(tmp_path / "of-4"), kept(tmp_path / "of-1"), 2e-3)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_worker_killed_at_a_step_changes_no_bit(dataset: str, tmp_path: Path, ranks: int) -> None:
    config = config_of()
    killing = {"pause_s": 0.0, "kill_at": 11, "killed": str(tmp_path / "killed")}
    disturbed = order_of(tmp_path / "disturbed", dataset, config, script=killing)
    assert KILLED in run_ranks(ranks, scripted_worker, disturbed)
    assert step_of(tmp_path / "disturbed") == 9
    run_ranks(ranks, scripted_worker, disturbed)
    run_ranks(ranks, train_worker, order_of(tmp_path / "undisturbed", dataset, config))
    assert_equal(kept(tmp_path / "disturbed"), kept(tmp_path / "undisturbed"))


def test_checkpoints_and_the_request_to_stop_may_lie_in_an_object_store(
    dataset: str, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = config_of(), f"{bucket}/run/train"
    monkeypatch.setattr(group, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(training, "StopRequest", StopRequest)  # put back what the scripted worker replaces
    storage.publish_text(f"{folder}/stop", "")
    slow = order_of(folder, dataset, config, script={"pause_s": 0.05, "always": True})
    assert scripted_worker(slow)["reason"] == "stopped"
    assert 0 < step_of(folder) < STEPS
    storage.delete(f"{folder}/stop")
    training.StopRequest = StopRequest
    assert train_worker(order_of(folder, dataset, config))["reason"] == "finished"
    train_worker(order_of(tmp_path / "here", dataset, config))
    assert_equal(kept(folder), kept(tmp_path / "here"))


@pytest.fixture
def out(dataset: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the data set's runs, with jobs.train training in this process, without Ray and MLflow."""
    folder = str(Path(dataset).parent.parent)
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr(training, "run_group", lambda work, order, *rest: work({**order, "stop": f"{folder}/stop"}))
    monkeypatch.setenv("CANVAS_FOLDER", folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_the_job_finishes_once_and_refuses_another_config_under_its_name(
    out: str, capsys: pytest.CaptureFixture
) -> None:
    words = ["tiny-aligndraw", "--out", out, "--name", "once", "--train.steps", "6", "--train.save-every", "2"]
    result = job.main(words)
    assert (result["reason"], result["step"], result["checkpoint_step"]) == ("finished", 6, 6)
    assert result["checkpoint"] == f"{out}/runs/once/train/checkpoints/step-00000006"
    assert result["validation_bound"] < 0
    model, origin, step = checkpoint.load_model(result["checkpoint"])
    assert (step, origin.config.name) == (6, "once")
    assert model.sample(
        *origin.vocabulary.encode(["the digit 3"]), None, torch.zeros(1, *model.noise_shape)
    ).images.shape

    capsys.readouterr()
    assert job.main(words) == result
    assert f"run once is finished: 6 steps, {result['checkpoint']}" in capsys.readouterr().out
    assert job.main([*words, "--train.workers", "2"]) == result  # how it is run may change, what it computes may not
    with pytest.raises(ValueError, match=r"run once exists in .* with another config \(train.lr: 0.004 -> 0.5\)"):
        job.main([*words, "--train.lr", "0.5"])


@pytest.mark.parametrize("recipe", ["tiny-aligndraw", "tiny-lapgan"])
def test_training_starts_from_the_weights_of_another_checkpoint(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture, recipe: str
) -> None:
    def train(name: str, *more: str) -> dict[str, dict[str, Tensor]]:
        words = [recipe, "--out", out, "--name", f"{recipe}-{name}", "--train.steps", "3"]
        return checkpoint.load(job.main([*words, *more])["checkpoint"]).networks

    first = train("first")
    start = ["--start-from", f"runs/{recipe}-first/train/checkpoints/step-00000003"]
    still = ["--train.lr", "1e-12", "--train.seed", "9"]  # no step of Adam goes further than its rate
    begun, elsewhere = train("second", *start, *still), train("third", *still)
    assert begun.keys() == first.keys() and set(first) == (
        {"model"} if recipe == "tiny-aligndraw" else {"model", "discriminator"}
    )
    far = 0.0
    for network, tensors in first.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(begun[network][name], tensor, rtol=0, atol=1e-9)
            far = max(far, (elsewhere[network][name] - tensor).abs().max().item())
    assert far > 0.01
    said = capsys.readouterr().out
    assert f"starting from {out}/{start[1]}, which knew" in said and "going on from step 0 of 3" in said
    journal = f"{out}/runs/{recipe}-second/train/tracking.jsonl"
    assert f'"start_from": "{out}/{start[1]}"' in Path(journal).read_text()
    with pytest.raises(ValueError, match="training cannot start from .*: it has other shapes"):
        train("wider", *start, "--model.latent", "9")
    with pytest.raises(ValueError, match="nowhere is not a checkpoint"):
        train("lost", "--start-from", str(tmp_path / "nowhere"))
    assert not list(Path(out).glob(f"runs/{recipe}-wider/train/checkpoints/*"))


def test_without_a_data_set_the_job_says_which_job_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished digits data set .* run `python -m jobs.shard`"):
        job.main(["tiny-aligndraw", "--out", str(tmp_path)])


def gradients(dataset: str, config: RunConfig, double: bool) -> dict[str, Tensor]:
    ranks = join(config.train.batch, config.train.lanes)
    manifest = load_manifest(dataset)
    vocabulary = Vocabulary.from_json(storage.read_text(f"{dataset}/{VOCABULARY}"))
    model = build_model(config.model, len(vocabulary), manifest.size, manifest.channels, seed=3)
    model = model.double() if double else model
    lanes = {"batch": config.train.batch, "lanes": config.train.lanes, "seed": 0, "step": 5}
    batch = next(stream(manifest, vocabulary, **lanes, rank=ranks.rank, ranks=ranks.size))
    batch.images = batch.images.to(next(model.parameters()).dtype)
    backward(ranks.wrap(model), batch, config.train, 5, ranks)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_two_workers_have_the_gradients_of_one_on_the_whole_batch(dataset: str) -> None:
    alone = gradients(dataset, config_of(), False)
    for there in run_ranks(2, gradients, dataset, config_of(), False):
        for name, gradient in alone.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                there[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_each_rank_validates_its_share_of_the_first_images(dataset: str) -> None:
    manifest = load_manifest(dataset)
    for ranks in (1, 2, 3, 5):
        for asked, there in ((0, 24), (10, 10), (3, 3), (1000, 24)):
            shares = [share_of(manifest, asked, Ranks(rank, ranks)) for rank in range(ranks)]
            assert [image for first, count in shares for image in range(first, first + count)] == list(range(there))


# ---- what is tried again


def test_a_group_that_must_wait_for_others_says_so_and_one_that_has_room_says_nothing(ray_cluster: str) -> None:
    class Holder:
        def hold(self) -> None:
            pass

    def said(workers: int) -> list[str]:
        lines: list[str] = []
        group._tell_room(config_of(workers=workers).train, lines.append)
        return lines

    assert said(2) == []
    holder = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(holder.hold.remote())
    assert said(1) == []
    (line,) = said(2)
    assert line.startswith(
        "waiting for room: 2 workers x 1 CPU are asked for, 1 of 2 are free; it starts when others end"
    )
    (line,) = said(4)
    assert "4 workers x 1 CPU are asked for, the cluster has 2; it starts when nodes join" in line
    ray.kill(holder)
    assert said(2) == [], "what ends lets go of it within moments"


class Lost(Exception):
    """What Ray says of a worker that is gone."""


def failing(monkeypatch: pytest.MonkeyPatch, *ends: object) -> list[dict]:
    """Attempts that end one after the other as told: by an error of a rank, or with a result."""
    attempts, left = [], list(ends)

    def attempt(work: object, order: dict, config: object, folder: str) -> dict:
        attempts.append(order)
        end = left.pop(0)
        end = end() if callable(end) else end
        if isinstance(end, Exception):
            raise group.WorkerGroupError("a worker failed", {0: Lost("connection closed"), 1: end})
        return end

    monkeypatch.setattr(group, "_attempt", attempt)
    monkeypatch.setattr(group, "_tell_room", lambda config, say: None)
    monkeypatch.setattr(group.time, "sleep", lambda seconds: None)
    return attempts


FINISHED = {"reason": "finished", "step": 24}


@pytest.mark.parametrize(
    "error",
    [
        NotFinite("step 3: recon is not finite"),
        TypeError("a mistake"),
        FileNotFoundError(2, "no shard"),
        OSError(28, "full"),
    ],
)
def test_what_would_fail_again_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    attempts = failing(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        run_group(train_worker, {}, config_of().train, str(tmp_path))
    assert raised.value is error
    assert len(attempts) == 1


@pytest.mark.parametrize("error", [Lost("SIGKILL"), RuntimeError("Connection closed by peer"), OSError(5, "I/O error")])
def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    attempts, lines = failing(monkeypatch, error, error, FINISHED), []
    assert run_group(train_worker, {"a": 1}, config_of(retries=2).train, str(tmp_path), lines.append) == FINISHED
    assert attempts == [{"a": 1, "stop": f"{tmp_path}/stop"}] * 3
    assert [line.rpartition("starting them again, ")[2] for line in lines] == ["1 of 2", "2 of 2"]


def test_retries_without_a_new_checkpoint_are_limited_and_a_new_one_starts_the_count_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost_after_a_checkpoint() -> Exception:
        storage.publish_text(f"{tmp_path}/checkpoints/step-{len(attempts):08}/meta.json", "")
        return Lost("SIGKILL")

    attempts = failing(monkeypatch, *[Lost("SIGKILL")] * 2, *[lost_after_a_checkpoint] * 5, *[Lost("SIGKILL")] * 2)
    with pytest.raises(OSError, match="failed, after 2 retries without a new checkpoint: Lost: connection closed"):
        run_group(train_worker, {}, config_of(retries=2).train, str(tmp_path), lambda line: None)
    assert len(attempts) == 9


def test_a_group_whose_machine_is_taken_away_goes_on_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts = failing(monkeypatch, {"reason": "stopped", "step": 5}, FINISHED)
    assert run_group(train_worker, {}, config_of(retries=0).train, str(tmp_path)) == FINISHED
    assert len(attempts) == 2


def test_sigterm_reaches_the_first_rank_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage.publish_text(f"{tmp_path}/stop", "of an earlier run")
    monkeypatch.setattr(group, "LOOK_EVERY_S", 0.01)
    storage.publish_text(f"{tmp_path}/checkpoints/step-00000005/meta.json", "")
    seen = []

    def stopped() -> dict:
        ranks = [StopRequest(f"{tmp_path}/stop", first) for first in (True, False)]
        time.sleep(0.1)
        seen.append([rank() for rank in ranks])
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not ranks[0]() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        seen.append([rank() for rank in ranks])
        return {"reason": "stopped", "step": 5}

    failing(monkeypatch, stopped)
    before, lines = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as end:
        run_group(train_worker, {}, config_of().train, str(tmp_path), lines.append)
    assert end.value.code == 143
    assert seen == [[False, False], [True, False]]
    assert lines == ["stopped with a checkpoint at step 5: the same command goes on from there"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not storage.exists(f"{tmp_path}/stop")


def test_workers_that_are_lost_while_they_are_asked_to_stop_are_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost_when_asked() -> Exception:
        os.kill(os.getpid(), signal.SIGTERM)
        storage.publish_text(f"{tmp_path}/checkpoints/step-00000005/meta.json", "")
        return Lost("SIGKILL")

    lines: list[str] = []
    failing(monkeypatch, lost_when_asked)
    with pytest.raises(SystemExit) as end:
        run_group(train_worker, {}, config_of().train, str(tmp_path), lines.append)
    assert end.value.code == 143
    assert re.search(r"^stopped while the workers were lost \(Lost: .*\): a checkpoint at step 5: the same", lines[0])


def test_nobody_looks_for_a_request_to_stop_once_training_is_over(dataset: str, tmp_path: Path) -> None:
    def watchers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name in ("_watch_file", "_watch_machines")]

    before = watchers()
    train_worker(order_of(tmp_path, dataset, config_of(steps=3)))
    for thread in set(watchers()) - set(before):
        thread.join(10)
        assert not thread.is_alive()


def test_digits_drawn_at_each_validation_have_a_curve_and_change_no_weight(tmp_path: Path, dataset: str) -> None:
    config = config_of(judged=3)
    judge = Scorer(Order(dataset, "", None, config.evaluation)).judge()
    (tmp_path / "judge").write_bytes(judge)
    tracking = (str(tmp_path / "judged"), "experiment", "run", "train", None)
    train_worker(order_of(tmp_path / "judged", dataset, config, judge=str(tmp_path / "judge"), tracking=tracking))
    train_worker(order_of(tmp_path / "alone", dataset, config))
    assert_equal(kept(tmp_path / "judged"), kept(tmp_path / "alone"))
    told = history(str(tmp_path / "judged"))
    for captions in ("one_digit/seen", "one_digit/held_out", "two_digits/seen", "two_digits/held_out"):
        assert [step for step, *_ in told[f"val/drawn/{captions}/right"]] == [6, 12, 18, 24]
