"""`popgraft export`: an agent of a run in a file."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from popgraft import DistributionalPPO, Run, train
from popgraft.cli.app import app


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def run(config: Path) -> Run:
    return train(config)


def test_export_writes_the_best_agent_or_a_member(run: Run) -> None:
    obs = np.arange(4)
    for options, agent in (([], run.best), (["--member", "1"], run.agent(1))):
        done = popgraft("export", "run", "agent.zip", *options)
        assert (done.exit_code, done.output) == (0, "wrote agent.zip\n")
        model = DistributionalPPO.load("agent.zip", device="cpu")
        expected, _ = agent.predict(np.eye(4, dtype=np.float32))
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], expected)
        assert abs(model.learning_rate - float(agent.member.hyperparams["learning_rate"])) < 1e-9


def test_export_names_mistakes(run: Run) -> None:
    for arguments, message in {
        ("agent.zip", "--member", "7"): "has no member '7'; give 'best', or a number up to 1",
        ("agent.exe",): "the suffix must name the format, one of .zip, .pt2, .onnx",
        ("nowhere/agent.zip",): "cannot write nowhere/agent.zip: no such file or directory",
    }.items():
        done = popgraft("export", "run", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
    assert not list(Path().glob("agent*"))
