"""Scoring on Ray: lost workers change nothing, nor does their number; and what is measured is what one process measures."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoint, storage
from pipeline.checkpoint import Origin
from pipeline.evaluation import judge as judges
from pipeline.evaluation.retrieval import found_within
from pipeline.evaluation.values import to_bytes
from pipeline.generate import PRIOR, row_noise
from pipeline.models.build import build_model
from pipeline.on_ray import score
from pipeline.on_ray.pool import TRIES, Block, Pool
from pipeline.on_ray.score import (
    Order,
    Scorer,
    caption_groups,
    corner_pairs,
    evaluate,
    grey,
    next_other,
    read_split,
    regions,
    wanted,
)
from pipeline.recipes import find_recipe
from pipeline.sample import Batch, Generated
from pipeline.shards.manifest import VOCABULARY, description
from pipeline.sources import open_source
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.adversarial import lapgan_state, sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState

RECIPE = find_recipe("tiny-aligndraw")


class Counter:
    """A worker that squares numbers, writes down what it is asked, and dies or complains where a file says so."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        if (self.folder / "unmade").exists():
            raise ValueError("no such model")

    def square(self, number: int) -> int:
        with open(self.folder / "asked", "a") as log:
            log.write(f"{number}\n")
        trouble = self.folder / f"kill-{number}"
        if trouble.exists():
            if not (self.folder / "always").exists():
                trouble.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ValueError(f"{number} is negative")
        time.sleep(0.01)
        return number**2


def squares(folder: Path, numbers: list[int], workers: int = 2) -> list[int]:
    with Pool(partial(Counter, str(folder)), workers=workers, log=lambda line: None) as pool:
        return pool.run({"squares": [Block("square", (number,)) for number in numbers]})["squares"]


def asked(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "asked").read_text().split()]


def test_results_come_in_the_order_of_the_blocks_each_done_once(ray_cluster: str, tmp_path: Path) -> None:
    numbers = list(range(30))
    assert squares(tmp_path, numbers) == [number**2 for number in numbers]
    assert sorted(asked(tmp_path)) == numbers


def test_the_block_of_a_lost_worker_is_done_by_another(ray_cluster: str, tmp_path: Path) -> None:
    for number in (0, 7):
        (tmp_path / f"kill-{number}").touch()
    assert squares(tmp_path, list(range(12))) == [number**2 for number in range(12)]
    assert sorted(asked(tmp_path)) == sorted([*range(12), 0, 7])


def test_a_block_that_ends_every_worker_is_named(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "kill-3").touch()
    (tmp_path / "always").touch()
    with pytest.raises(RuntimeError, match=rf"square\(3\) ended {TRIES} workers"):
        squares(tmp_path, [1, 2, 3], workers=1)


def test_what_a_worker_complains_of_is_raised_as_it_is(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^-1 is negative$"):
        squares(tmp_path, [1, -1])
    (tmp_path / "unmade").touch()
    with pytest.raises(ValueError, match=r"^no such model$"):
        squares(tmp_path, [1])


@pytest.fixture(scope="module")
def order(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Order:
    """Untrained models of the tiny recipe, saved, and few images of each kind to measure."""
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("models"))
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    origin = Origin(RECIPE, vocabulary, 60, 1)
    model = build_model(RECIPE.model, len(vocabulary), 60, 1)
    drawing = checkpoint.save(f"{folder}/train", TrainState.of(model, make_optimizer(model, RECIPE.train)), origin)
    sharpener = checkpoint.save(f"{folder}/sharpen", sharpener_state(model, 1, 60, RECIPE.sharpen), origin)
    settings = replace(RECIPE.evaluation, any_captions=3, judge_steps=20, workers=1, full=True, judged=8)
    return Order(dataset, drawing, sharpener, settings)


@pytest.fixture(scope="module")
def measured(order: Order, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    judge = tmp_path_factory.mktemp("judges") / "judge.safetensors"
    return evaluate(order, str(judge), log=lambda line: None), judge


def test_the_bounds_are_those_of_one_process_in_one_go(order: Order, measured: tuple) -> None:
    scorer = Scorer(order)
    model, vocabulary = scorer.model, scorer.vocabulary
    images, captions = read_split(scorer.manifest, "test")
    words, keep = vocabulary.encode(captions)
    batch = Batch(images / 255, words, keep, ("",) * len(images))
    with torch.no_grad():
        terms, _ = model.reconstruct(batch, scorer._noise(range(len(images))))
    figures = measured[0].figures
    assert figures["test/images"] == len(images) == 24
    assert figures["test/bound"] == pytest.approx(float(terms.bound.double().mean()), rel=1e-5)
    assert figures["test/kl"] == pytest.approx(float(terms["kl"].double().mean()), rel=1e-5)
    error = float(terms.bound.double().std() / len(images) ** 0.5)
    assert figures["test/bound_se"] == pytest.approx(error, rel=1e-4)


def test_all_that_is_promised_is_measured(measured: tuple) -> None:
    figures = measured[0].figures
    for name in ("bound", "kl", "recon", "floor", "flat", "sharpened/bound"):
        assert {f"test/{name}", f"test/{name}_se", f"train/{name}"} <= set(figures)
    for way in ("", "plain/", "any/"):
        assert {f"retrieval/{way}r_at_1", f"retrieval/{way}median_rank", f"retrieval/{way}chance/r_at_1"} <= set(
            figures
        )
    assert {"ssi/mean", "ssi/std", "ssi/sharpened/mean", "judge/accuracy"} <= set(figures)
    for group in ("one_digit/seen", "one_digit/held_out", "two_digits/seen", "two_digits/held_out"):
        assert {f"drawn/{group}/right", f"drawn/{group}/places", f"drawn/sharpened/{group}/right"} <= set(figures)
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())
    json.dumps(figures)


def test_the_figures_do_not_depend_on_the_number_of_workers(order: Order, measured: tuple) -> None:
    once, judge = measured
    two = replace(order, settings=replace(order.settings, workers=2))
    again = evaluate(two, str(judge), log=lambda line: None)
    assert again.figures == once.figures
    assert to_bytes(again.values) == to_bytes(once.values)


def test_every_mean_is_one_of_the_values_that_are_kept(measured: tuple) -> None:
    figures, values = measured[0].figures, measured[0].values
    assert {name: len(value) for name, value in values.items() if name.endswith("bound")} == {
        f"{split}/{name}bound": 24 for split in ("test", "train") for name in ("", "sharpened/")
    }
    for name in ("test/bound", "test/sharpened/bound", "train/kl", "drawn/two_digits/held_out/number"):
        assert figures[name] == pytest.approx(values[name].mean())
    assert values["ssi"].shape == (2, 2) and figures["ssi/sharpened/mean"] == values["ssi/sharpened"].mean()
    for way in ("", "plain/", "any/"):
        places = values[f"retrieval/{way}places"]
        assert places.shape == (4, 2)
        assert figures[f"retrieval/{way}r_at_1"] == pytest.approx(found_within(places, 1).mean())


def test_a_ranking_of_all_images_leaves_the_shortlist_as_it_is_and_counts_every_other_image(
    order: Order, measured: tuple
) -> None:
    values, figures = measured[0].values, measured[0].figures
    short = evaluate(replace(order, settings=replace(order.settings, full=False)), str(measured[1]), lambda line: None)
    assert not [name for name in short.figures if "full" in name]
    assert {name: figures[name] for name in short.figures} == short.figures
    scorer = Scorer(order)
    captions = scorer.test[1]
    for query, (higher, same) in enumerate(values["retrieval/full/plain/places"]):
        others = [image for image, caption in enumerate(captions) if caption != captions[query]]
        own, *scores = (scorer.scores(np.array([query]), np.array([[image]]))[0, 0] for image in (query, *others))
        assert (sum(score > own for score in scores), same) == (higher, 0)
    assert 10 < figures["retrieval/full/candidates"] == 1 + len(others)


def test_a_caption_is_compared_with_another_one_on_the_same_candidates(order: Order, measured: tuple) -> None:
    values, figures = measured[0].values, measured[0].figures
    own, other = values["retrieval/places"], values["retrieval/other/places"]
    assert own.shape == other.shape and not np.array_equal(own, other)
    assert figures["retrieval/other/candidates"] == figures["retrieval/candidates"]
    gain = np.median(own.sum(1) - own[:, 1] / 2) - np.median(other.sum(1) - other[:, 1] / 2)
    assert figures["retrieval/gain/median_rank"] == pytest.approx(gain)
    assert (
        figures["retrieval/gain/r_at_5_low"]
        <= figures["retrieval/gain/r_at_5"]
        <= figures["retrieval/gain/r_at_5_high"]
    )
    assert next_other(["a", "b", "a", "a"], np.array([0, 2, 1])).tolist() == [1, 1, 0]
    assert next_other(["a", "a", "b"], np.array([0, 1])).tolist() == [2, 2]


def test_captions_that_are_all_alike_tell_nothing_apart(order: Order, measured: tuple) -> None:
    one = replace(order, settings=replace(order.settings, images=1, queries=0))
    found = evaluate(one, str(measured[1]), log=lambda line: None)
    assert "test/bound" in found.figures and not [name for name in found.figures if name.startswith("retrieval/")]


def test_the_error_of_a_share_is_over_captions_not_over_their_drawings(measured: tuple) -> None:
    right = measured[0].values["drawn/one_digit/held_out/number"]
    assert len(right) == 4, "of eight drawings: a caption for each corner"
    error = right.std(ddof=1) / len(right) ** 0.5
    assert measured[0].figures["drawn/one_digit/held_out/number_se"] == pytest.approx(error)
    assert measured[0].figures["drawn/one_digit/held_out/captions"] == 4


def test_of_a_system_without_a_bound_its_drawings_are_measured(order: Order, measured: tuple, tmp_path: Path) -> None:
    recipe, vocabulary = find_recipe("tiny-lapgan"), Scorer(order).vocabulary
    state = lapgan_state(build_model(recipe.model, len(vocabulary), 60, 1), recipe.train)
    drawing = checkpoint.save(str(tmp_path), state, Origin(recipe, vocabulary, 60, 1))
    lapgan = replace(order, model=drawing, sharpener=None, bounded=False)
    found = evaluate(lapgan, str(measured[1]), log=lambda line: None)
    assert not [name for name in found.figures if name.startswith(("train/", "retrieval/")) or "bound" in name]
    drawn = {name for name in measured[0].values if name.startswith(("drawn/", "ssi"))}
    assert set(found.values) == {name for name in drawn if "sharpened" not in name}


def test_a_kept_judge_is_used_and_a_damaged_one_is_trained_anew(order: Order, measured: tuple, tmp_path: Path) -> None:
    once, judge = measured
    reader, _ = judges.from_bytes(judge.read_bytes())
    mine = tmp_path / "judge.safetensors"
    mine.write_bytes(judges.to_bytes(reader, {"accuracy": 0.125}))
    bare = replace(order, sharpener=None)
    figures, again = once.figures, evaluate(bare, str(mine), log=lambda line: None).figures
    assert again["judge/accuracy"] == 0.125
    assert again["test/bound"] == figures["test/bound"] and "test/sharpened/bound" not in again
    mine.write_bytes(b"half a judge")
    lines: list[str] = []
    assert evaluate(bare, str(mine), lines.append).figures["judge/accuracy"] == figures["judge/accuracy"]
    assert any("not a judge" in line for line in lines) and mine.read_bytes() == judge.read_bytes()


def test_what_is_painted_is_told_another_corner_and_judged_by_where_it_is_to_stand(
    order: Order, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Here:
        """The pool, in this process."""

        def __init__(self, make: Callable[[], Scorer], **_: object) -> None:
            self.scorer = make()

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def run(self, work: dict[str, list[Block]]) -> dict[str, list]:
            return {
                name: [getattr(self.scorer, block.method)(*block.given) for block in blocks]
                for name, blocks in work.items()
            }

    def drawings(_: Scorer, captions: list[str], rows: list[int], where: list[str] | None = None) -> dict:
        return {"": wanted(captions if where is None else where)[:, None, None].astype(np.uint8)}

    class Reader:
        """Reads what `drawings` has written."""

        def look(self, images: torch.Tensor) -> np.ndarray:
            return (images * 255).round().long().numpy()[:, 0, 0]

    monkeypatch.setattr(score, "Pool", Here)
    monkeypatch.setattr(Scorer, "drawings", drawings)
    monkeypatch.setattr(judges, "from_bytes", lambda content: (Reader(), {}))
    (tmp_path / "judge").write_bytes(b"kept")
    bare = replace(order, sharpener=None, bounded=False)
    figures = evaluate(replace(bare, apart=True), str(tmp_path / "judge"), log=lambda line: None).figures
    shares = {name: value for name, value in figures.items() if name.endswith("right")}
    assert set(shares.values()) == {1.0} and len(shares) == 5 and "drawn/one_digit/other_corner/right" in shares
    figures = evaluate(bare, str(tmp_path / "judge"), log=lambda line: None).figures
    assert "drawn/one_digit/other_corner/right" not in figures


def test_a_worker_draws_with_what_is_told_one_caption_and_where_another(order: Order, tmp_path: Path) -> None:
    recipe, vocabulary = find_recipe("tiny-composing"), Scorer(order).vocabulary
    model = build_model(recipe.model, len(vocabulary), 60, 1).eval()
    state = TrainState.of(model, make_optimizer(model, recipe.train))
    path = checkpoint.save(str(tmp_path / "train"), state, Origin(recipe, vocabulary, 60, 1))
    painted, where = corner_pairs(description(order.dataset)["facts"], 8, seed=0)
    scorer = Scorer(replace(order, model=path, sharpener=None))
    found = scorer.drawings(painted, list(range(8)), where)

    noise = row_noise(model.noise_shape, range(8), (0, PRIOR))
    with torch.no_grad():
        drawn = model.sample(*vocabulary.encode(painted), None, noise, where=vocabulary.encode(where)).images
    np.testing.assert_array_equal(found[""], (drawn * 255).round().byte().numpy())
    assert not np.array_equal(found[""], scorer.drawings(where, list(range(8)))[""])


@pytest.mark.parametrize("wordings", [1, 4])
def test_captions_ask_for_what_their_canvases_show(wordings: int) -> None:
    """Read the classes from the captions, in whatever words, and look where the ink is."""
    source = open_source(replace(RECIPE.dataset, wordings=wordings), None)
    samples = [sample for plan in source.plan if plan.split == "train" for sample in source.read(plan)]
    assert len({sample.captions[0].split()[0] for sample in samples}) == (1 if wordings == 1 else 5)
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    for canvas, row in zip(grey(images), wanted([sample.captions[0] for sample in samples]), strict=True):
        left = canvas.copy()
        for region, digit in zip(regions(60), row, strict=True):
            if digit != judges.EMPTY:
                assert canvas[region.top : region.bottom, region.left : region.right].max() > 128
                left[region.top : region.bottom, region.left : region.right] = 0
        assert left.max() == 0


def test_groups_are_seen_and_held_out_captions_in_equal_numbers(dataset: str) -> None:
    facts = description(dataset)["facts"]
    groups = caption_groups(facts, 50, seed=0)
    assert {name: len(captions) for name, captions in groups.items()} == dict.fromkeys(groups, 50)
    assert len(set(groups["one_digit/held_out"])) == 4  # one digit at each corner
    banned = {(entry["template"], entry["digit"]) for entry in facts["held_out"]}
    for caption in groups["one_digit/seen"]:
        words = caption.split()
        assert (" ".join(words[6:8]), int(words[2])) not in banned
    assert groups == caption_groups(facts, 50, seed=0) != caption_groups(facts, 50, seed=1)


def test_shares_of_a_model_in_training_count_the_drawings_that_are_all_right(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, asked = description(order.dataset)["facts"], []

    def draw(model: object, vocabulary: object, captions: list[str], *_: object, **__: object) -> Generated:
        asked.append(score.wanted(captions))
        return Generated(torch.zeros(len(captions), 1, 60, 60))

    class Reader:
        """Reads one digit wrong in the first drawing of each group, in the second group all."""

        def look(self, images: torch.Tensor) -> np.ndarray:
            seen, wrong = asked[-1].copy(), len(images) if len(asked) == 2 else 1
            seen[:wrong] = np.where(seen[:wrong] == judges.EMPTY, seen[:wrong], (seen[:wrong] + 1) % 10)
            return seen

    monkeypatch.setattr(score, "draw_captions", draw)
    monkeypatch.setattr(judges, "from_bytes", lambda content: (Reader(), {}))
    shares = score.drawn_shares(None, None, None, facts, b"", 4)
    names = ["one_digit/seen", "one_digit/held_out", "two_digits/seen", "two_digits/held_out"]
    assert shares == dict(zip(names, (0.75, 0.0, 0.75, 0.75)))
