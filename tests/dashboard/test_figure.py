import base64
import itertools
import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from popgraft.dashboard.data import read
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.figures import figures


def drawn(path: Path) -> list[Figure]:
    return [section.content for section in figures(read(path), read(path)) if isinstance(section.content, Figure)]


def test_plotly_knows_every_word(trained: Path) -> None:
    """plotly's own classes refuse what plotly.js would pass over in silence."""
    found = drawn(trained)
    assert len(found) == 6
    for figure in found:
        go.Figure(json.loads(figure.json))
    with pytest.raises(ValueError, match="Invalid property"):
        go.Figure({"data": [{"type": "scatter", "colour": "red"}]})


def test_panels_lie_below_each_other_and_share_an_axis() -> None:
    layout = go.Figure(json.loads(Figure.of(["a", "b", "c"], height=100).json)).layout
    domains = [axis.domain for axis in (layout.yaxis3, layout.yaxis2, layout.yaxis)]
    assert domains[0][0] == pytest.approx(0)
    assert domains[2][1] == pytest.approx(1)
    for below, above in itertools.pairwise(domains):
        assert below[1] < above[0]
        assert above[1] - above[0] == pytest.approx(below[1] - below[0])
    assert (layout.xaxis.matches, layout.xaxis2.matches, layout.xaxis3.matches) == ("x3", "x3", None)
    assert [note.text for note in layout.annotations] == ["a", "b", "c"]
    assert [note.y for note in layout.annotations] == [domain[1] for domain in domains[::-1]]


def test_the_first_of_a_name_stands_in_the_legend() -> None:
    figure = Figure.of(["a", "b"])
    for row, name in ((1, "x"), (2, "x"), (2, "y")):
        figure.add(row, name=name, y=[1])
    assert [trace["showlegend"] for trace in figure.traces] == [True, False, True]
    assert [trace["yaxis"] for trace in figure.traces] == ["y", "y2", "y2"]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_numbers_survive(kind: type, shape: tuple[int, ...]) -> None:
    values = (np.arange(6) * 1000 - 1).astype(kind).reshape(shape)
    figure = Figure.of([""])
    figure.add(1, name="x", y=values)
    (trace,) = json.loads(figure.json)["data"]
    packed = go.Figure({"data": [trace]}).to_dict()["data"][0]["y"]  # plotly.py passes on what plotly.js will decode
    decoded = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
    assert decoded.reshape(shape).tolist() == values.tolist()
    assert packed.get("shape") == ("2, 3" if len(shape) == 2 else None)


def test_what_is_unknown_is_no_number_in_json() -> None:
    figure = Figure.of([""])
    figure.add(1, name="x", y=np.array([np.nan, 1.0]))
    assert "NaN" not in figure.json
    figure = Figure.of([""])
    figure.add(1, name="x", y=[float("nan")])
    with pytest.raises(ValueError, match="JSON"):
        _ = figure.json


def test_a_line_goes_across_the_panel() -> None:
    figure = Figure.of(["a", "b"])
    figure.line(2, y=(1.0, 1.0), color="red")
    figure.line(1, x=(0.0, 0.0))
    across, down = go.Figure(json.loads(figure.json)).layout.shapes
    assert (across.xref, across.x0, across.x1, across.yref, across.y0) == ("x2 domain", 0, 1, "y2", 1)
    assert (down.xref, down.x0, down.yref, down.y1) == ("x", 0, "y domain", 1)
