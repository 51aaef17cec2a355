"""Named runs: a recipe is a function that returns a complete RunConfig; a variant is its base plus what differs.

python -m jobs.experiment digits-demo --out out          # any field is a flag: --train.steps 200 --model.steps 16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.config import DatasetConfig, DrawConfig, EvaluationConfig, RunConfig, SharpenConfig, TrainConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {}


def recipe(make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Register a recipe under its config's name: `coco_aligndraw` makes `coco-aligndraw`."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


@recipe
def digits_demo() -> RunConfig:
    """alignDRAW on scikit-learn's handwritten digits, placed with the paper's captions: the demo, minutes on two cores."""
    return RunConfig(
        name="digits-demo",
        dataset=DatasetConfig(source="digits", size=60, channels=1, train=20_000, val=1_000, test=1_000),
        model=DrawConfig(
            steps=8,
            read_size=8,
            write_size=8,
            latent=32,
            encoder=128,
            generator=128,
            language=64,
            align=64,
            canvas=-6.0,
            start="scaled",
        ),
        train=TrainConfig(
            steps=4_000,
            batch=32,
            lanes=32,
            optimizer="adam",
            lr=4e-3,
            schedule="cosine",
            warmup=100,
            clip=1.0,
            clip_each=False,
            save_every=500,
            workers=2,
            threads=1,  # two processes use two cores better than two threads do: most operations here are small
        ),
        sharpen=SharpenConfig(steps=300, batch=32, maps=16, optimizer="adam", lr=2e-3, content=0.2, save_every=100),
        evaluation=EvaluationConfig(images=500, queries=50, ssi_captions=20, ssi_samples=10, judged=100, workers=2),
    )


@recipe
def tiny_aligndraw() -> RunConfig:
    """alignDRAW small enough for a test: every stage in seconds."""
    base = digits_demo()
    return replace(
        base,
        name="tiny-aligndraw",
        dataset=DatasetConfig(source="digits", size=60, channels=1, train=96, val=24, test=24, samples_per_shard=32),
        model=replace(base.model, steps=3, latent=8, encoder=24, generator=24, language=8, align=8),
        train=replace(base.train, steps=8, batch=8, lanes=4, warmup=2, log_every=2, save_every=4, workers=1, threads=1),
        sharpen=replace(base.sharpen, steps=4, batch=8, maps=4, log_every=2, save_every=2),
        evaluation=EvaluationConfig(
            images=24, queries=4, shortlist=10, ssi_captions=2, ssi_samples=2, judged=4, batch=12, workers=1
        ),
    )


@recipe
def mnist_aligndraw() -> RunConfig:
    """alignDRAW on MNIST-with-captions, the paper's sizes and optimizer: 150 epochs of 10,000 samples in batches of 100."""
    return RunConfig(
        name="mnist-aligndraw",
        dataset=DatasetConfig(source="mnist", size=60, channels=1, train=100_000, val=10_000, test=10_000),
        model=DrawConfig(
            steps=32, read_size=8, write_size=8, latent=150, encoder=300, generator=300, language=128, canvas=-10.0
        ),
        train=TrainConfig(steps=15_000, batch=100, schedule="drop", drop_at=110 / 150),
        sharpen=SharpenConfig(),
        evaluation=EvaluationConfig(images=1_000, queries=200, judged=200),
    )


@recipe
def coco_aligndraw() -> RunConfig:
    """alignDRAW on COCO 32x32, the paper's main model: 18 epochs of 82,783 images x 5 captions in batches of 100."""
    return RunConfig(
        name="coco-aligndraw",
        dataset=DatasetConfig(source="coco", size=32, channels=3),
        model=DrawConfig(),
        train=TrainConfig(steps=74_500, batch=100, schedule="drop", drop_at=11 / 18),
        sharpen=SharpenConfig(steps=24_800),
        evaluation=EvaluationConfig(queries=1_000, judged=0),
    )


def find_recipe(name: str) -> RunConfig:
    """The recipe's config; ValueError lists the near names."""
    if name not in RECIPES:
        import difflib

        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no recipe {name!r}; {hint}known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
