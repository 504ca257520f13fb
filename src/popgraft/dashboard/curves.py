"""Figures over environment steps: scores, hyperparameters, learning, divergence."""

from typing import Any

import numpy as np

from popgraft.dashboard.data import DISTANCES, LEARNING, RETURN, Limits, RunData, quartiles
from popgraft.dashboard.figure import ROW_HEIGHT, Figure
from popgraft.dashboard.style import MEDIAN, OTHER, WINNER, add_members, add_quartiles
from popgraft.hyperparams import HyperparamConfig

STEPS = "steps of all members together"


def scores(data: RunData, other: RunData | None, limits: Limits | None) -> Figure:
    """Score over steps: everybody, the middle half, the best; and the best of another run."""
    figure = Figure.of(["score"], height=360)
    add_members(figure, 1, data.steps, data.scores, "linear")
    add_quartiles(figure, 1, data.steps, data.quartiles, ",.4~g")
    figure.add(
        1,
        x=data.steps,
        y=data.best,
        customdata=np.stack([data.generations + 1, data.leaders], 1),
        mode="lines+markers" if len(data.steps) < 60 else "lines",
        line={"color": WINNER, "width": 3},
        name="best of the generation",
        hovertemplate="best %{y:,.4~g}: member %{customdata[1]} in generation %{customdata[0]}<extra></extra>",
    )
    if RETURN in data.metrics and data.config.pbt.fitness != "training":
        figure.add(
            1,
            x=data.steps,
            y=quartiles(data.metrics[RETURN])[1],
            line={"color": MEDIAN, "width": 2, "dash": "dot"},
            name="median return in training",
            hovertemplate="median in training %{y:,.4~g}<extra></extra>",
        )
    if other is not None:
        figure.add(
            1,
            x=other.steps,
            y=other.best,
            line={"color": OTHER, "width": 2, "dash": "dot"},
            name=f"best of {other.path.name}",
            hovertemplate="best of the other run %{y:,.4~g}<extra></extra>",
        )
    if "final_score" in data.found:
        figure.add(
            1,
            x=[data.found["steps"]],
            y=np.array([data.found["final_score"]]),
            error_y={"array": np.array([data.found["final_stderr"]]), "color": OTHER},
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": OTHER},
            name="best agent on fresh episodes",
            hovertemplate="best agent %{y:,.4~g} ± %{error_y.array:,.3~g} on fresh episodes<extra></extra>",
        )
    figure.layout["hovermode"] = "x unified"
    figure.x(1, STEPS)
    figure.y(1, "score")
    if limits is not None:
        space = 0.05 * (limits[1] - limits[0]) or 1.0
        figure.y(1, range=[limits[0] - space, limits[1] + space])
    return figure


def schedules(data: RunData) -> Figure:
    """Every explored hyperparameter over steps, and the values that the best agent's ancestors were trained with."""
    spaces = [space for space in data.spaces if space.name in data.hyperparams]
    figure = Figure.of([space.name for space in spaces])
    for row, space in enumerate(spaces, 1):
        values = data.hyperparams[space.name]
        add_members(figure, row, data.steps, values, "vh")
        _add_path(figure, row, data, values, "vh")
        figure.y(row, **_axis(space))
    figure.layout["hovermode"] = "x"
    figure.x(len(spaces), STEPS)
    return figure


def learning(data: RunData) -> Figure:
    """What updates report: the median member and the best agent's ancestors."""
    shown = {name: title for name, title in LEARNING.items() if name in data.metrics}
    figure = Figure.of(list(shown.values()), height=ROW_HEIGHT - 20)
    for row, name in enumerate(shown, 1):
        values = -data.metrics[name] if name == "entropy_loss" else data.metrics[name]
        add_quartiles(figure, row, data.steps, quartiles(values), ".3~g")
        _add_path(figure, row, data, values, "linear")
    figure.layout["hovermode"] = "x"
    figure.x(len(shown), STEPS)
    return figure


def divergence(data: RunData) -> Figure:
    """How far apart members and their optimizers are."""
    shown = {name: title for name, title in DISTANCES.items() if name in data.population}
    figure = Figure.of(list(shown.values()))
    for row, name in enumerate(shown, 1):
        figure.add(
            row,
            x=data.steps,
            y=data.population[name],
            line={"color": MEDIAN, "width": 2},
            name=shown[name],
            showlegend=False,
            hovertemplate="%{y:.3~g} after %{x:,} steps<extra></extra>",
        )
        figure.y(row, rangemode="tozero")
    figure.x(len(shown), STEPS)
    return figure


def _add_path(figure: Figure, row: int, data: RunData, values: np.ndarray, shape: str) -> None:
    """Draws what the best agent's ancestors had."""
    places = np.array(data.ancestors, dtype=np.int64).reshape(-1, 2)
    figure.add(
        row,
        x=data.steps[places[:, 0]],
        y=values[places[:, 0], places[:, 1]],
        customdata=places[:, 1],
        line={"color": WINNER, "width": 3, "shape": shape},
        name="the best agent and its ancestors",
        hovertemplate="%{y:.4~g} at place %{customdata}, until step %{x:,}<extra></extra>",
    )


def _axis(space: HyperparamConfig) -> dict[str, Any]:
    """An axis as the hyperparameter is explored: logarithmic, or linear."""
    if not space.is_log_scale:
        return {"type": "linear"}
    low, high = space.bounds
    return {"type": "log", "dtick": "D2" if high < 30 * low else 1, "exponentformat": "e"}
