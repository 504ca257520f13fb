"""Sections of the user's own: a mistake in one is told in its place, and never takes the page down."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from popgraft.dashboard.figure import Figure
from popgraft.dashboard.markup import clean
from popgraft.dashboard.section import MakeSection, Section, View
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.names import import_name

LONGEST = 300
"""Characters of a mistake that are quoted."""

PREFIX = "own-"
"""What the ids of these sections begin with, so that they are none of the page's."""


def named(sections: Iterable[str | MakeSection]) -> list[MakeSection]:
    """The functions that make sections, found before anything is read.

    Args:
        sections: functions, or `module:function` of them.

    Raises:
        ConfigError: there is no such function.
    """
    makers = []
    for given in sections:
        maker = import_name(given, "section") if isinstance(given, str) else given
        if not callable(maker):
            raise ConfigError(f"section={given!r} is {maker!r}, not a function; name one that takes a View")
        makers.append(maker)
    return makers


def added(known: list[Section], makers: Iterable[MakeSection], view: View) -> list[Section]:
    """The sections of a page, with the user's behind them."""
    sections = list(known)
    for number, maker in enumerate(makers, 1):
        try:
            section = maker(view)
            if section is not None:
                sections.append(_checked(section, {each.id for each in sections}))
        except (Exception, SystemExit) as error:  # code of the user's may fail in any way
            name = getattr(maker, "__qualname__", type(maker).__qualname__)
            reason = f"This section could not be made: {told(error)[:LONGEST]}"
            sections.append(Section(f"{PREFIX}failed-{number}", name, reason, ""))
    return sections


def _checked(section: Any, taken: set[str]) -> Section:
    """A section that a page can show.

    Raises:
        Exception: it cannot.
    """
    if not isinstance(section, Section):
        raise TypeError(
            f"it is {type(section).__name__}, not a Section; return popgraft.dashboard.Section(...), or None"
        )
    for name in ("id", "title", "caption"):
        if not isinstance(getattr(section, name), str):
            raise TypeError(f"its {name} is {getattr(section, name)!r}, not a text")
    id, content = f"{PREFIX}{section.id}", section.content
    if not re.fullmatch(r"[a-z0-9-]+", section.id) or id in taken:
        raise ValueError(
            f"its id {section.id!r} is taken, or not of small letters, digits and hyphens; choose another one"
        )
    if isinstance(content, Figure):
        _ = content.height, content.json  # kept: what cannot be written is noticed here
    elif isinstance(content, str):
        content = clean(content)
    else:
        raise TypeError(f"its content is {type(content).__name__}, neither a Figure nor HTML")
    return dataclasses.replace(section, id=id, content=content)
