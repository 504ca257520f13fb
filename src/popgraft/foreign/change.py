"""A graft as a list of changes that all happen or leave no trace."""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Change:
    """One part of a graft, whose input has been validated.

    Attributes:
        remember: notes how things are, and returns what puts them back.
        apply: changes them.
    """

    remember: Callable[[], Callable[[], None]]
    apply: Callable[[], None]


def carry_out(changes: Sequence[Change]) -> None:
    """Applies them in order; if one raises, those before it and its own beginnings are undone, last one first."""
    undo: list[Callable[[], None]] = []
    try:
        for change in changes:
            undo.append(change.remember())
            change.apply()
    except BaseException:
        for restore in reversed(undo):
            restore()
        raise


def attributes(assignments: Sequence[tuple[object, str, object]]) -> Change:
    """Sets attributes: (owner, name, new value) each."""

    def remember() -> Callable[[], None]:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in assignments]
        return lambda: _set(before)

    return Change(remember, lambda: _set(assignments))


def _set(assignments: Sequence[tuple[object, str, object]]) -> None:
    for owner, name, value in assignments:
        setattr(owner, name, value)
