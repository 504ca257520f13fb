import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import torch

from popgraft.errors import Damaged, StoreError
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase, RunFolder
from popgraft.store import connection as connections
from popgraft.store.salvage import salvage

RATES = {"learning_rate": torch.tensor([0.5, 0.25])}
SCORES = Scores(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25]), torch.tensor([10, 1]))
GRAFT = Decision(torch.tensor([0, 0]), RATES, {1: "truncation"})
GENERATIONS = 8
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    """A run of a few generations, closed."""
    folder = RunFolder.create(tmp_path / "run", "seed: 1\n", {"torch": "2.6"})
    fill(folder)
    return folder


def fill(folder):
    with RunDatabase(folder.database) as database:
        for generation in range(GENERATIONS):
            database.record_generation(generation, SCORES, RATES, 10 * generation, GRAFT, {1: "copy"})
            database.record_metrics(generation, {"loss": SCORES.mean}, {"member_distance": 0.5})
            database.record_event("rescue", f"member 1 in {generation}", generation)


def content(path):
    """Names and bytes of all that lies below a folder."""
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@contextlib.contextmanager
def held(path):
    """Another process that has the database for itself."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.communicate()


def everything(database):
    return database.scores(), database.metrics(), database.lineage(), database.events(), database.sessions()


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_a_database_that_another_process_holds_is_not_taken_for_a_damaged_one(folder, journal, monkeypatch):
    with sqlite3.connect(folder.database) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.close()
    for name in ("PATIENCE", "GLANCE"):
        monkeypatch.setattr(connections, name, 0.1)
    before = folder.database.read_bytes()
    with held(folder.database):
        for work in (lambda: salvage(folder), lambda: RunDatabase(folder.database).close()):
            with pytest.raises(StoreError, match="is held by another process") as caught:
                work()
            assert not isinstance(caught.value, Damaged)
    assert salvage(folder) is None
    assert folder.database.read_bytes() == before
    assert not list(folder.path.glob("*damaged*"))


@pytest.mark.slow
def test_a_writer_waits_for_another_one(folder):
    """Longer than the five seconds after which Python's sqlite3 gives up."""
    assert connections.PATIENCE >= 30
    with held(folder.database) as holder, contextlib.ExitStack() as stack:
        timer = threading.Timer(6.0, holder.communicate)
        stack.callback(timer.join)
        timer.start()
        began = time.monotonic()
        with RunDatabase(folder.database) as database:
            database.record_event("rescue", "late", 1)
            assert database.events()[-1].text == "late"
        assert time.monotonic() - began > 5.0


def test_the_disk_is_not_taken_for_damage(folder):
    log = connections.with_end(folder.database, connections.LOG)
    for obstacle in (folder.database, log):
        kept = obstacle.read_bytes() if obstacle.exists() else None
        obstacle.unlink(missing_ok=True)
        obstacle.mkdir()
        with pytest.raises(StoreError) as caught:
            salvage(folder)
        assert not isinstance(caught.value, Damaged)
        obstacle.rmdir()
        if kept is not None:
            obstacle.write_bytes(kept)
    assert salvage(folder) is None


def test_a_pipe_in_place_of_a_database_is_refused_at_once(folder):
    folder.database.unlink()
    os.mkfifo(folder.database)
    for work in (lambda: salvage(folder), lambda: RunDatabase(folder.database, read_only=True)):
        with pytest.raises(StoreError, match="not a regular file"):
            work()
    assert folder.database.is_fifo()


def test_readers_leave_no_trace(folder):
    before = content(folder.path)
    with RunDatabase(folder.database, read_only=True) as database:
        found = everything(database)
        database.check()
    assert content(folder.path) == before
    assert len(found[0]) == 2 * GENERATIONS


def test_a_log_without_its_index_is_read_and_left_as_it_is(folder, tmp_path):
    """As of a run that was killed and copied without it."""
    with RunDatabase(folder.database) as database:
        database.record_event("rescue", "only in the log", 7)
        expected = everything(database)
        shutil.copytree(folder.path, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    copy = RunFolder(tmp_path / "copy")
    before = content(copy.path)
    assert len(before[f"{copy.database}-wal"]) > 0
    with RunDatabase(copy.database, read_only=True) as database:
        assert everything(database) == expected
    assert content(copy.path) == before


READ = """
import sys
from pathlib import Path
from popgraft.store import RunDatabase
folder = Path(sys.argv[1])
try:
    (folder / "x").touch()
    sys.exit("the folder can be written")
except OSError:
    pass
for each in sorted(folder.iterdir()):
    with RunDatabase(each / "run.sqlite", read_only=True) as database:
        print(len(database.scores()), len(database.events()))
"""


@pytest.mark.slow
def test_runs_on_a_medium_that_cannot_be_written(folder, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    with RunDatabase(folder.database) as database:
        database.record_event("rescue", "only in the log", 7)
        shutil.copytree(folder.path, media / "killed")
        shutil.copytree(folder.path, media / "killed without index", ignore=shutil.ignore_patterns("*-shm"))
    shutil.copytree(folder.path, media / "ended")
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", media, sys.executable, READ]
    if not shutil.which("unshare"):
        pytest.skip("there is no way to mount")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in found.stderr or "permission denied" in found.stderr.lower():
        pytest.skip(f"mounts are not allowed: {found.stderr}")
    assert found.stdout.splitlines() == [f"{2 * GENERATIONS} {GENERATIONS + 1}"] * 3, found.stderr


def test_a_flipped_bit_in_any_value_is_noticed(folder):
    """The number 2.0 is 0x40...; what SQLite's own check does not look at."""
    whole = folder.database.read_bytes()
    values = [b'"learning_rate": 0.5', b"truncation", b"rescue", b'"member_distance":0.5', b"member 1 in 3", b"seed: 1"]
    for value in values:
        place = whole.index(value) + len(value) - 1
        folder.database.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with RunDatabase(folder.database, read_only=True) as database, pytest.raises(Damaged, match="not what was"):
            everything(database)
    folder.database.write_bytes(whole)
    with RunDatabase(folder.database, read_only=True) as database:
        everything(database)


def test_a_row_with_a_flipped_bit_is_left_behind(folder):
    whole = folder.database.read_bytes()
    place = whole.index(b"member 1 in 3") + 12
    folder.database.write_bytes(whole[:place] + b"4" + whole[place + 1 :])
    assert "it is not what was written" in salvage(folder)
    with RunDatabase(folder.database, read_only=True) as database:
        events, scores = database.events(), database.scores()
    assert [event.text for event in events[:-1]] == [f"member 1 in {i}" for i in range(GENERATIONS) if i != 3]
    assert len(scores) == 2 * GENERATIONS


def test_a_run_of_an_earlier_version_has_no_checksums_until_it_goes_on(folder):
    with sqlite3.connect(folder.database) as connection:
        connection.execute("DROP TABLE checksums")
        connection.execute("UPDATE events SET text = 'other' WHERE rowid = 1")
    connection.close()
    with RunDatabase(folder.database, read_only=True) as database:
        assert database.events()[0].text == "other"
        database.check()
    with RunDatabase(folder.database) as database:
        database.record_event("rescue", "new", 1)
    whole = folder.database.read_bytes()
    place = whole.index(b"rescuenew") + 8
    folder.database.write_bytes(whole[:place] + b"x" + whole[place + 1 :])
    with RunDatabase(folder.database, read_only=True) as database, pytest.raises(Damaged, match="not what was written"):
        database.events()


ENDLESS = """
DROP TABLE {table};
CREATE VIEW {table} AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
SELECT i AS generation, i AS member, 1.0 AS score, 1.0 AS stderr, 1 AS episodes, 1 AS steps, '{{}}' AS hyperparams,
    1.0 AS time, 'x' AS kind, 'x' AS text, '{{}}' AS members, '{{}}' AS population, 1 AS process, 'x' AS host,
    'x' AS config, '{{}}' AS versions FROM n;
"""


@pytest.mark.parametrize(
    "script",
    [
        *(ENDLESS.format(table=table) for table in ("members", "metrics", "events", "sessions")),
        "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM members; END",
        "CREATE INDEX i ON events (hex(text))",
        "ALTER TABLE members ADD COLUMN more TEXT AS (hex(zeroblob(1000000)))",
        "DROP TABLE metrics",
    ],
)
def test_tables_that_are_not_those_of_a_run_are_refused(folder, script):
    with contextlib.closing(sqlite3.connect(folder.database)) as connection:
        connection.executescript(script)
    for read_only in (True, False):
        with pytest.raises(Damaged, match="is not that of a run"):
            RunDatabase(folder.database, read_only)
    assert "A new one holds the" in salvage(folder)
    with RunDatabase(folder.database) as database:
        database.check()


def test_what_somebody_adds_beside_the_tables_does_no_harm(folder):
    with contextlib.closing(sqlite3.connect(folder.database)) as connection:
        connection.executescript("CREATE VIEW best AS SELECT MAX(score) FROM members; CREATE TABLE notes (text)")
    assert salvage(folder) is None
    with RunDatabase(folder.database, read_only=True) as database:
        assert len(database.scores()) == 2 * GENERATIONS


def test_times_never_go_back(folder, monkeypatch):
    with RunDatabase(folder.database, read_only=True) as database:
        latest = database.events()[-1].time
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 9 * 86400)
    with RunDatabase(folder.database) as database:
        database.record_session("seed: 1\n", {})
        monkeypatch.setattr(time, "time", lambda: clock() + 9 * 86400)
        database.record_event("rescue", "then", 1)
        assert latest <= database.sessions()[-1].time <= database.events()[-1].time < latest + 60


def test_an_event_is_kept_whatever_an_environment_says(folder):
    with RunDatabase(folder.database) as database:
        database.record_event("environment", "\udcff" + "x" * 20_000_000)
        text = database.events()[-1].text
    assert text.startswith("\\udcffxx")
    assert len(text) < 11_000
