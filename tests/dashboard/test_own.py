"""Sections of the user's own: what they show is on the page, and a mistake in one is told in its place."""

import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from popgraft import ConfigError, report
from popgraft.cli.app import app
from popgraft.dashboard import Figure, Section, View
from popgraft.dashboard.markup import VOID, clean
from popgraft.dashboard.watcher import Watcher

from .test_data import Make, found, make

__all__ = ["make"]


@pytest.fixture
def small(make: Make) -> Path:
    folder = make([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], [[2, 1, 2], [0, 1, 2]])
    found(folder, 1, 0)
    return folder.path


def section(
    content: Any = "<p>so it is</p>", id: Any = "mine", title: Any = "Mine", caption: Any = "What I see."
) -> Any:
    return lambda view: Section(id, title, caption, content)


def unlike(name: str, value: Any) -> Any:
    """A section with something in it that types forbid."""

    def make(view: View) -> Section:
        made = Section("mine", "Mine", "", "")
        object.__setattr__(made, name, value)
        return made

    return make


def figure(values: list[Any]) -> Figure:
    drawn = Figure.of([""])
    drawn.add(1, name="mine", y=values)
    return drawn


def raising(error: BaseException) -> Callable[[View], Section]:
    def make(view: View) -> Section:
        raise error

    return make


def overwriting(view: View) -> Section:
    view.data.scores[:] = 0
    return Section("mine", "Mine", "", "")


def text_of(page: str) -> dict[str, str]:
    """What the sections of a page say, by id; the elements of a page are properly nested."""
    texts: dict[str, str] = {}
    open_: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in {*VOID, "input", "meta", "link"}:
                open_.append((tag, dict(attrs).get("id") if tag == "section" else None))

        def handle_endtag(self, tag: str) -> None:
            assert open_.pop()[0] == tag

        def handle_data(self, data: str) -> None:
            for id in filter(None, (id for _, id in open_)):
                texts[id] = texts.get(id, "") + data

    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not open_
    return texts


def test_sections_come_behind_the_others(small: Path) -> None:
    without = text_of(report(small).read_text())
    texts = text_of(
        report(small, sections=[section(), section(figure([1, 2]), "yours"), lambda view: None]).read_text()
    )
    assert list(texts) == [*without, "own-mine", "own-yours"]
    assert texts["own-mine"] == "MineWhat I see.so it is"
    assert {id: texts[id] for id in without} == without


@pytest.mark.parametrize(
    ("maker", "reason"),
    [
        (raising(ValueError("no such column")), "ValueError: no such column"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (lambda view: 3, "TypeError: it is int, not a Section"),
        (section(id="Mine"), "ValueError: its id 'Mine' is taken, or not of small letters"),
        (unlike("id", 7), "TypeError: its id is 7, not a text"),
        (unlike("title", None), "TypeError: its title is None, not a text"),
        (unlike("content", 3), "TypeError: its content is int, neither a Figure nor HTML"),
        (section(content=figure([math.nan])), "ValueError: Out of range float values are not JSON compliant"),
        (section(content=figure([object()])), "AttributeError: 'object' object has no attribute 'item'"),
        (section(content=Figure([], {})), "KeyError: 'height'"),
        (section(content="<table><tr><td>1</table>"), "ValueError: its HTML closes <table> where it is not open"),
        (section(content="<div>"), "ValueError: its HTML does not close <div>"),
        (section(content="</div></section>"), "ValueError: its HTML closes <div> where it is not open"),
        (
            section(content="<script>document.body.remove()</script>"),
            "ValueError: its HTML has <script>, which is none of a,",
        ),
        (overwriting, "ValueError: assignment destination is read-only"),
        (lambda: None, "TypeError: "),
    ],
)
def test_a_mistake_is_told_in_its_place(small: Path, maker: Any, reason: str) -> None:
    without = text_of(report(small).read_text())
    texts = text_of(report(small, sections=[maker, section(id="other")]).read_text())
    assert list(texts) == [*without, "own-failed-1", "own-other"]
    assert f"This section could not be made: {reason}" in texts["own-failed-1"]
    assert {id: texts[id] for id in without} == without


def test_of_two_sections_of_one_name_the_second_is_told_of(small: Path) -> None:
    texts = text_of(report(small, sections=[section(), section()]).read_text())
    assert "is taken" in texts["own-failed-2"]
    assert texts["own-mine"] == "MineWhat I see.so it is"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("<p class=a>1 &lt; 2 & 3</p>", '<p class="a">1 &lt; 2 &amp; 3</p>'),
        ("a<br>b<img src='data:,' alt=\"&quot;\"/>", 'a<br>b<img src="data:," alt="&quot;">'),
        ("<b id=summary onclick='x()' title=t>x</b>", '<b title="t">x</b>'),
        ("<svg viewBox='0 0 1 1'><path d='M0 0'/></svg>", '<svg viewbox="0 0 1 1"><path d="M0 0"></path></svg>'),
        ("1<!-- never seen -->2", "12"),
    ],
)
def test_html_is_written_anew(given: str, written: str) -> None:
    assert clean(given) == written


@pytest.mark.parametrize("given", ["<b title='never", "<!-- never closed", "<p", "<![CDATA[", "<?x", "</", "&#0;<"])
def test_what_is_cut_off_swallows_nothing(given: str) -> None:
    assert re.fullmatch(r"(?s)[^<>]*", clean(given))


def test_mistakes_in_a_name_are_found_before_anything_is_written(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"section='math:spreed': the module 'math' .* has no 'spreed'"):
        report(small, sections=["math:spreed"])
    with pytest.raises(ConfigError, match=r"section='math:pi' is 3\.14\d+, not a function"):
        report(small, sections=["math:pi"])
    assert not (small / "report.html").exists()


def test_the_commands_take_sections(make: Make, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "of_mine.py").write_text(
        "from popgraft.dashboard import Section\ndef seen(view): return Section('seen', 'Seen', 'By me.', '')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "of_mine", raising=False)
    run = CliRunner().invoke(app, ["report", str(small), "--section", "of_mine:seen"])
    assert run.exit_code == 0, run.output
    assert text_of((small / "report.html").read_text())["own-seen"] == "SeenBy me."
    run = CliRunner().invoke(app, ["report", str(small), "--text", "--section", "of_mine:seen"])
    assert (run.exit_code, "leave one of them out" in run.output) == (2, True)
    run = CliRunner().invoke(app, ["watch", str(small), "--section", "of_mine:unseen"])
    assert (run.exit_code, "of_mine" in run.output) == (2, True)


def test_the_live_page_has_them(small: Path) -> None:
    page = Watcher(small, [section(), raising(OSError("gone"))]).page([])
    assert text_of(page)["own-mine"] == "MineWhat I see.so it is"
    assert "could not be made: OSError: gone" in text_of(page)["own-failed-2"]
