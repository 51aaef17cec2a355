"""What data-parallel training costs on CPUs: one process, one under DistributedDataParallel, and two that share each batch.

    python -m benchmarks.ranks                       # about 4 minutes on 2 cores, which should have nothing else to do
    python -m benchmarks.ranks --configs mnist --repeats 5

Every process has one thread; a batch has 100 images, whatever the number of processes. The three variants live side by side
and take a step when told; medians over the repeats. `exchanged` is what one process hands to the others in a step: its
gradients, of word tables only the rows that its half of the batch has (training/optim.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import date

from benchmarks.train import BATCH, RECIPES, WORDS

VARIANTS = {"alone": (1, False), "alone, under DDP": (1, True), "two ranks": (2, True)}


def serve(name: str, rank: int, size: int, wrapped: bool, meeting: str, pipe) -> None:
    """A rank's process: answers every message with the seconds of a training step."""
    import torch
    import torch.distributed as dist

    from pipeline.models.build import build_model
    from pipeline.recipes import find_recipe
    from pipeline.sample import Batch
    from pipeline.training.fit import take_step
    from pipeline.training.optim import make_optimizer
    from pipeline.training.ranks import Ranks
    from pipeline.training.state import TrainState

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    recipe, vocabulary, side, channels = RECIPES[name]
    config = find_recipe(recipe)
    model = build_model(config.model, vocabulary, side, channels)
    state, ranks = TrainState.of(model, make_optimizer(model, config.train)), Ranks(rank, size)
    network = model
    if wrapped:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        network = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    random, rows = torch.Generator().manual_seed(rank), BATCH // size
    batch = Batch(
        torch.rand(rows, channels, side, side, generator=random),
        torch.randint(2, vocabulary, (rows, WORDS), generator=random),
        torch.ones(rows, WORDS, dtype=torch.bool),
        ("",) * rows,
    )
    train = replace(config.train, batch=BATCH)
    while pipe.recv() != "end":
        start = time.perf_counter()
        take_step(state, network, batch, train, ranks)
        sent = [p.grad.values() if p.grad.is_sparse else p.grad for p in model.parameters() if p.grad is not None]
        pipe.send((time.perf_counter() - start, sum(part.numel() for part in sent) * 4 / 2**20))
    if wrapped:
        dist.destroy_process_group()


def measure(name: str, repeats: int) -> list[str]:
    """The table's rows of one configuration."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (variant, (size, wrapped)) in enumerate(VARIANTS.items()):
            pipes[variant] = []
            for rank in range(size):
                mine, theirs = context.Pipe()
                order = (name, rank, size, wrapped, os.path.join(folder, str(number)), theirs)
                context.Process(target=serve, args=order, daemon=True).start()
                pipes[variant].append(mine)

        def step(variant: str) -> tuple[float, float]:
            for pipe in pipes[variant]:
                pipe.send("step")
            return max(pipe.recv() for pipe in pipes[variant])

        steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        exchanged = {variant: step(variant)[1] for variant in VARIANTS}  # the first step: buckets, first touch
        for _ in range(repeats):
            for variant, seconds in steps.items():
                seconds.append(step(variant)[0])
        for ours in pipes.values():
            for pipe in ours:
                pipe.send("end")
    alone = statistics.median(steps["alone"])
    rows = []
    for variant, seconds in steps.items():
        median = statistics.median(seconds)
        sent = f"{exchanged[variant]:.0f}" if VARIANTS[variant][0] > 1 else "-"
        rows.append(
            f"| {name} | {variant} | {1000 * median:.0f} | {min(seconds):.2f}-{max(seconds):.2f} | {alone / median:.2f} | {sent} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"{date.today()}, one thread a process, n = {options.repeats}")
    print("| configuration | variant | ms a step | min-max, s | speed against alone | MiB exchanged |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.configs:
        print("\n".join(measure(name, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
