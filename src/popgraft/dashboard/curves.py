"""Figures over environment steps: scores, hyperparameters, learning, divergence."""

import numpy as np
import plotly.graph_objects as go

from popgraft.dashboard.data import DISTANCES, LEARNING, RunData, quartiles
from popgraft.dashboard.style import MEDIAN, OTHER, ROW_HEIGHT, WINNER, add, add_members, add_quartiles, panels
from popgraft.hyperparams import HyperparamConfig

STEPS = "steps of all members together"


def scores(data: RunData, other: RunData | None) -> go.Figure:
    """Score over steps: everybody, the middle half, the best; and the best of another run."""
    figure = panels(["score"], height=360)
    add_members(figure, 1, data.steps, data.scores, "linear")
    add_quartiles(figure, 1, data.steps, data.quartiles, ",.4~g")
    add(
        figure,
        1,
        x=data.steps,
        y=data.best,
        customdata=np.stack([data.generations + 1, data.leaders], 1),
        mode="lines+markers" if len(data.steps) < 60 else "lines",
        line={"color": WINNER, "width": 3},
        name="best of the generation",
        hovertemplate="best %{y:,.4~g}: member %{customdata[1]} in generation %{customdata[0]}<extra></extra>",
    )
    if other is not None:
        add(
            figure,
            1,
            x=other.steps,
            y=other.best,
            line={"color": OTHER, "width": 2, "dash": "dot"},
            name=f"best of {other.path.name}",
            hovertemplate="best of the other run %{y:,.4~g}<extra></extra>",
        )
    if "final_score" in data.found:
        add(
            figure,
            1,
            x=[data.found["steps"]],
            y=[data.found["final_score"]],
            error_y={"array": [data.found["final_stderr"]], "color": OTHER},
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": OTHER},
            name="best agent on fresh episodes",
            hovertemplate="best agent %{y:,.4~g} ± %{error_y.array:,.3~g} on fresh episodes<extra></extra>",
        )
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title=STEPS)
    figure.update_yaxes(title="score")
    return figure


def schedules(data: RunData) -> go.Figure:
    """Every explored hyperparameter over steps, and the values that the best agent's ancestors were trained with."""
    spaces = [space for space in data.spaces if space.name in data.hyperparams]
    figure = panels([space.name for space in spaces])
    for row, space in enumerate(spaces, 1):
        values = data.hyperparams[space.name]
        add_members(figure, row, data.steps, values, "vh")
        _add_path(figure, row, data, values, "vh")
        figure.update_yaxes(**_axis(space), row=row, col=1)
    figure.update_layout(hovermode="x")
    figure.update_xaxes(title=STEPS, row=len(spaces), col=1)
    return figure


def learning(data: RunData) -> go.Figure:
    """What updates report: the median member and the best agent's ancestors."""
    shown = {name: title for name, title in LEARNING.items() if name in data.metrics}
    figure = panels(list(shown.values()), height=ROW_HEIGHT - 20)
    for row, name in enumerate(shown, 1):
        values = -data.metrics[name] if name == "entropy_loss" else data.metrics[name]
        add_quartiles(figure, row, data.steps, quartiles(values), ".3~g")
        _add_path(figure, row, data, values, "linear")
    figure.update_layout(hovermode="x")
    figure.update_xaxes(title=STEPS, row=len(shown), col=1)
    return figure


def divergence(data: RunData) -> go.Figure:
    """How far apart members and their optimizers are."""
    shown = {name: title for name, title in DISTANCES.items() if name in data.population}
    figure = panels(list(shown.values()))
    for row, name in enumerate(shown, 1):
        line = {"color": MEDIAN, "width": 2}
        add(figure, row, x=data.steps, y=data.population[name], line=line, name=shown[name], showlegend=False)
    figure.update_traces(hovertemplate="%{y:.3~g} after %{x:,} steps<extra></extra>")
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title=STEPS, row=len(shown), col=1)
    return figure


def _add_path(figure: go.Figure, row: int, data: RunData, values: np.ndarray, shape: str) -> None:
    """Draws what the best agent's ancestors had."""
    places = np.array(data.ancestors, dtype=np.int64).reshape(-1, 2)
    add(
        figure,
        row,
        x=data.steps[places[:, 0]],
        y=values[places[:, 0], places[:, 1]],
        customdata=places[:, 1],
        line={"color": WINNER, "width": 3, "shape": shape},
        name="the best agent and its ancestors",
        hovertemplate="%{y:.4~g} at place %{customdata}, until step %{x:,}<extra></extra>",
    )


def _axis(space: HyperparamConfig) -> dict[str, object]:
    """An axis as the hyperparameter is explored: logarithmic, or linear."""
    if not space.is_log_scale:
        return {"type": "linear"}
    low, high = space.bounds
    return {"type": "log", "dtick": "D2" if high < 30 * low else 1, "exponentformat": "e"}
