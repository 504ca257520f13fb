import os
import signal
import sqlite3
import time

import pytest

from popgraft.errors import PopgraftError, RunExists, StoreError
from popgraft.store import RunDatabase, RunFolder


def test_create_then_open(tmp_path):
    folder = RunFolder.create(tmp_path / "deep" / "run", "seed: 3  # größer\n")
    assert folder.config.read_text(encoding="utf-8") == "seed: 3  # größer\n"
    made = {"config.yaml", "identity", "lock", "run.sqlite", "snapshots", "tensorboard"}
    assert {file.name for file in folder.path.iterdir()} == made
    assert [file.name for file in folder.path.parent.iterdir()] == ["run"]
    assert RunFolder.open(str(folder.path)) == folder
    with RunDatabase(folder.database) as database:
        assert database.scores() == []


def test_an_empty_folder_is_used(tmp_path):
    assert RunFolder.create(tmp_path, "").config.is_file()


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.create("~/run", "").path == tmp_path / "run"
    assert RunFolder.open("~/run").path == tmp_path / "run"


def test_a_run_is_never_overwritten(tmp_path):
    RunFolder.create(tmp_path / "run", "seed: 1\n")
    with pytest.raises(RunExists, match="run already holds a run; set run_dir to another folder, or delete this one"):
        RunFolder.create(tmp_path / "run", "seed: 2\n")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1\n"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(RunExists, match="is not empty"):
        RunFolder.create(tmp_path, "")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("tail", ["file", "file/run"])
def test_a_path_that_cannot_be_a_folder(tmp_path, tail):
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreError, match=r"cannot make the run folder .*file.*: .*; set run_dir to another folder"):
        RunFolder.create(tmp_path / tail, "")
    assert (tmp_path / "file").read_text() == "text"


def test_a_folder_that_another_process_is_filling_is_in_use(tmp_path, monkeypatch):
    # The other process makes its snapshots folder between the look and the act.
    look = type(tmp_path).iterdir
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda path: (list(look(path)), (path / "snapshots").mkdir())[0])
    with pytest.raises(PopgraftError, match="file exists; set run_dir to another folder"):
        RunFolder.create(tmp_path / "run", "")


def test_open_says_what_is_missing(tmp_path):
    with pytest.raises(StoreError, match="nowhere is not a folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"lacks config\.yaml, snapshots; give the folder of a run"):
        RunFolder.open(tmp_path)
    folder = RunFolder.create(tmp_path / "run", "")
    folder.database.unlink()
    with pytest.raises(StoreError, match=r"run\.sqlite is missing"):
        RunDatabase(RunFolder.open(folder.path).database)
    folder.config.unlink()
    with pytest.raises(StoreError, match=r"run holds no complete run: it lacks config\.yaml"):
        RunFolder.open(folder.path)


def test_runs_are_found_by_what_they_hold(tmp_path):
    complete, bare, half = (RunFolder.create(tmp_path / "deep" / name, "") for name in ("a", "b", "c"))
    bare.database.unlink()
    half.config.unlink()
    (tmp_path / "config.yaml").write_text("")
    assert RunFolder.find(tmp_path) == [complete, bare, half]
    assert RunFolder.find(tmp_path / "nowhere") == []


def test_open_names_the_runs_below(tmp_path):
    for name in ("b", "a"):
        RunFolder.create(tmp_path / name, "")
    with pytest.raises(StoreError, match=r"did you mean .*/a or .*/b"):
        RunFolder.open(tmp_path)


PARTS = ["lock", "snapshots", "tensorboard", "run.sqlite", "identity", "config.yaml"]
"""In the order in which they are made."""


def cut(folder, count):
    """Leaves the first parts of a run that was just made."""
    for name in PARTS[count:]:
        path = folder.path / name
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("count", range(len(PARTS)))
@pytest.mark.parametrize("database", ["whole", "empty", "one page"])
def test_what_was_not_made_to_its_end_is_made_anew(tmp_path, count, database):
    folder = RunFolder.create(tmp_path / "run", "seed: 1\n")
    cut(folder, count)
    if folder.database.exists() and database != "whole":
        folder.database.write_bytes(b"")
    if folder.database.exists() and database == "one page":
        with sqlite3.connect(folder.database) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    (folder.path / ".config.yaml.17.tmp").write_text("see")
    with pytest.raises(StoreError, match="it was not made to its end: train again"):
        RunFolder.open(folder.path)
    assert RunFolder.create(folder.path, "seed: 2\n").config.read_text() == "seed: 2\n"
    assert {file.name for file in folder.path.iterdir()} == {*PARTS}
    with RunDatabase(folder.database) as opened:
        assert [session.config for session in opened.sessions()] == ["seed: 2\n"]


@pytest.mark.parametrize("count", [0, 4, len(PARTS)])
def test_what_was_not_made_to_its_end_beside_is_made_anew(tmp_path, count):
    """As a run leaves it that is killed before its folder has its name."""
    folder = RunFolder.create(tmp_path / ".run.new", "seed: 1\n")
    cut(folder, count)
    assert RunFolder.find(tmp_path) == []
    assert RunFolder.create(tmp_path / "run", "seed: 2\n").config.read_text() == "seed: 2\n"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.heavy
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moments", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_whoever_is_killed_while_making_a_folder_leaves_none_in_the_way(tmp_path, moments, there):
    began = time.monotonic()
    RunFolder.create(tmp_path / "whole", "seed: 1\n")
    duration = time.monotonic() - began
    for moment in range(moments):
        folder = RunFolder(tmp_path / str(moment))
        if there:
            folder.path.mkdir()
        pid = os.fork()
        if not pid:
            try:
                RunFolder.create(folder.path, "seed: 1\n")
            finally:
                os._exit(0)
        time.sleep(duration * (moment + 0.5) / moments)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not folder.config.is_file():
            RunFolder.create(folder.path, "seed: 2\n")
        assert {file.name for file in folder.path.iterdir()} >= {*PARTS}
        assert not list(tmp_path.glob(".*.new"))
        with RunDatabase(folder.database) as database:
            assert [session.config for session in database.sessions()] == [folder.config.read_text()]


@pytest.mark.parametrize("what", ["a file", "a snapshot", "scores", "another table", "a link"])
def test_what_is_more_than_a_beginning_is_left_alone(tmp_path, what):
    folder = RunFolder.create(tmp_path / "run", "seed: 1\n")
    if what == "scores":
        with RunDatabase(folder.database) as database:
            for _ in range(3):
                database.record_event("start", "something")
    cut(folder, 5)
    if what == "a file":
        (folder.path / "notes.txt").write_text("mine")
    elif what == "a snapshot":
        (folder.snapshots / "best").mkdir()
    elif what == "another table":
        with sqlite3.connect(folder.database) as connection:
            connection.execute("CREATE TABLE mine (text)")
        connection.close()
    elif what == "a link":
        (folder.path / "tensorboard").rmdir()
        (tmp_path / "mine").mkdir()
        (folder.path / "tensorboard").symlink_to(tmp_path / "mine")
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    with pytest.raises(RunExists, match="is not empty"):
        RunFolder.create(folder.path, "seed: 2\n")
    assert sorted(str(file) for file in tmp_path.rglob("*")) == before
