"""From a command line to a run's config: a recipe's name, where the data is and goes, and any field of the config.

    python -m jobs.train mnist-aligndraw --data data/mnist --out out --train.steps 200

A job with flags of its own subclasses `Arguments`. Only the standard library and tyro are imported here, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from pipeline.config import RunConfig
from pipeline.recipes import RECIPES, find_recipe

A = TypeVar("A", bound="Arguments")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every job takes."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    data: str | None = None
    """Folder of the source: MNIST's IDX files, or COCO's annotations and images; local, s3:// or gs://."""
    out: str = "out"
    """Folder of everything that is made: shards, runs; local, s3:// or gs://."""


def parse(doc: str, argv: Sequence[str] | Arguments | None = None, kind: type[A] = Arguments) -> A:
    """Arguments from the command line; ValueError in one line when it cannot be understood.

    A job that starts another one hands it what it was itself given: then there is nothing to parse.
    """
    if isinstance(argv, Arguments):
        return argv if isinstance(argv, kind) else kind(config=argv.config, data=argv.data, out=argv.out)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        if any(word in ("-h", "--help") for word in words):
            recipe, words = "digits-demo", ["--help"]
        else:
            raise ValueError(f"a recipe's name comes first; known: {', '.join(sorted(RECIPES))}")
    else:
        recipe, words = words[0], words[1:]
    # kind(config=...) leaves the job's own flags at their defaults
    default = kind(config=find_recipe(recipe))
    usage = f"{doc}\n\nRecipes: {', '.join(sorted(RECIPES))}. Defaults below are those of {recipe}."
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = tyro.cli(
                kind,
                prog=f"python -m {_module_of(doc)} RECIPE",
                description=usage,
                default=default,
                args=words,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_one_line(complaint.getvalue())) from None
    config = arguments.config
    if config.sentences not in RECIPES:
        config = dataclasses.replace(config, sentences=absolute(config.sentences))
    places = {name: absolute(path) for name in ("data", "start_from") if (path := getattr(arguments, name, None))}
    return dataclasses.replace(arguments, config=config, out=absolute(arguments.out), **places)


def entry(main: Callable[[], dict]) -> None:
    """Run a job as a program: its result as one JSON line, last on stdout; a mistake of the user's as one line on stderr.

    ValueError and OSError are what the pipeline raises for input that cannot be used: exit code 2. Anything else is a
    fault of ours and keeps its traceback: exit code 1.
    """
    started = time.monotonic()
    if "RAY_ADDRESS" not in os.environ:
        # The job will start Ray itself (on_ray/connect.py), which would listen on every interface; read at Ray's import.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        result = main()
    except (ValueError, OSError) as error:
        sys.stdout.flush()
        print(f"error: {' '.join(str(error).split())}{_remedy(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    sys.stderr.flush()
    print(json.dumps({**result, "seconds": round(time.monotonic() - started, 1)}), flush=True)


def absolute(path: str) -> str:
    """A path as the user meant it: relative to where the job was typed, which `jobs.submit` says to a job on this machine.

    A job on a cluster runs in a copy of the code that Ray throws away; what it wrote there would be lost.
    """
    if "://" in path or os.path.isabs(path):
        return path
    if (folder := os.environ.get("CANVAS_FOLDER")) is None and "working_dir_files" in os.getcwd():
        raise ValueError(f"a job's own folder is thrown away at its end: give the absolute path instead of {path}")
    return os.path.abspath(os.path.join(folder or "", path))


def _remedy(error: Exception) -> str:
    """What to do about an error that the system words for us."""
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return ": make room where --out and the temporary folder are, then type the command again: what is finished stays"


def _module_of(doc: str) -> str:
    """The job's module, as its docstring's command names it."""
    words = doc.split()
    return words[words.index("-m") + 1] if "-m" in words else "jobs.NAME"


def _one_line(boxed: str) -> str:
    """A boxed complaint as one line: without frame, rules and the pointer to the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in boxed.splitlines()]
    kept = [line for line in lines[1:] if line and "helptext" not in line]
    return " ".join(kept) or boxed
