"""Names of a user's modules: found where a configuration says, refused in words, and a script is not run again."""

import math
import os
import sys
import types

import pytest

from popgraft.errors import ConfigError
from popgraft.names import import_module, import_name, is_script, searched


@pytest.fixture(autouse=True)
def forget():
    """Modules that a test imports are those of its own folder."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_and_modules():
    assert import_name("math:tau", "env.factory") is math.tau
    assert import_module("math", "env.id") is math


@pytest.mark.parametrize("path", ["math", "math:", ":tau", ""])
def test_other_forms_are_refused(path):
    with pytest.raises(ConfigError, match=f"env.factory={path!r} must have the form module:name"):
        import_name(path, "env.factory")


def test_errors_say_what_is_wrong_where_and_what_may_be_meant(tmp_path):
    (tmp_path / "worlds_of_mine.py").write_text("def make_maze(): pass")
    (tmp_path / "broken_world.py").write_text("import worlds_of_mine\nraise OSError('no display')")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    (tmp_path / "needy.py").write_text("import no_such_library")
    with searched(tmp_path):
        with pytest.raises(ConfigError, match=r"has no 'make_mase'; did you mean 'make_maze'\?") as found:
            import_name("worlds_of_mine:make_mase", "env.factory")
        assert str(tmp_path / "worlds_of_mine.py") in str(found.value)
        with pytest.raises(
            ConfigError, match=r"env.id: there is no module 'world_of_mine'.*'worlds_of_mine'.*code_dir"
        ):
            import_module("world_of_mine", "env.id")
        with pytest.raises(ConfigError, match=r"'broken_world' cannot be imported: OSError: no display"):
            import_module("broken_world", "env.id")
        with pytest.raises(ConfigError, match=r"'leaving' cannot be imported: SystemExit: 3"):
            import_module("leaving", "env.id")
        with pytest.raises(ConfigError, match=r"'needy' cannot be imported: ModuleNotFoundError.*no_such_library"):
            import_module("needy", "env.id")


def test_a_folder_and_the_current_one_are_searched_last_and_only_meanwhile(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "place.py").write_text(f"here = {name!r}")
        (tmp_path / name / "json.py").write_text("dumps = 'mine'")
    (tmp_path / "two" / "other.py").write_text("import place")
    monkeypatch.chdir(tmp_path / "two")
    before = list(sys.path)
    with searched(tmp_path / "one"):
        assert import_name("place:here", "env.factory") == "one"
        assert import_name("other:place", "env.factory").here == "one"
        assert callable(import_name("json:dumps", "env.factory"))
        with searched(tmp_path / "one"):
            pass
        assert str(tmp_path / "one") in sys.path
    assert sys.path == before
    assert import_name("place:here", "env.factory") == "two"  # not that of a folder where nobody looks any more
    assert import_name("time:time", "env.factory") is __import__("time").time


def test_a_deleted_current_folder_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rmdir(tmp_path)
    assert import_name("math:tau", "env.factory") is math.tau


@pytest.mark.parametrize("name", ["a_script", "a_package.a_script"])
def test_a_script_is_itself_by_whatever_name(name, tmp_path, monkeypatch):
    file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise RuntimeError('run again')")
    script = types.ModuleType("__main__")
    script.__file__, script.make = str(file), "made"
    monkeypatch.setitem(sys.modules, "__main__", script)
    with searched(tmp_path):
        assert is_script(name)
        assert not is_script("math")
        assert import_name(f"{name}:make", "env.factory") == import_name("__main__:make", "env.factory") == "made"
        with pytest.raises(ConfigError, match=r"has no 'mike'.*'make'.*go on from the script or notebook"):
            import_name("__main__:mike", "env.factory")
