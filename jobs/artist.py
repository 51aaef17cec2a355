"""A trained run that draws captions, for the jobs that make pictures, and which captions they show. Nothing is selected by
its result: a seed chooses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from pipeline.sample import Generated


SUBJECTS = {  # what the images of a source show
    "digits": "placed digits",
    "mnist": "placed digits",
    "binary-mnist": "binarised MNIST",
    "coco": "photographs",
}
DRAWINGS = 8  # of a caption, over which the weights of its words are averaged: another noise, another weight
NUMBERED = [f"drawing {i}" for i in range(1, 10)]  # what stands below the drawings of a model without captions


class Artist:
    """The best checkpoint of a run, with its sharpener if it has one; drawings are seeded as its evaluation is."""

    def __init__(self, workspace: Workspace):
        import torch

        from pipeline import checkpoint
        from pipeline.on_ray.sentences import sentences_for

        trained, sharpened = workspace.require("train"), workspace.finished("sharpen")
        self.workspace, self.dataset = workspace, trained["dataset"]
        self.checkpoints = checkpoints_of(workspace)
        self.model, self.origin, self.step = checkpoint.load_model(trained["checkpoint"])
        self.sharpener: torch.nn.Module | None = sharpened and checkpoint.load_sharpener(sharpened["checkpoint"])
        self.seed = workspace.config.evaluation.seed
        self._vectors = sentences_for(self.origin.config, self.dataset)

    def draw(self, captions: Sequence[str], sharpened: bool = True, each: int = 1, **options: object) -> Generated:
        """Drawings of captions (pipeline/generate.py), and what the sharpener makes of them."""
        import numpy as np
        import torch

        from pipeline.generate import draw_captions

        captions = list(captions)
        sentences = self._vectors and torch.from_numpy(np.array(self._vectors(captions), np.float32))
        refine = self.sharpener if sharpened else None
        vocabulary = self.origin.vocabulary
        return draw_captions(self.model, vocabulary, captions, self.seed, refine, each, sentences=sentences, **options)

    def attention(self, captions: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(captions, DRAWINGS, T, N): what several drawings of each caption attended to, the first from noise `rows`."""
        noises = [row + 1_000 * drawing for row in rows for drawing in range(DRAWINGS)]
        drawn = self.draw(captions, sharpened=False, each=DRAWINGS, rows=noises)
        return drawn.alignments.swapaxes(0, 1).unflatten(0, (len(captions), DRAWINGS)).numpy()

    def knows(self, captions: Sequence[str]) -> bool:
        """Whether training had all the words: one that it never saw says nothing to it."""
        return not self.origin.vocabulary.unknown(list(captions))

    def known(self, captions: Sequence[str]) -> list[str]:
        """Those of which it knows all words."""
        return [caption for caption in captions if self.knows([caption])]

    @cached_property
    def about(self) -> dict:
        """What the data set says of itself."""
        from pipeline.shards.manifest import description

        return description(self.dataset)

    @property
    def captioned(self) -> bool:
        """Whether it draws captions; plain DRAW draws from noise alone."""
        return self.workspace.config.model.caption != "none"

    @property
    def subject(self) -> str:
        """What it learned to draw."""
        return SUBJECTS[self.about["config"]["source"]]

    @property
    def digits(self) -> bool:
        """Whether it learned from placed digits, of which there are combinations that training showed or never did."""
        return self.subject == "placed digits"

    @cached_property
    def test(self) -> tuple[list[str], np.ndarray]:
        """Nine captions of the test split and their true images (9, C, H, W) in [0, 1]."""
        import numpy as np

        from pipeline.on_ray.score import read_split
        from pipeline.shards.manifest import load_manifest

        images, captions = read_split(load_manifest(self.dataset), "test", 512)
        chosen = np.random.default_rng(self.seed).permutation(len(captions))[:9]
        return [captions[i] for i in chosen], images[chosen].numpy() / 255

    def placed(self) -> dict[str, list[str]]:
        """Six captions of digits a group, "one_digit/seen" and so on: in combinations that training showed or never did."""
        from pipeline.on_ray.score import caption_groups

        return caption_groups(self.about["facts"], 6, self.seed)


def checkpoints_of(workspace: Workspace) -> dict[str, str | None]:
    """What a run's pictures are drawn with: they are out of date when these have changed."""
    sharpened = workspace.finished("sharpen")
    return {
        "drawing": workspace.require("train")["checkpoint"],
        "sharpener": sharpened["checkpoint"] if sharpened else None,
    }
