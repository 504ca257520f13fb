import sqlite3

import pytest
import torch

from popgraft.errors import StoreError
from popgraft.state import Decision, Scores
from popgraft.store import Aftermath, RunDatabase, RunFolder
from popgraft.store.salvage import salvage

RATES = {"learning_rate": torch.tensor([0.5, 0.25])}
SCORES = Scores(torch.tensor([2.0, torch.nan]), torch.tensor([0.5, torch.nan]), torch.tensor([10, 0]))
GRAFT = Decision(torch.tensor([0, 0]), RATES, {1: "rescue"})
GENERATIONS = 100


@pytest.fixture
def folder(tmp_path):
    """A run of many pages, closed."""
    folder = RunFolder.create(tmp_path / "run", "seed: 1\n", {"torch": "2.6"})
    with RunDatabase(folder.database) as database:
        for generation in range(GENERATIONS):
            database.record_generation(generation, SCORES, RATES, 10 * generation, GRAFT, {1: "copy"})
            database.record_metrics(generation, {"loss": SCORES.mean}, {"member_distance": 0.5})
            database.record_event("rescue", f"member 1 in {generation}; größer", generation)
        database.record_aftermath(7, 1, Aftermath(return_1=3.0))
    return folder


def everything(folder):
    with RunDatabase(folder.database) as database:
        tables = database.scores(), database.metrics(), database.lineage(), database.events(), database.sessions()
        return [str(rows) for rows in tables]


def test_a_sound_database_is_left_alone(folder):
    before = folder.database.read_bytes()
    assert salvage(folder) is None
    assert folder.database.read_bytes() == before
    assert not list(folder.path.glob("*damaged*"))


def test_rows_before_and_after_a_damaged_page_are_saved(folder):
    whole, before = folder.database.read_bytes(), everything(folder)
    counts, pages = [], range(4096, len(whole), 3 * 4096)
    for page in pages:
        folder.database.write_bytes(whole[:page] + b"\x5a" * 4096 + whole[page + 4096 :])
        text = salvage(folder)
        with RunDatabase(folder.database) as database:
            database.check()
            found = [
                database.scores(), database.metrics(), database.lineage(), database.events(), database.sessions()
            ]  # fmt: skip
        assert found[3].pop().text == text
        for rows, expected in zip(found, before, strict=True):
            assert all(str(row) in expected for row in rows)
        counts.append(sum(len(rows) for rows in found))
        assert f"A new one holds the {counts[-1]} rows that could be read; the old one is kept as run.sqlite." in text
    assert len(list(folder.path.glob("run.sqlite.damaged-*[0-9]"))) == len(pages)
    assert max(counts) == 5 * GENERATIONS + 1
    assert sorted(counts)[len(counts) // 2] > 4 * GENERATIONS


def test_what_a_row_holds_is_checked(folder):
    with sqlite3.connect(folder.database) as connection:
        connection.execute("UPDATE members SET hyperparams = '[]' WHERE generation = 3")
        connection.execute("UPDATE members SET steps = 'many' WHERE generation = 4")
        connection.execute("UPDATE metrics SET members = '{\"loss\": 1}' WHERE generation = 6")
        connection.execute("UPDATE metrics SET population = '{\"member_distance\": []}' WHERE generation = 7")
        connection.execute("UPDATE events SET text = CAST(x'ff' AS TEXT) WHERE rowid = 5")
    connection.close()
    assert "rows that mean nothing" in salvage(folder)
    with RunDatabase(folder.database) as database:
        assert {row.generation for row in database.scores()} == set(range(GENERATIONS)) - {3, 4}
        assert {row.generation for row in database.metrics()} == set(range(GENERATIONS)) - {6, 7}
        assert {row.generation for row in database.lineage()} == set(range(GENERATIONS))
        assert len(database.events()) == GENERATIONS  # one less, and the one that says so


def test_the_log_is_read_and_kept(folder):
    with RunDatabase(folder.database) as database:
        database.record_generation(GENERATIONS, SCORES, RATES, 1, GRAFT, {1: "copy"})
        main, log = folder.database.read_bytes(), (folder.path / "run.sqlite-wal").read_bytes()
    assert log
    (folder.path / "run.sqlite-wal").write_bytes(log)
    folder.database.write_bytes(main[: len(main) // 2])
    salvage(folder)
    assert (folder.path / "run.sqlite.damaged-1-wal").read_bytes() == log
    assert (folder.path / "run.sqlite.damaged-1").read_bytes() == main[: len(main) // 2]
    assert not (folder.path / "run.sqlite-wal").exists()
    with RunDatabase(folder.database) as database:
        assert database.generations() > 0


def test_a_database_of_another_version_is_not_touched(folder):
    with sqlite3.connect(folder.database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = folder.database.read_bytes()
    with pytest.raises(StoreError, match="was not written by this version"):
        salvage(folder)
    assert folder.database.read_bytes() == before


def test_a_missing_one_is_made_anew(folder):
    folder.database.unlink()
    assert "is missing. A new one holds the 0 rows" in salvage(folder)
    with RunDatabase(folder.database) as database:
        assert [event.kind for event in database.events()] == ["damaged"]
