"""What can stand for a kind of a part: a word, `module:Class`, a class; everything else is refused in words."""

import abc
import collections
from typing import Annotated

import pytest

from popgraft.config.fields import Section
from popgraft.config.kinds import Kinds, chosen_kinds
from popgraft.errors import ConfigError

SHAPES = Kinds(
    "world.shape", (f"{__name__}:Shape",), {"round": f"{__name__}:Round", "deque": "collections:deque", "none": None}
)


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Round(Shape):
    def area(self) -> float:
        return 3.0


class Square(Round): ...


class Vague(Shape): ...


class Inner(Section):
    shape: Annotated[str, SHAPES] = "none"


class World(Section):
    inner: Inner = Inner()
    shape: Annotated[str, SHAPES] = "round"
    size: int = 1


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ("round", "round", Round),
        ("none", "none", None),
        (f"{__name__}:Square", f"{__name__}:Square", Square),
        (f"{__name__}:Round", "round", Round),
        (Square, f"{__name__}:Square", Square),
        (Round, "round", Round),
        (collections.deque, "deque", collections.deque),
    ],
)
def test_a_kind_has_one_name_and_one_class(given, name, kind) -> None:
    assert World(shape=given).shape == name
    assert SHAPES.load(name) is kind


def test_a_configuration_that_names_code_does_not_run_it() -> None:
    assert World(shape="no_such_module:Kind").shape == "no_such_module:Kind"


@pytest.mark.parametrize("given", ["roound", "", 3, None, True, ["round"], Round()])
def test_anything_else_is_refused_with_the_choices(given) -> None:
    with pytest.raises(ConfigError, match=r"shape.*: must be one of round, deque, none, or module:Class"):
        World(shape=given)


@pytest.mark.parametrize("given", ["a:", ":b", "a:b:c", "a/b:c"])
def test_a_reference_of_another_form_is_refused(given) -> None:
    with pytest.raises(ConfigError, match="must have the form module:name"):
        World(shape=given)


def test_a_class_that_another_process_cannot_find_is_refused() -> None:
    class Local(Round): ...

    class Again(Round): ...

    Again.__qualname__ = "Square"
    for kind in (Local, Again, type("Made", (Round,), {"__module__": "no_such_module"})):
        with pytest.raises(ConfigError, match="define the class at the top level"):
            World(shape=kind)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"{__name__}:Nothing", "has no 'Nothing'"),
        ("no_such_module:Kind", "there is no module 'no_such_module'"),
        (f"{__name__}:SHAPES", "name a subclass of .*Shape"),
        ("collections:OrderedDict", "name a subclass of .*Shape"),
        (f"{__name__}:Vague", "lacks area; define what is missing in Vague"),
    ],
)
def test_what_cannot_serve_is_refused_when_it_is_loaded(name, sentence) -> None:
    with pytest.raises(ConfigError, match=rf"world\.shape.*{sentence}"):
        SHAPES.load(name)


def test_settings_that_name_kinds_are_found_in_all_sections() -> None:
    assert list(chosen_kinds(World(inner=Inner(shape=Square)))) == [(SHAPES, f"{__name__}:Square"), (SHAPES, "round")]
