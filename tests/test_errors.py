import pytest

from popgraft import errors
from popgraft.errors import PopgraftError

PUBLIC = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_is_a_popgraft_error_and_stands_in_the_picture(error: type) -> None:
    assert issubclass(error, PopgraftError)
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(errors.ConfigError, ValueError), (errors.MissingExtra, ImportError), (errors.RunExists, FileExistsError)],
)
def test_errors_can_be_caught_as_the_built_in_kind(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert str(errors.MissingExtra("envpool", "envpool", "env.vectorization: envpool")) == (
        "envpool is needed for env.vectorization: envpool but is not installed; run: pip install 'popgraft[envpool]'"
    )
