from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from popgraft.config import EnvConfig, WrapperConfig
from popgraft.errors import ConfigError
from popgraft.rollout import EnvGrid, spaces_of
from popgraft.rollout.wrappers import Flicker, Hide, built_in_wrappers, gymnasium_wrappers
from popgraft.spaces import ObsSpec

VECTOR = spaces_of(spaces.Box(np.arange(4.0), np.arange(4.0) + 1, dtype=np.float64), spaces.Discrete(2))
MIXED = spaces_of(
    spaces.Dict({"camera": spaces.Box(0, 255, (3, 8, 8), np.uint8), "gear": spaces.Discrete(3)}), spaces.Discrete(2)
)


def wrapper(name: str, **kwargs: Any) -> WrapperConfig:
    return WrapperConfig(name=name, kwargs=kwargs)


def test_hide_drops_components() -> None:
    hide = Hide(VECTOR, [1, -1])
    assert hide.spaces.obs == {"obs": ObsSpec((2,))}
    assert hide.spaces.action == VECTOR.action
    assert hide.spaces.observation_space == spaces.Box(np.array([0.0, 2.0]), np.array([1.0, 3.0]), dtype=np.float64)
    obs = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(hide({"obs": obs}, [0, 1])["obs"], obs[..., [0, 2]])


def test_hide_works_on_one_key_of_a_dict() -> None:
    hide = Hide(MIXED, [0], key="gear")
    assert hide.spaces.obs == {"camera": MIXED.obs["camera"], "gear": ObsSpec((2,))}
    assert hide.spaces.observation_space["gear"].shape == (2,)
    assert hide.spaces.observation_space["camera"] == MIXED.observation_space["camera"]


@pytest.mark.parametrize(
    ("seen", "kwargs", "message"),
    [
        (VECTOR, {"indices": [4]}, "index 4 is no component of 'obs', which has 4; valid are 0 to 3"),
        (VECTOR, {"indices": [-5]}, "index -5 is no component"),
        (VECTOR, {"indices": [True]}, "index True is no component"),
        (VECTOR, {"indices": ["x"]}, "index 'x' is no component"),
        (VECTOR, {"indices": 1}, r"indices=1 must list the components to drop, such as \[1, 3\]"),
        (VECTOR, {"indices": []}, r"indices=\[\] must list"),
        (VECTOR, {"indices": [0, 1, 2, 3]}, "leave nothing of 'obs' to see"),
        (VECTOR, {"indices": [0], "key": "speed"}, "no observation key 'speed'; the keys are obs"),
        (MIXED, {"indices": [0]}, "needs a key, one of camera, gear"),
        (MIXED, {"indices": [0], "key": "camera"}, r"'camera' has shape \(3, 8, 8\)"),
        (VECTOR, {"index": [0]}, r"wrapper hide does not take kwargs=\{'index': \[0\]\}"),
    ],
)
def test_hide_refuses(seen: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built_in_wrappers([wrapper("hide", **kwargs)], seen)


def test_flicker_zeroes_whole_observations_at_its_rate() -> None:
    flicker = Flicker(MIXED, 0.3)
    flicker.reset(0, 7)
    camera, gear = np.full((1, 20_000, 3, 2, 2), 9, np.uint8), np.ones((1, 20_000, 3), np.float32)
    seen = flicker({"camera": camera, "gear": gear}, [0])
    assert seen["camera"].dtype == np.uint8
    assert seen["gear"].dtype == np.float32
    blank = (seen["gear"] == 0).all(-1)
    np.testing.assert_array_equal((seen["camera"] == 0).all((2, 3, 4)), blank)
    np.testing.assert_array_equal((seen["camera"] == 9).all((2, 3, 4)), ~blank)
    assert abs(blank.mean() - 0.3) < 4 * np.sqrt(0.21 / 20_000)


def test_flicker_of_a_member_depends_on_its_seed_alone() -> None:
    obs = {"obs": np.ones((3, 50, 4), np.float32)}
    crowd, alone = Flicker(VECTOR, 0.5), Flicker(VECTOR, 0.5)
    for row in range(3):
        crowd.reset(row, 10 + row)
    alone.reset(0, 11)
    for _ in range(3):
        seen = crowd(obs, range(3))["obs"]
        np.testing.assert_array_equal(seen[1], alone({"obs": obs["obs"][:1]}, [0])["obs"][0])
        assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan"), "often"])
def test_flicker_refuses(probability: Any) -> None:
    with pytest.raises(ConfigError, match=rf"flicker: probability={probability!r} must lie in \[0, 1\]"):
        Flicker(VECTOR, probability)


def test_wrappers_apply_in_order_and_narrow_each_other() -> None:
    wrappers, seen = built_in_wrappers([wrapper("hide", indices=[0]), wrapper("hide", indices=[0])], VECTOR)
    assert seen.obs == {"obs": ObsSpec((2,))}
    obs = {"obs": np.arange(4, dtype=np.float32).reshape(1, 1, 4)}
    for each in wrappers:
        obs = each(obs, [0])
    assert obs["obs"].tolist() == [[[2, 3]]]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([wrapper("hid")], "unknown wrapper 'hid'; did you mean 'hide'"),
        ([wrapper("zzz")], "unknown wrapper 'zzz'; built-in ones are hide, flicker"),
        ([wrapper("no_such_module:X")], "env.wrappers: there is no module 'no_such_module'"),
        ([wrapper("gymnasium.wrappers:Flaten")], "the module 'gymnasium.wrappers' .*has no 'Flaten'"),
        ([wrapper("gymnasium:Env")], "'gymnasium:Env' is .*, not a subclass of gymnasium.Wrapper"),
        (
            [wrapper("hide", indices=[0]), wrapper("gymnasium.wrappers:ClipReward")],
            "'gymnasium.wrappers:ClipReward' acts inside the environment, so it cannot follow .* 'hide'; list it first",
        ),
    ],
)
def test_names_that_are_refused(configs: list[WrapperConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gymnasium_wrappers(configs)


def test_hide_in_the_grid() -> None:
    whole = EnvGrid(EnvConfig(id="CartPole-v1", num_envs=3), pop=2)
    partial = EnvGrid(EnvConfig(id="CartPole-v1", num_envs=3, wrappers=[wrapper("hide", indices=[1, 3])]), pop=2)
    for grid in (whole, partial):
        grid.reset(range(2), [1, 2])
    for step in range(60):
        np.testing.assert_array_equal(partial.observations["obs"], whole.observations["obs"][..., [0, 2]])
        actions = np.full((2, 3, 1), step % 2)
        for grid in (whole, partial):
            grid.step(actions)


def test_terminal_observations_are_wrapped() -> None:
    config = EnvConfig(id="Pendulum-v1", num_envs=2, kwargs={"max_episode_steps": 3})
    whole, partial = (
        EnvGrid(config.model_copy(update={"wrappers": wrappers}), pop=3)
        for wrappers in ([], [wrapper("hide", indices=[2])])
    )
    results = []
    for grid in (whole, partial):
        grid.reset(range(3), [1, 2, 3])
        results.append([grid.step(np.ones((3, 2, 1), np.float32)) for _ in range(3)][-1])
    everything, seen = results
    assert seen.final.all()
    np.testing.assert_array_equal(seen.final_observations["obs"], everything.final_observations["obs"][..., :2])


def test_a_reset_draws_no_flicker_for_others() -> None:
    config = EnvConfig(id="CartPole-v1", num_envs=8, wrappers=[wrapper("flicker", probability=0.5)])
    disturbed, calm = EnvGrid(config, pop=3), EnvGrid(config, pop=3)
    for grid in (disturbed, calm):
        grid.reset(range(3), [1, 2, 3])
    disturbed.reset([1], [9])
    actions = np.ones((3, 8, 1), np.int64)
    for _ in range(20):
        np.testing.assert_array_equal(disturbed.observations["obs"][[0, 2]], calm.observations["obs"][[0, 2]])
        disturbed.step(actions)
        calm.step(actions)


def test_gymnasium_wrappers_act_in_every_environment() -> None:
    wrappers = [wrapper("gymnasium.wrappers:FrameStackObservation", stack_size=2), wrapper("flicker", probability=0)]
    grid = EnvGrid(EnvConfig(id="CartPole-v1", num_envs=2, wrappers=wrappers), pop=2)
    grid.reset(range(2), [0, 1])
    assert grid.spaces.obs == {"obs": ObsSpec((2, 4))}
    before = grid.observations["obs"][:, :, 1].copy()
    grid.step(np.zeros((2, 2, 1), np.int64))
    np.testing.assert_array_equal(grid.observations["obs"][:, :, 0], before)


def test_arguments_that_a_gymnasium_wrapper_does_not_take() -> None:
    config = EnvConfig(id="CartPole-v1", wrappers=[wrapper("gymnasium.wrappers:FrameStackObservation", size=2)])
    with pytest.raises(ConfigError, match=r"FrameStackObservation does not take kwargs=\{'size': 2\}"):
        EnvGrid(config, pop=1)


def test_hide_on_mujoco() -> None:
    pytest.importorskip("mujoco")
    velocities = list(range(8, 17))
    config = EnvConfig(
        id="HalfCheetah-v5", num_envs=2, vectorization="sync", wrappers=[wrapper("hide", indices=velocities)]
    )
    grid = EnvGrid(config, pop=2)
    grid.reset(range(2), [3, 4])
    reference = gym.make("HalfCheetah-v5")
    obs, _ = reference.reset(seed=4 + 1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        np.testing.assert_array_equal(grid.observations["obs"][1, 1], obs[:8].astype(np.float32))
        actions = rng.uniform(-1, 1, (2, 2, 6)).astype(np.float32)
        result = grid.step(actions)
        obs, reward, *_ = reference.step(actions[1, 1])
        assert result.reward[1, 1] == np.float32(reward)
    assert grid.spaces.obs == {"obs": ObsSpec((8,))}
    grid.close()
