"""A part of a page, and what it is made of."""

import dataclasses
from collections.abc import Callable

from popgraft.dashboard.data import Limits, RunData
from popgraft.dashboard.figure import Figure


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        id: short name, unique in the page; small letters, digits and hyphens.
        title: its heading.
        caption: one sentence in plain language that says what is seen; also the figure's text alternative.
        content: a figure, or HTML such as a table.
    """

    id: str
    title: str
    caption: str
    content: Figure | str


@dataclasses.dataclass(frozen=True)
class View:
    """What a section is made of.

    Attributes:
        data: the run.
        other: another run, such as a random search, to be shown beside it; None: none.
        limits: the least and the highest score that scales reach to; None: those of the run itself.
    """

    data: RunData
    other: RunData | None = None
    limits: Limits | None = None


MakeSection = Callable[[View], Section | None]
"""Makes a section; None where nothing was recorded that it could show."""
