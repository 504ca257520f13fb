"""`popgraft replay`: what it prints, draws, exports and refuses."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from popgraft import Run, load_config
from popgraft.cli.app import app
from popgraft.cli.replay import said
from popgraft.train import Replay


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="popgraft")


def test_a_table_a_verdict_and_a_picture(run: Run) -> None:
    result = popgraft("replay", "run", "--seeds", "2", "--picture", "replay.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("replay.png").read_bytes().startswith(b"\x89PNG")
    *_, title, _, header, own, fixed, population, _, verdict = result.stdout.splitlines()
    assert title == "final scores over 4 fresh episodes, the same for all"
    assert re.split("  +", header.strip()) == ["agents", "mean", "95 % interval", "interquartile mean", "median"]
    kept = json.loads(Path("run/replay/replay.json").read_text())
    for line, name, found in [
        (own, "the winner's schedule", kept["arms"]["schedule"]),
        (fixed, "its initial values", kept["arms"]["fixed"]),
        (population, "the population", kept["population"]),
    ]:
        cells = re.split("  +", line)
        assert cells[:3] == [name, "2", f"{found['mean']:.3f}"]
        assert cells[3] == f"{found['interval'][0]:.3f} to {found['interval'][1]:.3f}"
    assert verdict == kept["verdict"]


def test_what_does_not_reach_the_population_is_said(config: Path) -> None:
    settings = load_config(config)
    worse = Replay(Path("x"), settings, {"schedule": [1.0, 2.0, 9.0], "fixed": [1.0, 1.0, 1.0]}, [3.0, 4.0])
    assert worse.verdict == (
        "The winner's schedule alone does NOT reach the population's median final score: the median of 3 fresh agents is "
        "2.000, that of the population 3.500. Against its initial values the schedule changes the score by 3.000 (95 % "
        "interval -7.828 to 13.83), no more than chance may do."
    )
    low = load_config(settings, {"pbt.metric_mode": "min"})
    assert Replay(Path("x"), low, worse.scores, worse.population).reaches
    better = Replay(Path("x"), settings, {"schedule": [5.0, 5.1, 5.2], "fixed": [1.0, 1.0, 1.0]}, [3.0])
    assert "alone reaches the population's median" in said(better)
    assert said(better).endswith("more than chance.")


def test_the_schedule_is_exported_as_a_configuration_that_trains(run: Run) -> None:
    result = popgraft("replay", "run", "--export", "schedule.yaml", "--no-grafts", "--set", "run_dir=followed")
    assert result.stdout == "wrote schedule.yaml; run: popgraft train schedule.yaml\n"
    assert not Path("run/replay").exists()
    config = load_config("schedule.yaml")
    donors = {(graft.generation, graft.member): graft.parent for graft in run.lineage}
    ancestor = run.summary["member"]
    for generation in reversed(range(run.summary["generation"])):
        ancestor = donors.get((generation, ancestor), ancestor)
    assert config.pbt.schedule[0].hyperparams["learning_rate"] == pytest.approx(
        run.scores[ancestor].hyperparams["learning_rate"], rel=1e-6
    )
    assert popgraft("train", "schedule.yaml", "--set", "total_timesteps=1").exit_code == 0
    Path("bad.yaml").write_text(Path("schedule.yaml").read_text().replace("steps: 0", "steps: 7"))
    bad = popgraft("train", "bad.yaml")
    assert bad.exit_code == 2
    assert "schedule: its steps must begin at 0 and rise" in bad.stderr
    unwritable = popgraft("replay", "run", "--export", "nowhere/schedule.yaml")
    assert unwritable.exit_code == 2
    assert unwritable.stderr.startswith("error: cannot write nowhere/schedule.yaml: ")
