"""Pictures of what a trained run draws: captions with their drawings, the steps of drawing, attended words, flipped words:

    python -m jobs.figures digits-demo --out out

The run must be trained (jobs.train); if it has a sharpener (jobs.sharpen), drawings are shown before and after it. Captions
are drawn by the seed of the evaluation, none is selected by its result. Runs in the job's own process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from jobs.arguments import entry, parse
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.config import to_dict

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.figures.sheet import Section
    from pipeline.sample import Generated

    Picture = Image.Image | list[Image.Image]  # a list: the frames of an animation

STRIPS, MAPS, NOISES = 4, 3, 4  # captions in the strip, alignment maps, drawings of a flipped caption


def main(argv: Sequence[str] | None = None) -> dict:
    """Paths of the pictures by name; the first one is `picture`."""
    arguments = parse(__doc__, argv)
    workspace = Workspace(arguments.out, arguments.config)
    workspace.check_draws()
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


def _pictures(seed: int, trained: dict, shown: dict) -> dict[str, Picture]:
    """Name -> a picture, or the frames of an animation."""
    import numpy as np
    import torch

    from pipeline import checkpoint
    from pipeline.figures.captions import DIGIT_FLIPS, FLIPS
    from pipeline.figures.sheet import sheet
    from pipeline.generate import draw_captions
    from pipeline.on_ray.sentences import sentences_for
    from pipeline.shards.manifest import description

    model, origin, step = checkpoint.load_model(shown["drawing"])
    sharpener = checkpoint.load_sharpener(shown["sharpener"]) if shown["sharpener"] else None
    vectors = sentences_for(origin.config, trained["dataset"])

    def draw(captions: Sequence[str], sharpened: bool = True, each: int = 1, **options: object) -> Generated:
        sentences = None if vectors is None else torch.from_numpy(np.array(vectors(list(captions)), np.float32))
        refine = sharpener if sharpened else None
        return draw_captions(model, origin.vocabulary, captions, seed, refine, each, sentences=sentences, **options)

    about = description(trained["dataset"])
    digits = about["config"]["source"] in ("digits", "mnist")
    sections = _digit_sections(about["facts"], seed) if digits else _photograph_sections(trained["dataset"], seed)
    starts = accumulate((len(captions) for _, captions, _ in sections), initial=0)  # every drawing has noise of its own
    sections = [_drawn(draw, start, *section) for start, section in zip(starts, sections, strict=False)]
    note = f"{origin.config.name} after {step:,} training steps. Captions and noise by seed {seed}, not selected."
    made: dict[str, Picture] = {"captions": sheet("Drawn from captions", sections, note=note)}
    captions = [caption for section in sections[:2] for caption in section.captions[:3]]
    made |= _step_pictures(captions, draw(captions, sharpened=False, steps=True))
    # a word that training never saw cannot be flipped
    groups = [group for group in (DIGIT_FLIPS if digits else FLIPS) if not origin.vocabulary.unknown(group)]
    return made | (_flip_picture(groups, draw) if groups else {})


def _step_pictures(captions: list[str], drawn: Generated) -> dict[str, Picture]:
    """What came of every step, and the words it attended to; nothing of a model that has no steps."""
    from pipeline.figures.heatmap import heatmap
    from pipeline.figures.steps import frames, strip
    from pipeline.text.vocabulary import tokenize

    if drawn.canvases is None:
        return {}
    canvases, words = drawn.canvases.numpy(), [tokenize(caption) for caption in captions]
    alignments = None if drawn.alignments is None else drawn.alignments.numpy()
    made = {
        "steps": strip("How a drawing comes about", captions[:STRIPS], canvases[:, :STRIPS]),
        "animation": frames(words, canvases, alignments),
    }
    if alignments is not None:
        for number, i in enumerate(range(0, len(captions), -(-len(captions) // MAPS)), start=1):
            title = "Where it looked while it drew"
            made[f"alignment-{number}"] = heatmap(title, words[i], alignments[:, i], canvases[:, i])
    return made


def _flip_picture(groups: Sequence[Sequence[str]], draw: Callable[..., Generated]) -> dict[str, Picture]:
    """Captions of a group with the same noise in each column."""
    from pipeline.figures.flips import flips

    shown = []
    for group in groups:
        drawn = draw(group, each=NOISES, rows=list(range(NOISES)) * len(group))
        images = drawn.images if drawn.sharpened is None else drawn.sharpened
        shown.append((group, images.unflatten(0, (len(group), NOISES)).numpy()))
    return {"flips": flips("Other words, same noise", shown)}


def _digit_sections(facts: dict, seed: int) -> list[tuple]:
    """Headings, captions, no images: seen and held-out combinations of digits and places."""
    from pipeline.on_ray.score import caption_groups

    groups = caption_groups(facts, 6, seed)
    held_out = groups["one_digit/held_out"][:3] + groups["two_digits/held_out"][:3]
    return [
        ("One digit, at places where training showed it", groups["one_digit/seen"], {}),
        ("Two digits, in combinations that training showed", groups["two_digits/seen"], {}),
        ("Held out: digits at places where training never showed them", held_out, {}),
    ]


def _photograph_sections(dataset: str, seed: int) -> list[tuple]:
    """Headings, captions, images: captions of the test split with their photographs, and some that no photograph has."""
    import numpy as np

    from pipeline.figures.captions import NOVEL
    from pipeline.on_ray.score import read_split
    from pipeline.shards.manifest import load_manifest

    images, captions = read_split(load_manifest(dataset), "test", 512)
    chosen = np.random.default_rng(seed).permutation(len(captions))[:9]
    photographs = {"photograph": images[chosen].numpy() / 255}
    return [
        ("Captions of the test split", [captions[i] for i in chosen], photographs),
        ("Scenes that no photograph shows", NOVEL, {}),
    ]


def _drawn(draw: Callable[..., Generated], start: int, heading: str, captions: Sequence[str], there: dict) -> Section:
    """A section of the sheet: the images that are there, if any, and what is drawn from rows `start` ... of noise."""
    from pipeline.figures.sheet import Section

    drawn = draw(captions, rows=range(start, start + len(captions)))
    columns = {**there, "drawn": drawn.images.numpy()}
    if drawn.sharpened is not None:
        columns["sharpened"] = drawn.sharpened.numpy()
    return Section(heading, captions, columns)


def _save(path: str, picture: Picture) -> str:
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
