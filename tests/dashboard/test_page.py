import base64
import hashlib
import html.parser
import json
import re

from popgraft.dashboard.figure import Figure
from popgraft.dashboard.page import Account, Section, page

NASTY = '</script><img src=x onerror=alert(1)> & "quotes"'


class Document(html.parser.HTMLParser):
    """Elements of a document, each with its attributes and the text directly in it, as Python's own parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "link", "input", "br", "img"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def account(name: str, *ids: str) -> Account:
    figure = Figure.of([""])
    figure.add(1, y=[1, 3, 2], name=NASTY)
    return Account(
        name, [f"{name} learnt. {NASTY}"], [Section(id, f"The {id}", f"{NASTY} of {id}", figure) for id in ids]
    )


def test_a_report_holds_all_that_it_needs_and_runs_nothing_else() -> None:
    document = Document(page("report", [account("a", "score")]))
    scripts = [text for attributes, text in document.all("script") if "type" not in attributes]
    (policy,) = (attributes["content"] or "" for attributes, _ in document.all("meta") if "http-equiv" in attributes)
    allowed = re.findall(r"'sha256-(.*?)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    addresses = [
        value for _, attributes, _ in document.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all((value or "").startswith(("#", "data:")) for value in addresses)


def test_a_live_page_takes_its_scripts_from_the_server() -> None:
    text = page("runs", [account("a", "score")], "<nav></nav>")
    sources = [attributes.get("src") for attributes, _ in Document(text).all("script") if "type" not in attributes]
    assert sources == ["static/page.js", "static/plotly.min.js"]
    assert len(text) < 20_000


def test_texts_are_text_and_figures_survive() -> None:
    document = Document(page(NASTY, [account(NASTY, "score")], "<nav></nav>"))
    assert document.all("h1") == [({}, NASTY)]
    assert [text for _, text in document.all("figcaption")] == [f"{NASTY} of score"]
    (data,) = (json.loads(text) for attributes, text in document.all("script") if "type" in attributes)
    assert data["data"][0]["name"] == NASTY
    assert data["data"][0]["y"] == [1, 3, 2]
    assert not document.all("img")


def test_every_figure_is_named_by_its_caption() -> None:
    table = Section("members", "Members", "A table.", "<table><tr><td>1</td></tr></table>")
    accounts = [Account("a", [], [*account("a", "score").sections, table]), account("b", "score", "tree")]
    document = Document(page("two", accounts, "<nav></nav>"))
    ids = [attributes["id"] for _, attributes, _ in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for _, attributes, _ in document.elements if "aria-labelledby" in attributes]
    assert set(named) <= set(ids)
    assert {attributes["id"] for attributes, _ in document.all("figcaption")} <= set(named)


def test_runs_are_side_by_side_under_one_heading() -> None:
    document = Document(page("two", [account("a", "score", "tree"), account("b", "score")], "<nav></nav>"))
    assert [text for _, text in document.all("h2")] == ["Summary", "The score", "The tree"]
    assert [text for _, text in document.all("h3")] == ["a", "b"] * 3  # summary, score, tree
    assert len(document.all("figure")) == 3
    assert "This run has nothing to show here." in [text for _, text in document.all("p")]
