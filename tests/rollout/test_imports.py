import math

import pytest

from popgraft.errors import ConfigError
from popgraft.rollout.imports import import_module, import_name


def test_names_and_modules() -> None:
    assert import_name("math:tau", "env.factory") is math.tau
    assert import_module("math", "env.id") is math


@pytest.mark.parametrize("path", ["math", "math:", ":tau", ""])
def test_other_forms_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=f"env.factory={path!r} must have the form module:name"):
        import_name(path, "env.factory")


def test_errors_name_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"env.factory='math:tao': the module 'math' has no 'tao'"):
        import_name("math:tao", "env.factory")
    with pytest.raises(
        ConfigError, match=r"env.id: the module 'maths' cannot be imported: ModuleNotFoundError: .*PYTHONPATH"
    ):
        import_module("maths", "env.id")
