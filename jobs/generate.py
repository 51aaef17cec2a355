"""Draw captions with a registered model, in batches on workers of a Ray cluster:

    python -m jobs.generate --model champion --captions captions.txt --out out
    python -m jobs.generate --model digits-demo/3 --captions captions.txt --out out --seed 7 --each 4

--model: `champion`, `previous` or a version's number, as NAME@champion or NAME/3 where the registry has several names; or the
folder of a run (out/runs/digits-demo), of a version, or of a checkpoint. One caption a line. Made are a PNG a drawing, a contact
sheet of the first ones, and captions.json: for each caption its files, and the words that the model does not know.

The same model, captions and seed give the same pictures, on any number of workers. Beyond its start a worker spends what
benchmarks/train.py measures for sampling, and 3 % more (2026-11-22).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.arguments import absolute, entry
from pipeline import storage
from pipeline.config import DRAWLESS
from pipeline.tracking import tracking_uri

if TYPE_CHECKING:
    import numpy as np

    from pipeline.text.vocabulary import Vocabulary

MOST_BYTES, MOST_CAPTIONS = 2**26, 1_000_000
MOST_WORDS = 256  # Choice: no caption is longer; a batch is padded to its longest, so one that is would take all memory
REGISTERED = re.compile(
    r"((?P<name>[^/@]+)@)?(?P<alias>[A-Za-z]\w*)|((?P<of>[^/@]+)/)?(?P<number>\d+)"
)  # else it is a folder
ON_SHEET = 60  # drawings on the contact sheet


@dataclass(frozen=True)
class Model:
    """What is drawn with: checkpoints that every worker can read."""

    title: str
    drawing: str
    sharpener: str | None
    dataset: str = ""  # where sentence vectors lie, for the models that take them


@dataclass(frozen=True)
class Line:
    """A caption of the file."""

    text: str
    drawn: str  # as it is drawn: cut where it is too long
    words: int
    unknown: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> dict:
    """Where the drawings are, and what the model did not understand."""
    options = _parser().parse_args(argv)
    if min(options.each, options.workers, options.batch) < 1:
        raise ValueError("--each, --workers and --batch are at least 1")
    out = absolute(options.out)
    texts = read_captions(absolute(options.captions))
    model = find_model(options.model, out)

    from pipeline import checkpoint

    origin = checkpoint.load(model.drawing, optimizers=False).origin
    if (kind := origin.config.model.kind) in DRAWLESS:
        raise ValueError(f"--model {options.model}: a {kind} draws nothing; name a model of another kind")
    vocabulary = origin.vocabulary
    lines = [look(text, vocabulary) for text in texts]
    report = _tell(lines)
    name = hashlib.sha256(json.dumps([texts, options.seed, options.each]).encode()).hexdigest()[:10]
    folder = absolute(options.to) if options.to else storage.join(out, "generated", f"{_plain(model.title)}-{name}")
    drawings = _draw(model, lines, options)
    files = [f"{row:05}.png" for row in range(len(drawings))]
    _publish(folder, files, drawings)
    listed = [
        {
            "caption": line.text,
            "files": files[i * options.each : (i + 1) * options.each],
            "words": line.words,
            "unknown": line.unknown,
            "cut": line.words > MOST_WORDS,
        }
        for i, line in enumerate(lines)
    ]
    sheet = storage.join(folder, "sheet.png")
    _sheet(sheet, model, lines, drawings, options)
    about = {"model": model.title, "seed": options.seed, "each": options.each, "captions": listed}
    storage.publish_text(storage.join(folder, "captions.json"), json.dumps(about, ensure_ascii=False, indent=1))
    print(f"{len(files)} drawings of {len(lines)} captions in {folder}, the first ones on {sheet}", flush=True)
    return {
        "model": model.title,
        "folder": folder,
        "sheet": sheet,
        "drawings": len(files),
        "captions": len(lines),
        **report,
    }


def read_captions(path: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    try:
        text = storage.read_bytes(path, limit=MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"--captions {path}: there is no such file; one caption a line is expected") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--captions {path} is not UTF-8 text (byte {error.start})") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not 0 < len(lines) <= MOST_CAPTIONS:
        raise ValueError(
            f"--captions {path} has {len(lines):,} captions: 1 to {MOST_CAPTIONS:,} are allowed, one a line"
        )
    return lines


def look(text: str, vocabulary: Vocabulary) -> Line:
    """A caption as this vocabulary sees it."""
    from pipeline.text.vocabulary import tokenize

    words = tokenize(text)
    drawn = text if len(words) <= MOST_WORDS else " ".join(words[:MOST_WORDS])
    return Line(text, drawn, len(words), tuple(vocabulary.unknown([drawn])))


def find_model(which: str, out: str) -> Model:
    """A version of the registry, or a folder."""
    from pipeline import checkpoint, registry

    if (version := REGISTERED.fullmatch(which)) is not None:
        return _registered(version["name"] or version["of"], version["alias"] or version["number"], out)
    place = absolute(which)
    if storage.exists(storage.join(place, registry.ABOUT)):
        return _of_version(registry.read_version(place), place)
    if storage.exists(storage.join(place, checkpoint.META)):
        return Model(place, place, None)
    if storage.exists(made := storage.join(place, "train", "result.json")):
        trained = json.loads(storage.read_text(made))
        sharpened = storage.join(place, "sharpen", "result.json")
        sharpener = json.loads(storage.read_text(sharpened))["checkpoint"] if storage.exists(sharpened) else None
        return Model(place.rstrip("/").rpartition("/")[2], trained["checkpoint"], sharpener, trained["dataset"])
    raise ValueError(f"--model {which}: {place} is no folder of a run, a version or a checkpoint")


def _registered(name: str | None, which: str, out: str) -> Model:
    """A version of the registry, by its alias or number."""
    from pipeline import registry

    if (uri := tracking_uri()) is None:
        raise ValueError(f"--model {which} is a version of the registry: set MLFLOW_TRACKING_URI, or name a folder")
    if name is None:
        known = registry.names(uri)
        if len(known) != 1:
            raise ValueError(f"--model {which}: the registry has {', '.join(known) or 'no models'}; say NAME@champion")
        name = known[0]
    versions = registry.Registry(uri, name)
    if (number := versions.named(which)) is None:
        there = ", ".join(str(version.version) for version in versions.versions()) or "none"
        raise ValueError(f"--model {which}: {name} has no such version; it has {there}")
    found = versions.fetch(number, storage.join(out, "models", name, str(number)))
    return _of_version(found, f"{name} version {number}")


def _of_version(version: object, title: str) -> Model:
    return Model(title, version.drawing, version.sharpener, version.about.get("dataset", ""))


def _tell(lines: Sequence[Line]) -> dict:
    """Say what the model does not know; the same as facts."""
    unknown = Counter(word for line in lines for word in line.unknown)
    cut = sum(line.words > MOST_WORDS for line in lines)
    if unknown:
        shown = ", ".join(word for word, _ in unknown.most_common(10))
        count = sum(bool(line.unknown) for line in lines)
        print(f"{count} captions have words that the model never saw ({len(unknown)}: {shown}): drawn as unknown words")
    if cut:
        print(f"{cut} captions have more than {MOST_WORDS} words: the rest of them is not drawn")
    return {
        "unknown_words": len(unknown),
        "captions_with_unknown_words": sum(bool(line.unknown) for line in lines),
        "cut": cut,
    }


def _draw(model: Model, lines: Sequence[Line], options: argparse.Namespace) -> np.ndarray:
    """(captions x each, C, H, W) uint8, those of a caption side by side; sharpened where the model can."""
    from functools import partial

    import numpy as np

    from pipeline.config import EvaluationConfig
    from pipeline.on_ray.connect import connect
    from pipeline.on_ray.pool import Block, Pool
    from pipeline.on_ray.score import Order, Scorer

    settings = EvaluationConfig(seed=options.seed, batch=options.batch, workers=options.workers, gpu=options.gpu)
    order = Order(model.dataset, model.drawing, None if options.unsharpened else model.sharpener, settings)
    captions = [line.drawn for line in lines for _ in range(options.each)]
    words = [line.words for line in lines for _ in range(options.each)]
    # captions of like length together: little padding. The blocks follow from the file alone, so pictures do as well
    rows = np.argsort(words, kind="stable")
    parts = [rows[start : start + options.batch] for start in range(0, len(rows), options.batch)]
    blocks = [Block("drawings", ([captions[row] for row in part], part.tolist())) for part in parts]
    connect()
    with Pool(partial(Scorer, order), workers=min(options.workers, len(blocks)), gpu=options.gpu) as pool:
        found = pool.run({"": blocks})[""]
    kind = "sharpened/" if order.sharpener else ""
    drawn = np.concatenate([part[kind] for part in found])
    return drawn[np.argsort(rows, kind="stable")]


def _publish(folder: str, files: Sequence[str], drawings: np.ndarray) -> None:
    """Write the PNGs; several at a time, for an object store takes tens of ms each."""
    import io
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    def write(name: str, drawing: np.ndarray) -> None:
        content = io.BytesIO()
        pixels = drawing.transpose(1, 2, 0)
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
        storage.publish_bytes(storage.join(folder, name), content.getvalue(), durable=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, files, drawings))


def _sheet(path: str, model: Model, lines: Sequence[Line], drawings: np.ndarray, options: argparse.Namespace) -> None:
    from pipeline.figures.sheet import Section, sheet

    count = max(1, min(len(lines), ON_SHEET // options.each))
    images = drawings[: count * options.each].reshape(count, options.each, *drawings.shape[1:]) / 255
    names = [""] if options.each == 1 else [f"{i + 1}" for i in range(options.each)]
    heading = f"{count} of {len(lines)} captions" if count < len(lines) else f"{count} captions"
    shown = [" ".join(line.drawn.split()[:40]) for line in lines[:count]]
    section = Section(heading, shown, {name: images[:, i] for i, name in enumerate(names)})
    picture = sheet("Drawn from captions", [section], note=f"{model.title}, seed {options.seed}")
    with storage.publishing(path) as part:
        picture.save(part, "PNG", optimize=True)


def _plain(title: str) -> str:
    """A title as a folder's name."""
    return "-".join(title.rstrip("/").rpartition("/")[2].split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="champion, a version's number, NAME@champion, NAME/3, or a folder"
    )
    parser.add_argument("--captions", required=True, help="file of captions, one a line, UTF-8; local, s3:// or gs://")
    parser.add_argument("--out", default="out", help="the folder that the jobs were given")
    parser.add_argument("--to", help="folder of the drawings (default: OUT/generated/MODEL-DIGEST)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--each", type=int, default=1, help="drawings of each caption")
    parser.add_argument("--unsharpened", action="store_true", help="leave the sharpener out")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--batch", type=int, default=100, help="captions drawn at once by a process")
    parser.add_argument("--gpu", action="store_true", help="one GPU a process")
    return parser


if __name__ == "__main__":
    entry(main)
