"""How figures look: few colours, which differ in lightness too and can be read on dark and on light paper.

Text and grid lines have no colour here: the page's style sheet gives them one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

Array = np.ndarray

MEMBER = "rgba(128, 134, 144, 0.38)"
MEDIAN = "#3d8fd1"
BAND = "rgba(61, 143, 209, 0.22)"
WINNER = "#d9622b"
OTHER = "#8c6bc4"
EDGE = "rgba(128, 134, 144, 0.9)"
GRID = "rgba(128, 134, 144, 0.22)"
SCALE = ["#2c3d5c", "#3a6a8a", "#55999f", "#9cc79b", "#f0e6a0"]
"""Colours of scores, from bad to good: lighter and lighter, for any kind of colour vision and for black and white."""

MOST_POINTS = 5000
"""Points of a line for every member; of longer runs every k-th generation is drawn."""

MOST_DOTS = 600
"""Dots of a cloud; of more, every k-th is drawn."""

ROW_HEIGHT = 190
"""Pixels of one of several panels below each other."""


def panels(titles: Sequence[str], height: int = ROW_HEIGHT, shared: bool = True) -> go.Figure:
    """An empty figure of panels below each other.

    Args:
        titles: of every panel.
        height: of every panel, in pixels.
        shared: whether they have the horizontal axis in common.
    """
    total = height * len(titles) + 90
    figure = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes=shared,
        subplot_titles=list(titles) if len(titles) > 1 else None,
        vertical_spacing=(36 if shared else 96) / total,
    )
    figure.update_layout(
        template="none",
        height=total,
        margin={"l": 64, "r": 16, "t": 40, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"color": "#f2f3f5"}, "bgcolor": "#2b3038", "bordercolor": "#808690", "align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1 + 22 / total, "yanchor": "bottom"},
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_xaxes(gridcolor=GRID, zeroline=False, showline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, showline=False, automargin=True)
    return figure


def add_members(figure: go.Figure, row: int, steps: Array, values: Float[Array, "row pop"], shape: str) -> None:
    """Draws everybody as thin lines, in one trace with gaps."""
    stride = -(-values.size // MOST_POINTS)
    steps, values = steps[::stride], values[::stride]
    gap = np.full((1, values.shape[1]), np.nan)
    x = np.broadcast_to(np.append(steps, np.nan)[:, None], (len(steps) + 1, values.shape[1]))
    add(
        figure,
        row,
        x=x.T.ravel().astype(np.float32),
        y=np.concatenate([values, gap]).T.ravel().astype(np.float32),
        line={"color": MEMBER, "width": 1, "shape": shape},
        name="every member",
        hoverinfo="skip",
    )


def add_quartiles(figure: go.Figure, row: int, steps: Array, quartiles: Float[Array, "3 row"], hover: str) -> None:
    """Draws the median, and the band that holds the middle half of the members."""
    low, median, high = quartiles
    known = np.isfinite(median)
    there, back = np.flatnonzero(known), np.flatnonzero(known)[::-1]
    add(
        figure,
        row,
        x=np.concatenate([steps[there], steps[back]]),
        y=np.concatenate([high[there], low[back]]),
        fill="toself",
        fillcolor=BAND,
        line={"width": 0},
        name="middle half",
        hoverinfo="skip",
    )
    add(
        figure,
        row,
        x=steps,
        y=median,
        customdata=np.stack([low, high], 1),
        line={"color": MEDIAN, "width": 2, "dash": "dash"},
        name="median",
        hovertemplate=f"median %{{y:{hover}}}, middle half %{{customdata[0]:{hover}}} to %{{customdata[1]:{hover}}}"
        "<extra></extra>",
    )


def add(figure: go.Figure, row: int, **trace: Any) -> None:
    """Draws a line; of those with the same name, the first stands in the legend for all."""
    known = any(other.name == trace["name"] for other in figure.data)
    figure.add_scatter(
        **{"mode": "lines", "legendgroup": trace["name"], "showlegend": not known, **trace}, row=row, col=1
    )
