import inspect
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from popgraft import errors
from popgraft.errors import PopgraftError

PUBLIC = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__]


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_is_a_popgraft_error_and_stands_in_the_picture(error: type) -> None:
    assert issubclass(error, PopgraftError)
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.MissingExtra, ImportError),
        (errors.UnusableNumber, ValueError),
        (errors.RunExists, FileExistsError),
    ],
)
def test_errors_can_be_caught_as_the_built_in_kind(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert str(errors.MissingExtra("envpool", "envpool", "env.vectorization: envpool")) == (
        "envpool is needed for env.vectorization: envpool but is not installed; run: pip install 'popgraft[envpool]'"
    )


def family(error: type) -> list[type]:
    """The class and all that are derived from it, wherever they are."""
    return [error, *(each for child in error.__subclasses__() for each in family(child))]


def made(error: type) -> PopgraftError:
    """An error of the class, whatever its constructor asks for."""
    own = list(inspect.signature(error).parameters) if "__init__" in vars(error) else ["cause"]
    return error(*(f"the {name}" for name in own))


@pytest.mark.parametrize("error", family(PopgraftError))
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_every_error_is_the_same_in_another_process(error: type, dumps: Callable[[Any], bytes]) -> None:
    sent = made(error)
    sent.place = [1, 2]  # type: ignore[attr-defined]
    sent.add_note("a note")
    found = pickle.loads(dumps(pickle.loads(dumps(sent))))  # twice: from an actor's process to its executor's
    assert type(found) is error
    assert str(found) == str(sent) != ""
    assert found.args == sent.args
    assert vars(found) == vars(sent)
