"""Everything that a page shows of a run below its summary, in the order of reading."""

from collections.abc import Iterable

import numpy as np

from popgraft.dashboard import curves, tables
from popgraft.dashboard.data import DISTANCES, LEARNING, Limits, RunData
from popgraft.dashboard.exploits import LAST, exploits
from popgraft.dashboard.family_tree import tree
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.importance import LEAST, Importance, Z, importance
from popgraft.dashboard.own import added
from popgraft.dashboard.replayed import replayed, verdict
from popgraft.dashboard.section import MakeSection, Section, View
from popgraft.dashboard.style import COLOURS, EDGE, SYMBOLS

IMPORTANCE = (
    "The share of the members' progress from one generation to the next that goes with a hyperparameter's value, with "
    "95 % intervals. Where progress does not depend on it, the share is 0 on average."
)
TOO_LITTLE = (
    f"There is too little to say: it takes {LEAST} scores that members have reached in a generation, from known scores "
    "at its beginning."
)


def figures(
    data: RunData, other: RunData | None = None, limits: Limits | None = None, own: Iterable[MakeSection] = ()
) -> list[Section]:
    """The sections of a run; those for which nothing was recorded are left out.

    Args:
        data: the run.
        other: another run, whose best score is drawn too.
        limits: the least and the highest score that scales reach to; None: those of the run itself.
        own: functions of the user's, whose sections follow the others.
    """
    view = View(data, other, limits)
    known = [section for make in SECTIONS if (section := make(view)) is not None]
    return added(known, own, view)


def scores(view: View) -> Section | None:
    """What was reached."""
    if not len(view.data.steps):
        return None
    compared = f" The dotted line is the best of {view.other.path}." if view.other else ""
    evaluated = view.data.found.get("final_score") is not None
    fresh = " The diamond is the best agent's mean over fresh episodes." if evaluated else ""
    return Section(
        "scores",
        "Score",
        f"Every member (thin), the median and the middle half of them, and the best of every generation (bold)."
        f"{fresh}{compared}",
        curves.scores(view.data, view.other, view.limits),
    )


def family_tree(view: View) -> Section | None:
    """Who descends from whom."""
    if not len(view.data.steps) or view.data.pop == 1:
        return None
    return Section(
        "tree",
        "Family tree",
        "Every band is a place in the population, coloured by score. A band is cut where its member was "
        "overwritten, and a line leads there from the member that was copied. The bold line is the descent of "
        "the best agent.",
        tree(view.data, view.limits),
    )


def hyperparameters(view: View) -> Section | None:
    """What was explored."""
    if not _explored(view.data):
        return None
    return Section(
        "schedules",
        "Hyperparameters",
        "The values that every member was trained with (thin), and those of the best agent and its ancestors "
        "(bold): the schedule that led to it.",
        curves.schedules(view.data),
    )


def what_mattered(view: View) -> Section | None:
    """How much of it mattered."""
    if not _explored(view.data):
        return None
    found = importance(view.data)
    return Section("importance", "Importance", IMPORTANCE if found else TOO_LITTLE, _shares(found) if found else "")


def what_a_replay_found(view: View) -> Section | None:
    """What fresh agents reached with the winner's schedule."""
    data = view.data
    if not data.replay and not (_explored(data) and data.state == "finished"):
        return None
    return Section("replay", "Replay", verdict(data), replayed(data) if data.replay else "")


def inheritance(view: View) -> Section | None:
    """What grafts did."""
    if not view.data.grafts:
        return None
    return Section(
        "exploits",
        "Inheritance",
        "Top: how much worse a recipient predicts returns than its donor, on the same steps; 1 means that "
        f"nothing was lost. Below: its return {LAST} updates later against that before, and how often it was no "
        "worse, with 95 % intervals.",
        exploits(view.data),
    )


def learning(view: View) -> Section | None:
    """What updates reported."""
    if not any(name in view.data.metrics for name in LEARNING):
        return None
    return Section(
        "learning",
        "Learning",
        "What updates report, averaged over a generation: the median member, the middle half, and the best "
        "agent with its ancestors.",
        curves.learning(view.data),
    )


def diversity(view: View) -> Section | None:
    """How far apart members were."""
    if view.data.pop == 1 or not any(name in view.data.population for name in DISTANCES):
        return None
    return Section(
        "divergence",
        "Diversity",
        "How far apart members are. Momenta have distance 0 where optimizers remember the same gradients, and "
        "1 where these have nothing in common.",
        curves.divergence(view.data),
    )


def members(view: View) -> Section | None:
    """Who is there."""
    data = view.data
    if not len(data.steps):
        return None
    when = "its last generation" if data.apart else f"generation {data.generations[-1] + 1}"
    caption = f"Everybody after {when}, the best first."
    return Section("members", "Members", caption, tables.as_html(*tables.members(data)))


def settings(view: View) -> Section:
    """What it was trained with."""
    return Section("settings", "Settings", "What the run can be repeated with.", tables.settings(view.data))


SECTIONS: tuple[MakeSection, ...] = (
    scores,
    family_tree,
    hyperparameters,
    what_mattered,
    what_a_replay_found,
    inheritance,
    learning,
    diversity,
    members,
    settings,
)
"""The sections that come along, in the order of reading."""


def _explored(data: RunData) -> bool:
    return any(space.name in data.hyperparams for space in data.spaces)


def _shares(found: list[Importance]) -> Figure:
    """A dot with its interval for every hyperparameter and part of the run."""
    names = list(dict.fromkeys(each.name for each in found))
    parts = list(dict.fromkeys((each.first, each.last) for each in found))
    figure = Figure.of([""], height=70 + 18 * len(names) * (len(parts) + 1))
    for number, part in enumerate(parts):
        dots = [each for each in found if (each.first, each.last) == part]
        figure.add(
            1,
            mode="markers",
            name=f"generations {part[0] + 1} to {part[1] + 1}",
            showlegend=True,
            x=np.array([each.share for each in dots]),
            y=[names.index(each.name) + (number - (len(parts) - 1) / 2) / (len(parts) + 1) for each in dots],
            error_x={"array": np.array([Z * each.stderr for each in dots]), "color": EDGE, "thickness": 1.5},
            customdata=[[each.name, "higher" if each.favours > 0 else "lower"] for each in dots],
            marker={"color": COLOURS[number], "symbol": SYMBOLS[number], "size": 11},
            hovertemplate="%{customdata[0]}: %{x:.1%} of progress; %{customdata[1]} values did better<extra></extra>",
        )
    figure.line(1, x=(0.0, 0.0), color=EDGE, width=1)
    figure.x(1, "share of progress", tickformat=".0%")
    figure.y(1, range=[len(names) - 0.5, -0.5], tickvals=list(range(len(names))), ticktext=names, showgrid=False)
    return figure
