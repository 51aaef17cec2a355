"""Everything that is measured of a trained model, on workers that hold it and take blocks of images or captions.

It comes after training and sharpening (paper section 5, appendix). `Scorer` is what a worker does, without Ray; `evaluate`
cuts the work, hands it to a pool and adds up what comes back. Every block is a pure function of (checkpoints, data set,
settings, its arguments): its noise comes from (seed, image or caption number). So the figures do not depend on how many
workers there were, and a block of a lost worker is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.config import EvaluationConfig
from pipeline.evaluation import judge as judges
from pipeline.evaluation.bound import image_bounds
from pipeline.evaluation.compare import ranking_gaps
from pipeline.evaluation.retrieval import ranks, summary
from pipeline.evaluation.scores import score_any, score_caption, score_mean, sum_sentences
from pipeline.evaluation.shortlist import load_vgg, pixel_features, shortlists, vgg_features
from pipeline.evaluation.ssi import similarity
from pipeline.evaluation.tally import Tally
from pipeline.generate import draw_captions, row_noise
from pipeline.loading.batching import Sentences
from pipeline.loading.stream import ordered
from pipeline.models.base import CaptionModel
from pipeline.on_ray.pool import Block, Pool
from pipeline.on_ray.sentences import sentences_for
from pipeline.sample import Batch, Generated, Manifest
from pipeline.shards.manifest import description, load_manifest
from pipeline.shards.members import read_shard
from pipeline.sources import mnist_captions as digit_captions
from pipeline.text.vocabulary import Vocabulary

POSTERIOR = 4  # stream of noise of the bounds: training takes (seed, 1, step), drawings (seed, 3, row)
JUDGE_TRAIN, JUDGE_TEST = 20_000, 2_000  # canvases at most
QUERIES_A_BLOCK = 5
OTHER_CORNER = "one_digit/other_corner"  # a group of drawings: what is painted is told a corner, where another
JUDGED = ("digits", "mnist")  # sources whose drawings the judge can read
Log = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is to be measured, by name: small enough to be sent to every worker."""

    dataset: str  # folder of the data set
    model: str  # checkpoint of the drawing model
    sharpener: str | None  # checkpoint of the sharpener
    settings: EvaluationConfig
    bounded: bool = True  # whether the model has a bound: of one without, only drawings are measured
    apart: bool = False  # whether what is painted and where are told by attentions of their own


@dataclass(frozen=True)
class Measured:
    """What an evaluation gives."""

    figures: dict[str, float]  # means by name, with their uncertainty
    values: dict[str, np.ndarray]  # what they are means of (evaluation/values.py)


class Scorer:
    """One worker's model and data, opened when first needed."""

    def __init__(self, order: Order) -> None:
        self.order, self.settings, self.seed = order, order.settings, order.settings.seed
        self.device = torch.device("cuda" if order.settings.gpu else "cpu")
        torch.set_flush_denormal(True)  # the windows' Gaussians underflow, and denormals are slow

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.order.dataset)

    @cached_property
    def loaded(self) -> tuple[CaptionModel, Origin, int]:
        return checkpoint.load_model(self.order.model)

    @cached_property
    def model(self) -> CaptionModel:
        return self.loaded[0].to(self.device).eval()

    @property
    def vocabulary(self) -> Vocabulary:
        return self.loaded[1].vocabulary

    @cached_property
    def vectors(self) -> Sentences | None:
        """Captions -> sentence vectors, for the models that take them."""
        return sentences_for(self.loaded[1].config, self.order.dataset)

    @cached_property
    def sharpener(self) -> torch.nn.Module | None:
        if self.order.sharpener is None:
            return None
        return checkpoint.load_sharpener(self.order.sharpener).to(self.device).eval()

    @cached_property
    def test(self) -> tuple[Tensor, list[str]]:
        """All images of the test split (n, C, H, W) uint8, and the first caption of each."""
        return read_split(self.manifest, "test")

    # ---- blocks

    def bounds(self, split: str, start: int, count: int) -> dict[str, np.ndarray]:
        """The bound of each of `count` images of a split with its first caption, and its parts: (count,) nats by name."""
        parts = []
        for place, batch in self._batches(split, start, count):
            noise = self._noise(range(place, place + len(batch)))
            parts.append(image_bounds(self.model, batch, noise, self.sharpener))
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def sentences(self, start: int, count: int) -> tuple[int, np.ndarray]:
        """Number and sum of sentence vectors of training captions."""
        parts = [sum_sentences(self.model, batch) for _, batch in self._batches("train", start, count)]
        return sum(number for number, _ in parts), sum(total for _, total in parts)

    def features(self, start: int, count: int, judge: bytes | None) -> tuple[np.ndarray, list[str]]:
        """What test images look like (count, F), and the caption of each: what the shortlists are made of."""
        images, captions = self.test[0][start : start + count] / 255, self.test[1][start : start + count]
        if judge is not None:
            with torch.no_grad():
                return judges.from_bytes(judge)[0].features(images).numpy(), captions
        if self.settings.features is not None:
            return vgg_features(load_vgg(storage.read_bytes(self.settings.features)), images), captions
        return pixel_features(images), captions

    def mean_scores(self, images: np.ndarray, sentence: np.ndarray) -> np.ndarray:
        """Test images (n,) by number -> log p(x | mean sentence) (n,), nats."""
        vector = torch.tensor(sentence, dtype=torch.float32, device=self.device)
        return score_mean(self.model, self._images(images), vector, self._noise(images))

    def any_scores(self, images: np.ndarray) -> np.ndarray:
        """Test images (n,) by number -> log of the mean of p(x | y) over training captions (n,), nats."""
        captions = read_split(self.manifest, "train", self.settings.any_captions)[1]
        return score_any(self.model, self._images(images), self._encoded(captions), self._noise(images))

    def scores(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Captions (q,) by number, their candidates (q, C) -> log p(x | y) (q, C), nats."""
        encoded = self._encoded([self.test[1][query] for query in queries])
        found = np.empty(candidates.shape)
        for query, caption in enumerate(encoded):
            for at in range(0, candidates.shape[1], self.settings.batch):
                part = candidates[query, at : at + self.settings.batch]
                scores = score_caption(self.model, self._images(part), *caption, self._noise(part))
                found[query, at : at + len(part)] = scores
        return found

    def similarity(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Structural similarity of drawings of test captions to their image (count, drawings), and of sharpened drawings."""
        images, captions = (part[start : start + count] for part in self.test)
        samples = self.settings.ssi_samples
        rows = range(start * samples, (start + count) * samples)
        drawn = self.draw(captions, samples, rows)
        found = {}
        for name, drawings in (("ssi", drawn.images), ("ssi/sharpened", drawn.sharpened)):
            if drawings is not None:
                truth = (images / 255).repeat_interleave(samples, 0)
                values = [similarity(*pair) for pair in zip(drawings.numpy(), truth.numpy(), strict=True)]
                found[name] = np.reshape(values, (-1, samples))
        return found

    def drawings(
        self, captions: Sequence[str], rows: Sequence[int], where: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Drawings of captions (n, C, H, W) uint8, as drawn and sharpened; `where` as in draw_captions."""
        drawn = self.draw(captions, 1, rows, where)
        found = {"": drawn.images, "sharpened/": drawn.sharpened}
        return {name: (images * 255).round().byte().numpy() for name, images in found.items() if images is not None}

    def judge(self) -> bytes:
        """A judge trained on real canvases of the training split, and measured on those of the test split."""
        facts = description(self.order.dataset)["facts"]
        canvases, captions = read_split(self.manifest, "train", JUDGE_TRAIN)
        places, labels = regions(self.manifest.size), wanted(captions)
        say = partial(print, flush=True)  # Ray shows it: on MNIST this takes minutes
        trained = judges.train_judge(grey(canvases), labels, places, steps=self.settings.judge_steps, log=say)
        held_out = [
            label.caption for digits in (1, 2) for label in digit_captions.held_out_captions(facts, digits=digits)
        ]
        images, captions = (part[:JUDGE_TEST] for part in self.test)
        figures = judges.measure_judge(trained, grey(images), wanted(captions), wanted(held_out))
        return judges.to_bytes(trained, figures)

    # ---- what blocks share

    def _batches(self, split: str, start: int, count: int) -> Iterable[tuple[int, Batch]]:
        """(number of its first image, batch) of a range of a split."""
        wanted = {"batch": self.settings.batch, "start": start, "limit": count, "sentences": self.vectors}
        for batch in ordered(self.manifest, self.vocabulary, split, **wanted):
            yield start, batch.to(self.device)
            start += len(batch)

    def _encoded(self, captions: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each caption its words and keep (N,), and its sentence vector (S,) where the model takes one."""
        words, keep = (part.to(self.device) for part in self.vocabulary.encode(list(captions)))
        sentences = self._sentences(captions)
        return list(
            zip(words, keep, [None] * len(words) if sentences is None else sentences.to(self.device), strict=True)
        )

    def _sentences(self, captions: Sequence[str]) -> Tensor | None:
        return None if self.vectors is None else torch.from_numpy(np.array(self.vectors(list(captions)), np.float32))

    def draw(
        self, captions: Sequence[str], each: int, rows: Sequence[int], where: Sequence[str] | None = None
    ) -> Generated:
        sentences = self._sentences(captions)
        settings = {"rows": rows, "sentences": sentences, "batch": self.settings.batch, "where": where}
        return draw_captions(self.model, self.vocabulary, captions, self.seed, self.sharpener, each, **settings)

    def _images(self, numbers: np.ndarray) -> Tensor:
        return self.test[0][torch.tensor(numbers)].to(self.device) / 255

    def _noise(self, numbers: Sequence[int]) -> Tensor:
        """Of each image its own noise, whatever it is scored under."""
        return row_noise(self.model.noise_shape, [int(n) for n in numbers], (self.seed, POSTERIOR), self.device)


def evaluate(order: Order, judge_file: str, log: Log = print) -> Measured:
    """All that is measured of a model, on a Ray that is running. The judge is kept in `judge_file` for the next model."""
    settings, manifest, about = order.settings, load_manifest(order.dataset), description(order.dataset)
    there = {split: sum(record.samples for record in manifest.split(split)) for split in ("train", "test")}
    images = min(settings.images or there["test"], there["test"])
    sentences = min(settings.mean_captions or there["train"], there["train"])
    judged = about["config"]["source"] in JUDGED
    judge = _kept_judge(judge_file, log) if judged else None
    groups = caption_groups(about["facts"], settings.judged, settings.seed) if judged and settings.judged else {}

    work = {"judge": [Block("judge")]} if judged and judge is None else {}  # first, for it takes longest
    if order.bounded:
        work |= {
            "test": _blocks("bounds", images, settings.batch, "test"),
            "train": _blocks("bounds", min(images, there["train"]), settings.batch, "train"),
            "sentences": _blocks("sentences", sentences, 4 * settings.batch),
        }
    work |= {
        "ssi": _blocks(
            "similarity", min(settings.ssi_captions, images), max(1, settings.batch // settings.ssi_samples)
        ),
        **{name: _drawing_blocks(captions, settings.batch) for name, captions in groups.items()},
    }
    if groups and order.apart:
        painted, groups[OTHER_CORNER] = corner_pairs(about["facts"], settings.judged, settings.seed)
        work[OTHER_CORNER] = _drawing_blocks(painted, settings.batch, groups[OTHER_CORNER])
    values, candidates = {}, {}
    with Pool(partial(Scorer, order), workers=settings.workers, gpu=settings.gpu, log=log) as pool:
        measures = (f"bounds of {images:,} images, " if order.bounded else "no bound, ") + "drawings"
        log(f"evaluate: {measures}" + (", a judge of digits" if "judge" in work else ""))
        first = pool.run(work)
        if "judge" in first:
            judge = first["judge"][0]
            storage.publish_bytes(judge_file, judge)
        if order.bounded:
            among = f"{settings.shortlist}" + (f" and among all {images:,}" if settings.full else "")
            log(f"evaluate: captions look for their image among {among}")
            sentence = sum(total for _, total in first["sentences"]) / sum(number for number, _ in first["sentences"])
            places, candidates = _retrieve(pool, settings, images, judge, sentence)
            if not places:
                log("evaluate: the captions of all measured images are alike: no retrieval")
            values |= {f"retrieval/{way}places": found for way, found in places.items()}
            values |= _joined(first["test"], "test/") | _joined(first["train"], "train/")
    values |= _joined(first["ssi"])
    figures = {"test/images": images, **_means(values), **_rankings(values, candidates, settings.seed)}
    if judge is not None:
        verdicts, known = _judge_drawings(judge, groups, first)
        values |= verdicts
        figures |= known
    return Measured({name: float(value) for name, value in figures.items() if np.isfinite(value)}, values)


def _joined(parts: Sequence[dict[str, np.ndarray]], before: str = "") -> dict[str, np.ndarray]:
    """Arrays of blocks, by name, one after the other; `before` comes before their names."""
    return {f"{before}{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over images with their standard errors; similarities with their spread over drawings."""
    figures: dict[str, float] = {}
    for name, found in values.items():
        if name.startswith("ssi"):
            # drawings of one caption are not independent: the error is that over captions
            each, captions = Tally.of(found), Tally.of(found.mean(1))
            figures |= {f"{name}/mean": each.mean, f"{name}/std": each.spread, f"{name}/mean_se": captions.error}
        elif name.startswith(("test/", "train/")):
            tally = Tally.of(found)
            figures |= {name: tally.mean, f"{name}_se": tally.error}
    return figures


def _rankings(values: dict[str, np.ndarray], candidates: dict[str, int], seed: int) -> dict[str, float]:
    """Figures of every way to rank, each among so many candidates; "gain/": what the own caption adds to another's."""
    figures = {}
    for way, number in candidates.items():
        found = summary(values[f"retrieval/{way}places"], number, seed=seed)
        figures |= {f"retrieval/{way}{name}": value for name, value in found.items()}
    if candidates:
        own, other = (values[f"retrieval/{way}places"] for way in ("", "other/"))
        for name, gap in ranking_gaps(other, own, candidates[""], seed=seed).items():
            figures |= {f"retrieval/gain/{name}": gap.mean, f"retrieval/gain/{name}_low": gap.low}
            figures |= {f"retrieval/gain/{name}_high": gap.high}
    return figures


def judge_file(out: str, digest: str, steps: int) -> str:
    """Where the judge of a data set is kept below `out`: all runs on it share one."""
    return storage.join(out, "judges", f"{digest[:16]}-{judges.FORMAT}-{steps}.safetensors")


def prepare_judge(dataset: str, settings: EvaluationConfig, file: str, log: Log = print) -> None:
    """Train the judge of a data set on a worker and keep it in `file`, if it is not there yet."""
    if _kept_judge(file, log) is None:
        log("training a judge of digits, to look at what is drawn")
        with Pool(partial(Scorer, Order(dataset, "", None, settings)), workers=1, gpu=settings.gpu, log=log) as pool:
            storage.publish_bytes(file, pool.run({"judge": [Block("judge")]})["judge"][0])


def drawn_shares(
    model: CaptionModel, vocabulary: Vocabulary, vectors: Sentences | None, facts: dict, judge: bytes, count: int
) -> dict[str, float]:
    """Of a model in training: the share of `count` captions a group, seen and held out, that it draws all right."""
    reader, shares = judges.from_bytes(judge)[0], {}
    for name, captions in caption_groups(facts, count, seed=0).items():
        sentences = None if vectors is None else torch.from_numpy(np.array(vectors(captions), np.float32))
        drawn = draw_captions(model, vocabulary, captions, 0, sentences=sentences).images
        shares[name] = float(judges.verdicts(reader.look(drawn), wanted(captions))["right"].mean())
    return shares


def _judge_drawings(
    judge: bytes, groups: dict[str, list[str]], drawings: dict[str, list]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Of each group's captions the share of their drawings that show what they ask for, and the judge's own figures.

    A share is one of captions, not of drawings: those of a caption are right or wrong together.
    """
    reader, known = judges.from_bytes(judge)
    values, figures = {}, {f"judge/{name}": value for name, value in known.items()}
    for name, captions in groups.items():
        which, asked = np.unique(captions, return_inverse=True)[1], wanted(captions)
        for kind in drawings[name][0]:
            drawn = np.concatenate([part[kind] for part in drawings[name]])
            figures[f"drawn/{kind}{name}/captions"] = which.max() + 1
            for verdict, right in judges.verdicts(reader.look(torch.from_numpy(drawn) / 255), asked).items():
                shares = np.bincount(which, right) / np.bincount(which)
                tally, name_of = Tally.of(shares), f"drawn/{kind}{name}/{verdict}"
                values[name_of] = shares
                figures |= {name_of: tally.mean, f"{name_of}_se": tally.error}
    return values, figures


def _retrieve(
    pool: Pool, settings: EvaluationConfig, images: int, judge: bytes | None, sentence: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Places (Q, 2) of the true image among the candidates of every query, and how many there are: by the ratio to the mean
    sentence (the paper), by p(x | y) alone ("plain/"), and by the ratio to the mean over training captions ("any/"). Where all
    images are ranked ("full/..."), the shortlist is the beginning of that list: each pair is scored once.

    An image stands amid its own neighbours, so even a score that does not look at the caption need not rank it like chance.
    "other/" is what that gives away: the paper's ratio, the same candidates, and the caption of another query.
    """
    queries = np.arange(min(settings.queries or images, images))
    looks = pool.run({"features": _blocks("features", images, 4 * settings.batch, after=(judge,))})["features"]
    captions = [caption for _, part in looks for caption in part]
    most = images if settings.full else settings.shortlist
    candidates = shortlists(np.concatenate([part for part, _ in looks]), captions, queries, most)
    if candidates.shape[1] < 2:
        return {}, {}  # all captions are alike: there is nothing to tell apart
    other = next_other(captions, queries)
    needed = np.unique(candidates)
    parts = [needed[start : start + settings.batch] for start in range(0, len(needed), settings.batch)]
    rows = [slice(start, start + QUERIES_A_BLOCK) for start in range(0, len(queries), QUERIES_A_BLOCK)]
    work = {
        "mean": [Block("mean_scores", (part, sentence)) for part in parts],
        "scores": [Block("scores", (queries[row], candidates[row])) for row in rows],
        "other": [Block("scores", (other[row], candidates[row, : settings.shortlist])) for row in rows],
    }
    if settings.any_captions:
        work["any"] = [Block("any_scores", (part,)) for part in parts]
    found = {name: np.concatenate(blocks) for name, blocks in pool.run(work).items()}
    own, place = found["scores"], np.searchsorted(needed, candidates)  # (Q, C)
    ways = {"": own - found["mean"][place], "plain/": own}
    if "any" in found:
        ways["any/"] = own - found["any"][place]
    truth, placed, among = np.zeros(len(queries), np.int64), {}, {}
    for list_name, length in {"": settings.shortlist, **({"full/": most} if settings.full else {})}.items():
        for way, scores in ways.items():
            placed[f"{list_name}{way}"] = ranks(scores[:, :length], truth)
            among[f"{list_name}{way}"] = min(length, candidates.shape[1])
    short = slice(settings.shortlist)
    placed["other/"] = ranks(found["other"] - found["mean"][place][:, short], truth)
    return placed, among | {"other/": among[""]}


def next_other(captions: Sequence[str], queries: np.ndarray) -> np.ndarray:
    """For each query (Q,) the next one whose caption reads otherwise, else the first image (Q,). There must be two captions."""
    around = np.concatenate([queries, queries, np.arange(len(captions))])
    return np.array(
        [
            next(one for one in around[place + 1 :] if captions[one] != captions[query])
            for place, query in enumerate(queries)
        ]
    )


def read_split(manifest: Manifest, split: str, limit: int = 0) -> tuple[Tensor, list[str]]:
    """Images (n, C, H, W) uint8 of a split in the manifest's order and the first caption of each; limit 0: all."""
    images, captions = [], []
    for record in manifest.split(split):
        decoded = read_shard(storage.join(manifest.folder, record.name), record)
        images.append(decoded.images)
        captions += [texts[0] for texts in decoded.captions]
        if limit and len(captions) >= limit:
            break
    stacked = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return stacked[: limit or None], captions[: limit or None]


def grey(images: Tensor) -> np.ndarray:
    """(n, C, H, W) uint8 -> (n, H, W) uint8."""
    return images.float().mean(1).round().byte().numpy()


def regions(size: int) -> list[judges.Region]:
    """Where each place of a canvas can have ink, in the order of the source's places."""
    side, found = digit_captions.digit_side(size), []
    for place in digit_captions.PLACES:
        (top, bottom), (left, right) = digit_captions.box_range(place, size)
        found.append(judges.Region(top, bottom + side, left, right + side))
    return found


def wanted(captions: Sequence[str]) -> np.ndarray:
    """What captions of digits ask for: the class of every place (n, P)."""
    known = digit_captions.labelled_captions()
    order = list(digit_captions.PLACES)
    classes = np.full((len(captions), len(order)), judges.EMPTY)
    for row, caption in enumerate(captions):
        for digit, place in zip(known[caption].digits, known[caption].places, strict=True):
            classes[row, order.index(place)] = digit
    return classes


def caption_groups(facts: dict, count: int, seed: int) -> dict[str, list[str]]:
    """`count` captions a group, in a drawn order and again from its start: one or two digits, in combinations that training
    showed ("seen") or that were held out."""
    groups = {}
    for name, digits in (("one_digit", 1), ("two_digits", 2)):
        for kind, listed in (("seen", digit_captions.seen_captions), ("held_out", digit_captions.held_out_captions)):
            drawn = _drawn(listed(facts, digits=digits), count, seed)
            groups[f"{name}/{kind}"] = [label.caption for label in drawn]
    return groups


def corner_pairs(facts: dict, count: int, seed: int) -> tuple[list[str], list[str]]:
    """`count` captions of one digit by which it is painted, and of the same digit at another corner, where it is to stand.

    All are of training. What of a place reaches what is painted shows as drawings that are wrong.
    """
    drawn = _drawn(digit_captions.other_corners(facts), count, seed)
    return [what.caption for what, _ in drawn], [where.caption for _, where in drawn]


def _drawn(things: list, count: int, seed: int) -> list:
    """`count` of the things in a drawn order, and again from its start."""
    order = np.random.default_rng(seed).permutation(len(things))
    return [things[order[i % len(order)]] for i in range(count)]


def _blocks(method: str, count: int, size: int, *before: Any, after: tuple = ()) -> list[Block]:
    """Ranges (start, count) that cover 0 ... count - 1."""
    starts = range(0, count, size)
    return [Block(method, (*before, start, min(size, count - start), *after)) for start in starts]


def _drawing_blocks(captions: list[str], size: int, where: list[str] | None = None) -> list[Block]:
    given = [part for part in (captions, list(range(len(captions))), where) if part is not None]
    starts = range(0, len(captions), size)
    return [Block("drawings", tuple(part[at : at + size] for part in given)) for at in starts]


def _kept_judge(path: str, log: Log) -> bytes | None:
    """The judge of an earlier evaluation on this data set, if there is a whole one."""
    if not storage.exists(path):
        return None
    content = storage.read_bytes(path)
    try:
        judges.from_bytes(content)
    except ValueError as error:
        log(f"{path} is {error}: training another")
        return None
    return content
