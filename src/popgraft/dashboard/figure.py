"""A figure as plotly.js draws it: plain dictionaries, which take a hundredth of the time of plotly's own classes."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

GRID = "rgba(128, 134, 144, 0.22)"
ROW_HEIGHT = 190
"""Pixels of one of several panels below each other."""

HEAD, FOOT = 40, 52
"""Pixels above and below the panels."""

PACKED = {"f4": "f4", "f8": "f8", "i4": "i4", "i8": "f8"}
"""How plotly.js gets arrays of a type: it knows no long integers."""

Traces = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels below each other. Arrays may be NumPy's, which may hold what is unknown as NaN.

    Attributes:
        traces: what is drawn, in plotly's words.
        layout: where it is drawn, in plotly's words.
    """

    traces: Traces
    layout: dict[str, Any]

    @classmethod
    def of(cls, titles: Sequence[str], height: int = ROW_HEIGHT, shared: bool = True) -> "Figure":
        """An empty figure.

        Args:
            titles: of every panel.
            height: of every panel, in pixels.
            shared: whether they have the horizontal axis in common.
        """
        n = len(titles)
        total = height * n + HEAD + FOOT
        gap = (36 if shared else 96) / total
        layout: dict[str, Any] = {
            "height": total,
            "margin": {"l": 64, "r": 16, "t": HEAD, "b": FOOT},
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {
                "font": {"color": "#f2f3f5"}, "bgcolor": "#2b3038", "bordercolor": "#808690", "align": "left"
            },
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1 + 22 / total, "yanchor": "bottom"},
            "annotations": [],
            "shapes": [],
        }  # fmt: skip
        each = (1 - gap * (n - 1)) / n
        for row, title in enumerate(titles, 1):
            top = 1 - (row - 1) * (each + gap)
            axis = {"gridcolor": GRID, "zeroline": False, "showline": False, "automargin": True}
            x, y = _name("x", row), _name("y", row)
            layout[_axis("x", row)] = {**axis, "anchor": y}
            layout[_axis("y", row)] = {**axis, "anchor": x, "domain": [max(top - each, 0), top]}
            if shared and row < n:
                layout[_axis("x", row)] |= {"matches": _name("x", n), "showticklabels": False}
            if n > 1:
                place = {"x": 0, "xanchor": "left", "xref": "paper", "y": top, "yanchor": "bottom", "yref": "paper"}
                layout["annotations"].append({"text": title, "showarrow": False, "font": {"size": 14}, **place})
        return cls([], layout)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.layout["height"])

    def add(self, row: int, **trace: Any) -> None:
        """Draws a line, or what `type` says; of those with the same name, the first stands in the legend for all."""
        known = any(other["legendgroup"] == trace["name"] for other in self.traces)
        place = {"xaxis": _name("x", row), "yaxis": _name("y", row)}
        common = {"type": "scatter", "legendgroup": trace["name"], "showlegend": not known}
        if trace.get("type", "scatter") == "scatter":
            common["mode"] = "lines"
        self.traces.append({**common, **place, **trace})

    def line(self, row: int, x: Sequence[float] | None = None, y: Sequence[float] | None = None, **line: Any) -> None:
        """Draws a straight line between two points; across the panel in the direction that is not given."""
        (x0, x1), (y0, y1) = x or (0.0, 1.0), y or (0.0, 1.0)
        xref, yref = (f"{_name(way, row)}{'' if at else ' domain'}" for way, at in (("x", x), ("y", y)))
        ends = {"x0": x0, "x1": x1, "y0": y0, "y1": y1, "xref": xref, "yref": yref}
        self.layout["shapes"].append({"type": "line", "line": line, **ends})

    def x(self, row: int, title: str = "", **settings: Any) -> None:
        """Changes a panel's horizontal axis."""
        self._change(_axis("x", row), title, settings)

    def y(self, row: int, title: str = "", **settings: Any) -> None:
        """Changes a panel's vertical axis."""
        self._change(_axis("y", row), title, settings)

    @cached_property
    def json(self) -> str:
        """Traces and layout as JSON, in which nothing can end an HTML script."""
        value = {"data": self.traces, "layout": self.layout}
        text = json.dumps(value, default=_packed, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        return text.replace("<", "\\u003c")

    def _change(self, axis: str, title: str, settings: dict[str, Any]) -> None:
        self.layout[axis] |= {**settings, **({"title": {"text": title}} if title else {})}


def _axis(way: str, row: int) -> str:
    """The layout's name of a panel's axis."""
    return f"{way}axis{row if row > 1 else ''}"


def _name(way: str, row: int) -> str:
    """A trace's name of a panel's axis."""
    return f"{way}{row if row > 1 else ''}"


def _packed(value: Any) -> Any:
    """A number or an array of NumPy as JSON; arrays of numbers as the bytes that they have."""
    if not isinstance(value, np.ndarray):
        return value.item()
    if value.dtype.kind not in "if":
        return value.tolist()
    kind = PACKED[value.dtype.str[1:]]
    data = base64.b64encode(value.astype(f"<{kind}").tobytes()).decode()
    shape = {"shape": ", ".join(map(str, value.shape))} if value.ndim > 1 else {}
    return {"dtype": kind, "bdata": data, **shape}
