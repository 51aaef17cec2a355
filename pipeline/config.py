"""A run is described by one frozen object; it goes into the checkpoint and into MLflow as it ran.

Every field is a command-line flag of every job (`--train.steps 200`, `--model.steps 16`); `recipes.py` holds named runs.
`to_dict` and `from_dict` are inverse, and `from_dict` refuses fields it does not know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_type_hints


def _check(config: object, **rules: bool) -> None:
    """Raise ValueError naming the first field whose rule does not hold."""
    for name, holds in rules.items():
        if not holds:
            raise ValueError(
                f"{type(config).__name__}.{name}: {getattr(config, name)!r} is not allowed; {_RULES[name]}"
            )


_RULES = {
    "size": "an image side is a whole number of pixels, at least 4",
    "channels": "images have 1 (grey) or 3 (colour) channels",
    "train": "a split has at least one sample",
    "wordings": "from 1, the paper's, to 4",
    "samples_per_shard": "a shard holds at least one sample",
    "captions": "each image keeps at least one caption",
    "max_rejected": "it is a share between 0 and 1",
    "steps": "at least 1 step",
    "read_size": "a window has at least 1 pixel a side",
    "write_size": "a window has at least 1 pixel a side",
    "values": "words are the values of an attention: only with --model.caption align",
    "where": "0, or fewer units than the generator has",
    "align_where": "only with --model.where above 0 and --model.caption align",
    "dropout": "0, or with --model.caption align a share below 1",
    "lr": "a learning rate is above 0",
    "batch": "the global batch divides among the workers (and their accumulation steps): a multiple of workers x accumulate",
    "graph": "every step of a graph has the same shapes: only with --train.words above 0 and --train.accumulate 1",
    "lanes": "the lanes divide among the workers: a multiple of workers",
    "workers": "at least 1 worker",
    "min_workers": "0, or from 1 worker to as many as train.workers",
    "accumulate": "at least 1 part",
    "threads": "at least 1 thread",
    "kl_weight": "a weight of the KL term is above 0",
    "kl_warmup": "it is a share between 0 and 1",
    "log_every": "at least 1 step between records",
    "patience": "0 or above, and above 0 only with --train.validate-every",
    "retries": "0 or above",
    "save_every": "at least 1 step between checkpoints",
    "clip": "gradient norms are clipped at a number above 0",
    "maps": "a layer has at least 1 map",
    "content": "a weight is 0 or above",
    "levels": "a pyramid has at least 1 level",
    "hidden": "a layer has at least 2 units: a discriminator has half of them",
    "latent": "a latent vector has at least 1 number",
    "attend": "a weight is 0 or above",
    "deviation": "a standard deviation is above 0",
}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What is sharded. Shards depend on these fields and on the source's bytes, on nothing else."""

    source: Literal["digits", "mnist", "coco", "binary-mnist"] = "digits"
    """digits: scikit-learn's packaged handwritten digits; mnist: IDX files; coco: images with caption json; binary-mnist:
    single digits of the IDX files, black or white."""
    size: int = 60
    """Side of the square images, pixels."""
    channels: int = 1
    """1 grey, 3 colour."""
    train: int = 10_000
    """Drawn samples in the training split (digits, mnist); COCO takes what is there."""
    val: int = 1_000
    test: int = 1_000
    wordings: int = 1
    """In how many ways the training captions say the same (digits, mnist), up to 4; 1: the paper's."""
    samples_per_shard: int = 512
    captions: int = 5
    """First captions of an image that are kept (coco)."""
    seed: int = 0
    """Draws digits, places, held-out combinations and the split of the official validation images."""
    max_rejected: float = 0.05
    """The job fails when a larger share of the inputs is unusable."""

    def __post_init__(self) -> None:
        _check(
            self,
            size=self.size >= 4,
            channels=self.channels in (1, 3),
            train=min(self.train, self.val, self.test) >= 1,
            wordings=1 <= self.wordings <= 4,
            samples_per_shard=self.samples_per_shard >= 1,
            captions=self.captions >= 1,
            max_rejected=0 <= self.max_rejected <= 1,
        )


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Conditional DRAW; the defaults are the paper's for COCO (paper section 5 and appendix table)."""

    kind: ClassVar[str] = "draw"  # names the system in a stored config
    caption: Literal["align", "mean", "skipthought", "none"] = "align"
    """How a caption reaches the generator: alignDRAW, noalignDRAW, skipthoughtDRAW, plain DRAW."""
    steps: int = 32
    """T, canvas updates."""
    read_size: int = 9
    """Side of the read window, pixels."""
    write_size: int = 9
    latent: int = 275
    """Z, width of the latent vector of a step."""
    prior: Literal["learned", "standard"] = "learned"
    """Of the latent vectors after the first: of the generator's last state (alignDRAW), or N(0, I) at every step (DRAW)."""
    encoder: int = 550
    """Width of the inference LSTM."""
    generator: int = 550
    """G, width of the generative LSTM."""
    language: int = 128
    """Width of the caption LSTM in each direction."""
    values: Literal["states", "words"] = "states"
    """What attention adds up: the states it is led by (the paper), or vectors of the words alone."""
    where: int = 0
    """Generator units that decide only where to look and paint, and leave what to paint to the others; 0: all decide both."""
    align_where: bool = False
    """Those units have an attention of their own, instead of being told what the others are told."""
    dropout: float = 0.0
    """Share of the units of a caption's word states that are left out, drawn anew for each caption and training step."""
    reverse: Literal["words", "batch"] = "words"
    """What the backward caption LSTM reverses: a caption's words, or, by a slip of the authors' code, the batch's captions."""
    align: int = 512
    """Width of the alignment's hidden layer."""
    sentence: int = 4800
    """Width of the sentence vector (caption = skipthought)."""
    canvas: float = 0.0
    """Start of the learned canvas bias c_0, a logit: -10 is black (the authors' MNIST code)."""
    start: Literal["paper", "scaled"] = "paper"
    """Initial weights: paper = N(0, 0.01) everywhere, biases 0; scaled = Xavier, narrow centred windows, words at scale 1."""

    def __post_init__(self) -> None:
        _check(
            self,
            steps=self.steps >= 1,
            read_size=self.read_size >= 1,
            write_size=self.write_size >= 1,
            values=self.values == "states" or self.caption == "align",
            where=0 <= self.where < self.generator,
            align_where=not self.align_where or (self.where > 0 and self.caption == "align"),
            dropout=self.dropout == 0 or (0 < self.dropout < 1 and self.caption == "align"),
        )


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Conditional VAE with a least-squares cost; the paper gives no sizes, all of these are ours."""

    kind: ClassVar[str] = "vae"
    body: Literal["fc", "conv"] = "fc"
    """Fully connected layers, or three convolutions and three transposed ones."""
    caption: Literal["mean", "skipthought"] = "mean"
    """Where the sentence vector comes from: the mean of own word states, or given skip-thought vectors."""
    latent: int = 100
    """Z, width of the latent vector."""
    hidden: int = 1_000
    """Width of the fully connected layers."""
    maps: int = 64
    """Feature maps of the finest convolution; each coarser one has twice as many."""
    deviation: float = 0.15
    """Standard deviation of a pixel around its mean: what weighs the squared error against the KL term."""
    language: int = 128
    """Width of the caption LSTM in each direction (caption = mean)."""
    sentence: int = 4800
    """Width of the sentence vector (caption = skipthought)."""

    def __post_init__(self) -> None:
        _check(self, latent=self.latent >= 1, maps=self.maps >= 1, deviation=self.deviation > 0)


@dataclass(frozen=True, kw_only=True)
class LapganConfig:
    """LAPGAN conditioned on a sentence vector: a GAN for a small image, then one a level for the detail."""

    kind: ClassVar[str] = "lapgan"
    levels: int = 2
    """Sizes of the pyramid, each half of the next (the paper's has two)."""
    caption: Literal["mean", "skipthought"] = "skipthought"
    """Where the sentence vector comes from: the mean of random word states, or given skip-thought vectors (the paper)."""
    latent: int = 100
    """Width of the smallest level's noise."""
    hidden: int = 1_200
    """Width of the smallest level's generator; its discriminator has half of it."""
    maps: int = 64
    """Feature maps of the other levels."""
    language: int = 128
    """Width of the caption LSTM in each direction (caption = mean)."""
    sentence: int = 4800
    """Width of the sentence vector (caption = skipthought)."""

    def __post_init__(self) -> None:
        _check(self, levels=self.levels >= 1, latent=self.latent >= 1, hidden=self.hidden >= 2, maps=self.maps >= 1)


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Show, Attend and Tell on small images: pictures -> captions."""

    kind: ClassVar[str] = "captioner"
    maps: int = 64
    """Feature maps of the first convolution; a place's feature vector has four times as many numbers."""
    attention: int = 256
    """Width of the attention's hidden layer."""
    hidden: int = 512
    """Width of the LSTM."""
    word: int = 256
    """Width of a word's vector."""
    attend: float = 0.02
    """Weight of the penalty on places that are attended to more or less than once in a caption; 0: none."""

    def __post_init__(self) -> None:
        _check(self, maps=self.maps >= 1, attend=self.attend >= 0)


@dataclass(frozen=True, kw_only=True)
class SkipThoughtConfig:
    """Skip-thought encoders and their decoder, trained on captions alone: captions -> sentence vectors."""

    kind: ClassVar[str] = "skipthought"
    word: int = 300
    """Width of a word's vector."""
    sentence: int = 1_200
    """Width of the sentence vector: half of it uni-skip, half bi-skip (the published encoders: 4800)."""
    decoder: int = 600
    """Width of the GRU that tells the neighbour."""


ModelConfig = (
    DrawConfig | VaeConfig | LapganConfig | CaptionerConfig | SkipThoughtConfig
)  # each system names itself by `kind`


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Likelihood training. `batch` is global: it and the order of samples do not depend on the number of workers."""

    steps: int = 10_000
    batch: int = 100
    """Images of one optimizer step over all workers."""
    accumulate: int = 1
    """Forward passes a worker splits its share of a batch into, when it does not fit memory at once."""
    lanes: int = 20
    """Parallel streams through the shards (loading/lanes.py); the workers divide them."""
    words: int = 0
    """Captions are padded to this many words; longer ones are cut. 0: to the longest of the batch."""
    seed: int = 0
    optimizer: Literal["rmsprop", "adam", "sgd"] = "rmsprop"
    lr: float = 1e-3
    schedule: Literal["constant", "drop", "cosine"] = "constant"
    """drop: lr / 10 after `drop_at` of the steps (the paper); cosine: down to 0 at the end."""
    drop_at: float = 0.6
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    clip: float = 10.0
    """Gradient norm limit."""
    clip_each: bool = True
    """Clip every parameter tensor on its own (the authors' code) instead of all together."""
    kl_weight: float = 1.0
    """Weight of the KL term in what is minimised; above 1, latent vectors leave more to the caption (Higgins et al. 2017)."""
    kl_warmup: float = 0.0
    """Share of the steps over which the weight of the KL term rises from 0.1 to `kl_weight`."""
    log_every: int = 20
    save_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 0
    """Steps between bounds on the validation split; 0: only at the end."""
    validate_images: int = 1_000
    """First images of the validation split that a bound is measured on; 0: all."""
    judged: int = 0
    """Captions a group, seen and held out, that are drawn and judged at every validation (digits, mnist); 0: none."""
    patience: int = 0
    """Validations without a better bound before training stops early; 0: never."""
    workers: int = 1
    """Data-parallel processes."""
    min_workers: int = 0
    """Elastic training goes on with as few as this many workers; 0: all of them are needed."""
    threads: int = 1
    """CPU cores, and torch threads, of a worker."""
    gpu: bool = False
    """One GPU a worker, NCCL between them."""
    graph: bool = False
    """Launch a step on a GPU as one CUDA graph instead of operation by operation (training/graph.py); not of a sharpener."""
    matmul: Literal["highest", "high", "medium"] = "highest"
    """Precision of matrix products as PyTorch names it. high: TF32 on a GPU; medium: bfloat16 on a CPU that has such units."""
    retries: int = 3
    """Restarts of a failed worker group before training gives up."""

    def __post_init__(self) -> None:
        _check(
            self,
            steps=self.steps >= 1,
            lr=self.lr > 0,
            clip=self.clip > 0,
            workers=self.workers >= 1,
            min_workers=0 <= self.min_workers <= self.workers,
            accumulate=self.accumulate >= 1,
            batch=self.batch >= 1 and self.batch % max(1, self.workers * self.accumulate) == 0,
            lanes=self.lanes >= 1 and self.lanes % max(1, self.workers) == 0,
            threads=self.threads >= 1,
            graph=not self.graph or (self.words > 0 and self.accumulate == 1),
            kl_weight=self.kl_weight > 0,
            kl_warmup=0 <= self.kl_warmup <= 1,
            log_every=self.log_every >= 1,
            save_every=self.save_every >= 1,
            patience=self.patience == 0 or (self.patience > 0 and self.validate_every > 0),
            retries=self.retries >= 0,
        )


@dataclass(frozen=True, kw_only=True)
class SharpenConfig:
    """The sharpener and its adversarial training (paper section 3.3; eyescream's class-conditional level)."""

    steps: int = 1_000
    batch: int = 100
    maps: int = 128
    """Feature maps of the generator's and the discriminator's hidden layers."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd is eyescream's."""
    lr: float = 0.02
    """Adam wants 0.001: at 0.002 a third of the generator's rectified units died in 25 steps, at 0.003 nearly all."""
    content: float = 0.0
    """Weight of the squared error to the real image, summed over its pixels, in the generator's loss; 0: none (the paper)."""
    seed: int = 0
    log_every: int = 20
    save_every: int = 500

    def __post_init__(self) -> None:
        _check(
            self,
            steps=self.steps >= 1,
            lr=self.lr > 0,
            batch=self.batch >= 1,
            maps=self.maps >= 1,
            content=self.content >= 0,
            save_every=self.save_every >= 1,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is measured; all of it on the test split, seeded."""

    images: int = 0
    """Images of the test split that are measured, and that retrieval searches; 0: all."""
    queries: int = 0
    """Captions in retrieval; 0: all."""
    shortlist: int = 100
    """Candidates of a retrieval query: the true image and its nearest neighbours."""
    full: bool = False
    """Captions look among all measured images as well, which costs images / shortlist times as much."""
    ssi_captions: int = 100
    ssi_samples: int = 50
    """Drawings of a caption compared with its true image (paper: 50)."""
    judged: int = 100
    """Captions a group drawn for the digit judge (digits, mnist)."""
    judge_steps: int = 900
    """Training steps of the judge, batches of 32 canvases."""
    seed: int = 0
    batch: int = 100
    workers: int = 2
    """Ray actors that score."""
    gpu: bool = False
    """One GPU a scoring actor."""
    mean_captions: int = 2_000
    """Training captions whose mean is retrieval's mean sentence; 0: all."""
    any_captions: int = 16
    """Training captions whose mean p(image given caption) retrieval divides by, besides the mean sentence; 0: none."""
    features: str | None = None
    """Weights (.safetensors) of a VGG-like net that finds similar photographs; without them, their pixels at 8x8."""

    def __post_init__(self) -> None:
        for name in ("batch", "workers", "ssi_captions", "ssi_samples", "judge_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"EvaluationConfig.{name}: {getattr(self, name)} is not allowed; at least 1")
        for name in ("images", "queries", "judged", "mean_captions", "any_captions"):
            if getattr(self, name) < 0:
                raise ValueError(f"EvaluationConfig.{name}: {getattr(self, name)} is not allowed; 0 or more")
        if self.shortlist < 2:
            raise ValueError(f"EvaluationConfig.shortlist: {self.shortlist} is not allowed; at least 2 candidates")


# Kinds of models: with a bound on log p(image | caption), whose reconstructions can be sharpened; and that draw nothing
BOUNDED, DRAWLESS = ("draw", "vae"), ("captioner", "skipthought")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    name: str
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=DrawConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sharpen: SharpenConfig = field(default_factory=SharpenConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sentences: str = "coco-skipthought"
    """Where sentence vectors come from (model.caption = skipthought): a recipe, by which an encoder is trained on this data
    set's captions; a checkpoint of such a run; or a folder with the published skip-thought weights."""

    def __post_init__(self) -> None:
        if self.dataset.size < 12:
            raise ValueError(
                f"dataset.size: {self.dataset.size} is not allowed; at least 12 pixels a side, for a structural similarity is one "
                "of windows of 11x11"
            )
        if self.sharpen.batch % self.train.workers:
            raise ValueError(
                f"sharpen.batch: {self.sharpen.batch} does not divide among {self.train.workers} workers (train.workers)"
            )
        if self.train.accumulate > 1 and self.model.kind == "lapgan":
            raise ValueError("train.accumulate: a lapgan takes a batch at once; lower --train.batch or add workers")
        if self.train.judged and self.model.kind in DRAWLESS:
            raise ValueError(f"train.judged: a {self.model.kind} draws nothing that could be judged; leave it out")
        if (
            self.model.kind == "draw"
            and self.model.reverse == "batch"
            and self.train.workers * self.train.accumulate > 1
        ):
            raise ValueError(
                "train.workers: model.reverse batch turns round the batch as one process has it; only with --train.workers 1 and "
                "--train.accumulate 1"
            )
        if self.train.graph and self.model.kind not in ("draw", "vae"):
            raise ValueError(
                f"train.graph: the steps of a {self.model.kind} differ in shape; only of draw and vae models"
            )


MODEL_KINDS = {
    config.kind: config for config in (DrawConfig, VaeConfig, LapganConfig, CaptionerConfig, SkipThoughtConfig)
}


def to_dict(config: Any) -> dict:
    """Nested plain dict, as JSON can hold it; a model's dict names its system under `kind`."""
    values = {} if not hasattr(config, "kind") else {"kind": config.kind}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        values[item.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def from_dict(cls: type, values: dict) -> Any:
    """The config a dict was made from; ValueError names fields this version does not know."""
    hints = get_type_hints(cls)
    if unknown := sorted(set(values) - set(hints) - {"kind"}):
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it was written by another version of this project"
        )
    made = {}
    for name, value in values.items():
        if name == "kind":
            continue
        if isinstance(value, dict):
            value = from_dict(MODEL_KINDS[value["kind"]] if "kind" in value else hints[name], value)
        made[name] = value
    return cls(**made)


def digest_of(config: Any) -> str:
    """sha256 over the config's fields; equal configs have equal digests on every machine."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested fields by their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines 'field: old -> new' for every leaf that differs."""
    before, after = dict(leaves(old)), dict(leaves(new))
    pairs = ((name, before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys()))
    return [f"{name}: {value!r} -> {other!r}" for name, value, other in pairs if value != other]
