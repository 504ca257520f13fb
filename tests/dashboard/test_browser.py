"""The pages of a real run in a real browser."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FloatRect, Locator, Page, expect

from popgraft import Run
from popgraft.dashboard.report import report

from .conftest import TIMEOUT, record

Serve, Visit = Callable[..., str], Callable[..., Page]

DRAWN = """section => document.querySelector(`#${section} .plot`).calcdata.map(points => ({
    name: points[0].trace.name,
    x: points.map(point => point.x ?? NaN),
    y: points.map(point => point.y ?? NaN),
    z: [...(points[0].z ?? [])].map(row => [...row]),
}))"""
"""The numbers of the first figure of a section as plotly.js has decoded them."""

PIXELS = """([section, x, y]) => {
    const { xaxis, yaxis } = document.querySelector(`#${section} .plot`)._fullLayout;
    return [xaxis.l2p(x), yaxis.l2p(y)];
}"""
HEIGHTS = "[...document.querySelectorAll('#scores .plot')].map(plot => plot._fullLayout.yaxis.range)"
RANGE = "document.querySelector('#scores .plot')._fullLayout.xaxis.range"
PAPER = "getComputedStyle(document.body).backgroundColor"
CONTROLS = """[...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')]
    .filter(control => control.checkVisibility())"""


def drawn(page: Page, section: str) -> dict[str | None, dict[str, Any]]:
    centred(page.locator(f"#{section} .plot").first)  # figures are drawn when they come into view
    expect(page.locator(f"#{section} .main-svg").first).to_be_attached()
    return {trace.get("name"): trace for trace in page.evaluate(DRAWN, section)}


def best(page: Page) -> list[float]:
    values: list[float] = drawn(page, "scores")["best of the generation"]["y"]
    return values


def centred(element: Locator) -> FloatRect:
    """Where an element is after the page has been scrolled to it."""
    element.evaluate("element => element.scrollIntoView({block: 'center', behavior: 'instant'})")
    box = element.bounding_box()
    assert box is not None
    return box


def check_numbers(page: Page, run: Run) -> None:
    """Compares the figures of a population of four with the database."""
    scores = np.array([member.score for member in run.scores]).reshape(-1, 4)
    curve = drawn(page, "scores")["best of the generation"]
    assert curve["x"] == sorted({4 * member.steps for member in run.scores})
    assert curve["y"] == pytest.approx(scores.max(1), rel=1e-6)
    everyone = drawn(page, "scores")["every member"]["y"]
    assert sorted(y for y in everyone if y == y) == pytest.approx(sorted(scores.flat), rel=1e-6)
    tree = drawn(page, "tree")
    assert np.array(tree["scores"]["z"])[:, ::2] == pytest.approx(scores.T, rel=1e-6)
    links = np.array(tree["inheritance"]["y"]).reshape(-1, 3)[:, :2]
    assert len(links) >= 3
    grafts = [(graft.parent, graft.member) for graft in run.lineage if graft.generation < len(scores) - 1]
    assert sorted(map(tuple, links.tolist())) == sorted(grafts)


def test_curves_and_tree_show_what_the_database_holds(live: Page, trained: Path) -> None:
    check_numbers(live, Run(trained))


def test_so_does_a_report(trained: Path, visit: Visit) -> None:
    check_numbers(visit(report(trained).as_uri()), Run(trained))


@pytest.mark.parametrize(
    ("section", "place", "words"), [("scores", (192, -0.5), "best"), ("tree", (3, 2), "member 2 in generation 3")]
)
def test_hovering_shows_the_numbers(live: Page, section: str, place: tuple[int, int], words: str) -> None:
    box = centred(live.locator(f"#{section} .plot .nsewdrag").first)
    left, top = live.evaluate(PIXELS, [section, *place])
    live.mouse.move(box["x"] + left, box["y"] + top, steps=3)
    expect(live.locator(f"#{section} .hoverlayer")).to_contain_text(words)


def test_no_button_sends_data_away(live: Page) -> None:
    buttons = live.locator("#scores .modebar-btn").evaluate_all(
        "buttons => buttons.map(button => button.dataset.title)"
    )
    assert buttons == ["Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Download plot as a PNG"]


def test_tab_reaches_every_control_in_order(live: Page) -> None:
    live.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws everything
    expect(live.locator(".plot:not(:has(.modebar-btn))")).to_have_count(0)
    count = live.evaluate(f"{CONTROLS}.length")
    assert count > 20
    live.evaluate("document.activeElement.blur()")
    live.evaluate("scrollTo(0, 0)")
    order = []
    for _ in range(count):
        live.keyboard.press("Tab")
        order.append(live.evaluate(f"{CONTROLS}.indexOf(document.activeElement)"))
    assert order == list(range(count))


def test_the_button_turns_the_theme(live: Page) -> None:
    light = live.evaluate(PAPER)
    text = live.locator("#scores .ytitle").first
    ink = text.evaluate("title => getComputedStyle(title).fill")
    live.locator("#theme").press("Enter")
    assert live.evaluate(PAPER) != light
    assert text.evaluate("title => getComputedStyle(title).fill") != ink
    assert live.evaluate("localStorage.getItem('theme')") == "dark"
    live.locator("#theme").press("Enter")
    assert live.evaluate(PAPER) == light


def test_a_phone_needs_no_sideways_scrolling(live: Page) -> None:
    live.set_viewport_size({"width": 390, "height": 844})
    live.wait_for_function("() => document.documentElement.scrollWidth == 390")  # the figures follow the window
    assert live.evaluate("document.documentElement.scrollWidth") == 390
    live.set_viewport_size({"width": 1280, "height": 720})


def test_a_new_generation_is_drawn_at_once_and_the_zoom_stays(trained: Path, serve: Serve, visit: Visit) -> None:
    page = visit(serve(trained))
    page.locator("#settings summary").first.press("Enter")
    everything = page.evaluate(RANGE)
    box = centred(page.locator("#scores .plot .nsewdrag").first)
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.mouse.up()
    zoomed = page.evaluate(RANGE)
    assert everything[0] < zoomed[0] < zoomed[1] < everything[1]
    record(trained, 6, 0.875)
    began = time.monotonic()
    while len(best(page)) < 7:
        assert time.monotonic() < began + TIMEOUT / 1000
        page.wait_for_timeout(20)
    assert best(page)[-1] == 0.875
    assert page.evaluate(RANGE) == zoomed
    assert page.locator("#settings details").first.get_attribute("open") is not None
    assert "7 of 6" in page.locator("#runs").inner_text()


def test_runs_are_chosen_with_the_keyboard_and_shown_side_by_side(trained: Path, serve: Serve, visit: Visit) -> None:
    shutil.copytree(trained, trained.parent / "with, comma & more")
    record(trained, 6, 0.5)
    page = visit(serve(trained.parent))
    assert page.locator("#scores .plot").count() == 1
    page.locator("input[value^=with]").press("Space")
    expect(page.locator("#scores .js-plotly-plot")).to_have_count(2)
    assert page.evaluate("document.activeElement.value") == "with, comma & more"
    assert page.locator("#scores h3").all_inner_texts() == ["tiny", "with, comma & more"]
    left, right = (plot.bounding_box() for plot in page.locator("#scores .plot").all())
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"]
    assert page.evaluate(HEIGHTS)[0] == page.evaluate(HEIGHTS)[1]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        faults = Axe().run(page).response["violations"]
        assert not faults, [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults]
    page.locator("input[value=tiny]").uncheck()
    expect(page.locator("h1")).to_have_text("with, comma & more")
    assert len(best(page)) == 6
    page.locator("input[value^=with]").uncheck()
    expect(page.locator("input[value=tiny]")).to_be_checked()  # one run is always shown, the one written last


@pytest.mark.slow
def test_a_page_without_runs_waits_for_one(trained: Path, serve: Serve, visit: Visit) -> None:
    root = trained.parent / "empty"
    root.mkdir()
    page = visit(serve(root))
    assert "no runs" in page.locator("#runs").inner_text()
    shutil.copytree(trained, root / "first")
    expect(page.locator("#scores .js-plotly-plot")).to_have_count(1)
    expect(page.locator("h1")).to_have_text("first")


@pytest.mark.slow
def test_the_page_follows_a_run_that_trains(trained: Path, serve: Serve, visit: Visit) -> None:
    """The run that a fixture has trained is trained again for longer, in a process of its own."""
    root = trained.parent
    settings = ["--set", f"run_dir={root / 'training'}", "--set", f"total_timesteps={10**7 * 64}"]
    page = visit(serve(root))
    command = [sys.executable, "-c", "from popgraft.cli.app import main; main()", "train", f"{trained}/config.yaml"]
    log = root / "log"
    with log.open("w") as file, subprocess.Popen([*command, *settings], stdout=file, stderr=file) as process:
        page.locator("input[value=training]").check()
        page.locator("input[value=tiny]").uncheck()
        expect(page.locator("h1")).to_have_text("training")
        listed, drawn, began = set(), set(), time.monotonic()
        while len(listed) < 5 or len(drawn) < 2:  # the list follows while it trains; figures too, but less often
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < began + TIMEOUT / 1000, (listed, drawn)
            listed.add(page.locator("#runs tr", has_text="training").inner_text())
            drawn.add(len(best(page)) if page.locator("#scores .main-svg").count() else 0)
            page.wait_for_timeout(100)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130, log.read_text()
    run = Run(root / "training")
    expect(page.locator("#runs tr", has_text="training")).to_contain_text(f"{run.generations:,} of {10**7:,}")
    # At once, when nobody trains any more.
    expect(page.locator("#summary")).to_contain_text(f"in {run.generations} generations")
    check_numbers(page, run)
