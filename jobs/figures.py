"""Pictures of what a trained run draws: captions with their drawings, the steps of drawing, attended words, flipped words:

    python -m jobs.figures digits-demo --out out

The run must be trained (jobs.train); if it has a sharpener (jobs.sharpen), drawings are shown before and after it. Captions
are drawn by the seed of the evaluation, none is selected by its result. Runs in the job's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import entry, parse
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.config import to_dict

if TYPE_CHECKING:
    from PIL import Image

ANIMATED, MAPPED, NOISES = (
    6,
    3,
    4,
)  # captions in the animation and the strip, alignment maps, drawings of a flipped caption


def main(argv: Sequence[str] | None = None) -> dict:
    """Paths of the pictures by name; the first one is `picture`."""
    arguments = parse(__doc__, argv)
    workspace = Workspace(arguments.out, arguments.config)
    with workspace.opened():
        trained, sharpened = workspace.require("train"), workspace.finished("sharpen")
        shown = {"drawing": trained["checkpoint"], "sharpener": sharpened["checkpoint"] if sharpened else None}
        result = workspace.finished("figures")
        if result is not None and shown.items() <= result.items():
            print(f"run {arguments.config.name} has its pictures in {workspace.stage('figures')}", flush=True)
            return result
        return _draw(workspace, trained, shown)


def _draw(workspace: Workspace, trained: dict, shown: dict) -> dict:
    from pipeline.shards.manifest import load_manifest

    folder = workspace.stage("figures")
    with workspace.tracker("figures") as tracker:
        tracker.params(to_dict(workspace.config))
        tracker.tags({"data": load_manifest(trained["dataset"]).digest, **shown})
        pictures = {}
        for name, picture in _pictures(workspace.config.evaluation.seed, trained, shown).items():
            pictures[name] = _save(storage.join(folder, name), picture)
            tracker.artifact(pictures[name])
            print(f"figures: {pictures[name]}", flush=True)
        made = {**shown, "picture": pictures["captions"], "pictures": pictures, "mlflow_run_id": tracker.run_id}
        return workspace.finish("figures", made)


def _pictures(seed: int, trained: dict, shown: dict) -> dict[str, Image.Image | list[Image.Image]]:
    """Name -> a picture, or the frames of an animation."""
    from pipeline import checkpoint
    from pipeline.figures.captions import DIGIT_FLIPS, FLIPS
    from pipeline.figures.flips import flips
    from pipeline.figures.heatmap import heatmap
    from pipeline.figures.sheet import sheet
    from pipeline.figures.steps import frames, strip
    from pipeline.generate import draw_captions
    from pipeline.shards.manifest import description
    from pipeline.text.vocabulary import tokenize

    model, origin, step = checkpoint.load_model(shown["drawing"])
    sharpener = checkpoint.load_sharpener(shown["sharpener"]) if shown["sharpener"] else None
    drawer = model, origin.vocabulary
    about = description(trained["dataset"])
    digits = about["config"]["source"] in ("digits", "mnist")
    sections = (_digit_sections if digits else _photograph_sections)(trained["dataset"], about, drawer, sharpener, seed)
    note = f"{origin.config.name} after {step:,} training steps. Captions and noise by seed {seed}, not selected."
    made: dict = {"captions": sheet("Drawn from captions", sections, note=note)}

    captions = [caption for section in sections[:2] for caption in section.captions[:3]][:ANIMATED]
    drawn = draw_captions(*drawer, captions, seed, steps=True)
    if drawn.canvases is not None:
        canvases = drawn.canvases.numpy()
        words = [tokenize(caption) for caption in captions]
        alignments = None if drawn.alignments is None else drawn.alignments.numpy()
        made["steps"] = strip("How a drawing comes about", captions[:4], canvases[:, :4])
        made["animation"] = frames(words, canvases, alignments)
        if alignments is not None:
            for number, i in enumerate(range(0, len(captions), -(-len(captions) // MAPPED)), start=1):
                title = "Where it looked while it drew"
                made[f"alignment-{number}"] = heatmap(title, words[i], alignments[:, i], canvases[:, i])

    groups = []
    for group in DIGIT_FLIPS if digits else FLIPS:
        if not origin.vocabulary.unknown(group):  # a word that training never saw cannot be flipped
            rows = list(range(NOISES)) * len(group)
            images = draw_captions(*drawer, group, seed, sharpener, NOISES, rows=rows)
            images = images.images if images.sharpened is None else images.sharpened
            groups.append((group, images.numpy().reshape(len(group), NOISES, *images.shape[1:])))
    if groups:
        made["flips"] = flips("Other words, same noise", groups)
    return made


def _digit_sections(dataset: str, about: dict, drawer: tuple, sharpener: object, seed: int) -> list:
    """Seen and held-out combinations of digits and places."""
    from pipeline.on_ray.score import caption_groups

    groups = caption_groups(about["facts"], 6, seed)
    held_out = groups["one_digit/held_out"][:3] + groups["two_digits/held_out"][:3]
    headings = {
        "One digit, at places where training showed it": groups["one_digit/seen"],
        "Two digits, in combinations that training showed": groups["two_digits/seen"],
        "Held out: digits at places where training never showed them": held_out,
    }
    return [_section(heading, captions, drawer, sharpener, seed) for heading, captions in headings.items()]


def _photograph_sections(dataset: str, about: dict, drawer: tuple, sharpener: object, seed: int) -> list:
    """Captions of the test split beside their photographs, and captions that no photograph has."""
    import numpy as np

    from pipeline.figures.captions import NOVEL
    from pipeline.on_ray.score import read_split
    from pipeline.shards.manifest import load_manifest

    images, captions = read_split(load_manifest(dataset), "test", 512)
    chosen = np.random.default_rng(seed).permutation(len(captions))[:9]
    photographs = images[chosen].numpy() / 255
    return [
        _section("Captions of the test split", [captions[i] for i in chosen], drawer, sharpener, seed, photographs),
        _section("Scenes that no photograph shows", list(NOVEL), drawer, sharpener, seed),
    ]


def _section(
    heading: str, captions: list[str], drawer: tuple, sharpener: object, seed: int, photographs: object = None
) -> object:
    from pipeline.figures.sheet import Section
    from pipeline.generate import draw_captions

    drawn = draw_captions(*drawer, captions, seed, sharpener)
    columns = {} if photographs is None else {"photograph": photographs}
    columns["drawn"] = drawn.images.numpy()
    if drawn.sharpened is not None:
        columns["sharpened"] = drawn.sharpened.numpy()
    return Section(heading, captions, columns)


def _save(path: str, picture: Image.Image | list[Image.Image]) -> str:
    """A PNG, or a GIF where there are several frames; the path with its ending."""
    from pipeline.figures.steps import save_animation

    path += ".gif" if isinstance(picture, list) else ".png"
    with storage.publishing(path) as part:
        if isinstance(picture, list):
            save_animation(part, picture)
        else:
            picture.save(part, "PNG", optimize=True)
    return path


if __name__ == "__main__":
    entry(main)
