import dataclasses
import json
import math
import os
import sqlite3
import time

import pytest
import torch

from popgraft.errors import StoreError
from popgraft.state import Decision, Scores
from popgraft.store import Aftermath, EventRecord, GraftRecord, MemberRecord, RunDatabase

NAN = math.nan
BEFORE = {"learning_rate": torch.tensor([0.5, 0.25, 0.125]), "target_kl": torch.full((3,), math.inf)}
AFTER = {"learning_rate": torch.tensor([0.5, 0.625, 0.5]), "target_kl": torch.full((3,), math.inf)}
SCORES = Scores(torch.tensor([2.0, -1.0, NAN]), torch.tensor([0.5, NAN, NAN]), torch.tensor([10, 1, 0]))
GRAFT = Decision(torch.tensor([0, 0, 0]), AFTER, {1: "truncation", 2: "rescue"})
FATE = {1: "copy", 2: "reset"}
NO_GRAFT = Decision(torch.arange(3), BEFORE, {})


@pytest.fixture
def path(tmp_path):
    RunDatabase.create(tmp_path / "run.sqlite")
    return tmp_path / "run.sqlite"


@pytest.fixture
def database(path):
    with RunDatabase(path) as database:
        yield database


def test_a_generation_is_read_back(database):
    database.record_generation(4, SCORES, BEFORE, 640, GRAFT, FATE)
    best, worse, lost = database.scores()
    assert best == MemberRecord(4, 0, 2.0, 0.5, 10, 640, {"learning_rate": 0.5, "target_kl": math.inf})
    assert (worse.score, worse.episodes, worse.hyperparams["learning_rate"]) == (-1.0, 1, 0.25)
    assert math.isnan(worse.stderr)
    assert math.isnan(lost.score)
    first, second = database.lineage()
    assert first == GraftRecord(
        generation=4,
        member=1,
        parent=0,
        parent_generation=4,
        reason="truncation",
        score_before=-1.0,
        parent_score=2.0,
        hyperparams_before={"learning_rate": 0.25, "target_kl": math.inf},
        hyperparams_after={"learning_rate": 0.625, "target_kl": math.inf},
        strategy="copy",
        aftermath=first.aftermath,
    )
    assert all(math.isnan(value) for value in dataclasses.astuple(first.aftermath))
    assert second.strategy == "reset"
    assert (second.member, second.reason, second.parent_score) == (2, "rescue", 2.0)
    assert math.isnan(second.score_before)


def test_metrics_are_read_back(database):
    members = {"vgs/factor": torch.tensor([0.123456789, NAN, math.inf]), "loss": torch.tensor([1e-12, 2.0, 3.0])}
    database.record_metrics(4, members, {"member_distance": 0.25, "optimizer_distance": NAN})
    (found,) = database.metrics()
    assert found.generation == 4
    assert time.time() - 60 < found.time <= time.time()
    assert found.members["vgs/factor"] == pytest.approx([0.123457, NAN, NAN], rel=1e-12, nan_ok=True)
    assert found.members["loss"] == [1e-12, 2.0, 3.0]
    assert found.population == pytest.approx({"member_distance": 0.25, "optimizer_distance": NAN}, nan_ok=True)


def parts(database, *rounds):
    """Records of every part its generation; the first member of each is overwritten by member 0."""
    numbers = torch.full((3,), -1)
    for part in rounds:
        members = torch.tensor(part)
        numbers[members] += 1
        parents = torch.arange(3)
        parents[part[0]] = 0
        reasons = {part[0]: "truncation"} if part[0] else {}
        decision = Decision(parents, AFTER, reasons)
        fates, steps = dict.fromkeys(reasons, "copy"), 10 * (numbers + 1)
        database.record_generation(numbers, SCORES, BEFORE, steps, decision, fates, None, members)
        loss, total = members + numbers[members] / 10, float(numbers.sum())
        database.record_metrics(numbers, {"loss": loss}, {"sum": total}, members)
    return numbers


def test_members_that_are_at_different_generations(database):
    """Rows are of those that have trained; what a generation has reported is put together, and forgotten by member."""
    numbers = parts(database, [0], [1, 2], [0], [0], [1, 2], [0])
    assert numbers.tolist() == [3, 1, 1]
    found = [(record.generation, record.member, record.steps) for record in database.scores()]
    assert found == [(g, m, 10 * (g + 1)) for g, m in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]]
    grafts = [(graft.generation, graft.member, graft.parent_generation, graft.parent) for graft in database.lineage()]
    assert grafts == [(0, 1, 0, 0), (1, 1, 2, 0)]  # the second donor is a generation ahead
    reported = [record.members["loss"] for record in database.metrics()]
    expected = [[0, 1, 2], [0.1, 1.1, 2.1], [0.2, NAN, NAN], [0.3, NAN, NAN]]
    torch.testing.assert_close(torch.tensor(reported), torch.tensor(expected), equal_nan=True)
    assert [record.population["sum"] for record in database.metrics()] == [0, 4, 2, 5]
    assert database.rewind([3, 1, 1], 0, {}, []) == []
    assert [(record.generation, record.member) for record in database.scores()] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (2, 0)
    ]  # fmt: skip
    assert [graft.generation for graft in database.lineage()] == [0]
    reported = [record.members["loss"] for record in database.metrics()]
    expected[1:] = [[0.1, NAN, NAN], [0.2, NAN, NAN]]
    torch.testing.assert_close(torch.tensor(reported), torch.tensor(expected), equal_nan=True)


def test_what_is_read_together_is_of_one_moment(path, database):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    with RunDatabase(path, read_only=True) as reader:
        with reader.unchanging():
            assert reader.generations() == 1
            database.record_generation(1, SCORES, BEFORE, 20, GRAFT, FATE)
            assert {graft.generation for graft in reader.lineage()} == {0}
        assert reader.generations() == 2


def test_the_aftermath_of_a_graft_is_written_over_what_was_known_before(database):
    database.record_generation(4, SCORES, BEFORE, 640, GRAFT, FATE)
    early = Aftermath(value_loss_ratio=1.5, return_before=20.0)
    for aftermath in (early, dataclasses.replace(early, return_1=21.0)):
        database.record_aftermath(4, 2, aftermath)
    untouched, found = (record.aftermath for record in database.lineage())
    assert (found.value_loss_ratio, found.return_before, found.return_1) == (1.5, 20.0, 21.0)
    assert math.isnan(found.return_5)
    assert math.isnan(untouched.return_1)


def test_generations_come_in_order_and_keep_single_precision(database):
    rate = torch.tensor([3e-4, 1e-5, 0.1])
    for generation in (2, 0, 1):
        database.record_generation(generation, SCORES, {"learning_rate": rate}, 10 * generation, NO_GRAFT, FATE)
    assert [(row.generation, row.member) for row in database.scores()] == [(g, i) for g in range(3) for i in range(3)]
    assert torch.equal(torch.tensor([row.hyperparams["learning_rate"] for row in database.scores()[:3]]), rate)
    assert database.lineage() == []


def test_sqlite_alone_can_read_it(database, path):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT member FROM members WHERE score IS NULL").fetchall() == [(2,)]
        rows = connection.execute("SELECT json_extract(hyperparams, '$.learning_rate') FROM members").fetchall()
        assert rows == [(0.5,), (0.25,), (0.125,)]
        text = connection.execute("SELECT hyperparams_after FROM grafts").fetchone()[0]
        assert json.loads(text, parse_constant=pytest.fail) == {"learning_rate": 0.625, "target_kl": None}
    connection.close()


def test_a_generation_is_recorded_once(database):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    written = str(database.scores()), str(database.lineage())
    with pytest.raises(StoreError, match="generation 0 is already recorded"):
        database.record_generation(0, SCORES, AFTER, 20, NO_GRAFT, FATE)
    assert (str(database.scores()), str(database.lineage())) == written


def test_a_generation_is_written_whole_or_not_at_all(database):
    itself = Decision(torch.arange(3), BEFORE, {1: "truncation"})  # a member that is its own donor
    with pytest.raises(StoreError, match="CHECK constraint"):
        database.record_generation(0, SCORES, BEFORE, 10, itself, FATE)
    assert database.scores() == []
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    assert len(database.scores()) == 3


def test_a_graft_must_join_members_of_its_generation(database):
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), database._connection as connection:
        connection.execute(
            "INSERT INTO grafts VALUES (0, 1, 0, 0, 'truncation', 0, 0, '{}', '{}', 'copy', 0, 0, 0, 0, 0, 0)"
        )


def test_events_come_in_the_order_of_writing(database):
    start = time.time()
    database.record_event("start", "The run began.")
    database.record_event("rescue", "Member 2 was lost; größer.", generation=3)
    first, second = database.events()
    assert isinstance(first, EventRecord)
    assert (first.generation, first.kind, first.text) == (None, "start", "The run began.")
    assert (second.generation, second.kind, second.text) == (3, "rescue", "Member 2 was lost; größer.")
    assert start <= first.time <= second.time <= time.time()


def test_others_read_while_one_writes(database, path):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    with RunDatabase(path) as reader:
        assert len(reader.scores()) == 3
        database.record_generation(1, SCORES, BEFORE, 20, GRAFT, FATE)
        assert len(reader.scores()) == 6


def test_records_survive_without_a_close(path):
    writer = RunDatabase(path)
    writer.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    with RunDatabase(path) as reader:
        assert len(reader.lineage()) == 2
    writer.close()


def test_a_missing_database_is_not_made(tmp_path):
    with pytest.raises(StoreError, match=r"run\.sqlite is missing"):
        RunDatabase(tmp_path / "run.sqlite")
    assert not (tmp_path / "run.sqlite").exists()


def test_an_existing_database_is_not_made_again(path):
    with pytest.raises(StoreError, match="cannot make the database"):
        RunDatabase.create(path)


@pytest.mark.parametrize("content", [b"", b"not a database, but longer than a header of one hundred bytes " * 9])
def test_a_file_that_is_no_database_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be used: file is not a database|was not written by"):
        RunDatabase(path)


def test_a_database_of_something_else_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "run.sqlite") as connection:
        connection.execute("CREATE TABLE members (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="was not written by this version of popgraft"):
        RunDatabase(tmp_path / "run.sqlite")


def test_damaged_pages_are_an_error_in_words(path):
    with RunDatabase(path) as database:
        for generation in range(50):
            database.record_generation(generation, SCORES, BEFORE, 10, GRAFT, FATE)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\x55" * (len(whole) - 4096))
    with RunDatabase(path) as database, pytest.raises(StoreError, match=r"run\.sqlite cannot be used: .*malformed"):
        database.scores()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="cannot be used"), RunDatabase(path) as database:
        database.scores()


@pytest.mark.parametrize("text", ["", "{", "nonsense"])
def test_a_damaged_cell_is_an_error_in_words(database, text):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    with database._connection as connection:
        connection.execute("UPDATE members SET hyperparams = ?", (text,))
    with pytest.raises(StoreError, match="cannot be used: Expecting"):
        database.scores()


def told(database):
    return [event.text for event in database.events()]


def test_going_back_forgets_what_came_after(database):
    database.record_generation(0, SCORES, BEFORE, 10, GRAFT, FATE)
    database.record_event("rescue", "early", 0)
    mark, before = database.events_written(), (str(database.scores()), str(database.lineage()))
    database.record_aftermath(0, 2, Aftermath(return_1=5.0))
    database.record_generation(1, SCORES, BEFORE, 20, GRAFT, FATE)
    for generation in (0, 1):
        database.record_metrics(generation, {"loss": torch.ones(3)}, {})
    for kind, text in [("rescue", "late"), ("stopped", "kept")]:
        database.record_event(kind, text, 1)
    for _ in range(2):  # twice is once
        database.rewind([1] * 3, mark, {(0, 2): Aftermath()}, ["stopped", "resumed"])
        assert (str(database.scores()), str(database.lineage())) == before
        assert told(database) == ["early", "kept"]
        assert database.generations() == 1
        assert [record.generation for record in database.metrics()] == [0]
    database.record_generation(1, SCORES, BEFORE, 20, GRAFT, FATE)
    database.rewind([0] * 3, 0, {}, [])
    assert (database.scores(), database.lineage(), told(database), database.events_written()) == ([], [], [], 0)


def test_what_is_not_there_of_the_time_before_is_recorded_once(database):
    database.record_event("rescue", "first")
    for generation in (0, 2, 5):
        database.record_generation(generation, SCORES, BEFORE, 10, GRAFT, FATE)
    lost = database.rewind([6] * 3, 7, {}, ["damaged"])
    assert "has lost its events 2 to 7" in lost[0]
    assert "has lost the scores of generations 1, 3, 4" in lost[1]
    for _ in range(2):
        assert told(database) == ["first", *lost]
        database.record_event("rescue", "later")  # whose number is not that of one that had been written before
        assert database.rewind([6] * 3, 7, {}, ["damaged"]) == []
    assert database.generations() == 3


def test_every_page_is_checked(path):
    with RunDatabase(path) as database:
        for generation in range(50):
            database.record_generation(generation, SCORES, BEFORE, 10, GRAFT, FATE)
        database.check()
    whole = path.read_bytes()
    for page in range(4096, len(whole), 4096):
        path.write_bytes(whole[:page] + bytes(4096) + whole[page + 4096 :])
        with RunDatabase(path, read_only=True) as database, pytest.raises(StoreError, match=r"cannot be used|damaged"):
            database.check()


def test_sessions_are_kept(database):
    for config in ("a: 1", "a: 2"):
        database.record_session(config, {"torch": "2.6"})
    first, second = database.sessions()
    assert (first.config, second.config) == ("a: 1", "a: 2")
    assert first.process == os.getpid()
    assert first.versions == {"torch": "2.6"}
    assert time.time() - 60 < first.time <= second.time
