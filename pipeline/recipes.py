"""Named runs: a recipe is a function that returns a complete RunConfig; a variant is its base plus what differs.

python -m jobs.experiment digits-demo --out out          # any field is a flag: --train.steps 200 --model.steps 16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.config import (
    CaptionerConfig,
    DatasetConfig,
    DrawConfig,
    EvaluationConfig,
    LapganConfig,
    RunConfig,
    SharpenConfig,
    SkipThoughtConfig,
    TrainConfig,
    VaeConfig,
)

RECIPES: dict[str, Callable[[], RunConfig]] = {}


def recipe(make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Register a recipe under its config's name: `coco_aligndraw` makes `coco-aligndraw`."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


@recipe
def digits_aligndraw() -> RunConfig:
    """alignDRAW on scikit-learn's handwritten digits, placed with the paper's captions: minutes on two cores."""
    return RunConfig(
        name="digits-aligndraw",
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
        sharpen=SharpenConfig(steps=200, batch=32, maps=16, optimizer="adam", lr=1e-3, content=0.2, save_every=100),
        evaluation=EvaluationConfig(queries=200, ssi_captions=50, ssi_samples=10, judged=200, workers=2),
    )


@recipe
def digits_demo() -> RunConfig:
    """The demo: digits-aligndraw with larger LSTMs, and three departures from the paper that make it compose.

    Attention adds up vectors of the words alone, which know nothing of their captions; what is painted and where are decided
    by two halves of the generator; and latent vectors are N(0, I), so that only the caption can tell which digit it is. Then
    digits mostly come out right also where no training caption, or no training image, has one of them (docs/findings.md).
    """
    base = digits_aligndraw()
    model = replace(base.model, values="words", where=64, prior="standard", encoder=192, generator=192)
    train = replace(base.train, steps=5_000, validate_every=1_000, judged=100)
    return replace(base, name="digits-demo", model=model, train=train)


@recipe
def mnist_composing() -> RunConfig:
    """What composes best on real MNIST digits: the demo's departures and three more (docs/findings.md).

    What decides where has an attention of its own. Latent vectors cost three times what the bound asks for them, so that they
    leave to the caption what it says. And attention is led by seven tenths of the word states, others for each caption and
    step, so that it finds the digits by what all captions have in common.
    """
    base = digits_demo()
    dataset = replace(base.dataset, source="mnist", train=100_000, val=10_000, test=10_000)
    model = replace(base.model, align_where=True, dropout=0.3)
    evaluation = replace(base.evaluation, images=1_000, judged=2_000, judge_steps=8_000)
    train = replace(base.train, steps=8_000, kl_weight=3.0)
    return replace(base, name="mnist-composing", dataset=dataset, model=model, train=train, evaluation=evaluation)


# ---- what makes it compose: the paper's equations at that size, and one change at a time (docs/findings.md)


@recipe
def mnist_equations() -> RunConfig:
    """alignDRAW as the paper has it, at the size and with the optimizer of mnist-composing: what each change is held against."""
    base = mnist_composing()
    model = replace(base.model, values="states", where=0, align_where=False, prior="learned", dropout=0.0)
    return replace(base, name="mnist-equations", model=model, train=replace(base.train, kl_weight=1.0))


def _equations_but(name: str, train: dict | None = None, dataset: dict | None = None, **model: object) -> RunConfig:
    base = mnist_equations()
    return replace(
        base,
        name=f"mnist-equations-{name}",
        dataset=replace(base.dataset, **(dataset or {})),
        model=replace(base.model, **model),
        train=replace(base.train, **(train or {})),
    )


@recipe
def mnist_equations_words() -> RunConfig:
    """mnist-equations where attention adds up vectors of the words alone."""
    return _equations_but("words", values="words")


@recipe
def mnist_equations_dropout() -> RunConfig:
    """mnist-equations with half of the units of the word states left out, others for each caption and step."""
    return _equations_but("dropout", dropout=0.5)


@recipe
def mnist_equations_mean() -> RunConfig:
    """mnist-equations without alignment: the mean of the word states at every step, noalignDRAW."""
    return _equations_but("mean", caption="mean")


@recipe
def mnist_equations_kl3() -> RunConfig:
    """mnist-equations with latent vectors that cost three times as much in training."""
    return _equations_but("kl3", train={"kl_weight": 3.0})


@recipe
def mnist_equations_wordings() -> RunConfig:
    """mnist-equations with training captions in four wordings."""
    return _equations_but("wordings", dataset={"wordings": 4})


@recipe
def mnist_equations_t16() -> RunConfig:
    """mnist-equations with 16 steps of drawing in the place of 8."""
    return _equations_but("t16", steps=16)


@recipe
def mnist_equations_t32() -> RunConfig:
    """mnist-equations with 32 steps of drawing, the paper's number, in the place of 8."""
    return _equations_but("t32", steps=32)


@recipe
def mnist_equations_batch_reversed() -> RunConfig:
    """mnist-equations with the authors' slip (coco_aligndraw_batch_reversed)."""
    return _equations_but("batch-reversed", train={"workers": 1}, reverse="batch")


@recipe
def tiny_aligndraw() -> RunConfig:
    """alignDRAW small enough for a test: every stage in seconds."""
    base = digits_aligndraw()
    return replace(
        base,
        name="tiny-aligndraw",
        dataset=DatasetConfig(source="digits", size=60, channels=1, train=96, val=24, test=24, samples_per_shard=32),
        model=replace(base.model, steps=3, latent=8, encoder=24, generator=24, language=8, align=8),
        train=replace(base.train, steps=8, batch=8, lanes=4, warmup=2, log_every=2, save_every=4, workers=1, threads=1),
        sharpen=replace(base.sharpen, steps=4, batch=8, maps=4, log_every=2, save_every=2),
        evaluation=EvaluationConfig(
            images=24,
            queries=4,
            shortlist=10,
            ssi_captions=2,
            ssi_samples=2,
            judged=4,
            judge_steps=20,
            any_captions=2,
            batch=12,
            workers=1,
        ),
    )


@recipe
def mnist_aligndraw() -> RunConfig:
    """alignDRAW on MNIST-with-captions, the paper's sizes and optimizer: 150 epochs of 10,000 samples in batches of 100.

    Choice: 100,000 canvases are made once and seen 15 times, where the paper makes 10,000 new ones for each epoch.
    """
    return RunConfig(
        name="mnist-aligndraw",
        dataset=DatasetConfig(source="mnist", size=60, channels=1, train=100_000, val=10_000, test=10_000),
        model=DrawConfig(
            steps=32, read_size=8, write_size=8, latent=150, encoder=300, generator=300, language=128, canvas=-10.0
        ),
        train=TrainConfig(steps=15_000, batch=100, schedule="drop", drop_at=110 / 150),
        sharpen=SharpenConfig(),
        evaluation=EvaluationConfig(images=1_000, queries=200, judged=200, judge_steps=8_000),
    )


@recipe
def mnist_composing_full() -> RunConfig:
    """mnist-composing's departures at the paper's size: T = 32, LSTMs of 300 (docs/findings.md). An hour and a half of a core.

    The weight of the KL term rises over a fifth of the steps: at once, the latent vectors of so many steps stay unused.
    """
    base, small = mnist_aligndraw(), mnist_composing()
    departures = ("values", "align_where", "prior", "dropout", "start", "canvas")
    model = replace(base.model, where=100, **{name: getattr(small.model, name) for name in departures})
    length = dict(steps=10_000, batch=50, lanes=50, lr=2.5e-3, warmup=200, kl_warmup=0.2)
    train = replace(small.train, save_every=250, validate_images=500, **length)
    evaluation = replace(base.evaluation, judged=small.evaluation.judged)
    return replace(base, name="mnist-composing-full", model=model, train=train, evaluation=evaluation)


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


# ---- the other systems of the paper: the same data, and what differs


@recipe
def coco_noaligndraw() -> RunConfig:
    """noalignDRAW on COCO 32x32: the mean of the word states at every step in the place of attention."""
    return replace(coco_aligndraw(), name="coco-noaligndraw", model=DrawConfig(caption="mean"))


@recipe
def coco_aligndraw_batch_reversed() -> RunConfig:
    """alignDRAW on COCO 32x32 with the authors' slip: their backward LSTM reads another caption of the batch."""
    base = coco_aligndraw()
    return replace(base, name="coco-aligndraw-batch-reversed", model=replace(base.model, reverse="batch"))


@recipe
def coco_aligndraw_t8() -> RunConfig:
    """alignDRAW on COCO 32x32 with 8 steps of drawing in the place of 32."""
    base = coco_aligndraw()
    return replace(base, name="coco-aligndraw-t8", model=replace(base.model, steps=8))


@recipe
def coco_aligndraw_t16() -> RunConfig:
    """alignDRAW on COCO 32x32 with 16 steps of drawing in the place of 32."""
    base = coco_aligndraw()
    return replace(base, name="coco-aligndraw-t16", model=replace(base.model, steps=16))


@recipe
def coco_skipthoughtdraw() -> RunConfig:
    """skipthoughtDRAW on COCO 32x32, with vectors of an encoder that is trained on the captions first (coco-skipthought).

    With the published encoder: --sentences FOLDER --model.sentence 4800 (pipeline/text/skipthought.py says what it holds).
    """
    model = DrawConfig(caption="skipthought", sentence=SkipThoughtConfig().sentence)
    return replace(coco_aligndraw(), name="coco-skipthoughtdraw", model=model, sentences="coco-skipthought")


@recipe
def coco_skipthought() -> RunConfig:
    """Skip-thought encoders trained on COCO's captions, for the systems that take a sentence vector. Draws nothing."""
    train = replace(_adam(20_000), validate_every=1_000, validate_images=1_000)
    return replace(coco_aligndraw(), name="coco-skipthought", model=SkipThoughtConfig(), train=train)


@recipe
def coco_fc_vae() -> RunConfig:
    """Fully-Connected VAE on COCO 32x32: as many images as coco-aligndraw sees.

    Choice: its sentence is the mean of its own word states, trained with it; `--model.caption skipthought` is the paper's.
    """
    return replace(coco_aligndraw(), name="coco-fc-vae", model=VaeConfig(body="fc"), train=_adam(74_500))


@recipe
def coco_conv_vae() -> RunConfig:
    """Conv-Deconv VAE on COCO 32x32: as many images as coco-aligndraw sees."""
    return replace(coco_fc_vae(), name="coco-conv-vae", model=VaeConfig(body="conv"))


@recipe
def coco_lapgan() -> RunConfig:
    """LAPGAN on COCO 32x32, two levels, skip-thought vectors at both, by eyescream's gradient descent. It has no bound."""
    model = LapganConfig(sentence=SkipThoughtConfig().sentence)
    train = TrainConfig(steps=74_500, batch=100, optimizer="sgd", lr=0.02)
    return replace(coco_skipthoughtdraw(), name="coco-lapgan", model=model, train=train)


@recipe
def coco_captioner() -> RunConfig:
    """Show, Attend and Tell on COCO 32x32, to say what a drawing shows. It draws nothing: jobs.shard and jobs.train only."""
    train = replace(_adam(40_000), validate_every=1_000, validate_images=1_000, patience=5)
    return replace(coco_aligndraw(), name="coco-captioner", model=CaptionerConfig(), train=train)


@recipe
def mnist_draw() -> RunConfig:
    """DRAW without captions on binarised MNIST 28x28, the sizes and the prior of Gregor et al. 2015, whose bound is 80.97 nats."""
    return RunConfig(
        name="mnist-draw",
        dataset=DatasetConfig(source="binary-mnist", size=28, channels=1, train=50_000, val=10_000, test=10_000),
        model=DrawConfig(
            caption="none",
            steps=64,
            read_size=2,
            write_size=5,
            latent=100,
            prior="standard",
            encoder=256,
            generator=256,
            start="scaled",
        ),
        train=_adam(50_000),
        evaluation=EvaluationConfig(queries=50, judged=0),
    )


def _adam(steps: int) -> TrainConfig:
    """Choice: Adam, for the systems whose optimizer the paper does not name."""
    return TrainConfig(
        steps=steps, batch=100, optimizer="adam", lr=1e-3, schedule="cosine", warmup=500, clip=1.0, clip_each=False
    )


@recipe
def tiny_noaligndraw() -> RunConfig:
    base = tiny_aligndraw()
    return replace(base, name="tiny-noaligndraw", model=replace(base.model, caption="mean"))


@recipe
def tiny_composing() -> RunConfig:
    """mnist-composing's model, tiny."""
    base = tiny_aligndraw()
    model = replace(base.model, values="words", where=8, align_where=True, prior="standard", dropout=0.3)
    return replace(base, name="tiny-composing", model=model, train=replace(base.train, kl_weight=3.0))


@recipe
def tiny_skipthoughtdraw() -> RunConfig:
    base, sentence = tiny_aligndraw(), tiny_skipthought().model.sentence
    model = replace(base.model, caption="skipthought", sentence=sentence)
    return replace(base, name="tiny-skipthoughtdraw", model=model, sentences="tiny-skipthought")


@recipe
def tiny_skipthought() -> RunConfig:
    return replace(tiny_aligndraw(), name="tiny-skipthought", model=SkipThoughtConfig(word=8, sentence=16, decoder=16))


@recipe
def tiny_fc_vae() -> RunConfig:
    return replace(tiny_aligndraw(), name="tiny-fc-vae", model=VaeConfig(body="fc", latent=8, hidden=32, language=8))


@recipe
def tiny_conv_vae() -> RunConfig:
    model = VaeConfig(body="conv", latent=8, hidden=32, maps=4, language=8)
    return replace(tiny_aligndraw(), name="tiny-conv-vae", model=model)


@recipe
def tiny_lapgan() -> RunConfig:
    base = tiny_aligndraw()
    model = LapganConfig(caption="mean", latent=8, hidden=32, maps=4, language=8)
    return replace(base, name="tiny-lapgan", model=model, train=replace(base.train, lr=1e-3))


@recipe
def tiny_captioner() -> RunConfig:
    model = CaptionerConfig(maps=4, attention=16, hidden=32, word=16)
    return replace(tiny_aligndraw(), name="tiny-captioner", model=model)


@recipe
def tiny_draw() -> RunConfig:
    base = tiny_aligndraw()
    return replace(base, name="tiny-draw", model=replace(base.model, caption="none", prior="standard"))


# ---- every system of the paper on a few thousand photographs (Flickr8k in COCO's layout): one table in an hour on two cores


def _flickr(steps: int, **changes: object) -> TrainConfig:
    """Adam as the demo has it. `steps` are what four to five minutes of one core allow the system, so that compute is about equal.

    The sentence encoder of skipthoughtDRAW and LAPGAN, which the paper's authors had published, is on top of it.
    """
    base = digits_aligndraw().train
    return replace(base, steps=steps, batch=50, lanes=50, lr=2e-3, save_every=250, **changes)


@recipe
def flickr_aligndraw() -> RunConfig:
    """alignDRAW on Flickr8k 32x32, small: 12 steps of drawing, LSTMs of 200. See flickr_fc_vae etc. for the others."""
    return RunConfig(
        name="flickr-aligndraw",
        dataset=DatasetConfig(source="coco", size=32, channels=3),
        model=DrawConfig(
            steps=12,
            read_size=8,
            write_size=8,
            latent=50,
            encoder=200,
            generator=200,
            language=64,
            align=64,
            start="scaled",
        ),
        train=_flickr(1_800),
        sharpen=SharpenConfig(steps=150, batch=50, maps=16, optimizer="adam", lr=1e-3, content=0.2, save_every=50),
        evaluation=EvaluationConfig(full=True, judged=0),
    )


@recipe
def flickr_aligndraw_batch_reversed() -> RunConfig:
    """alignDRAW on Flickr8k with the authors' slip (coco_aligndraw_batch_reversed)."""
    base = flickr_aligndraw()
    model, train = replace(base.model, reverse="batch"), replace(base.train, workers=1)
    return replace(base, name="flickr-aligndraw-batch-reversed", model=model, train=train)


@recipe
def flickr_noaligndraw() -> RunConfig:
    """noalignDRAW on Flickr8k: the mean of the word states in the place of attention."""
    base = flickr_aligndraw()
    return replace(base, name="flickr-noaligndraw", model=replace(base.model, caption="mean"), train=_flickr(2_000))


@recipe
def flickr_skipthoughtdraw() -> RunConfig:
    """skipthoughtDRAW on Flickr8k, with vectors of an encoder that is trained on its captions first (flickr-skipthought)."""
    base = flickr_aligndraw()
    model = replace(base.model, caption="skipthought", sentence=flickr_skipthought().model.sentence)
    return replace(
        base, name="flickr-skipthoughtdraw", model=model, train=_flickr(2_600), sentences="flickr-skipthought"
    )


@recipe
def flickr_skipthought() -> RunConfig:
    """Skip-thought encoders on Flickr8k's captions, small. Draws nothing."""
    model = SkipThoughtConfig(word=100, sentence=400, decoder=200)
    return replace(flickr_aligndraw(), name="flickr-skipthought", model=model, train=_flickr(1_800))


@recipe
def flickr_fc_vae() -> RunConfig:
    """Fully-Connected VAE on Flickr8k."""
    model = VaeConfig(body="fc", latent=100, hidden=400, language=64)
    return replace(flickr_aligndraw(), name="flickr-fc-vae", model=model, train=_flickr(4_500))


@recipe
def flickr_conv_vae() -> RunConfig:
    """Conv-Deconv VAE on Flickr8k."""
    model = VaeConfig(body="conv", latent=100, hidden=400, maps=16, language=64)
    return replace(flickr_aligndraw(), name="flickr-conv-vae", model=model, train=_flickr(4_200))


@recipe
def flickr_lapgan() -> RunConfig:
    """LAPGAN on Flickr8k, two levels, with the vectors of flickr-skipthought. It has no bound."""
    model = LapganConfig(hidden=400, maps=16, sentence=flickr_skipthought().model.sentence)
    train = replace(_flickr(2_600), lr=5e-4)  # at 2e-3 its discriminators die: all images look alike to them
    return replace(flickr_skipthoughtdraw(), name="flickr-lapgan", model=model, train=train)


@recipe
def flickr_captioner() -> RunConfig:
    """Show, Attend and Tell on Flickr8k, small, to say what the drawings of the others show. Draws nothing.

    It judges the others instead of competing with them, so it learns until its validation stops, not for as long as they do.
    """
    model = CaptionerConfig(maps=16, attention=64, hidden=200, word=100)
    train = _flickr(6_000, validate_every=500, patience=3)
    return replace(flickr_aligndraw(), name="flickr-captioner", model=model, train=train)


def find_recipe(name: str) -> RunConfig:
    """The recipe's config; ValueError lists the near names."""
    if name not in RECIPES:
        import difflib

        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no recipe {name!r}; {hint}known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
