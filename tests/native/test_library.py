"""What happens where the loops cannot be compiled, and where they have been before."""

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from popgraft.native import library, native, serves

pytestmark = pytest.mark.heavy

compiled = pytest.mark.skipif(native().library is None, reason=native().reason)


@pytest.fixture(autouse=True)
def _usual(monkeypatch):
    """Whatever the shell says."""
    for name in ("POPGRAFT_NATIVE", "CC"):
        monkeypatch.delenv(name, raising=False)


@compiled
def test_what_the_library_serves():
    assert serves(torch.empty(2, 3))
    assert not serves(torch.empty(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"POPGRAFT_NATIVE": "0"}, "POPGRAFT_NATIVE=0"),
        ({"CC": "no-such-compiler"}, "no C compiler; install one"),
        ({"CC": "no-such-compiler -pthread"}, "no C compiler; install one"),
        ({"CC": "cc '-pthread"}, "no C compiler; install one"),
        ({"CC": "false"}, "false failed: exit status 1"),
    ],
)
def test_without_a_compiler_pytorch_takes_over(variables, reason, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = native.__wrapped__()
    assert found.library is None
    assert reason in found.reason


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where libraries lie from now on; the folder is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "popgraft"


@pytest.fixture(scope="module")
def _library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("POPGRAFT_NATIVE", "CC"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert native.__wrapped__().library is not None
    return folder / "popgraft"


@pytest.fixture
def built(cache, _library):
    """The folder of libraries with one in it, which the test may change."""
    return Path(shutil.copytree(_library, cache))


@compiled
def test_it_is_compiled_once_for_the_user_alone(cache):
    assert native.__wrapped__().library is not None
    (file,) = cache.iterdir()
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


@compiled
@pytest.mark.parametrize(
    ("kept", "padded"),
    [pytest.param(0, False, marks=pytest.mark.slow), (9000, False), pytest.param(9000, True, marks=pytest.mark.slow)],
)
def test_a_damaged_library_is_built_again(kept, padded, built):
    """In another process, which a library that ends too early would kill."""
    width = native.__wrapped__().width
    (file,) = built.iterdir()
    good = file.read_bytes()
    file.unlink()  # this process has mapped it
    file.write_bytes(good[:kept] + bytes(len(good) - kept) * padded)
    program = "from popgraft.native import native; print(native().width)"
    found = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"{width}\n"), found.stderr
    assert [path.read_bytes() for path in built.iterdir()] == [good]


@compiled
def test_a_whole_file_that_is_no_library_is_built_again(built):
    (file,) = built.iterdir()
    good, other = file.read_bytes(), b"for another machine"
    file.unlink()
    key, _, _ = file.stem.rpartition("-")
    file.with_name(f"{key}-{hashlib.sha256(other).hexdigest()[:16]}.so").write_bytes(other)
    assert native.__wrapped__().library is not None
    assert [path.read_bytes() for path in built.iterdir()] == [good]


@compiled
@pytest.mark.slow
def test_several_who_need_it_at_once_compile_it_once(cache, tmp_path, monkeypatch):
    """Three processes; the compiler notes what it is asked for."""
    compiler, notes = tmp_path / "compiler", tmp_path / "notes"
    real = shutil.which("cc")
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {notes}\nexec {real} "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    program = [sys.executable, "-c", "from popgraft.native import native; print(native().describe())"]
    running = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    assert len({*said}) == 1
    (file,) = cache.iterdir()
    assert said[0].startswith(f"{file.stem.rpartition('-')[0]}, ")
    assert sum("-o" in line.split() for line in notes.read_text().splitlines()) == 1


@compiled
def test_nobody_waits_for_ever_for_who_compiles(cache, monkeypatch):
    cache.mkdir(parents=True)
    holder = os.open(cache, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    monkeypatch.setattr(library, "WAIT", 0.1)
    assert native.__wrapped__().library is not None
    os.close(holder)


@compiled
@pytest.mark.slow
def test_another_processor_is_asked_for_by_name(cache, monkeypatch):
    """The names are those of the compiler, which refuses what it does not know."""
    usual = native.__wrapped__()
    monkeypatch.setenv("POPGRAFT_NATIVE", "native")
    assert native.__wrapped__().describe() == usual.describe()
    monkeypatch.setenv("POPGRAFT_NATIVE", "no-such-processor")
    found = native.__wrapped__()
    assert found.library is None
    assert "no-such-processor" in found.reason
    assert found.describe() == "PyTorch"
    if platform.machine() == "x86_64":
        monkeypatch.setenv("POPGRAFT_NATIVE", "x86-64-v2")
        found = native.__wrapped__()
        assert found.library is not None, found.reason
        assert (found.width, found.rounds) == (4, False)
        assert found.describe() != usual.describe()


@compiled
def test_other_flags_make_another_library(built, monkeypatch):
    """No macro tells of these."""
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-fno-plt"))
    assert native.__wrapped__().library is not None
    assert len([*built.iterdir()]) == 2


@compiled
@pytest.mark.slow
def test_the_compiler_may_bring_flags_or_have_a_space_in_its_name(cache, tmp_path, monkeypatch):
    named = tmp_path / "my compiler"
    named.symlink_to(shutil.which("cc"))
    for compiler in ("cc -pthread -fno-plt", str(named)):
        monkeypatch.setenv("CC", compiler)
        found = native.__wrapped__()
        assert found.library is not None, found.reason
    assert len([*cache.iterdir()]) == 2


def test_without_a_home_pytorch_takes_over(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    found = native.__wrapped__()
    assert found.library is None
    assert native().library is None or "set XDG_CACHE_HOME" in found.reason
