"""Agents are scored in environments of their own: those of training, but for what `evaluation.env` says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import ConfigError, Run, load_config, train
from popgraft.config import AttackConfig, EnvConfig, dump_config

Tiny = Callable[..., dict[str, Any]]
ID = "popgraft-test/Paid-v0"


class Paid(gym.Env[Any, Any]):
    """Pays the same in every step; episodes last `length` steps."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, pay: float = 7.0, length: int = 5, size: int = 2, render_mode: str | None = None) -> None:
        self.pay, self.length, self.render_mode = pay, length, render_mode
        self.observation_space = gym.spaces.Box(-1, 1, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        obs = self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)
        return obs, self.pay, self.time == self.length, False, {}

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)


gym.register(ID, entry_point=Paid)


def make(num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Paid(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def settings(tiny: Tiny, env: dict[str, Any], evaluation: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run of one generation."""
    env = {"num_envs": 2, **env}
    return tiny(env=env, total_timesteps=64, evaluation__env=evaluation, **changes)


def test_everything_that_scores_plays_the_environments_of_evaluation(tiny: Tiny) -> None:
    """Trained for a point a step and one step of a life; scored by the game, 5 steps of 7 points."""
    trained = {"id": ID, "kwargs": {"pay": 1.0, "length": 3}}
    run = train(settings(tiny, trained, {"kwargs": {"pay": 7.0, "length": None}}))
    assert [record.score for record in run.scores] == [35, 35]
    assert run.summary["final_score"] == 35
    again = Run(run.path).best
    assert again.evaluate(3, seed=1).mean == 35
    assert again.evaluate(3, seed=1, attack=AttackConfig(method="random")).mean == 35
    frames: list[Any] = []
    assert again.film(lambda frame, fps: frames.append(fps), 2, seed=1) == [35, 35]
    assert frames == [5] * 12


def test_training_scores_are_of_the_environments_of_training(tiny: Tiny) -> None:
    trained = {"id": ID, "kwargs": {"pay": 1.0, "length": 3}}
    run = train(settings(tiny, trained, {"kwargs": {"pay": 7.0}}, pbt__fitness="training"))
    assert [record.score for record in run.scores] == [3, 3]
    assert run.summary["final_score"] == 21


def test_wrappers_of_evaluation_take_the_place_of_those_of_training(tiny: Tiny) -> None:
    clip = {"name": "gymnasium.wrappers:ClipReward", "kwargs": {"min_reward": -1, "max_reward": 1}}
    run = train(settings(tiny, {"id": ID, "wrappers": [clip]}, {"wrappers": []}, pbt__fitness="training"))
    assert [record.score for record in run.scores] == [5, 5]
    assert run.summary["final_score"] == 35


def test_another_source_takes_the_place_of_a_factory_in_python(tiny: Tiny) -> None:
    def other(num_envs: int, pay: float) -> SyncVectorEnv:  # takes no length
        return make(num_envs, pay=pay)

    run = train(settings(tiny, {"kwargs": {"pay": 1.0}}, {"id": ID, "kwargs": {"length": 2}}), factory=other)
    assert [record.score for record in run.scores] == [2, 2]
    assert run.best.evaluate(2, seed=1).mean == 2


def test_other_spaces_are_refused_before_anything_is_trained(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the environment has observations obs \(3,\) .* knows observations obs \(2,"
    ):
        train(settings(tiny, {"id": ID}, {"kwargs": {"size": 3}}, pbt__fitness="training"))
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_there_was_such_a_section_is_read(tiny: Tiny) -> None:
    run = train(settings(tiny, {"id": ID}, {}))
    path = run.path / "config.yaml"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    start = lines.index("  env:\n")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("    "))
    path.write_text("".join(lines[:start] + lines[end:]))
    assert path.read_text() != text
    assert Run(run.path).best.evaluate(2, seed=1).mean == 35


def resolved(env: dict[str, Any], own: dict[str, Any]) -> EnvConfig:
    config = load_config({"env": env, "evaluation": {"env": own}})
    assert load_config(load_config(dump_config_of(config))).evaluation_env == config.evaluation_env
    return config.evaluation_env


def dump_config_of(config: Any) -> dict[str, Any]:
    """What the run folder keeps."""
    read: dict[str, Any] = yaml.safe_load(dump_config(config))
    return read


def test_what_is_not_said_is_as_in_training() -> None:
    env = {"id": "A", "kwargs": {"a": 1, "b": 2}, "vectorization": "async", "autoreset": "next_step", "num_envs": 4}
    assert resolved(env, {}) == EnvConfig(**env)
    assert resolved(env, {"kwargs": {"b": None, "c": 3}}).kwargs == {"a": 1, "c": 3}
    assert resolved(env, {"vectorization": "sync"}) == EnvConfig(**env | {"vectorization": "sync"})
    assert resolved(env, {"id": "B"}) == EnvConfig(**env | {"id": "B"})
    factory = {"factory": "module:make", "kwargs": {"a": 1}}
    assert resolved(factory, {"id": "B"}) == EnvConfig(id="B", kwargs={"a": 1})
    assert resolved({"id": "A"}, {"factory": "m:f"}) == EnvConfig(factory="m:f")
    tensor = {"source": "tensor", "id": "CartPole"}
    assert resolved(tensor, {"kwargs": {"time_limit": 9}}) == EnvConfig(**tensor, kwargs={"time_limit": 9})


def test_games_of_envpool_are_played_to_their_end_and_for_their_points() -> None:
    env = {
        "id": "Pong-v5",
        "vectorization": "envpool",
        "kwargs": {"reward_clip": True, "episodic_life": True, "seed": 1},
    }
    assert resolved(env, {}).kwargs == {"reward_clip": False, "episodic_life": False, "seed": 1}
    assert resolved(env, {"kwargs": {"episodic_life": True}}).kwargs == env["kwargs"] | {"reward_clip": False}
    assert resolved(env, {"kwargs": {"reward_clip": None}}).kwargs == {"episodic_life": False, "seed": 1}
    assert resolved(env | {"vectorization": "auto"}, {}).kwargs == env["kwargs"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_envs": 3}, r"unknown key 'num_envs' in evaluation\.env"),
        (
            {"id": "B", "factory": "m:f"},
            r"evaluation\.env, in place of what env says: give either env\.id or env\.factory",
        ),
        ({"source": "tensor", "vectorization": "sync"}, r"evaluation\.env.*has no effect on a tensor environment"),
        ({"vectorization": "fast"}, r"evaluation\.env\.vectorization = 'fast': must be"),
        ({"factory": "make"}, r"evaluation\.env\.factory = 'make': must have the form module:name"),
    ],
)
def test_what_cannot_be_is_said(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"env": {"id": "A"}, "evaluation": {"env": own}})


@pytest.mark.slow
def test_the_score_of_an_atari_game_does_not_depend_on_how_it_is_learnt(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("envpool")
    scores = []
    ways = ({}, {}), ({"reward_clip": True}, {}), ({"episodic_life": True}, {}), ({}, {"reward_clip": True})
    for number, (learnt, named) in enumerate(ways):
        kwargs = {"img_height": 36, "img_width": 36, "noop_max": 1, **learnt}
        env = {"id": "MsPacman-v5", "vectorization": "envpool", "kwargs": kwargs}
        changes = {"model__learning_rate": 1e-12, "pbt__hyperparams": [], "pbt__population_size": 1}
        changes |= {"run_dir": str(tmp_path / str(number)), "model__network": {"hidden_size": 8, "cnn_features": 8}}
        run = train(settings(tiny, env, {"kwargs": named}, evaluation__max_steps=1500, **changes))
        scores.append(run.summary["final_score"])
    assert scores[0] > 20  # a pellet is 10 points, and 1 when clipped
    assert scores == scores[:1] * 4
