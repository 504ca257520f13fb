"""Where a run's environments and networks come from: what is named, what is passed in Python, and who finds it."""

import gymnasium as gym
import pytest
from typer.testing import CliRunner

from popgraft import ConfigError, Run, resume, train
from popgraft.cli.app import app

SMALL = {
    "env": {"num_envs": 2},
    "model": {"n_steps": 8, "n_minibatches": 1, "network": {"hidden_size": 4, "encoder_layers": [4]}},
    "pbt": {"population_size": 2, "perturbation_interval": 1},
    "evaluation": {"episodes": 1, "final_episodes": 1, "max_steps": 20},
    "execute": {"shards": 1},
    "total_timesteps": 32,
}


def make(num_envs):
    """A world of the test's own, of which every step is worth 7."""
    worlds = [lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda _: 7.0)] * num_envs
    return gym.vector.SyncVectorEnv(worlds, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("env", [None, {"num_envs": 2}, {"num_envs": 2, "id": "CartPole-v1"}])
def test_a_factory_needs_no_other_source_and_takes_the_place_of_one(env, tmp_path):
    rest = {name: value for name, value in SMALL.items() if name != "env"}
    run = train({**rest, **({"env": env} if env else {}), "run_dir": str(tmp_path / "run")}, factory=make)
    assert all(record.score % 7 == 0 for record in run.scores)
    assert run.config.env.source == "python"

    again = resume(run.path, {"total_timesteps": 500}, factory=make)
    assert again.generations > 2
    assert all(record.score % 7 == 0 for record in again.scores)
    assert Run(run.path, factory=make).best.evaluate(2, seed=1).mean.item() % 7 == 0


def test_a_run_of_a_factory_says_what_it_needs(tmp_path):
    run = train({**SMALL, "run_dir": str(tmp_path / "run")}, factory=make)
    with pytest.raises(ConfigError, match=r"pass it again, as in .*resume\(RUN, factory=make\)"):
        resume(run.path, {"total_timesteps": 500})
    with pytest.raises(ConfigError, match=r"Run\(RUN, factory=make\)\.best\.evaluate"):
        _ = Run(run.path).best
    for command in ("evaluate", "resume"):
        more = ["--set", "total_timesteps=500"] if command == "resume" else []
        result = CliRunner().invoke(app, [command, str(run.path), *more])
        assert result.exit_code == 2
        assert "factory that is passed in Python" in result.output
    with pytest.raises(ConfigError, match=r"give either env.id or env.factory"):
        train({**SMALL, "run_dir": str(tmp_path / "nothing")})
    assert not (tmp_path / "nothing").exists()
