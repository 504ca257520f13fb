"""HTML of others, written anew so that nothing of it reaches beyond its place in a page."""

import html
import re
from html.parser import HTMLParser

# fmt: off
TAGS = frozenset((
    "a", "abbr", "b", "big", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details",
    "div", "dl", "dt", "em", "figcaption", "figure", "h3", "h4", "h5", "hr", "i", "img", "ins", "kbd", "li", "mark",
    "ol", "p", "pre", "q", "s", "samp", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td",
    "tfoot", "th", "thead", "time", "tr", "u", "ul", "var", "svg", "circle", "defs", "ellipse", "g", "line",
    "lineargradient", "path", "polygon", "polyline", "rect", "stop", "text", "tspan",
))
# fmt: on
"""Tags that show something; scripts, forms and frames do more."""

VOID = frozenset(("br", "col", "hr", "img"))


def clean(text: str) -> str:
    """The same HTML, of tags that show something, each of which is closed.

    Raises:
        ValueError: another tag, or one that is not closed where it should be.
    """
    parser = _Parser()
    parser.feed(text)
    parser.close()
    if parser.open:
        raise ValueError(f"its HTML does not close <{parser.open[-1]}>")
    return "".join(parser.written)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.written: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            raise ValueError(f"its HTML has <{tag}>, which is none of {', '.join(sorted(TAGS))}")
        kept = (
            f' {name}="{html.escape(value or "")}"'
            for name, value in attrs
            if re.fullmatch(r"[a-z][a-z-]*\d?", name)
            and name != "id"
            and not name.startswith("on")  # the page has its own
        )
        self.written.append(f"<{tag}{''.join(kept)}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"its HTML closes <{tag}> where it is not open")
        self.written.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.written.append(html.escape(data, quote=False))
