"""Observers and sections of the report from outside the package, named in a configuration."""

import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from popgraft import ConfigError, resume, train
from popgraft.cli.app import app

HERE = Path(__file__).parent
GENERATION = 2 * 2 * 8


@pytest.fixture
def make(tmp_path):
    """Two members without a memory; the module is found by `code_dir` alone."""

    def build(**settings):
        return {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
            "model": {"n_steps": 8, "n_minibatches": 1, "network": {"recurrent": "none", "encoder_layers": [4]}},
            "pbt": {"population_size": 2, "perturbation_interval": 1},
            "evaluation": {"episodes": 2, "final_episodes": 2, "max_steps": 12},
            "execute": {"shards": 1},
            "total_timesteps": 2 * GENERATION,
            "run_dir": str(tmp_path / "run"),
            "code_dir": str(HERE),
            **settings,
        }

    yield build
    sys.modules.pop("their_observers", None)


def test_an_observer_is_named_and_told_of_a_resumed_run_too(make):
    run = train(make(observers=["their_observers:Table"]))
    resume(run.path, {"total_timesteps": 3 * GENERATION})
    steps = (run.path / "table.txt").read_text().split()
    assert steps == [str(number * GENERATION) for number in (1, 2, 3)]


def test_an_observer_may_be_given_as_its_class(make, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from their_observers import Table

    run = train(make(observers=[Table, Table]))
    assert run.config.observers == ["their_observers:Table"] * 2
    assert len((run.path / "table.txt").read_text().split()) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"observers": ["their_observers:Missing"]}, "has no 'Missing'"),
        ({"observers": ["their_observers:mine"]}, "name a subclass of popgraft.train.observer.Observer"),
        ({"observers": ["their_observers:Needy"]}, r"Needy cannot be made .*address.*give its arguments defaults"),
        ({"observers": ["Table"]}, r"observers\.0.*must be module:Class"),
        ({"report": {"sections": ["mine"]}}, r"report\.sections\.0.*must have the form module:name"),
        ({"report": {"sections": ["their_observers:nobody"]}}, r"report\.sections='their_observers:nobody'.*has no"),
    ],
)
def test_what_is_not_there_is_told_before_a_run_begins(make, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        train(make(**settings))
    assert not (tmp_path / "run").exists()


def test_the_page_that_training_leaves_has_the_sections_that_are_named(make, tmp_path):
    """A page that is made later runs no code that a run names: it says which that would be."""
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(make(report={"sections": ["their_observers:mine", "their_observers:failing"]}))
    )
    told = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
    assert told.exit_code == 0, told.output
    page = tmp_path / "run/report.html"
    assert "<p>2 members</p>" in page.read_text()
    assert "This section could not be made: ValueError: no such data" in page.read_text()
    sys.modules.pop("their_observers")
    told = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert told.exit_code == 0, told.output
    assert "--section their_observers:mine --section their_observers:failing" in told.output
    assert "<p>2 members</p>" not in page.read_text()
    assert "their_observers" not in sys.modules
