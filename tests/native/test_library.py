"""What happens where the loops cannot be compiled, and where they have been before."""

import os
import stat

import pytest
import torch

from popgraft.native import native, serves

compiled = pytest.mark.skipif(native().library is None, reason=native().reason)


@compiled
def test_what_the_library_serves():
    assert serves(torch.empty(2, 3))
    assert not serves(torch.empty(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"POPGRAFT_NATIVE": "0"}, "POPGRAFT_NATIVE=0"),
        ({"CC": "no-such-compiler"}, "no C compiler; install one"),
        ({"CC": "false"}, "false failed: exit status 1"),
    ],
)
def test_without_a_compiler_pytorch_takes_over(variables, reason, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = native.__wrapped__()
    assert found.library is None
    assert reason in found.reason


@compiled
def test_it_is_compiled_once_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native.__wrapped__().library is not None
    (file,) = (tmp_path / "cache" / "popgraft").iterdir()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    written = file.stat().st_mtime_ns
    assert native.__wrapped__().library is not None
    assert file.stat().st_mtime_ns == written
    assert [*file.parent.iterdir()] == [file]


@compiled
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = native.__wrapped__()
    assert found.library is None
    assert os.fspath(tmp_path) in found.reason
