"""How figures look: few colours, which differ in lightness too and can be read on dark and on light paper.

Text and grid lines have no colour here: the page's style sheet gives them one.
"""

import numpy as np
from jaxtyping import Float

from popgraft.dashboard.figure import Figure

Array = np.ndarray

MEMBER = "rgba(128, 134, 144, 0.38)"
MEDIAN = "#3d8fd1"
BAND = "rgba(61, 143, 209, 0.22)"
WINNER = "#d9622b"
OTHER = "#8c6bc4"
EDGE = "rgba(128, 134, 144, 0.9)"
SCALE = [[0, "#2c3d5c"], [0.25, "#3a6a8a"], [0.5, "#55999f"], [0.75, "#9cc79b"], [1, "#f0e6a0"]]
"""Colours of scores, from bad to good: lighter and lighter, for any kind of colour vision and for black and white."""

COLOURS = (MEDIAN, WINNER, OTHER)
SYMBOLS = ("circle", "square", "diamond")
"""Of things that are compared."""

MOST_POINTS = 5000
"""Points of a line for every member; of longer runs every k-th generation is drawn."""

MOST_DOTS = 600
"""Dots of a cloud; of more, every k-th is drawn."""


def add_members(figure: Figure, row: int, steps: Array, values: Float[Array, "row pop"], shape: str) -> None:
    """Draws everybody as thin lines, in one trace with gaps."""
    stride = -(-values.size // MOST_POINTS)
    steps, values = steps[::stride], values[::stride]
    gap = np.full((1, values.shape[1]), np.nan)
    x = np.broadcast_to(np.append(steps, np.nan)[:, None], (len(steps) + 1, values.shape[1]))
    figure.add(
        row,
        x=x.T.ravel().astype(np.float32),
        y=np.concatenate([values, gap]).T.ravel().astype(np.float32),
        line={"color": MEMBER, "width": 1, "shape": shape},
        name="every member",
        hoverinfo="skip",
    )


def add_quartiles(figure: Figure, row: int, steps: Array, quartiles: Float[Array, "3 row"], hover: str) -> None:
    """Draws the median, and the band that holds the middle half of the members."""
    low, median, high = quartiles
    known = np.isfinite(median)
    there, back = np.flatnonzero(known), np.flatnonzero(known)[::-1]
    figure.add(
        row,
        x=np.concatenate([steps[there], steps[back]]),
        y=np.concatenate([high[there], low[back]]),
        fill="toself",
        fillcolor=BAND,
        line={"width": 0},
        name="middle half",
        hoverinfo="skip",
    )
    figure.add(
        row,
        x=steps,
        y=median,
        customdata=np.stack([low, high], 1),
        line={"color": MEDIAN, "width": 2, "dash": "dash"},
        name="median",
        hovertemplate=f"median %{{y:{hover}}}, middle half %{{customdata[0]:{hover}}} to %{{customdata[1]:{hover}}}"
        "<extra></extra>",
    )
