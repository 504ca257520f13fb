"""What a page shows as text: members, settings, versions."""

import html
import math
from collections.abc import Sequence

import numpy as np

from popgraft.dashboard.data import RunData
from popgraft.train import readable


def members(data: RunData) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: everybody as its last generation left it, the best first."""
    head = ["member", *(["generation"] if data.apart else []), "score", "copied from", "after generation", "grafts"]
    head += [space.name for space in data.spaces]
    if not len(data.steps):
        return head, []
    scores, stderr = data.last_scores, data.stderr[data.latest, np.arange(data.pop)]
    cost = scores if not data.maximizes else -scores
    rows = []
    for member in sorted(range(data.pop), key=lambda i: (math.isnan(cost[i]), cost[i])):
        grafts = [graft for graft in data.grafts if graft.member == member]
        known = math.isfinite(scores[member])
        rows.append(
            [
                str(member),
                *([str(data.generations[data.latest[member]] + 1)] if data.apart else []),
                readable(float(scores[member]), float(stderr[member])) if known else "none",
                *((str(grafts[-1].parent), str(grafts[-1].generation + 1)) if grafts else ("none", "none")),
                str(len(grafts)),
                *(f"{data.hyperparams[space.name][data.latest[member], member]:.4g}" for space in data.spaces),
            ]
        )
    return head, rows


def as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows, and whose other columns are numbers where all cells are."""
    numbers = [all(_is_number(row[column]) for row in rows) for column in range(len(head))]

    def cells(tag: str, texts: Sequence[str], scope: str = "") -> str:
        classes = (' class="number"' if number else "" for number in numbers)
        return "".join(
            f"<{tag}{scope}{kind}>{html.escape(text)}</{tag}>" for text, kind in zip(texts, classes, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head, ' scope=col')}</tr></thead><tbody>{body}</tbody></table>"


def settings(data: RunData) -> str:
    """Every setting and version, to be opened by a click."""
    versions = data.sessions[-1].versions if data.sessions else {}
    parts = {"Settings": data.settings, "Versions": "".join(f"{name}: {text}\n" for name, text in versions.items())}
    return "".join(
        f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>" for name, text in parts.items()
    )


def _is_number(text: str) -> bool:
    return text == "none" or text[:1].isdigit() or text[:1] in "-+" or "±" in text
