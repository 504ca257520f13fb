"""`popgraft compare`: groups of runs, their means and how soon they were good."""

import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from popgraft import Run
from popgraft.cli.app import app
from popgraft.cli.compare import Course, Group, course, draw, groups_of
from popgraft.config import dump_config, load_config
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.train.run import BEST


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="popgraft")


def make(path: str, config: Path, final: float | None, best: list[float], **settings: object) -> Path:
    """A run of two members whose generations took 10 seconds each, with a pause of an hour after the first one."""
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    folder = RunFolder.create(path, dump_config(load_config(config, {"run_dir": path, **overrides})))
    rates = {"learning_rate": torch.ones(2)}
    with RunDatabase(folder.database) as database:
        for number, score in enumerate(best):
            scores = Scores(torch.tensor([score, float("nan")]), torch.zeros(2), torch.ones(2).long())
            decision = Decision(torch.arange(2), rates, {})
            database.record_generation(number, scores, rates, 32 * (number + 1), decision, {})
            database.record_metrics(number, {}, {})
        connection = database._connection
        connection.execute("DELETE FROM checksums")  # of rows that get other times here
        connection.execute("UPDATE sessions SET time = 1000")
        connection.execute("INSERT INTO sessions VALUES (4610, 0, '', '', '{}')")
        for number in range(len(best)):
            ended = 1010 if number == 0 else 4610 + 10 * number
            connection.execute("UPDATE metrics SET time = ? WHERE generation = ?", (ended, number))
        connection.commit()
    found = {"generation": 0, "member": 0, "score": max(best), "stderr": 0.0, "episodes": 1, "steps": 0}
    snapshot.save(folder, BEST, {"x": torch.zeros(1)}, found if final is None else {**found, "final_score": final})
    return folder.path


@pytest.fixture
def runs(config: Path) -> list[str]:
    for seed, (final, best) in enumerate([(10.0, [1.0, 5.0, 4.0]), (30.0, [6.0, 7.0, 8.0]), (20.0, [1.0, 2.0, 3.0])]):
        make(f"a{seed}", config, final, best, seed=seed)
    make("b", config, 8.0, [2.0, 3.0, 4.0], model__gamma=0.9)
    return ["a0", "a1", "a2", "b"]


def test_runs_that_differ_in_their_seed_alone_are_one_group(runs: list[str]) -> None:
    one, other = groups_of([Path(run) for run in runs])
    assert (one.name, other.name) == ("model.gamma=0.99", "model.gamma=0.9")
    assert (one.finals.tolist(), other.finals.tolist()) == ([10, 30, 20], [8])
    assert groups_of([Path("a0"), Path("a1")])[0].name == "popgraft/RepeatPrevious-v0"
    first = course(Run("a0"))
    assert first.steps == [64, 128, 192]
    assert first.seconds == [10, 20, 30]  # the pause does not count
    assert first.best == [1, 5, 4]
    assert [first.reached(threshold, 1) for threshold in (0.0, 5.0, 6.0)] == [0, 1, None]
    assert [first.reached(threshold, -1) for threshold in (4.0, 1.0, 0.0)] == [0, 0, None]


def test_the_table_and_the_picture(runs: list[str]) -> None:
    result = popgraft("compare", *runs, "--threshold", "5", "--picture", "compare.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG")
    title, _, header, one, other = result.stdout.splitlines()
    assert title == "final scores of the best agents; until then: medians of the runs that reached it"
    assert re.split("  +", header.strip())[-3:] == ["reached 5", "steps until then", "time until then"]
    # three runs: nothing is left out, and the mean is 20; of 1 and 2 generations the median is 1.5
    assert re.split("  +", one) == [
        "model.gamma=0.99", "3", "20.00", "10.00 to 30.00", "10.00", "30.00", "2 of 3", "96", "0:00:15",
    ]  # fmt: skip
    assert re.split("  +", other) == ["model.gamma=0.9", "1", "8.000", "one run", "8.000", "8.000", "0 of 1"]
    assert "reached" not in popgraft("compare", *runs).stdout


def test_a_run_that_is_named_twice_counts_once(runs: list[str]) -> None:
    again = popgraft("compare", *runs, "a0", "./a1", str(Path("b").resolve()))
    assert (again.exit_code, again.stdout) == (0, popgraft("compare", *runs).stdout)


@pytest.mark.parametrize("count", [3, 10])
def test_a_picture_has_room_for_every_name_and_shows_a_single_point(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr("popgraft.cli.compare.save", lambda figure, path: kept.append(figure))
    settings = [f"model.network.critic_head_layers_{i}={'[64, 64, 64]' if i % 2 else 'x' * 40}" for i in range(count)]
    runs = [Course(float(i), [64], [1.0], [float(i)]) for i in range(2)]
    draw([Group(", ".join(settings), 1, runs) for _ in range(3)], 1.0, tmp_path / "x.png")
    (figure,) = kept
    figure.draw_without_rendering()
    curves, finals = figure.axes
    (legend,) = figure.legends
    for text in legend.get_texts():
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= curves.bbox.y0
        assert " ".join(text.get_text().split())[3:] == ", ".join(settings)
    assert [text.get_text()[:2] for text in legend.get_texts()] == ["1:", "2:", "3:"]
    assert [label.get_text() for label in finals.get_yticklabels()] == ["1", "2", "3"]
    assert curves.bbox.width > figure.bbox.width / 2
    assert curves.bbox.height > 400 - 100  # of 400 without names
    assert {line.get_marker() for line in curves.lines[:3]} == {"o"}


def test_steps_of_members_that_are_behind_count(config: Path) -> None:
    path = make("apart", config, 9.0, [1.0, 2.0])  # both members have ended two generations of 32 steps
    rates, still = {"learning_rate": torch.ones(2)}, Decision(torch.arange(2), {}, {})
    numbers = torch.tensor([1, 1])
    with RunDatabase(RunFolder(path).database) as database:
        for member in (0, 0, 1, 0):  # then member 0 ends three more, and member 1 one
            numbers[member] += 1
            scores = Scores(numbers + 1.0, torch.zeros(2), torch.ones(2).long())
            part = torch.tensor([member])
            database.record_generation(numbers, scores, rates, 32 * (numbers + 1), still, {}, members=part)
            database.record_metrics(numbers, {}, {}, part)
    # 32 + 32, 64 + 64, 96 + 96; then member 0 alone: 128 and 160, with member 1 where it was, at 96
    assert course(Run(path)).steps == [64, 128, 192, 224, 256]
    cells = re.split("  +", popgraft("compare", "apart", "--threshold", "5").stdout.splitlines()[-1])
    assert cells[6:8] == ["1 of 1", "256"]


def test_what_is_written_late_does_not_shorten_a_run(config: Path) -> None:
    """After a pause, members that were behind end the first two generations, the second one last."""
    path = make("apart", config, 9.0, [1.0, 2.0, 3.0])
    with RunDatabase(RunFolder(path).database) as database:
        connection = database._connection
        connection.execute("DELETE FROM checksums")  # of rows that get other times here
        connection.execute("INSERT INTO events VALUES (1030, NULL, 'stopped', 'interrupted')")
        for number, ended in enumerate((4615, 4640, 4630)):
            connection.execute("UPDATE metrics SET time = ? WHERE generation = ?", (ended, number))
        connection.commit()
    assert course(Run(path)).seconds == [30 + 5, 30 + 30, 30 + 20]


def test_what_cannot_be_compared_is_named(config: Path) -> None:
    make("c", config, None, [1.0])
    unfinished = popgraft("compare", "c")
    assert (unfinished.exit_code, unfinished.stdout) == (2, "")
    assert unfinished.stderr == (
        "error: c has no final score, because its training has not ended; run: popgraft resume c\n"
    )
    assert popgraft("compare", "nothing").exit_code == 2
    assert popgraft("compare").exit_code == 2
