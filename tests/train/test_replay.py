import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popgraft import ConfigError, Run, RunExists, load_config, replay, resume, train
from popgraft.train.replay import replay_config

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def kept() -> list[Run]:
    return []


@pytest.fixture
def run(tiny: Tiny, kept: list[Run], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose winner has been through a graft; a copy for every test."""
    if not kept:
        folder = str(tmp_path_factory.mktemp("runs") / "run")
        kept.append(train(tiny(total_timesteps=256, pbt__truncation_ratio=0.5, run_dir=folder)))
        assert kept[0].lineage
    return Run(shutil.copytree(kept[0].path, tmp_path / "run"))


def rates(path: Path) -> list[list[float]]:
    """Learning rates of all members by generation, read without this package."""
    with sqlite3.connect(path / "run.sqlite") as database:
        rows = database.execute("SELECT generation, hyperparams FROM members ORDER BY generation, member").fetchall()
    found: dict[int, list[float]] = {}
    for generation, values in rows:
        found.setdefault(generation, []).append(json.loads(values)["learning_rate"])
    return list(found.values())


def test_fresh_agents_live_the_winners_life(run: Run) -> None:
    best, places = run.summary, {(graft.generation, graft.member): graft.parent for graft in run.lineage}
    line, place = [], best["member"]
    for generation in range(best["generation"], -1, -1):
        line.insert(0, rates(run.path)[generation][place])
        place = places.get((generation - 1, place), place)
    result = replay(run.path, seeds=3)
    assert rates(run.path / "replay/schedule") == [pytest.approx([rate] * 3) for rate in line]
    assert rates(run.path / "replay/fixed") == [pytest.approx([line[0]] * 3)] * len(line)
    own, fixed = Run(run.path / "replay/schedule"), Run(run.path / "replay/fixed")
    grafted = {graft.generation for graft in own.lineage}
    assert grafted == {entry.steps // 32 - 1 for entry in own.config.pbt.schedule if entry.graft}
    assert fixed.lineage == []
    assert own.config.seed == fixed.config.seed != run.config.seed
    for name, arm in (("schedule", own), ("fixed", fixed)):
        scores = [arm.agent(i).evaluate(4, own.config.seed).mean.item() for i in range(3)]
        assert result.scores[name] == scores
    assert result.population == [run.agent(i).evaluate(4, own.config.seed).mean.item() for i in range(2)]

    medians = [sorted(result.scores["schedule"])[1], sum(result.population) / 2]
    assert result.reaches == (medians[0] >= medians[1])
    assert result.verdict.startswith(
        f"The winner's schedule alone {'reaches' if result.reaches else 'does NOT reach'} "
    )
    gains = [a - b for a, b in zip(result.scores["schedule"], result.scores["fixed"], strict=True)]
    assert result.gain[0] == pytest.approx(sum(gains) / 3)
    assert json.loads((run.path / "replay/replay.json").read_text()) == result.summary()
    assert replay(run.path, seeds=3).scores == result.scores  # nothing is trained a second time
    with pytest.raises(RunExists, match="holds another replay; give another folder with --out"):
        replay(run.path, seeds=2)
    values = replay_config(run, seeds=3, grafts=False).pbt.schedule
    assert [entry.model_copy(update={"graft": False}) for entry in own.config.pbt.schedule] == values


@pytest.mark.slow
def test_a_schedule_without_changes_is_the_fixed_one(tiny: Tiny) -> None:
    run = train(tiny(pbt__explore_method="none", pbt__exploit_method="none", total_timesteps=64))
    result = replay(run.path, seeds=2)
    assert result.scores["schedule"] == result.scores["fixed"]
    assert result.gain == (0, 0, 0)


@pytest.mark.slow
def test_a_run_that_follows_a_schedule_is_resumed_to_the_bit(run: Run, tmp_path: Path) -> None:
    config = replay_config(run, seeds=2)
    points = {"snapshots.interval": 1, "total_timesteps": 256}
    whole = train(load_config(config, {**points, "run_dir": str(tmp_path / "whole")}))
    part = train(load_config(config, {**points, "total_timesteps": 128, "run_dir": str(tmp_path / "part")}))
    resume(part.path, {"total_timesteps": 256})
    assert rates(part.path) == rates(whole.path)
    assert [record.score for record in part.scores] == [record.score for record in whole.scores]


def test_what_cannot_be_replayed_is_refused(tiny: Tiny) -> None:
    run = train(tiny(pbt__hyperparams=[], total_timesteps=64))
    with pytest.raises(ConfigError, match=r"has nothing to replay: nothing varies, because pbt.hyperparams is empty"):
        replay(run.path)
    with pytest.raises(ConfigError, match="seeds=1 give no interval"):
        replay(run.path, seeds=1)


@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("pbt.schedule=[]", r"pbt\.schedule cannot be set here, .* --export, change it there"),
        ("pbt.population_size=1", r"pbt\.population_size=1 cannot be set here, .* --seeds"),
        ("pbt.population_size=8", r"pbt\.population_size=8 cannot be set here, .* --seeds"),
        ("run_dir=elsewhere", r"run_dir=elsewhere cannot be set here, .* --out"),
    ],
)
def test_what_the_replay_itself_decides_cannot_be_set(run: Run, setting: str, refused: str) -> None:
    with pytest.raises(ConfigError, match=refused):
        replay(run.path, 2, overrides=(each for each in [setting]))
    assert not (run.path / "replay").exists()
