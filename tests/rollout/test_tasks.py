import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import popgraft.rollout  # noqa: F401 - registers the task
from popgraft.config import EnvConfig
from popgraft.errors import ConfigError
from popgraft.rollout import EnvGrid

ID = "popgraft/RepeatPrevious-v0"


def make(num_envs: int, **kwargs: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(ID, num_envs, vectorization_mode="vector_entry_point", **kwargs)


def play(env: gym.vector.VectorEnv, answer: Any, steps: int = 52) -> tuple[np.ndarray, np.ndarray]:
    """Returns of one episode, and the suits that were shown; `answer` maps the suits so far [t + 1, env] to actions."""
    shown, _ = env.reset(seed=5)
    suits, total = [shown], np.zeros(env.num_envs)
    for step in range(steps):
        shown, reward, terminated, truncated, _ = env.step(answer(np.stack(suits)))
        suits.append(shown)
        total += reward
        assert (terminated == (step == steps - 1)).all()
        assert not truncated.any()
    return total, np.stack(suits)


def test_memory_scores_one() -> None:
    total, suits = play(make(8), lambda suits: suits[max(len(suits) - 5, 0)])
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    total, _ = play(make(8), lambda suits: (suits[max(len(suits) - 5, 0)] + 1) % 4)
    np.testing.assert_allclose(total, -1.0, rtol=1e-12)
    assert suits.shape == (53, 8)
    assert set(suits.ravel().tolist()) == {0, 1, 2, 3}


def test_rewards_by_hand() -> None:
    env = make(1, delay=2, suits=2, length=4)
    first, _ = env.reset(seed=1)
    second, reward, *_ = env.step(np.array([0]))
    assert reward == 0
    _, reward, *_ = env.step(np.array([0]))
    assert reward == 0
    _, reward, *_ = env.step(first)
    assert reward == 0.5
    _, reward, terminated, *_ = env.step(1 - second)
    assert reward == -0.5
    assert terminated.all()


def test_every_memoryless_policy_scores_chance() -> None:
    policies = np.array(list(itertools.product(range(4), repeat=4)))  # all 256 maps from the suit in view to an answer
    copies = 100
    env = make(len(policies) * copies)
    owner = np.repeat(np.arange(len(policies)), copies)
    total, _ = play(env, lambda suits: policies[owner, suits[-1]])
    means = total.reshape(len(policies), copies).mean(1)
    # An episode of 48 answers of variance 3/4 (values ±1, mean −1/2), each worth 1/48; 5 errors for 256 comparisons.
    error = np.sqrt(0.75 / 48 / copies)
    assert abs(means + 0.5).max() < 5 * error


def test_the_next_step_only_deals_again() -> None:
    env = make(3, delay=1, suits=3, length=2)
    env.reset(seed=0)
    env.step(np.zeros(3, dtype=np.int64))
    *_, terminated, _, _ = env.step(np.zeros(3, dtype=np.int64))
    assert terminated.all()
    _, reward, terminated, truncated, _ = env.step(np.zeros(3, dtype=np.int64))
    assert not reward.any()
    assert not terminated.any()
    assert not truncated.any()


def test_a_single_environment_is_a_vector_of_one() -> None:
    single, vector = gym.make(ID), make(1)
    shown, _ = single.reset(seed=9)
    shown_too, _ = vector.reset(seed=9)
    for _ in range(2):
        for step in range(52):
            assert shown == shown_too[0]
            shown, reward, terminated, truncated, _ = single.step(step % 4)
            shown_too, reward_too, terminated_too, *_ = vector.step(np.array([step % 4]))
            assert (reward, terminated, truncated) == (reward_too[0], terminated_too[0], False)
        shown, _ = single.reset()
        shown_too, *_ = vector.step(np.array([0]))


def test_gymnasium_approves() -> None:
    check_env(gym.make(ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("kwargs", [{"delay": 0}, {"suits": 1}, {"length": 4}])
def test_unplayable_arguments(kwargs: dict[str, int]) -> None:
    ((name, value),) = kwargs.items()
    with pytest.raises(ConfigError, match=f"{name}={value}.*choose delay >= 1, suits >= 2 and length > delay"):
        EnvGrid(EnvConfig(id=ID, kwargs=kwargs), pop=1)


def test_the_population_sees_indicators() -> None:
    grid = EnvGrid(EnvConfig(id=ID, num_envs=4), pop=2)
    grid.reset(range(2), [3, 4])
    assert grid.observations["obs"].shape == (2, 4, 4)
    np.testing.assert_array_equal(grid.observations["obs"].sum(-1), 1)
    assert grid.spaces.action.sizes == (4,)
