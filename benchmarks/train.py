"""A training step and sampling against what the hardware allows, and against the loop one would write first.

    python -m benchmarks.train                       # both configurations of the paper, about 6 minutes on 2 cores
    python -m benchmarks.train --configs mnist --repeats 5 --threads 1

Batch 100, T = 32, captions of 12 words. Each variant lives in a process of its own (so its peak memory is its own) and takes
a step when told; variants alternate, and medians over the repeats are printed:

    ours       the model of pipeline/models, the paper's optimizer: loss, gradients, update
    plain      the equations as a reader of the paper writes them in PyTorch: below, sharing no code with the project
    matmuls    the floor: only the matrix products of the step, at the shapes it needs, into buffers made beforehand
    peak       the same number of operations at the rate of one large matrix product

    python -m benchmarks.train --gpu --precision high    # on a GPU, and with a variant more
    graph      ours as one CUDA graph (train.graph)
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from datetime import date

RECIPES = {"mnist": ("mnist-aligndraw", 23, 60, 1), "coco": ("coco-aligndraw", 25_323, 32, 3)}
BATCH, WORDS = 100, 12


def matrix_products(config, vocabulary: int, size: int, channels: int) -> list[tuple[int, int, int, int, int]]:
    """(how often, batches, m, k, n) of the forward pass: what the equations need when each product is done once."""
    e, g, z, m, a = config.encoder, config.generator, config.latent, 2 * config.language, config.align
    read, write = config.read_size, config.write_size
    step = [
        (1, BATCH, 2 * channels * read**2 + g + e, 4 * e),  # inference LSTM
        (1, BATCH, e, 2 * z),  # posterior
        (1, BATCH, z + m + g, 4 * g),  # generative LSTM
        (1, BATCH, g, a),  # alignment query
        (BATCH, 1, WORDS, m),  # attended words
        (BATCH, WORDS, a, 1),  # energies
        (1, BATCH, g, 2 * z),  # prior
        (1, BATCH, g, channels * write**2 + 10),  # patch and both windows
        (BATCH, read, size, 2 * channels * size),  # read: rows
        (BATCH, 2 * channels * read, size, read),  # read: columns
        (BATCH, channels * write, write, size),  # write: columns
        (BATCH, size, write, channels * size),  # write: rows
    ]
    language = [(1, 2 * BATCH, config.language, 4 * config.language)]
    return [
        *((config.steps, *shape) for shape in step),
        *((WORDS, *shape) for shape in language),
        (1, 1, BATCH * WORDS, m, a),
    ]


def floor(config, vocabulary: int, size: int, channels: int):
    """A function that does the matrix products of a training step, forward and both gradients; and their operations."""
    import torch

    work, operations = [], 0
    for times, batches, m, k, n in matrix_products(config, vocabulary, size, channels):
        lead = () if batches == 1 else (batches,)
        x, w, y = torch.randn(*lead, m, k), torch.randn(*lead, k, n), torch.randn(*lead, m, n)
        multiply = torch.mm if batches == 1 else torch.bmm
        outs = torch.empty(*lead, m, n), torch.empty(*lead, m, k), torch.empty(*lead, k, n)
        work.append((times, multiply, ((x, w), (y, w.transpose(-1, -2)), (x.transpose(-1, -2), y)), outs))
        operations += 3 * 2 * times * batches * m * k * n

    def run():
        for times, multiply, pairs, outs in work:
            for _ in range(times):
                for (left, right), out in zip(pairs, outs):
                    multiply(left, right, out=out)

    return run, operations


def peak_rate() -> float:
    """Operations a second of one large float32 matrix product."""
    import torch

    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        finish(a.device)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def finish(device) -> None:
    """Wait until the device has done what it was asked for."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def ours(name: str, device: str, graph: bool):
    """(one training step, one sampling of a batch) of the project's model."""
    import torch

    from pipeline.models.base import noise_rows
    from pipeline.models.build import build_model
    from pipeline.recipes import find_recipe
    from pipeline.sample import Batch
    from pipeline.training.fit import take_step
    from pipeline.training.graph import Graph
    from pipeline.training.optim import make_optimizer
    from pipeline.training.ranks import Ranks
    from pipeline.training.state import TrainState

    recipe, vocabulary, size, channels = RECIPES[name]
    config = find_recipe(recipe)
    model = build_model(config.model, vocabulary, size, channels).to(device)
    state, ranks = TrainState.of(model, make_optimizer(model, config.train)), Ranks(device=torch.device(device))
    network = Graph(model, ranks) if graph else model
    random = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.rand(BATCH, channels, size, size, generator=random),
        torch.randint(2, vocabulary, (BATCH, WORDS), generator=random),
        torch.ones(BATCH, WORDS, dtype=torch.bool),
        ("",) * BATCH,
    ).to(device)

    def step():
        take_step(state, network, batch, config.train, ranks)

    @torch.no_grad()
    def sample():
        model.sample(batch.words, batch.keep, None, noise_rows(model.noise_shape, BATCH, (1,), device))

    return step, sample


def count_operations(name: str) -> int:
    """How many operations the forward and backward pass asks a CPU for, views of tensors not counted."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipeline.models.build import build_model
    from pipeline.recipes import find_recipe
    from pipeline.sample import Batch

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            returns = [result.alias_info for result in function._schema.returns]
            self.operations += all(alias is None or alias.is_write for alias in returns)
            return function(*args, **(kwargs or {}))

    recipe, vocabulary, size, channels = RECIPES[name]
    with torch.device("meta"):  # shapes without values: nothing is computed
        model = build_model(find_recipe(recipe).model, vocabulary, size, channels)
        words = torch.empty(BATCH, WORDS, dtype=torch.int64)
        batch = Batch(torch.empty(BATCH, channels, size, size), words, words > 0, ("",) * BATCH)
        with Count() as count:
            model.terms(batch, torch.empty(BATCH, *model.noise_shape)).total.sum().backward()
    return count.operations


def plain(name: str):
    """(one training step, one sampling) of the loop that a competent reader of the paper writes first."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pipeline.recipes import find_recipe

    recipe, vocabulary, size, channels = RECIPES[name]
    c = find_recipe(recipe).model

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(vocabulary, 4 * c.language)
            self.words = nn.LSTM(4 * c.language, c.language, bidirectional=True, batch_first=True)
            self.U, self.W, self.v = nn.Linear(256, c.align), nn.Linear(c.generator, c.align), nn.Linear(c.align, 1)
            self.enc = nn.LSTMCell(2 * channels * c.read_size**2 + c.generator, c.encoder)
            self.dec = nn.LSTMCell(c.latent + 256, c.generator)
            self.mu, self.sigma = nn.Linear(c.encoder, c.latent), nn.Linear(c.encoder, c.latent)
            self.prior_mu, self.prior_sigma = nn.Linear(c.generator, c.latent), nn.Linear(c.generator, c.latent)
            self.read_attention, self.write_attention = nn.Linear(c.generator, 5), nn.Linear(c.generator, 5)
            self.patch = nn.Linear(c.generator, channels * c.write_size**2)

        def filters(self, parameters, n):
            gx, gy, log_variance, log_delta, log_gamma = parameters.chunk(5, 1)
            gx, gy = (size + 1) / 2 * (gx + 1), (size + 1) / 2 * (gy + 1)
            delta = (size - 1) / (n - 1) * log_delta.exp()
            i, a = torch.arange(1, n + 1), torch.arange(1, size + 1)
            banks = []
            for g in (gx, gy):
                mean = g + (i - n / 2 - 0.5) * delta
                bank = torch.exp(-((a[None, None] - mean[:, :, None]) ** 2) / (2 * log_variance.exp()[:, :, None]))
                banks.append(bank / (bank.sum(2, keepdim=True) + 1e-4))
            return banks[0], banks[1], log_gamma.exp()

        def forward(self, x, words, noise):
            batch = len(words)
            states, _ = self.words(self.embed(words))
            h_enc, c_enc = torch.zeros(batch, c.encoder), torch.zeros(batch, c.encoder)
            h_dec, c_dec = torch.zeros(batch, c.generator), torch.zeros(batch, c.generator)
            canvas, kl = torch.zeros(batch, channels, size, size), 0
            for t in range(c.steps):
                prior_mu, prior_log = torch.zeros(batch, c.latent), torch.zeros(batch, c.latent)
                if t > 0:
                    prior_mu, prior_log = torch.tanh(self.prior_mu(h_dec)), torch.tanh(self.prior_sigma(h_dec))
                if x is None:
                    z = prior_mu + prior_log.exp() * noise[:, t]
                else:
                    error = x - torch.sigmoid(canvas)
                    f_x, f_y, gamma = self.filters(self.read_attention(h_dec), c.read_size)
                    glimpse = [f_y @ image[:, k] @ f_x.transpose(1, 2) for image in (x, error) for k in range(channels)]
                    r = gamma * torch.cat([part.flatten(1) for part in glimpse], 1)
                    h_enc, c_enc = self.enc(torch.cat([r, h_dec], 1), (h_enc, c_enc))
                    mu, log = self.mu(h_enc), 0.5 * self.sigma(h_enc)
                    z = mu + log.exp() * noise[:, t]
                    gap = ((mu - prior_mu) ** 2 + (2 * log).exp()) / (2 * prior_log).exp()
                    kl = kl + 0.5 * (gap - 1 - 2 * log + 2 * prior_log).sum(1)
                energy = self.v(torch.tanh(self.U(states) + self.W(h_dec)[:, None])).squeeze(2)
                s = (energy.softmax(1)[:, :, None] * states).sum(1)
                h_dec, c_dec = self.dec(torch.cat([z, s], 1), (h_dec, c_dec))
                f_x, f_y, gamma = self.filters(self.write_attention(h_dec), c.write_size)
                patch = self.patch(h_dec).view(batch, channels, c.write_size, c.write_size)
                planes = [f_y.transpose(1, 2) @ patch[:, k] @ f_x for k in range(channels)]
                canvas = canvas + torch.stack(planes, 1) / gamma[:, :, None, None]
            if x is None:
                return torch.sigmoid(canvas)
            return (F.binary_cross_entropy_with_logits(canvas, x, reduction="none").flatten(1).sum(1) + kl).mean()

    model = Plain()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.01)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9)
    x, words = torch.rand(BATCH, channels, size, size), torch.randint(2, vocabulary, (BATCH, WORDS))

    def step():
        optimizer.zero_grad()
        model(x, words, torch.randn(BATCH, c.steps, c.latent)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()

    @torch.no_grad()
    def sample():
        model(None, words, torch.randn(BATCH, c.steps, c.latent))

    return step, sample


def serve(variant: str, name: str, threads: int, precision: str, device: str, pipe) -> None:
    """A variant's process: answers 'step' and 'sample' with seconds, 'memory' with the peak in MB."""
    import torch

    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if variant == "matmuls":
        from pipeline.recipes import find_recipe

        torch.set_default_device(device)
        recipe, vocabulary, size, channels = RECIPES[name]
        run, operations = floor(find_recipe(recipe).model, vocabulary, size, channels)
        step, sample = run, None
        pipe.send((operations, peak_rate()))
    elif variant == "plain":
        torch.set_default_device(device)
        step, sample = plain(name)
        pipe.send(None)
    else:
        step, sample = ours(name, device, variant == "graph")
        pipe.send(None)
    while (order := pipe.recv()) != "end":
        if order == "memory":
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) * 1024
            pipe.send((torch.cuda.max_memory_allocated() if device == "cuda" else taken) / 2**20)
            continue
        start = time.perf_counter()
        (step if order == "step" else sample)()
        finish(device)
        pipe.send(time.perf_counter() - start)


def measure(name: str, repeats: int, threads: int, precision: str, device: str) -> list[str]:
    """The table's rows of one configuration."""
    context, pipes, told = multiprocessing.get_context("spawn"), {}, {}
    models = ("ours", "graph", "plain") if device == "cuda" else ("ours", "plain")
    for variant in (*models, "matmuls"):
        pipes[variant], theirs = context.Pipe()
        context.Process(target=serve, args=(variant, name, threads, precision, device, theirs), daemon=True).start()
        told[variant] = pipes[variant].recv()

    def ask(variant: str, order: str) -> float:
        pipes[variant].send(order)
        return pipes[variant].recv()

    for variant in pipes:  # not counted: allocation, first touch
        ask(variant, "step")
    steps: dict[str, list[float]] = {variant: [] for variant in pipes}
    for _ in range(repeats):
        for variant, seconds in steps.items():
            seconds.append(ask(variant, "step"))
    memory = {variant: ask(variant, "memory") for variant in models}
    samples: dict[str, list[float]] = {variant: [] for variant in models}
    for _ in range(repeats):
        for variant, seconds in samples.items():
            seconds.append(ask(variant, "sample"))
    for pipe in pipes.values():
        pipe.send("end")

    operations, rate = told["matmuls"]
    median = {variant: statistics.median(seconds) for variant, seconds in steps.items()}
    median["peak"] = operations / rate
    rows = []
    for variant in (*models, "matmuls", "peak"):
        spread = f"{min(steps[variant]):.2f}-{max(steps[variant]):.2f}" if variant in steps else ""
        drawn = f"{BATCH / statistics.median(samples[variant]):.0f}" if variant in samples else ""
        peak = f"{memory[variant]:.0f}" if variant in memory else ""
        share = f"{median['matmuls'] / median[variant]:.0%}"
        rows.append(
            f"| {name} | {variant} | {1000 * median[variant]:.0f} | {spread} | {BATCH / median[variant]:.0f} | {share} "
            f"| {peak} | {drawn} |"
        )
    asked = (
        f"{operations / 1e9:.1f} GFLOP a step in {count_operations(name):,} operations, peak {rate / 1e9:.0f} GFLOP/s"
    )
    rows.append(f"| {name} | | {asked} | | | | | |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("highest", "high", "medium"), default="highest", help="as train.matmul")
    parser.add_argument("--gpu", action="store_true", help="on a GPU")
    options = parser.parse_args()
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {options.threads} threads, n = {options.repeats}"
    )
    print("| configuration | variant | ms a step | min-max, s | images/s | floor / it | MB above import | drawn/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.configs:
        print(
            "\n".join(
                measure(name, options.repeats, options.threads, options.precision, "cuda" if options.gpu else "cpu")
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
