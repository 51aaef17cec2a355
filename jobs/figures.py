"""Pictures of what a trained run draws, and a page (figures/index.html) with all of them, its figures and its curves:

    python -m jobs.figures digits-demo --out out

The run must be trained (jobs.train); if it has a sharpener (jobs.sharpen), drawings are shown before and after it. Captions
are drawn by the seed of the evaluation, none is selected by its result. Runs in the job's own process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from jobs.arguments import entry, parse
from jobs.artist import NUMBERED, Artist, checkpoints_of
from jobs.compare_page import build_page
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
    """Paths of the page and of the pictures by name; the first one is `picture`."""
    arguments = parse(__doc__, argv)
    workspace = Workspace(arguments.out, arguments.config)
    workspace.check_draws()
    with workspace.opened():
        shown, result = checkpoints_of(workspace), workspace.finished("figures")
        if result is not None and shown.items() <= result.items():
            print(f"run {arguments.config.name} has its pictures in {workspace.stage('figures')}", flush=True)
            return result
        return _draw(workspace, shown)


def _draw(workspace: Workspace, shown: dict) -> dict:
    from pipeline.shards.manifest import load_manifest

    artist, folder = Artist(workspace), workspace.stage("figures")
    with workspace.tracker("figures") as tracker:
        tracker.params(to_dict(workspace.config))
        tracker.tags({"data": load_manifest(artist.dataset).digest, **shown})
        pictures = {}
        for name, picture in _pictures(artist).items():
            pictures[name] = _save(storage.join(folder, name), picture)
            tracker.artifact(pictures[name])
            print(f"figures: {pictures[name]}", flush=True)
        page = _page(workspace)
        tracker.artifact(page)
        print(f"figures: {page}", flush=True)
        made = {"picture": pictures["captions"], "page": page, "pictures": pictures, "mlflow_run_id": tracker.run_id}
        return workspace.finish("figures", {**shown, **made})


def _page(workspace: Workspace) -> str:
    """The path of a page with everything that the run has; without the table, if it was not evaluated."""
    evaluated, name = workspace.finished("evaluate"), workspace.config.name
    tables = [("", evaluated["table"], "")] if evaluated else []
    return build_page(workspace.stage("figures"), f"What {name} draws", [workspace], tables)


def _pictures(artist: Artist) -> dict[str, Picture]:
    """Name -> a picture, or the frames of an animation."""
    from pipeline.figures.captions import DIGIT_FLIPS, FLIPS
    from pipeline.figures.sheet import sheet

    sections = _sections(artist)
    starts = accumulate((len(captions) for _, captions, _ in sections), initial=0)  # every drawing has noise of its own
    sections = [_drawn(artist.draw, start, *section) for start, section in zip(starts, sections, strict=False)]
    name = artist.workspace.config.name
    given = "Captions and noise" if artist.captioned else "Noise"
    note = f"{name} after {artist.step:,} training steps. {given} by seed {artist.seed}, not selected."
    title = f"Drawn from {'captions' if artist.captioned else 'noise'}"
    made: dict[str, Picture] = {"captions": sheet(title, sections, note=note)}
    captions = [caption for section in sections[:2] for caption in section.captions[:3]]
    made |= _step_pictures(captions, artist)
    groups = [group for group in (DIGIT_FLIPS if artist.digits else FLIPS) if artist.knows(group)]
    return made | (_flip_picture(groups, artist.draw) if groups and artist.captioned else {})


def _step_pictures(captions: list[str], artist: Artist) -> dict[str, Picture]:
    """What came of every step, and the words it attended to; nothing of a model that has no steps."""
    from pipeline.figures.heatmap import heatmap
    from pipeline.figures.steps import frames, strip
    from pipeline.text.vocabulary import tokenize

    drawn = artist.draw(captions, sharpened=False, steps=True)
    if drawn.canvases is None:
        return {}
    canvases, words = drawn.canvases.numpy(), [tokenize(caption) for caption in captions]
    alignments = None if drawn.alignments is None else drawn.alignments.numpy()
    made = {
        "steps": strip("How a drawing comes about", captions[:STRIPS], canvases[:, :STRIPS]),
        "animation": frames(words, canvases, alignments),
    }
    if alignments is not None:
        shown = range(0, len(captions), -(-len(captions) // MAPS))
        looked = artist.attention([captions[i] for i in shown], shown)
        for number, (i, every) in enumerate(zip(shown, looked, strict=True), start=1):
            title = "Where it looked while it drew"
            made[f"alignment-{number}"] = heatmap(title, words[i], every, canvases[:, i])
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


def _sections(artist: Artist) -> list[tuple]:
    """Headings, captions and, by name, images that are there; what stands for captions of a model that takes none."""
    if not artist.captioned:
        return [(f"It learned from {artist.subject}, without captions", NUMBERED, {})]
    return _digit_sections(artist) if artist.digits else _image_sections(artist)


def _digit_sections(artist: Artist) -> list[tuple]:
    """Seen and held-out combinations of digits and places."""
    groups = artist.placed()
    held_out = groups["one_digit/held_out"][:3] + groups["two_digits/held_out"][:3]
    return [
        ("One digit, at places where training showed it", groups["one_digit/seen"], {}),
        ("Two digits, in combinations that training showed", groups["two_digits/seen"], {}),
        ("Held out: digits where no training caption names them", held_out, {}),
    ]


def _image_sections(artist: Artist) -> list[tuple]:
    """Captions of the test split with their images, and some that no photograph has."""
    from pipeline.figures.captions import NOVEL

    captions, images = artist.test
    sections = [("Captions of the test split", captions, {"true image": images})]
    if novel := artist.known(NOVEL):
        sections.append(("Scenes that no photograph shows", novel, {}))
    return sections


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
