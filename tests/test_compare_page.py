"""The page of several systems in a real browser: everything is there, nothing is loaded from elsewhere, a phone can show it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import compare, compare_page, figures
from jobs.arguments import parse
from jobs.artist import Artist
from jobs.compare_page import build_page, command_of, names_of
from jobs.workspace import Workspace
from pipeline import checkpoint, storage
from pipeline.config import RunConfig
from pipeline.figures import captions
from pipeline.figures import curves as figure_curves
from pipeline.models.build import build_model
from pipeline.recipes import RECIPES, find_recipe
from pipeline.shards.manifest import VOCABULARY
from pipeline.text.vocabulary import Vocabulary
from pipeline.training.adversarial import sharpener_state
from pipeline.training.optim import make_optimizer
from pipeline.training.state import TrainState
from tests.conftest import make_dataset
from tests.sources.test_idx import idx_bytes

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
TABLES = [
    (
        "Retrieval",
        "| system | R@1 | a heading that is rather long |\n| --- | ---: | ---: |\n| alignDRAW | 3 % | 4 |",
        "100",
    ),
    (HOSTILE, f"| {HOSTILE} |\n| --- |\n| {'very' * 50} |", HOSTILE),
]


def trained(out: Path, config: RunConfig, dataset: str, sharpened: bool = True) -> Workspace:
    """A run whose stages are finished; its weights are random."""
    workspace = Workspace(str(out), config)
    vocabulary = Vocabulary.from_json(storage.read_text(storage.join(dataset, VOCABULARY)))
    model = build_model(config.model, len(vocabulary), config.dataset.size, config.dataset.channels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    origin = checkpoint.Origin(config, vocabulary, config.dataset.size, config.dataset.channels)
    state = TrainState.of(model, make_optimizer(model, config.train))
    with workspace.opened(), workspace.tracker("train") as tracker:
        for step in range(0, 40, 2):  # the captioner's bound has more in it than log p(caption | image)
            tracker.metrics({"train/bound": -3000 / (step + 2), "train/caption": 2000 / (step + 2)}, step)
            if config.model.kind == "lapgan":
                beliefs = {"level0/real": 0.8, "level0/fake": 0.2, "level1/real": 0.5, "level1/fake": 0.5}
                tracker.metrics({f"train/{name}": value for name, value in beliefs.items()}, step)
        tracker.metrics({"val/bound": -100.0, "val/caption": 70.0}, 38)
        for step, share in ((20, 0.25), (40, 0.75)) if config.train.judged else ():
            groups = ("one_digit/seen", "one_digit/held_out", "two_digits/seen", "two_digits/held_out")
            tracker.metrics({f"val/drawn/{group}/right": share - i / 8 for i, group in enumerate(groups)}, step)
        path = checkpoint.save(storage.join(workspace.stage("train"), "checkpoints"), state, origin)
        workspace.finish("train", {"checkpoint": path, "step": 40, "dataset": dataset, "mlflow_run_id": None})
        if sharpened:
            state = sharpener_state(model, config.dataset.channels, config.dataset.size, config.sharpen)
            path = checkpoint.save(storage.join(workspace.stage("sharpen"), "checkpoints"), state, origin)
            with workspace.tracker("sharpen") as tracker:
                tracker.metrics({"train/real": 0.75, "train/fake": 0.25, "train/change": 0.1}, 4)
            workspace.finish("sharpen", {"checkpoint": path})
    return workspace


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, dataset: str) -> Path:
    """The page of four systems and a captioner."""
    out = tmp_path_factory.mktemp("out")
    recipes = list(map(find_recipe, ("tiny-aligndraw", "tiny-noaligndraw", "tiny-conv-vae", "tiny-lapgan")))
    recipes[0] = replace(recipes[0], train=replace(recipes[0].train, judged=4))
    runs = [trained(out, config, dataset, sharpened=config.name != "tiny-lapgan") for config in recipes]
    teller = trained(out, find_recipe("tiny-captioner"), dataset, sharpened=False)
    path = build_page(str(out / "report"), f"Four systems {HOSTILE}", runs, TABLES, teller)
    assert path == str(out / "report" / "index.html")
    return Path(path)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root cannot sandbox
        yield chromium
        chromium.close()


def opened(browser, path: Path, **options: object):
    """A page of the browser, and everything that went wrong or was asked for while it opened."""
    page = browser.new_page(**options)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:100]}"))
    page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:")) or troubles.append(f"asked for {request.url[:100]}"),
    )
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    return page, troubles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_shows_all_of_it_and_asks_for_nothing(browser, index: Path, width: int, scheme: str) -> None:
    page, troubles = opened(browser, index, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert troubles == []
    images = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.clientHeight, i.alt.length])"
    )
    assert len(images) > 100 and all(all(facts) for facts in images), "missing, of no size, or without words"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut_off = """[...document.querySelectorAll('body *')].filter(
        e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 99))"""
    assert page.evaluate(cut_off) == []
    assert page.evaluate(
        "[...document.querySelectorAll('section p:first-of-type')].every(p => p.innerText.length > 20)"
    )
    assert page.evaluate("document.scripts.length") == 0 and page.evaluate("document.title").startswith(
        "Four systems <"
    )
    page.close()


def test_the_sections_are_those_of_the_runs(browser, index: Path) -> None:
    page, _ = opened(browser, index)
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert headings == [
        "What was run",
        "Drawn from captions",
        "The figures",
        "How a drawing comes about",
        "Where it looked while it drew",
        "Other words, same noise",
        "Held-out combinations",
        "The systems side by side",
        "Before and after sharpening",
        "Text to image to text",
        "How they learned",
        "What they drew right while they learned",
        "What the discriminators believed",
    ]
    judged = page.evaluate(
        "[...document.querySelectorAll('#s11 img')].map(i => i.alt.match(/that (.*) drew.*: (.*)/).slice(1))"
    )
    ends = "one digit, seen 0.75, one digit, held out 0.62, two digits, seen 0.50, two digits, held out 0.38"
    assert judged == [["alignDRAW", ends]]
    believed = page.evaluate(
        "[...document.querySelectorAll('#s12 img')].map(i => i.alt.match(/of (.*) was .*: (.*)/).slice(1))"
    )
    sharpeners = [
        [f"{name}'s sharpener", "real images 0.75, generated images 0.25"]
        for name in ("alignDRAW", "noalignDRAW", "Conv-Deconv VAE")
    ]
    assert believed == [
        *sharpeners,
        ["LAPGAN, level 0", "real images 0.80, generated images 0.20"],
        ["LAPGAN, level 1", "real images 0.50, generated images 0.50"],
    ]
    assert page.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    rows = page.evaluate(
        "[...document.querySelectorAll('#s7 figure')].map(f => [...f.querySelectorAll('small')].map(s => s.innerText))"
    )
    systems = ["alignDRAW", "noalignDRAW", "Conv-Deconv VAE", "LAPGAN"]
    assert rows == [[*systems, "true image"]] * 6 + [systems] * 2
    sharpened = page.evaluate("[...document.querySelectorAll('#s8 h3')].map(h => h.innerText)")
    assert sharpened == systems[:3], "LAPGAN has no sharpener"
    assert HOSTILE in page.evaluate("document.querySelector('#s2').innerText")
    page.close()


def test_the_word_that_lights_up_is_the_one_that_the_step_attends_to(browser, tmp_path: Path) -> None:
    from pipeline.figures.html import Film, Films, Page, Section, render

    canvases = np.zeros((4, 1, 5, 5))
    order = [2, 0, 3, 1]
    alignment = np.eye(4)[order]
    described = Page("t", "l", [Section("h", "s", [Films([Film("a red bus parked".split(), canvases, alignment)])])])
    (tmp_path / "film.html").write_text(render(described))
    page, troubles = opened(browser, tmp_path / "film.html")
    seen = page.evaluate(
        """() => { const all = document.getAnimations(), found = [];
        const length = all[0].effect.getTiming().duration, each = 0.4 / (4 * 0.4 + 2) * length;
        for (let step = 0; step < 4; step++) {
            for (const one of all) { one.pause(); one.currentTime = (step + 0.5) * each; }
            found.push([getComputedStyle(document.querySelector('.film')).objectPosition.split(' ')[0],
                [...document.querySelectorAll('.said span')].findIndex(s => getComputedStyle(s).getPropertyValue('--lit') == '100%')]);
        }
        return found; }"""
    )
    assert seen == [["0%", 2], ["33.333%", 0], ["66.667%", 3], ["100%", 1]] and troubles == []
    page.check(".pause input")
    states = "document.getAnimations().map(a => getComputedStyle(a.effect.target).animationPlayState)"
    assert set(page.evaluate(states)) == {"paused"}
    page.close()
    page, _ = opened(browser, tmp_path / "film.html", reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.film')).objectPosition").startswith("100%")
    page.close()


def test_a_single_run_gets_a_page_too_with_the_table_of_its_evaluation(browser, tmp_path: Path, dataset: str) -> None:
    workspace = trained(tmp_path, find_recipe("tiny-aligndraw"), dataset)
    words = ["tiny-aligndraw", "--out", str(tmp_path)]
    alone = figures.main(words)
    assert alone["page"] == f"{workspace.folder}/figures/index.html"
    headings = "[...document.querySelectorAll('h2')].map(h => h.innerText)"
    page, troubles = opened(browser, Path(alone["page"]))
    assert troubles == [] and page.title() == "What tiny-aligndraw draws"
    assert page.evaluate(headings)[:3] == ["What was run", "Drawn from captions", "How a drawing comes about"]
    page.close()
    assert figures.main(words) == alone, "made once"
    storage.delete(f"{workspace.folder}/figures")
    workspace.finish("evaluate", {"table": "| on the test split | drawn |\n| --- | ---: |\n| bound | -3.0 ± 0.1 |"})
    page, _ = opened(browser, Path(figures.main(words)["page"]))
    assert page.evaluate(headings)[2] == "The figures" and "-3.0\u00a0±\u00a00.1" in page.inner_text("#s2 td.right")
    page.close()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_command_on_the_page_makes_the_same_run(name: str, tmp_path: Path) -> None:
    config = find_recipe(name)
    changed = replace(config, name="it's other", train=replace(config.train, gpu=True, steps=7, lr=2.5e-5))
    for wanted in (config, changed):
        words = shlex.split(command_of(Workspace(str(tmp_path), wanted)))
        assert words[:3] == ["python", "-m", "jobs.experiment"]
        assert parse("python -m jobs.experiment", words[3:]).config == wanted
    assert "--no-" not in command_of(Workspace(str(tmp_path), changed))


def test_the_command_names_the_data_that_the_run_was_given(tmp_path: Path) -> None:
    run = Workspace(str(tmp_path), find_recipe("flickr-aligndraw"))
    assert shlex.split(command_of(run))[-4:] == ["--data", "DATA", "--out", "out"], "not known: nothing that exists"
    with run.opened():
        run.finish("shard", {"data": "/my photographs/flickr8k"})
    assert shlex.split(command_of(run))[-4:] == ["--data", "/my photographs/flickr8k", "--out", "out"]


def test_a_captioner_s_curve_is_the_caption_s_log_likelihood(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(
        figure_curves, "curves", lambda series, across, up, dark=False: shown.append((series, up)) or ""
    )
    runs = {name: trained(tmp_path, find_recipe(f"tiny-{name}"), dataset, False) for name in ("captioner", "aligndraw")}
    for kind, last, held_out in (("captioner", -50.0, -70.0), ("draw", -75.0, -100.0)):
        (charts,) = compare_page._curves(kind, runs)
        assert f"ends at {last:,.0f}" in charts.charts[0].alt
        (curve,), up = shown[-1]
        assert (curve.train[-1][1], curve.validation[-1][1]) == (last, held_out)
        assert ("log p(caption | image)" in up) == (kind == "captioner")


def test_steps_are_those_of_the_first_system_that_attends(tmp_path: Path, dataset: str) -> None:
    names = ["tiny-lapgan", "tiny-noaligndraw", "tiny-aligndraw"]
    runs = [trained(tmp_path, find_recipe(name), dataset, False) for name in names]
    artists = dict(zip(names, map(Artist, runs), strict=True))
    films, looked = compare_page._steps(artists)
    assert films.see.startswith("tiny-aligndraw's canvas") and "lights up" in films.see and len(looked.parts) == 3
    del artists["tiny-aligndraw"]
    (films,) = compare_page._steps(artists)
    assert films.see.startswith("tiny-noaligndraw's canvas") and "lights up" not in films.see
    del artists["tiny-noaligndraw"]
    assert compare_page._steps(artists) == []


def test_the_weights_of_words_are_of_several_drawings_of_which_the_first_is_shown(tmp_path: Path, dataset: str) -> None:
    artist = Artist(trained(tmp_path, find_recipe("tiny-aligndraw"), dataset, False))
    said = ["the digit 3 is at the top .", "the digit 3 is on the left of the digit 5 ."]
    looked = artist.attention(said, [4, 7])
    assert looked.shape == (2, 8, 3, 12)
    shown = artist.draw(said, rows=[4, 7]).alignments.numpy().swapaxes(0, 1)
    np.testing.assert_allclose(looked[:, 0], shown, atol=1e-6)
    assert all(np.abs(looked[:, 0] - other).max() > 1e-6 for other in looked.swapaxes(0, 1)[1:]), "the same noise twice"
    films, maps = compare_page._steps({"one": artist})
    for part, film in zip(maps.parts, films.parts[0].films[::2], strict=True):
        assert part.words == film.words and np.array_equal(part.canvases, film.canvases)
        width = len(part.words)
        np.testing.assert_allclose(part.alignments[0, :, :width], film.alignment[:, :width], atol=1e-6)


@pytest.fixture(scope="module")
def plain_draw(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """DRAW without captions on binarised digits."""
    folder = tmp_path_factory.mktemp("binary")
    for name, count in (("train", 60), ("t10k", 20)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count, dtype=np.uint8) % 10))
    config = find_recipe("tiny-draw")
    config = replace(config, dataset=replace(config.dataset, source="binary-mnist", size=28))
    return trained(folder, config, make_dataset(str(folder), config.dataset, str(folder)))


def test_a_model_without_captions_is_shown_with_none(plain_draw: Workspace) -> None:
    with plain_draw.opened():
        made = figures._draw(plain_draw, {"drawing": "", "sharpener": ""})
    assert set(made["pictures"]) == {"captions", "steps", "animation"}, "no flips, no maps"
    ((heading, said, there),) = figures._sections(Artist(plain_draw))
    assert "binarised MNIST, without captions" in heading and said[0] == "drawing 1" and not there
    page = Path(made["page"]).read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "What was run",
        "Drawn from noise",
        "How a drawing comes about",
        "How it learned",
        "What the discriminators believed",
    ]
    assert "learned to draw from binarised MNIST (28 x 28" in page
    assert not re.search("photograph|true image|the digit", page)


def test_scenes_of_words_that_training_never_had_are_not_drawn(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artist = Artist(trained(tmp_path, find_recipe("tiny-fc-vae"), dataset, False))
    for novel, sections in (("a stop sign is flying .", 1), ("the digit 3 is at the bottom .", 2)):
        monkeypatch.setattr(captions, "NOVEL", (novel, "a herd of elephants ."))
        shown = figures._image_sections(artist)
        assert len(shown) == sections and all("elephants" not in said for _, some, _ in shown for said in some)


def test_all_systems_draw_the_caption_that_the_paper_has_four_of_them_draw(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    surf = "a group of people walk on a beach with surf boards ."
    artist = Artist(trained(tmp_path, find_recipe("tiny-fc-vae"), dataset, False))
    monkeypatch.setattr(Artist, "digits", False)
    for words, rows in (((), []), (surf.split(), [surf])):
        monkeypatch.setattr(artist, "knows", lambda some, words=words: set(" ".join(some).split()) <= set(words))
        (beside,) = compare_page._side_by_side({"one": artist})
        assert [card.caption for card in beside.parts[0].cards if len(card.tiles) == 1] == rows
        assert ("captions of the paper" in beside.see) == bool(rows)


def test_several_models_without_captions_are_compared_without_any(plain_draw: Workspace) -> None:
    artists = {name: Artist(plain_draw) for name in ("one", "other")}
    (beside,) = compare_page._side_by_side(artists)
    assert [card.caption for card in beside.parts[0].cards] == [f"drawing {i}" for i in range(1, 7)]
    assert "caption" not in beside.see
    for part in compare_page._sharpening(artists)[0].parts:
        assert [tile.label for tile in part.cards[0].tiles] == ["drawn", "sharpened"]


def test_the_title_says_what_the_systems_learned_from() -> None:
    for name, title in {
        "mnist-draw": "2 systems on binarised MNIST",
        "mnist-aligndraw": "2 systems on placed digits",
        "digits-demo": "2 systems on placed digits",
        "flickr-aligndraw": "2 systems on photographs",
    }.items():
        assert compare._title([Workspace("", find_recipe(name))] * 2) == title


def test_a_page_says_which_system_is_which() -> None:
    align, other = find_recipe("tiny-aligndraw"), replace(find_recipe("tiny-aligndraw"), name="eight-steps")
    assert names_of([align, find_recipe("tiny-fc-vae")]) == ["alignDRAW", "Fully-Connected VAE"]
    assert names_of([align, other]) == ["tiny-aligndraw", "eight-steps"]


def test_runs_on_different_data_are_refused(tmp_path: Path, dataset: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    config = find_recipe("tiny-fc-vae")
    runs = [
        trained(tmp_path, config, dataset, False),
        trained(tmp_path, replace(config, name="b"), str(other), False),
    ]
    with pytest.raises(ValueError, match=re.escape("share their data set")):
        build_page(str(tmp_path), "t", runs, [])
