"""The page that a report and the live view share: HTML around figures.

A figure's data lie beside it as JSON and are drawn by plotly.js. A report holds all that it needs; a live page takes
scripts and styles from its server, fetches itself again when a run has changed, and adopts what is new.
"""

import base64
import dataclasses
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

from popgraft.dashboard.section import Section
from popgraft.messages import one_line

STYLE, SCRIPT, PLOTLY = "page.css", "page.js", "plotly.min.js"
"""Names of the files that a page needs."""

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",  # plotly.js writes styles of its own
    "img-src": "data: blob:",  # a figure that is saved as a picture
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
}
"""Content security policy of a live page: nothing comes from, or goes to, anywhere else."""

ABSENT = "<p>This run has nothing to show here.</p>"

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' stroke='%230b7285' "
    "stroke-width='3'%3E%3Cpath d='M6 7v18M26 7v18M6 10q0 6 10 6t10 6'/%3E%3C/svg%3E"
)


@dataclasses.dataclass(frozen=True)
class Account:
    """What a page tells of one run.

    Attributes:
        name: of the run.
        summary: sentences in plain language.
        sections: in the order of reading.
    """

    name: str
    summary: Sequence[str]
    sections: Sequence[Section]


def page(title: str, accounts: Sequence[Account], navigation: str | None = None) -> str:
    """One HTML document that tells of some runs, side by side where there are several.

    Args:
        title: its heading.
        accounts: of the runs.
        navigation: HTML before the accounts, which makes the page live: it takes `STYLE`, `SCRIPT` and `PLOTLY` from
            `static/` and listens to `changes`. Without it the document holds everything and asks nobody for anything.
    """
    live = navigation is not None
    if live:
        style = f'<link rel="stylesheet" href="static/{STYLE}">'
        script, plotly = (f'<script src="static/{name}"></script>' for name in (SCRIPT, PLOTLY))
    else:
        style = f'<meta http-equiv="Content-Security-Policy" content="{_sealed()}">\n<style>{asset(STYLE)}</style>'
        script, plotly = (f"<script>{asset(name)}</script>" for name in (SCRIPT, PLOTLY))
    return f"""<!doctype html>
<html lang="en"{" data-live" if live else ""}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)} · popgraft</title>
<link rel="icon" href="{ICON}">
{style}
{script}
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escaped(title)}</h1>
<p id="connection" role="status"></p>
<button id="theme" type="button">Dark or light</button>
</header>
{navigation or ""}
{_contents(accounts)}
<main id="content" tabindex="-1">
{_summary(accounts)}
{_sections(accounts)}
</main>
<footer><p>In a figure, hover for numbers, drag to zoom, and double-click to see all of it again.</p></footer>
{plotly}
</body>
</html>
"""


def escaped(text: str) -> str:
    """The text in HTML, without control characters and what cannot be encoded."""
    return html.escape(one_line(text))


@cache
def asset(name: str) -> str:
    """The text of `STYLE`, `SCRIPT` or `PLOTLY`."""
    folder = files("plotly") / "package_data" if name == PLOTLY else files("popgraft.dashboard") / "static"
    return (folder / name).read_text(encoding="utf-8")


def policy(directives: Mapping[str, str]) -> str:
    """A content security policy as one line."""
    return "; ".join(f"{name} {value}" for name, value in directives.items())


@cache
def _sealed() -> str:
    """The policy of a document that holds its scripts, and runs no other."""
    digests = (base64.b64encode(hashlib.sha256(asset(name).encode()).digest()).decode() for name in (SCRIPT, PLOTLY))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return policy({**POLICY, "script-src": scripts, "style-src": "'unsafe-inline'", "connect-src": "'none'"})


def _headings(accounts: Iterable[Account]) -> dict[str, str]:
    """Title of every section that an account has, by id, in the order of reading."""
    return {section.id: section.title for account in accounts for section in account.sections}


def _contents(accounts: Sequence[Account]) -> str:
    links = (f'<li><a href="#{id}">{escaped(title)}</a></li>' for id, title in _headings(accounts).items())
    return f'<nav id="contents" aria-label="Contents"><ul>{"".join(links)}</ul></nav>'


def _summary(accounts: Sequence[Account]) -> str:
    texts = ("".join(f"<p>{escaped(sentence)}</p>" for sentence in account.summary) for account in accounts)
    heading = '<h2 id="summary-title" class="unseen">Summary</h2>'
    return f'<section id="summary" aria-labelledby="summary-title">{heading}{_beside(accounts, texts)}</section>'


def _sections(accounts: Sequence[Account]) -> str:
    """A heading for every section, and below it what each account has there."""
    parts = []
    for id, title in _headings(accounts).items():
        own = [next((section for section in account.sections if section.id == id), None) for account in accounts]
        contents = (_figure(section, f"{id}-{i}") if section else ABSENT for i, section in enumerate(own))
        heading = f'<h2 id="{id}-title">{escaped(title)}</h2>'
        parts.append(
            f'<section id="{id}" aria-labelledby="{id}-title">{heading}{_beside(accounts, contents)}</section>'
        )
    return "\n".join(parts)


def _beside(accounts: Sequence[Account], contents: Iterable[str]) -> str:
    """Contents side by side, each below the name of its run where there are several."""
    names = [f"<h3>{escaped(account.name)}</h3>" if len(accounts) > 1 else "" for account in accounts]
    columns = (f"<div>{name}{content}</div>" for name, content in zip(names, contents, strict=True))
    return f'<div class="columns">{"".join(columns)}</div>'


def _figure(section: Section, id: str) -> str:
    """A content with its caption."""
    caption = f'<figcaption id="{id}">{escaped(section.caption)}</figcaption>'
    if isinstance(section.content, str):
        body = f'<div class="table" role="group" aria-labelledby="{id}" tabindex="0">{section.content}</div>'
    else:
        plot = f'<div class="plot" style="height: {section.content.height}px"></div>'
        body = f'{plot}<script type="application/json">{section.content.json}</script>'
    return f'<figure aria-labelledby="{id}">{caption}{body}</figure>'
