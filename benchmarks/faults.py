"""What breaks on a cluster, broken on purpose; each prints a table of what was done, what was seen, and whether that is right:

    python -m benchmarks.faults jobs      # 20 jobs submitted at once
    python -m benchmarks.faults mlflow    # a server that hangs while training writes to it
    python -m benchmarks.faults store     # an object store that fails and is slow, under shard, train and evaluate
    python -m benchmarks.faults nodes     # a machine of three is killed in every stage of an experiment
    python -m benchmarks.faults head      # the job server, and then the whole head, goes down under a job and a schedule

Everything is started here, on loopback and in temporary folders, and stopped at the end; some minutes each on 2 cores. The
exit code says whether all rows are right. Shorter forms of most are tests (tests/test_tracking.py, tests/test_storage.py,
tests/on_ray/test_train.py, tests/test_schedule.py).

Seen on 2026-11-22 and 23, 2 cores that others kept busy as well (load 20 to 40, so times are long):

    jobs     20 submitted at once end in 129 s, the two that have nothing to do with exit code 2, the others with 0; 36 runs, none twice
    mlflow   a step of 6.8 ms is 1.027 of itself while MLflow is stopped (medians of 2,000, nothing else running; 1.047 of 8.7 ms
             on the busy machine); 4,000 of 4,000 points afterwards
    store    136 requests refused, for 10 s all of them, in every stage: shards, weights and numbers are the same
    nodes    killed in shard, train, sharpen, evaluate and figures, which use no workers: shards, weights and numbers are the same
    head     the job server killed in training: who follows is told after a minute to submit again, which goes on from step 20;
             the whole head killed: who follows is told at once that it forgot the job, and it goes on from step 5. Killed under
             a schedule: it says that no Ray is there, submits the job again under its id when one is, and decides once: 1 version
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, str, bool]  # what was done, what was seen, whether it is right
SMALL = ["tiny-aligndraw", "--train.workers", "2", "--train.threads", "1"]


@contextmanager
def servers() -> Iterator[Path]:
    """Ray and MLflow as `make up` starts them, in a folder of their own."""
    from cluster import local

    state = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp")) / ".local"
    local.up(state)
    try:
        yield state
    finally:
        local.stop(state)
        shutil.rmtree((state / "ray").resolve(), ignore_errors=True)
        shutil.rmtree(state.parent)


def start(words: list[str], log: Path, **changes: str) -> subprocess.Popen:
    """A module of the project as a program, with nothing of Ray's or MLflow's from this process but `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "CANVAS_"))}
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | changes,
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def until(what: Callable[[], bool], timeout_s: float = 300) -> bool:
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def runs(uri: str) -> list[dict]:
    """All runs that MLflow has of the project's experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("caption-canvas")
    return [] if found is None else list(client.search_runs([found.experiment_id], max_results=1000))


def jobs(count: int = 20) -> Iterator[Row]:
    from cluster import local
    from pipeline.tracking import Tracker

    with servers() as state:
        folder, uri = state.parent, local.address("mlflow", state)
        for number in range(count - 2):  # two have nothing to do, and must fail
            with Tracker.open(folder / f"{number}/runs/job/train", "caption-canvas", f"{number}", "train", None) as run:
                run.metrics({"loss": 1.0}, 1)
        began = time.monotonic()
        started = [
            start(
                ["jobs.submit", "--id", f"job-{number}", "sync", "--out", str(folder / str(number))],
                folder / f"{number}.log",
                **local.environment(state),
            )
            for number in range(count)
        ]
        codes = [process.wait(600) for process in started]
        yield "submitted at once", f"{count} ended in {time.monotonic() - began:.0f} s", True
        yield "exit codes", f"{codes.count(0)} x 0, {codes.count(2)} x 2", codes == [0] * (count - 2) + [2, 2]
        names = sorted(run.info.run_name for run in runs(uri))
        expected = sorted(["train"] * (count - 2) + [str(number) for number in range(count - 2)])
        yield "runs in MLflow", f"{len(names)}, {len(names) - len(set(names)) - count + 3} doubled", names == expected


def mlflow() -> Iterator[Row]:
    import torch

    from pipeline.tracking import Tracker
    from tests.conftest import MlflowServer
    from tests.tiny import tiny_batches, tiny_config, tiny_state

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    server = MlflowServer(folder).start()
    config = tiny_config(batch=512)
    state, batches, seconds, step = tiny_state(config), tiny_batches(config), {"sound": [], "hangs": []}, 0
    try:
        tracker = Tracker.open(folder / "run/train", "caption-canvas", "run", "train", server.uri)
        tracker.flush()
        for turn in range(20):
            name = ("sound", "hangs")[turn % 2]
            server.signal(19 if name == "hangs" else 18)  # SIGSTOP, SIGCONT
            for _ in range(200):
                batch = next(batches)
                began = time.perf_counter()
                terms = state.networks["model"].terms(batch, torch.zeros(config.batch, 2, 3))
                terms.total.mean().backward()
                tracker.metrics({"loss": float(step), "rate": 1.0}, step)
                seconds[name].append(time.perf_counter() - began)
                step += 1
        server.signal(18)
        tracker.close()
        from pipeline.tracking import sync

        sync(str(folder / "run"), server.uri)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = medians["hangs"] / medians["sound"]
        yield "a step, MLflow sound", f"{medians['sound'] * 1000:.3f} ms", True
        yield "a step, MLflow stopped", f"{medians['hangs'] * 1000:.3f} ms, {ratio:.3f} of it", ratio < 1.05
        from mlflow import MlflowClient

        (run,) = [run for run in runs(server.uri) if run.info.run_name == "train"]
        points = sorted(point.step for point in MlflowClient(server.uri).get_metric_history(run.info.run_id, "loss"))
        yield "points afterwards", f"{len(points)} of {step}", points == list(range(step))
    finally:
        server.kill()
        shutil.rmtree(folder)


def result_of(out: str, name: str = "tiny-aligndraw") -> dict:
    """What must not depend on what went wrong: the shards' digest, the weights', and the evaluation's numbers."""
    from pipeline import checkpoint, storage

    shard, train, evaluate = (
        json.loads(storage.read_text(f"{out}/runs/{name}/{stage}/result.json"))
        for stage in ("shard", "train", "evaluate")
    )
    weights = checkpoint.load(train["checkpoint"], optimizers=False).networks["model"]
    numbers = {name: value for name, value in evaluate["metrics"].items() if "second" not in name}
    return {"shards": shard["digest"], "weights": weights, "numbers": numbers}


def same(one: dict, other: dict) -> dict[str, bool]:
    weights = all(bool((one["weights"][name] == tensor).all()) for name, tensor in other["weights"].items())
    return {**{name: one[name] == other[name] for name in ("shards", "numbers")}, "weights": weights}


def store(minute_s: float = 60.0) -> Iterator[Row]:
    from pipeline import storage
    from tests.conftest import s3_environment
    from tests.faulty_store import faulty

    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    words = ["tiny-aligndraw", "--train.steps", "60", "--train.save-every", "5"]
    found = {}
    with faulty() as there:
        environment = s3_environment(there.address)
        os.environ.update(environment)
        urllib.request.urlopen(urllib.request.Request(f"{there.address}/faults", method="PUT"), timeout=10).close()
        for name in ("sound", "faulty"):
            out, began = f"s3://faults/{name}", time.monotonic()
            for stage in ("shard", "train", "sharpen", "evaluate"):
                there.failing, there.delay_s = (0.3, 0.05) if name == "faulty" else (0.0, 0.0)
                timers = []
                if name == "faulty":  # for a few seconds nothing at all is answered
                    timers = [
                        threading.Timer(5, lambda: setattr(there, "failing", 1.0)),
                        threading.Timer(15, lambda: setattr(there, "failing", 0.3)),
                        threading.Timer(minute_s, lambda: setattr(there, "failing", 0.0)),
                    ]
                for timer in timers:
                    timer.start()
                log = folder / f"{name}-{stage}.log"
                code = start([f"jobs.{stage}", *words, "--out", out], log, **environment).wait(600)
                for timer in timers:
                    timer.cancel()
                if code:
                    yield f"{stage}, {name}", log.read_text().strip().splitlines()[-1][:150], False
                    return
            there.failing, there.delay_s = 0.0, 0.0
            storage.forget()
            found[name] = result_of(out)
            seen = f"{there.failed} requests refused, {time.monotonic() - began:.0f} s"
            yield f"shard, train, sharpen, evaluate: {name}", seen, True
    for name, equal in same(found["sound"], found["faulty"]).items():
        yield name, "the same" if equal else "differ", equal
    shutil.rmtree(folder)


def nodes() -> Iterator[Row]:
    home = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    os.environ |= {"HOME": str(home), "RAY_TMPDIR": str(home), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "token")}
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(ROOT)}
    (home / "token").write_text("f" * 64)
    import ray
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    )
    machines = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    out, stages = home / "out", ("shard", "train", "sharpen", "evaluate", "figures")
    words = [*SMALL, "--out", str(out), "--dataset.train", "1000", "--evaluation.workers", "2"]
    words += ["--train.steps", "60", "--train.save-every", "5", "--sharpen.steps", "40", "--sharpen.save-every", "5"]
    surroundings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    surroundings["RAY_ADDRESS"] = cluster.address

    def experiment(log: Path) -> subprocess.Popen:
        return start(["jobs.experiment", *words], log, **surroundings)

    def left() -> float:
        """CPUs of the cluster that nobody uses."""
        return sum(machine.get("CPU", 0) for machine in ray._private.state.available_resources_per_node().values())

    def busiest() -> object:
        """The machine with the least left."""
        free = ray._private.state.available_resources_per_node()
        return min(machines, key=lambda machine: free.get(machine.node_id, {}).get("CPU", 0))

    try:
        began = time.monotonic()
        code = experiment(home / "sound.log").wait(900)
        yield "undisturbed", f"exit code {code}, {time.monotonic() - began:.0f} s", code == 0
        sound = result_of(str(out))
        for stage in reversed(stages):  # what was made before it stays
            shutil.rmtree(out / "runs" / "tiny-aligndraw" / stage)
            if stage == "shard":
                shutil.rmtree(out / "shards")
            log, began = home / f"{stage}.log", time.monotonic()
            process, here = experiment(log), out / "runs" / "tiny-aligndraw" / stage
            until(lambda log=log, stage=stage: f"== {stage}\n" in log.read_text())
            if stage in ("train", "sharpen"):
                until(lambda here=here: any(here.glob("checkpoints/step-*/meta.json")))
            elif stage == "shard":
                until(lambda: any((out / "shards").rglob("*.tar")))
            elif stage == "evaluate":
                until(lambda process=process: process.poll() is not None or left() < 4)
            gone = busiest()
            in_time = not (here / "result.json").exists()
            cluster.remove_node(gone, allow_graceful=False)
            machines.remove(gone)
            machines.append(cluster.add_node(num_cpus=2, object_store_memory=memory))
            code = process.wait(900)
            said = [line for line in log.read_text().splitlines() if line.startswith("lost")]
            equal = same(sound, result_of(str(out))) if code == 0 else {}
            wrong = [name for name, good in equal.items() if not good]
            seen = f"exit code {code}, {time.monotonic() - began:.0f} s, {' '.join(wrong) + ' differ' if wrong else 'all the same'}"
            if not in_time:
                seen += " (it came too late)"
            yield f"killed in {stage}", f"{seen}; {said[0][:80] if said else 'nothing said'}", code == 0 and not wrong
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def head() -> Iterator[Row]:
    import psutil

    from cluster import local

    with servers() as state:
        folder, here = state.parent, local.environment(state)
        steps = ("--train.steps", "200", "--train.save-every", "5")

        def submit(name: str, *words: str) -> tuple[subprocess.Popen, Path]:
            log = folder / f"{name}.log"
            out = ["--out", str(folder / "out"), "--name", name]
            return start(["jobs.submit", "--id", name, *words, *SMALL, *out, *steps], log, **here), log

        def kill(*words: str) -> int:
            """End the servers' processes whose command line has one of the words; all without one."""
            found = local.processes("ray", state)
            gone = [p for p in found if not words or any(word in " ".join(p.cmdline()) for word in words)]
            for process in gone:
                process.kill()
            psutil.wait_procs(gone, timeout=20)
            return len(gone)

        for what, words in {"the job server": ("dashboard.py",), "the whole head": ()}.items():
            name = what.split()[-1]
            process, log = submit(name, "experiment")
            at = folder / "out" / "runs" / name / "train" / "checkpoints"
            until(lambda at=at: any(at.glob("step-*/meta.json")))
            yield f"{what} is killed in training", f"{kill(*words)} processes", True
            local.up(state)
            code = process.wait(300)
            last = log.read_text().strip().splitlines()[-1][:200]
            yield "the one who follows", f"exit code {code}: {last}", code == 0 or "again" in last
            if code:
                process, log = submit(name, "experiment")
                code = process.wait(600)
                text = log.read_text()
                going_on = [line for line in text.splitlines() if "going on from step" in line]
                yield "submitted again", f"exit code {code}, {(going_on or ['from the start'])[0][:90]}", code == 0
        names = [run.info.run_name for run in runs(local.address("mlflow", state))]
        yield (
            "runs in MLflow",
            f"{len(names)}, {len(set(names))} names",
            names.count("train") == names.count("shard") == 2,
        )

        cron = time.gmtime(time.time() + 60)
        line = f"{cron.tm_min} {cron.tm_hour} * * *"
        words = ["jobs.schedule", "--cron", line, "tiny-aligndraw", "--out", str(folder / "out"), *steps]
        log = folder / "schedule.log"
        process = start(words, log, **here)
        try:
            trained = (folder / "out" / "runs").glob
            until(lambda: any(trained("tiny-aligndraw-*/train/checkpoints/step-*/meta.json")), 240)
            yield "the head is killed under a schedule", f"{kill()} processes", True
            local.up(state)
            done = until(lambda: "promoted" in log.read_text(), 300)
            said = log.read_text()
            for line in said.splitlines():
                yield "", line[:150], True
            yield "decided", f"{said.count('promoted:')} time", done and said.count("promoted:") == 1
            from mlflow import MlflowClient

            versions = MlflowClient(local.address("mlflow", state)).search_model_versions("name = 'tiny-aligndraw'")
            yield "versions", f"{len(versions)}", len(versions) == 1
        finally:
            process.terminate()
            process.wait()


def main() -> int:
    faults = {"jobs": jobs, "mlflow": mlflow, "store": store, "nodes": nodes, "head": head}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=faults)
    right = True
    for done, seen, good in faults[parser.parse_args().fault]():
        print(f"{'' if good else 'WRONG  '}{done:40}  {seen}", flush=True)
        right &= good
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
