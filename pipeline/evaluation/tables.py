"""Several systems as tables: the paper's two (bounds; retrieval and similarity), and those that say what to make of them.

They are what jobs.compare prints, logs and puts on its page. The published figures stand beside ours in columns of their own:
they are COCO's. What a system does not have is a dash. A table is markdown with a heading and a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.evaluation.compare import Gap
from pipeline.evaluation.published import Published

NONE = "-"
GROUPS = {
    "one_digit/seen": "one digit, seen",
    "one_digit/held_out": "one digit, held out",
    "two_digits/seen": "two digits, seen",
    "two_digits/held_out": "two digits, held out",
}
VERDICTS = {"number": "number of digits", "digits": "identities", "places": "positions", "right": "all"}
WAYS = {
    "": "ratio to the mean sentence (the paper)",
    "any/": "ratio to the mean over captions",
    "plain/": "p(x given y)",
    "other/": "the paper's ratio, with the caption of another image",
}


@dataclass(frozen=True)
class System:
    """One row: what was measured of a system, what its training cost, and what was published of it."""

    name: str
    figures: Mapping[str, float]
    cost: Mapping[str, float] = field(default_factory=dict)  # step, images, seconds, cpu_seconds, parameters
    published: Published | None = None


@dataclass(frozen=True)
class Table:
    heading: str
    markdown: str
    note: str


def bound_table(systems: Sequence[System]) -> Table:
    """The paper's table of lower bounds, with what frames a bound and what each system's training cost."""
    head = ["system", "train", "test", "test, sharpened"]
    head += [f"published on COCO: {column}" for column in ("train", "test", "test, sharpened")]
    head += ["steps", "images seen", "seconds", "CPU-seconds", "parameters"]
    rows = []
    for system in systems:
        ours = [_mean(system.figures, name) for name in ("train/bound", "test/bound", "test/sharpened/bound")]
        theirs = [_number(getattr(system.published, name, None), "{:.2f}") for name in ("train", "test", "sharpened")]
        cost = [_number(system.cost.get(name), "{:,.0f}") for name in ("step", "images", "seconds", "cpu_seconds")]
        rows.append([system.name, *ours, *theirs, *cost, _parameters(system.cost.get("parameters"))])
    for label, name in (
        ("the best possible: minus the entropy of the images", "floor"),
        ("every image in its flat mean colour", "flat"),
    ):
        known = next((s.figures for s in systems if f"test/{name}" in s.figures), {})
        rows.append([label, *(_mean(known, f"{split}/{name}", "-{:.1f}") for split in ("train", "test"))])
    note = (
        "Lower bound on log p(image given caption), nats an image ± standard error; a Bernoulli likelihood of the image of "
        "every system, also of those trained by least squares. Train and test: the same number of images. After sharpening "
        "the sharpened image is the mean, with the KL of the drawing. CPU-seconds are of all training workers; a sharpener "
        "and a sentence encoder are extra."
    )
    return Table("Lower bound", _markdown(head, rows), note)


def retrieval_table(systems: Sequence[System]) -> Table:
    """The paper's table of retrieval and similarity."""
    cuts, chance = _cuts(systems), _chance(systems)
    head = ["system", *(f"R@{k}" for k in cuts), "median rank", "SSI", "SSI, sharpened"]
    head += ["published on COCO: R@1 / 5 / 10 / 50", "published on COCO: median rank", "published on COCO: SSI"]
    rows = []
    for system in systems:
        ranked = _ranking(system.figures, "retrieval/", cuts)
        alike = [_spread(system.figures, name) for name in ("ssi", "ssi/sharpened")]
        rows.append([system.name, *ranked, *alike, *_published_ranking(system.published)])
    if chance:
        rows.append(["chance", *_chance_levels(chance, "retrieval/", cuts)])
    candidates, queries = (round(chance.get(f"retrieval/{name}", 0)) for name in ("candidates", "queries"))
    note = (
        f"R@k: % of {queries:,} test captions whose image is among the first k of {candidates}: the true image and those "
        "that look most like it (digits: to the judge's hidden layer; photographs: by their pixels at 8x8, or to the network of "
        "evaluation.features), ranked by the ratio of p(image given caption) to p(image given the mean sentence); in "
        "brackets 95 % bootstrap intervals over captions. SSI: structural similarity of drawings to the image of their "
        "caption, mean ± standard deviation over drawings. A system without a bound ranks nothing."
    )
    return Table("Retrieval and similarity", _markdown(head, rows), note)


def ways_table(systems: Sequence[System]) -> Table:
    """The same queries ranked by other scores."""
    cuts = [k for k in _cuts(systems) if k in (1, 10)]
    head = ["system", "ranked by", *(f"R@{k}" for k in cuts), "median rank"]
    rows = [
        [system.name, label, *_ranking(system.figures, f"retrieval/{way}", cuts)]
        for system in systems
        for way, label in WAYS.items()
        if f"retrieval/{way}median_rank" in system.figures
    ]
    if chance := _chance(systems):
        rows.append(["chance", "nothing", *_chance_levels(chance, "retrieval/", cuts)])
    note = (
        "What dividing by the ease of an image does: some images are likely under every caption, and p(x given y) alone finds "
        "those. An image stands amid its own neighbours, so a score that says nothing of the caption need not rank it like "
        "chance: what a caption tells is what its row has over that with the caption of another image."
    )
    return Table("Retrieval by other scores", _markdown(head, rows), note)


def full_table(systems: Sequence[System]) -> Table | None:
    """The same queries among all images that were measured; None where no system was ranked so."""
    way = "retrieval/full/"
    if not (chance := _chance(systems, way)):
        return None
    cuts = _cuts(systems, way)
    rows = [
        [system.name, *_ranking(system.figures, way, cuts), _between(system.figures, f"{way}plain/median_rank")]
        for system in systems
        if f"{way}median_rank" in system.figures
    ]
    levels = _chance_levels(chance, way, cuts)
    rows.append(["chance", *levels, levels[-1]])
    note = (
        f"As above, among all {round(chance[f'{way}candidates']):,} images whose caption is another, not only those "
        "that look most alike. The paper ranks shortlists alone."
    )
    head = ["system", *(f"R@{k}" for k in cuts), "median rank", "median rank by p(x given y)"]
    return Table("Retrieval among all images", _markdown(head, rows), note)


def gap_table(first: str, gaps: Mapping[str, Mapping[str, Gap]]) -> Table:
    """Differences of the other systems to the first, in pairs."""
    named = [name for found in gaps.values() for name in found]
    columns = {
        "bound": ("test/bound", 1, "{:+.2f}"),
        "bound, sharpened": ("test/sharpened/bound", 1, "{:+.1f}"),
        **{f"R@{k}": (f"retrieval/r_at_{k}", 100, "{:+.1f}") for k in (1, 5, 10, 50)},
        "median rank": ("retrieval/median_rank", 1, "{:+.1f}"),
        "median rank among all": ("retrieval/full/median_rank", 1, "{:+.1f}"),
        "SSI": ("ssi/mean", 1, "{:+.3f}"),
        "SSI, sharpened": ("ssi/sharpened/mean", 1, "{:+.3f}"),
        **{f"{label}: all right": (f"drawn/{group}/right", 100, "{:+.1f}") for group, label in GROUPS.items()},
    }
    columns = {heading: column for heading, column in columns.items() if column[0] in named}
    rows = [[name, *(_gap(found.get(c[0]), *c[1:]) for c in columns.values())] for name, found in gaps.items()]
    note = (
        f"Each system minus {first}, with 95 % intervals: of bounds (nats), similarities and shares (% points) over images, "
        "or captions in pairs; of R@k (% points) and the median rank by a bootstrap that draws the same captions for "
        "both. A star: the interval does not hold 0. A lower rank is better."
    )
    return Table(f"Differences to {first}", _markdown(["system", *columns], rows), note)


def faithfulness_table(systems: Sequence[System]) -> Table:
    """Shares of drawings of digits that show what their caption asks for, as the judge reads them."""
    rows = []
    for system in systems:
        for kind in ("", "sharpened/"):
            for group, label in GROUPS.items():
                names = [f"drawn/{kind}{group}/{verdict}" for verdict in VERDICTS]
                if names[0] in system.figures:
                    drawn = f"{system.name}, sharpened" if kind else system.name
                    rows.append([drawn, label, *(_share(system.figures, name) for name in names)])
    judge = next((s.figures for s in systems if "judge/accuracy" in s.figures), {})
    for name, label in (
        ("one_digit", "one digit"),
        ("two_digits", "two digits"),
        ("held_out", "held-out combinations"),
    ):
        rows.append(["the judge on real canvases", label, "", "", "", _share(judge, f"judge/{name}")])
    note = (
        "% of drawings, mean over captions ± standard error, that a classifier of real placed digits reads as they say: as many digits, "
        "the same digits wherever they are, something at the right places and nowhere else, all of it. Held out: captions "
        "with a digit where no training caption names it; of one digit, no training image shows it there either."
    )
    return Table("Faithfulness to the caption", _markdown(["system", "captions", *VERDICTS.values()], rows), note)


def telling_table(told: Mapping[str, Mapping[str, float]], captions: int) -> Table:
    """What a captioner finds in drawings; told: what was shown -> figures of its rankings, plain and "ratio/"."""
    some = next(iter(told.values()))
    cuts = [k for k in (1, 10) if f"r_at_{k}" in some]
    head = ["shown to the captioner"]
    for way in ("log p(caption)", "ratio to a mean image"):
        head += [*(f"{way}: R@{k}" for k in cuts), f"{way}: median rank"]
    rows = []
    for shown, figures in told.items():
        cells = []
        for way in ("", "ratio/"):
            cells += _ranking(figures, way, cuts)
        rows.append([shown, *cells])
    rows.append(["chance", *2 * _chance_levels(some, "", cuts)])
    note = (
        f"Of {captions:,} test captions, each drawn once: where a captioner that was trained on real images ranks the true "
        f"caption among {round(some['candidates']) - 1} others, given the drawing; by its log p(caption given image), and by "
        "that less its log p(caption given a mean image). Brackets: 95 % bootstrap intervals over captions."
    )
    return Table("Text to image to text", _markdown(head, rows), note)


# ---- cells


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Words stand left, numbers right; rows that are shorter than the head end with dashes."""
    rows = [[*row, *[NONE] * (len(head) - len(row))] for row in rows]
    left = {0} | {i for i, name in enumerate(head) if name in ("ranked by", "captions")}
    rule = ["---" if i in left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), rule, *rows])


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _mean(figures: Mapping[str, float], name: str, form: str = "{:.1f}") -> str:
    """A mean in nats with its standard error."""
    if name not in figures:
        return NONE
    error = f" ± {figures[f'{name}_se']:.1f}" if f"{name}_se" in figures else ""
    return form.format(figures[name]) + error


def _share(figures: Mapping[str, float], name: str) -> str:
    """A share in %, with its interval or its standard error where there is one."""
    if name not in figures:
        return NONE
    text = _percent(figures[name])
    if f"{name}_low" in figures:
        return f"{text} ({_percent(figures[f'{name}_low'])} to {_percent(figures[f'{name}_high'])})"
    return f"{text} ± {_percent(figures[f'{name}_se'])}" if f"{name}_se" in figures else text


def _between(figures: Mapping[str, float], name: str) -> str:
    """A rank with its interval."""
    if name not in figures:
        return NONE
    middle, low, high = (f"{round(figures[f'{name}{end}'], 1):g}" for end in ("", "_low", "_high"))
    return f"{middle} ({low} to {high})"


def _spread(figures: Mapping[str, float], name: str) -> str:
    """A similarity with its standard deviation over drawings."""
    if f"{name}/mean" not in figures:
        return NONE
    spread = f" ± {figures[f'{name}/std']:.3f}" if f"{name}/std" in figures else ""
    return f"{figures[f'{name}/mean']:.3f}{spread}"


def _gap(gap: Gap | None, scale: float, form: str) -> str:
    if gap is None:
        return NONE
    mean, low, high = (form.format(scale * value) for value in (gap.mean, gap.low, gap.high))
    return f"{mean} ({low} to {high})" + (" *" if gap.low > 0 or gap.high < 0 else "")


def _parameters(count: float | None) -> str:
    return NONE if count is None else f"{count / 1e6:.2f} M"


def _published_ranking(row: Published | None) -> list[str]:
    if row is None:
        return [NONE] * 3
    recalls = NONE if row.r_at is None else " / ".join(f"{share:.1f}" for share in row.r_at)
    return [recalls, _number(row.median_rank, "{}"), f"{row.ssi:g} ± {row.ssi_std:.2f}"]


def _ranking(figures: Mapping[str, float], way: str, cuts: Sequence[int]) -> list[str]:
    """R@k and the median rank by one way to rank."""
    return [*(_share(figures, f"{way}r_at_{k}") for k in cuts), _between(figures, f"{way}median_rank")]


def _chance_levels(figures: Mapping[str, float], way: str, cuts: Sequence[int]) -> list[str]:
    """What chance gives in their place."""
    return [*(_percent(figures[f"{way}chance/r_at_{k}"]) for k in cuts), f"{figures[f'{way}chance/median_rank']:.1f}"]


def _cuts(systems: Sequence[System], way: str = "retrieval/") -> list[int]:
    """The k of which there is an R@k."""
    chance = _chance(systems, way)
    return [k for k in (1, 5, 10, 50) if not chance or f"{way}chance/r_at_{k}" in chance]


def _chance(systems: Sequence[System], way: str = "retrieval/") -> Mapping[str, float]:
    """The figures of a system that ranks so: what chance gives is the same for all."""
    return next((s.figures for s in systems if f"{way}chance/median_rank" in s.figures), {})
