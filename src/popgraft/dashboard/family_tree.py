"""The family tree of a run: who lived where for how long, and who came from whom."""

import math

import numpy as np

from popgraft.dashboard.data import Limits, RunData
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.style import EDGE, SCALE, WINNER

EARLY, LATE = 0.25, 0.35
"""How far a generation's cell reaches to both sides of its number; what is left until the next is for grafts."""


def tree(data: RunData, limits: Limits | None) -> Figure:
    """A band for every place, coloured by score and cut where a member was overwritten; a line from every donor."""
    figure = Figure.of([""], height=min(max(300, 26 * data.pop), 900))
    numbers = data.generations + 1
    last = len(numbers) - 1
    grafted = {
        (row + 1, member): donor
        for (row, member), donor in sorted(data.donors.items())
        if row < last and data.recorded[row + 1, member]
    }
    columns = [edge for number in numbers for edge in (number - EARLY, number + LATE)]
    cells = np.repeat(data.scores.T, 2, axis=1)[:, :-1].astype(np.float32)
    texts = [[""] * (2 * last + 1) for _ in range(data.pop)]
    for (row, member), donor in grafted.items():
        cells[member, 2 * row - 1] = math.nan
        texts[member][2 * row] = "<br>" + origin(data, (row, member), donor)
    figure.add(
        1,
        type="heatmap",
        name="scores",
        showlegend=False,
        x=np.array(columns, dtype=np.float32),
        y=np.arange(data.pop),
        z=cells,
        text=texts,
        colorscale=SCALE,
        reversescale=not data.maximizes,
        ygap=3 if data.pop <= 32 else 1,
        hoverongaps=False,
        colorbar={"title": {"text": "score", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="member %{y} in generation %{x:.0f}<br>score %{z:,.4~g}%{text}<extra></extra>",
        **({"zmin": limits[0], "zmax": limits[1]} if limits is not None else {}),
    )
    links: list[tuple[float, float]] = []
    for (row, member), (its_row, its_member) in grafted.items():
        ends = (numbers[its_row] + LATE, its_member), (numbers[row] - EARLY, member), (math.nan, math.nan)
        links += [(float(x), float(y)) for x, y in ends]
    _add_lines(figure, links, "inheritance", {"color": EDGE, "width": 1.5})
    line = [(float(numbers[row] + end), float(member)) for row, member in data.ancestors for end in (-EARLY, LATE)]
    _add_lines(figure, line, "casing", {"color": "#ffffff", "width": 5}, showlegend=False)
    _add_lines(figure, line, "the best agent's ancestors", {"color": WINNER, "width": 3})
    figure.x(1, "generation", showgrid=False)
    figure.y(1, "place", showgrid=False, autorange="reversed", dtick=1 if data.pop <= 16 else 8)
    return figure


def origin(data: RunData, place: tuple[int, int], donor: tuple[int, int]) -> str:
    """Where a member came from, and which hyperparameters changed by how much.

    Args:
        data: the run.
        place: row and member of the recipient in its first generation.
        donor: row and member of the donor.
    """
    lines = [f"from member {donor[1]} of generation {data.generations[donor[0]] + 1}"]
    for name, values in data.hyperparams.items():
        before, after = values[donor], values[place]
        if after != before and not math.isnan(after - before):
            lines.append(f"{name} × {after / before:.3g}" if before else f"{name} → {after:.3g}")
    return "<br>".join(lines)


def _add_lines(
    figure: Figure, points: list[tuple[float, float]], name: str, line: dict[str, object], showlegend: bool = True
) -> None:
    x, y = np.array(points, dtype=np.float32).reshape(-1, 2).T
    figure.add(1, x=x, y=y, line=line, name=name, hoverinfo="skip", showlegend=showlegend)
