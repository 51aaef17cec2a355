"""The page of one run or of several: what was run, what it drew, the tables, and how it learned, as one index.html.

    build_page("out/report", "Seven systems", runs, [("Retrieval", table, "100 candidates")], captioner)

jobs.compare calls it for all systems, jobs.figures for a single run. It draws anew from the checkpoints, so that every system
gets the same captions and the same seed; what a system does not have (steps, attention, a sharpener, a bound) is left out.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.artist import NUMBERED, Artist
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.config import RunConfig, leaves, to_dict
from pipeline.recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    import numpy as np

    from pipeline.figures.html import Card, Chart, Charts, Section
    from pipeline.sample import Generated

PAGE = "index.html"
FILMS, MAPS, NOISES, SIDE, TRIPLES = 6, 3, 4, 6, 6  # how many animations, maps, drawings of a caption, captions
# What training maximises, by the kind of model, and the metric that has it: not all of it can share an axis
BOUNDS = {
    "draw": ("lower bound, nats an image", "bound", 1),
    "vae": ("bound on a density, nats an image", "bound", 1),
    "captioner": ("log p(caption | image), nats", "caption", -1),  # its bound has the attention's penalty in it, too
}
NOT_SELECTED = "Captions and noise are chosen by a seed, none by its result."


def build_page(
    folder: str,
    title: str,
    runs: Sequence[Workspace],
    tables: Sequence[tuple[str, str, str]],
    captioner: Workspace | None = None,
) -> str:
    """The path of index.html. The first run is the one that is looked at most closely; tables: heading, markdown, note."""
    from pipeline.figures.html import Page, Section, Table, render

    artists = dict(zip(names_of([run.config for run in runs]), map(Artist, runs), strict=True))
    main = next(iter(artists.values()))
    if others := {artist.dataset for artist in artists.values()} - {main.dataset}:
        raise ValueError(f"runs on one page share their data set: {main.dataset} is not {', '.join(sorted(others))}")
    measured = Section(
        "The figures",
        "On test images that no training saw, unless a row or a column says train. ± is a standard error (of similarities between "
        "systems a standard deviation), brackets are 95 % intervals.",
        [Table(markdown, heading, note) for heading, markdown, note in tables],
    )
    sections = [
        _what_was_run(artists, captioner),
        _main_picture(main),
        *([measured] if tables else []),
        *_steps(artists),
        *((*_flips(main), *_new_compositions(main)) if main.captioned else ()),
        *(_side_by_side(artists) if len(artists) > 1 else []),
        *(_sharpening(artists) if len(artists) > 1 else []),
        *(_text_image_text(main, captioner) if captioner and main.captioned else []),
        *_learning(artists, captioner),
        *_composing(artists),
        *_believing(artists),
    ]
    path = storage.join(folder, PAGE)
    storage.publish_text(path, render(Page(title, _lead(artists), sections)))
    return path


def names_of(configs: Sequence[RunConfig]) -> list[str]:
    """What people call the systems; a run's own name where two of them are the same system."""
    names = [_system(config) for config in configs]
    alike = Counter(names)
    return [config.name if alike[name] > 1 else name for name, config in zip(names, configs, strict=True)]


def command_of(run: Workspace) -> str:
    """The command that makes a run: the recipe that is nearest to it, and what differs."""
    config = run.config
    wanted = dict(leaves(to_dict(config)))
    near = {}
    for name in RECIPES:
        base = dict(leaves(to_dict(find_recipe(name))))
        if base["model.kind"] == wanted["model.kind"]:
            changed = {field: value for field, value in wanted.items() if base[field] != value}
            near[name] = (config.name != name, len(changed)), changed
    recipe = min(near, key=lambda name: near[name][0])
    words = ["python", "-m", "jobs.experiment", recipe]
    for field, value in near[recipe][1].items():
        flag = f"--{field.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else _no(flag))
        else:
            words += [flag, str(value)]
    if config.dataset.source != "digits":
        words += ["--data", (run.finished("shard") or {}).get("data") or "DATA"]  # DATA: where nothing says what it was
    return shlex.join([*words, "--out", "out"])


def _no(flag: str) -> str:
    """--train.gpu -> --train.no-gpu"""
    group, _, last = flag.rpartition(".")
    return f"{group}.no-{last}"


def _system(config: RunConfig) -> str:
    model = config.model
    if model.kind == "draw":
        return {"align": "alignDRAW", "mean": "noalignDRAW", "skipthought": "skipthoughtDRAW", "none": "DRAW"}[
            model.caption
        ]
    if model.kind == "vae":
        return {"fc": "Fully-Connected VAE", "conv": "Conv-Deconv VAE"}[model.body]
    return {"lapgan": "LAPGAN", "captioner": "captioner"}.get(model.kind, config.name)


def _runs(artists: dict[str, Artist], captioner: Workspace | None) -> dict[str, Workspace]:
    """All that was trained for the page."""
    runs = {name: artist.workspace for name, artist in artists.items()}
    return runs | {"captioner": captioner} if captioner else runs


def _lead(artists: dict[str, Artist]) -> str:
    main = next(iter(artists.values()))
    size = main.about["config"]
    colour = "colour" if size["channels"] == 3 else "grey"
    subject = f"{main.subject} with captions" if main.captioned else main.subject
    learned = f"learned to draw from {subject} ({size['size']} x {size['size']}, {colour})"
    if len(artists) == 1:
        return f"{next(iter(artists))} {learned}."
    return f"{len(artists)} systems {learned}: {', '.join(artists)}."


def _what_was_run(artists: dict[str, Artist], captioner: Workspace | None) -> Section:
    from pipeline.figures.html import Commands, Section, Table
    from pipeline.shards.manifest import load_manifest
    from pipeline.training.meter import duration

    runs = _runs(artists, captioner)
    lines = [
        "| system | run | steps | images a step | training | MLflow run |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, run in runs.items():
        trained = run.require("train")
        took = duration(trained["seconds"]) if "seconds" in trained else "-"
        identity = trained.get("mlflow_run_id") or "-"
        lines.append(
            f"| {name} | {run.config.name} | {trained['step']:,} | {run.config.train.batch} | {took} | {identity} |"
        )
    manifest = load_manifest(next(iter(artists.values())).dataset)
    counts = ", ".join(f"{sum(shard.samples for shard in manifest.split(s)):,} {s}" for s in ("train", "val", "test"))
    note = f"Data set {manifest.folder.rstrip('/').rpartition('/')[2]}: {counts} images, digest {manifest.digest[:12]}."
    return Section(
        "What was run",
        "The same commands make the same drawings and figures again; a finished stage is skipped.",
        [Table("\n".join(lines), note=note), Commands([command_of(run) for run in runs.values()])],
    )


def _main_picture(main: Artist) -> Section:
    from pipeline.figures.html import Cards, Section

    if not main.captioned:
        see = "The model takes no captions: do these look like its training images? Noise is chosen by a seed."
        return Section("Drawn from noise", see, [Cards(_drawn(main, NUMBERED))])
    if main.digits:
        placed = main.placed()
        one, two = placed["one_digit/seen"], placed["two_digits/seen"]
        parts = [
            Cards(_drawn(main, one), "One digit, at places where training showed it"),
            Cards(_drawn(main, two, first=len(one)), "Two digits, in combinations that training showed"),
        ]
    else:
        captions, images = main.test
        parts = [Cards(_drawn(main, captions, images))]
    see = f"Compare each drawing with its caption: the model saw only the words. {NOT_SELECTED}"
    return Section("Drawn from captions", see, parts)


def _steps(artists: dict[str, Artist]) -> list[Section]:
    """What came of every step, and the words it attended to: of the first system with attention, else the first with steps."""
    from pipeline.figures.html import Film, Films, Map, Section
    from pipeline.text.vocabulary import tokenize

    stepwise = {name: artist for name, artist in artists.items() if artist.workspace.config.model.kind == "draw"}
    if not stepwise:
        return []
    attending = (name for name, artist in stepwise.items() if artist.workspace.config.model.caption == "align")
    name = next(attending, next(iter(stepwise)))
    artist = stepwise[name]
    if not artist.captioned:
        captions = NUMBERED[:FILMS]
    elif artist.digits:
        placed = artist.placed()
        captions = [*placed["one_digit/seen"][:3], *placed["two_digits/seen"][:3]]
    else:
        captions = artist.test[0][:FILMS]
    drawn = artist.draw(captions, sharpened=False, steps=True)
    words, canvases = [tokenize(caption) for caption in captions], drawn.canvases.numpy().swapaxes(0, 1)
    weights = None if drawn.alignments is None else drawn.alignments.numpy().swapaxes(0, 1)
    films = [
        Film(said, canvas, None if weights is None else weights[i])
        for i, (said, canvas) in enumerate(zip(words, canvases, strict=True))
    ]
    lit = " A word lights up as the step looks at it." if weights is not None else ""
    sections = [
        Section(
            "How a drawing comes about",
            f"{name}'s canvas after each of {canvases.shape[1]} steps.{lit}",
            [Films(films)],
        )
    ]
    if weights is not None:
        shown = range(0, len(captions), -(-len(captions) // MAPS))
        looked = artist.attention([captions[i] for i in shown], shown)
        sections.append(
            Section(
                "Where it looked while it drew",
                "Darker cells are words that a step attended to; bars are the mean over the steps of several drawings of the "
                "caption, the first of which is shown. "
                "Words that say what and where should stand out from the others.",
                [Map(words[i], every, canvases[i]) for i, every in zip(shown, looked, strict=True)],
            )
        )
    return sections


def _flips(main: Artist) -> list[Section]:
    """Captions that differ in a word or two; a column has the same noise in all captions of a group."""
    from pipeline.figures.captions import DIGIT_FLIPS, FLIPS
    from pipeline.figures.flips import marked
    from pipeline.figures.html import Card, Cards, Section

    parts = []
    for group in filter(main.knows, DIGIT_FLIPS if main.digits else FLIPS):
        images = _finished(main.draw(group, each=NOISES, rows=list(range(NOISES)) * len(group)))
        rows = images.reshape(len(group), NOISES, *images.shape[1:])
        said = zip(marked(group), group, rows, strict=True)
        parts.append(Cards([Card(words, _tiles(row, caption)) for words, caption, row in said], above=True))
    see = "Within a group the noise of a column is the same: what changes in it is what the marked words changed."
    return [Section("Other words, same noise", see, parts)] if parts else []


def _new_compositions(main: Artist) -> list[Section]:
    """Digits where no training caption names them; scenes that no photograph shows."""
    from pipeline.figures.captions import NOVEL
    from pipeline.figures.html import Card, Cards, Section

    if main.digits:
        placed, parts, first = main.placed(), [], 100
        for group, heading in (
            ("one_digit/held_out", "One digit in a corner where no training image has it"),
            ("two_digits/held_out", "Two digits, one of them where no training caption names it"),
        ):
            parts.append(Cards(_drawn(main, placed[group], first=first), heading))
            first += len(placed[group])
        see = "Training had each of these digits, and the rest of each of these captions, but never together."
        return [Section("Held-out combinations", see, parts)]
    if not (known := main.known(NOVEL)):
        return []
    images = _finished(main.draw(known, each=NOISES)).reshape(len(known), NOISES, *main.test[1].shape[1:])
    cards = [Card(caption, _tiles(row, caption)) for caption, row in zip(known, images, strict=True)]
    see = "Four drawings each of scenes that no photograph shows: does what the words say come together?"
    return [Section("Novel compositions", see, [Cards(cards, above=True)])]


def _side_by_side(artists: dict[str, Artist]) -> list[Section]:
    from pipeline.figures.captions import COMPARED, NOVEL
    from pipeline.figures.html import Card, Cards, Section, Tile

    main = next(iter(artists.values()))
    see = "The same seed for all, sharpened where a system has a sharpener."
    true: list[np.ndarray | None]
    if any(artist.captioned for artist in artists.values()):
        captions, images = main.test
        more = main.placed()["two_digits/held_out"][:2] if main.digits else main.known([*COMPARED, *NOVEL])[:3]
        captions = [*captions[:SIDE], *more]
        true = [*images[:SIDE], *[None] * len(more)]
        new = "held-out combinations" if main.digits else "captions of the paper"
        see = f"One caption a row. {see}" + (f" Rows without a true image are {new}." if more else "")
    else:
        captions, true = NUMBERED[:SIDE], [None] * SIDE
    columns = {name: _finished(artist.draw(captions)) for name, artist in artists.items()}
    cards = []
    for i, caption in enumerate(captions):
        tiles = [Tile(drawn[i], f"{name}: {caption}", name) for name, drawn in columns.items()]
        if true[i] is not None:
            tiles.append(Tile(true[i], f"true image: {caption}", "true image"))
        cards.append(Card(caption, tiles))
    return [Section("The systems side by side", see, [Cards(cards, above=True)])]


def _sharpening(artists: dict[str, Artist]) -> list[Section]:
    from pipeline.figures.html import Cards, Section

    captions, images = next(iter(artists.values())).test
    parts = [
        Cards(_drawn(artist, captions[:3], images[:3]), name)
        for name, artist in artists.items()
        if artist.sharpener is not None
    ]
    see = "The same drawing before and after the sharpener: it may add edges, it should not change what is there."
    return [Section("Before and after sharpening", see, parts)] if parts else []


def _text_image_text(main: Artist, captioner: Workspace) -> list[Section]:
    """A true caption, its image and what was drawn for it, and what the captioner says of both."""
    import torch

    from pipeline import checkpoint
    from pipeline.evaluation.captioning import caption_images
    from pipeline.figures.html import Card, Cards, Section, Tile

    teller, origin, _ = checkpoint.load_model(captioner.require("train")["checkpoint"])
    captions, images = (some[:TRIPLES] for some in main.test)
    drawings = _finished(main.draw(captions))
    says = [caption_images(teller, origin.vocabulary, torch.from_numpy(some).float()) for some in (images, drawings)]
    cards = [
        Card(
            caption,
            [
                Tile(images[i], f"true image of: {caption}", f"true image: “{says[0][i]}”"),
                Tile(drawings[i], f"drawn for: {caption}", f"drawing: “{says[1][i]}”"),
            ],
        )
        for i, caption in enumerate(captions)
    ]
    see = (
        "A captioner that never saw the caption says what is in the true image and in the drawing made for its caption."
    )
    return [Section("Text to image to text", see, [Cards(cards, above=True)])]


def _learning(artists: dict[str, Artist], captioner: Workspace | None) -> list[Section]:
    from pipeline.figures.html import Section

    runs = _runs(artists, captioner)
    parts = [part for kind in BOUNDS for part in _curves(kind, runs)]
    see = (
        "Lines are training, marks are validation images; higher is better. Systems without a bound have no curve here."
    )
    return [Section("How they learned" if len(runs) > 1 else "How it learned", see, parts)] if parts else []


def _composing(artists: dict[str, Artist]) -> list[Section]:
    """What was drawn right, of captions that were seen and that were held out, at each validation."""
    from pipeline.evaluation.tables import GROUPS
    from pipeline.figures.html import Charts, Section
    from pipeline.tracking import history

    charts = []
    for name, artist in artists.items():
        metrics = history(artist.workspace.stage("train"))
        judged = {label: metrics.get(f"val/drawn/{group}/right") for group, label in GROUPS.items()}
        if judged := {label: points for label, points in judged.items() if points}:
            shares = f"The share of captions that {name} drew all right at the end"
            charts.append(_chart(judged, f"steps of {name}", "drawn all right", shares))
    see = (
        "How many captions were drawn with every digit right, at its place, and nothing else, as the judge reads it: those that "
        "training may have had, and those whose combinations it never had. Where they part, captions are learned by heart."
    )
    heading = "What they drew right while they learned" if len(artists) > 1 else "What it drew right while it learned"
    return [Section(heading, see, [Charts(charts)])] if charts else []


def _believing(artists: dict[str, Artist]) -> list[Section]:
    """What the discriminators of LAPGAN's levels and of the sharpeners believed."""
    from pipeline.figures.html import Charts, Section
    from pipeline.tracking import history

    charts = []
    for name, artist in artists.items():
        for stage, player in (("train", name), ("sharpen", f"{name}'s sharpener")):
            metrics = history(artist.workspace.stage(stage))
            for metric in sorted(metrics):
                if told := re.fullmatch(r"train/(?:level(\d+)/)?real", metric):
                    label = f"{player}, level {told[1]}" if told[1] else player
                    fake = metrics[metric.removesuffix("real") + "fake"]
                    believed = {"real images": metrics[metric], "generated images": fake}
                    sure = f"How sure the discriminator of {label} was at the end that images are real"
                    charts.append(_chart(believed, f"steps of {label}", "how sure that it is real", sure))
    see = (
        "How sure each discriminator is, on average, that real and generated images are real. Where both lines lie flat at "
        "0.5 it only guesses, and its generator learns nothing from it; at 1 and 0 it is never fooled."
    )
    return [Section("What the discriminators believed", see, [Charts(charts)])] if charts else []


def _chart(series: dict[str, Sequence[tuple]], across: str, up: str, shown: str) -> Chart:
    """Shares between 0 and 1 by name, (step, seconds, share) each; its words are `shown` and where each of them ends."""
    from pipeline.figures.curves import Curve, curves
    from pipeline.figures.html import Chart

    lines = [Curve(name, [(step, value) for step, _, value in points]) for name, points in series.items()]
    ends = ", ".join(f"{line.name} {line.train[-1][1]:.2f}" for line in lines)
    light, dark = (curves(lines, across, up, dark, probabilities=True) for dark in (False, True))
    return Chart(light, dark, f"{shown}: {ends}")


def _curves(kind: str, runs: dict[str, Workspace]) -> list[Charts]:
    """The systems of one kind over steps and over time."""
    from pipeline.figures.curves import Curve, curves
    from pipeline.figures.html import Chart, Charts
    from pipeline.tracking import history

    label, metric, sign = BOUNDS[kind]
    told = {}
    for name, run in runs.items():
        if run.config.model.kind == kind and run.finished("train"):
            metrics = history(run.stage("train"))
            points = [metrics.get(f"{split}/{metric}", []) for split in ("train", "val")]
            told[name] = [[(step, time, sign * value) for step, time, value in split] for split in points]
    told = {name: (train, val) for name, (train, val) in told.items() if train}
    if not told:
        return []
    longest = max(train[-1][1] for train, _ in told.values())
    unit, seconds = ("minutes", 60) if longest > 600 else ("seconds", 1)
    ends = "; ".join(f"{name} ends at {train[-1][2]:,.0f}" for name, (train, _) in told.items())
    charts = []
    for across, place, scale in (("steps", 0, 1), (f"{unit} of training", 1, seconds)):
        series = [
            Curve(name, *([(point[place] / scale, point[2]) for point in split] for split in splits))
            for name, splits in told.items()
        ]
        light, dark = (curves(series, across, label, dark) for dark in (False, True))
        charts.append(Chart(light, dark, f"{label} over {across}: {ends}"))
    return [Charts(charts)]


def _drawn(artist: Artist, captions: Sequence[str], images: Sequence[np.ndarray] = (), first: int = 0) -> list[Card]:
    """A card a caption: its true image where there is one, what was drawn from noise `first` ..., and that sharpened.

    A model that takes no captions is shown none, and no image belongs to what it draws.
    """
    from pipeline.figures.html import Card, Tile

    if not artist.captioned:
        captions, images = NUMBERED[: len(captions)], ()
    drawn = artist.draw(captions, rows=range(first, first + len(captions)))
    columns = {"true image": images} if len(images) else {}
    columns["drawn"] = drawn.images.numpy()
    if drawn.sharpened is not None:
        columns["sharpened"] = drawn.sharpened.numpy()
    return [
        Card(caption, [Tile(several[i], f"{name}: {caption}", name) for name, several in columns.items()])
        for i, caption in enumerate(captions)
    ]


def _tiles(images: np.ndarray, caption: str) -> list:
    from pipeline.figures.html import Tile

    return [Tile(image, f"drawing {i}: {caption}") for i, image in enumerate(images, start=1)]


def _finished(drawn: Generated) -> np.ndarray:
    """The drawings as a system leaves them: sharpened, if it has a sharpener."""
    return (drawn.images if drawn.sharpened is None else drawn.sharpened).numpy()
