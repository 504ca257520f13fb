"""Every library and autoreset mode must show the trajectories of a plain loop over single environments."""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeObservation
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from popgraft.config import EnvConfig, WrapperConfig
from popgraft.errors import ConfigError
from popgraft.rollout import EnvGrid, MemberEnv
from popgraft.rollout.adapters import GymnasiumEnv, adapt
from popgraft.rollout.member_env import final_observation

POP, ENVS, STEPS = 2, 2, 40
SEEDS = [50, 90]


class Counting(gym.Env):
    """Shows (episode, step, a random number); lengths are random; odd episodes are truncated, every third of them in
    the step in which it also terminates."""

    action_space = gym.spaces.Discrete(3)

    def __init__(self, as_dict: bool = False) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.as_dict = as_dict
        self.observation_space = gym.spaces.Dict({"b": gym.spaces.Discrete(9), "a": box}) if as_dict else box
        self.episode = -1

    def observe(self) -> Any:
        vector = np.array([self.episode, self.time, self.np_random.random()], np.float32)
        return {"a": vector, "b": self.time} if self.as_dict else vector

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.time, self.length = 0, self.np_random.integers(1, 6)
        return self.observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        end = bool(self.time == self.length)
        truncated = end and self.episode % 2 == 1
        terminated = end and (self.episode % 2 == 0 or self.episode % 3 == 0)
        return self.observe(), float(action) + self.time / 8, terminated, truncated, {}


@dataclasses.dataclass
class Step:
    seen: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    after: np.ndarray
    """The next observation of the same episode, the terminal one at its end."""


def action_at(row: int, env: int, step: int) -> int:
    return (row + 2 * env + step * step) % 3


def reference(row: int, env: int, as_dict: bool) -> list[Step]:
    single = Counting(as_dict)

    def flat(obs: Any) -> np.ndarray:
        return np.concatenate([obs["a"], np.eye(9)[obs["b"]]]) if as_dict else obs

    obs, _ = single.reset(seed=SEEDS[row] + env)
    steps = []
    for step in range(STEPS):
        after, reward, terminated, truncated, _ = single.step(action_at(row, env, step))
        steps.append(Step(flat(obs), reward, terminated, truncated and not terminated, flat(after)))
        obs = single.reset()[0] if terminated or truncated else after
    return steps


def played(grid: EnvGrid) -> list[list[list[Step]]]:
    """Steps of every environment of every member, without the dummy ones."""

    def flat(obs: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([obs[key] for key in sorted(obs)], axis=-1)

    steps: list[list[list[Step]]] = [[[] for _ in range(ENVS)] for _ in range(POP)]
    grid.reset(range(POP), SEEDS)
    for _ in range(2 * STEPS):
        actions = [[[action_at(row, env, len(steps[row][env]))] for env in range(ENVS)] for row in range(POP)]
        before = flat(grid.observations)
        result = grid.step(np.array(actions))
        assert not grid.failures
        after, final = flat(grid.observations), flat(result.final_observations)
        for row, env in np.ndindex(POP, ENVS):
            if not result.valid[row, env]:
                assert result.reward[row, env] == 0
                assert result.started[row, env]
                continue
            last = final if result.final[row, env] else after
            ended = bool(result.terminated[row, env] or result.truncated[row, env])
            assert bool(result.started[row, env]) == (ended and not grid._next_step)
            steps[row][env].append(
                Step(
                    before[row, env],
                    float(result.reward[row, env]),
                    bool(result.terminated[row, env]),
                    bool(result.truncated[row, env]),
                    last[row, env],
                )
            )
    return steps


def check(grid: EnvGrid, as_dict: bool = False) -> None:
    same_step = not grid._next_step
    for row, envs in enumerate(played(grid)):
        for env, steps in enumerate(envs):
            for found, expected in zip(steps[:STEPS], reference(row, env, as_dict), strict=True):
                np.testing.assert_array_equal(found.seen, expected.seen)
                assert found.reward == expected.reward
                assert (found.terminated, found.truncated) == (expected.terminated, expected.truncated)
                if not (expected.terminated and same_step):  # the terminal observation of a solved task has no use
                    np.testing.assert_array_equal(found.after, expected.after)
    grid.close()


class Reusing(Counting):
    """Writes everything it shows into the same arrays, which all of its kind in a process share."""

    shown: ClassVar[dict[str, np.ndarray]] = {"a": np.zeros(3, np.float32), "b": np.zeros((), np.int64)}
    said: ClassVar[dict[str, Any]] = {}

    def observe(self) -> Any:
        obs = super().observe()
        self.shown["a"][:] = obs["a"] if self.as_dict else obs
        self.shown["b"][...] = self.time
        return self.shown if self.as_dict else self.shown["a"][:]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed)[0], self.said

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], self.said


for kind in (Counting, Reusing):
    gym.register(f"popgraft-test/{kind.__name__}-v0", entry_point=kind)


def vectorized(kind: type, mode: AutoresetMode) -> Callable[..., Any]:
    return lambda num_envs, as_dict, of=Counting: kind([lambda: of(as_dict)] * num_envs, autoreset_mode=mode)


def stable_baselines(num_envs: int, as_dict: bool, of: type = Counting) -> Any:
    return DummyVecEnv([lambda: of(as_dict)] * num_envs)


class Backend(MemberEnv):
    """Single environments as somebody's library steps them, into arrays that it uses again."""

    def __init__(self, num_envs: int, as_dict: bool, of: type = Counting, next_step: bool = False) -> None:
        self.envs, self.next_step = [of(as_dict) for _ in range(num_envs)], next_step
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        shapes = {"a": (3,), "b": ()}
        self.shown = {key: np.zeros((num_envs, *shape), np.float32) for key, shape in shapes.items()}
        self.over, self.as_dict = np.zeros(num_envs, np.bool_), as_dict

    def show(self, env: int, obs: Any) -> None:
        for key, value in obs.items() if self.as_dict else [("a", obs)]:
            self.shown[key][env] = value

    def answer(self) -> Any:
        return self.shown if self.as_dict else self.shown["a"]

    def reset(self, seed: int) -> Any:
        self.over[:] = False
        for i, env in enumerate(self.envs):
            self.show(i, env.reset(seed=seed + i)[0])
        return self.answer()

    def send(self, actions: np.ndarray) -> None:
        self.actions = actions

    def receive(self) -> Any:
        reward, finals = [0.0] * len(self.envs), {}
        terminated, truncated = np.zeros((2, len(self.envs)), np.bool_)
        for i, env in enumerate(self.envs):
            if self.over[i]:
                self.show(i, env.reset()[0])
                self.over[i] = False
                continue
            obs, reward[i], terminated[i], truncated[i], _ = env.step(self.actions[i])
            self.over[i] = self.next_step and (terminated[i] or truncated[i])
            if not self.next_step and (terminated[i] or truncated[i]):
                finals[i] = copy.deepcopy(obs)
                obs = env.reset()[0]
            self.show(i, obs)
        return self.answer(), reward, terminated, truncated, None if self.next_step else finals

    def close(self) -> None:
        self.closed = True


FACTORIES = {
    "sync next-step": vectorized(SyncVectorEnv, AutoresetMode.NEXT_STEP),
    "sync same-step": vectorized(SyncVectorEnv, AutoresetMode.SAME_STEP),
    "sync disabled": vectorized(SyncVectorEnv, AutoresetMode.DISABLED),
    "async next-step": vectorized(AsyncVectorEnv, AutoresetMode.NEXT_STEP),
    "async same-step": vectorized(AsyncVectorEnv, AutoresetMode.SAME_STEP),
    "async disabled": vectorized(AsyncVectorEnv, AutoresetMode.DISABLED),
    "stable-baselines3": stable_baselines,
    "backend next-step": functools.partial(Backend, next_step=True),
    "backend same-step": Backend,
}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_all_modes_show_the_same_trajectories(name: str, as_dict: bool) -> None:
    config = EnvConfig(factory="not:used", kwargs={"as_dict": as_dict}, num_envs=ENVS)
    check(EnvGrid(config, POP, factory=FACTORIES[name]), as_dict)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "async same-step"])
def test_arrays_that_environments_use_again_show_the_same_trajectories(name: str, as_dict: bool) -> None:
    """A process of Gymnasium's own that resets itself overwrites them where nobody can copy them."""
    config = EnvConfig(factory="not:used", kwargs={"as_dict": as_dict}, num_envs=ENVS)
    check(EnvGrid(config, POP, factory=lambda **given: FACTORIES[name](**given, of=Reusing)), as_dict)


@pytest.mark.parametrize("of", [Counting, Reusing])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.filterwarnings("ignore:.*share an object")
def test_configured_modes_show_the_same_trajectories(vectorization: Any, autoreset: Any, of: type) -> None:
    config = EnvConfig(
        id=f"popgraft-test/{of.__name__}-v0", num_envs=ENVS, vectorization=vectorization, autoreset=autoreset
    )
    grid = EnvGrid(config, POP)
    assert grid._next_step == (autoreset == "next_step")
    check(grid)


@pytest.mark.filterwarnings("ignore:.*share an object")
def test_stacked_frames_are_of_different_times() -> None:
    wrapper = WrapperConfig(name="gymnasium.wrappers:FrameStackObservation", kwargs={"stack_size": 2})
    grid = EnvGrid(EnvConfig(id="popgraft-test/Reusing-v0", num_envs=1, wrappers=[wrapper]), 1)
    grid.reset([0], [3])
    assert not grid.step(np.zeros((1, 1, 1), np.int64)).started.any()
    np.testing.assert_array_equal(grid.observations["obs"][0, 0, :, 1], [0, 1])
    grid.close()


class Overwriting(SyncVectorEnv):
    """Hands its terminal observations over as the array into which the reset has written."""

    def step(self, actions: np.ndarray) -> Any:
        *rest, info = super().step(actions)
        return *rest, info | {"final_obs": rest[0]}


class OverwritingVecEnv(DummyVecEnv):
    def step_wait(self) -> Any:
        obs, reward, done, infos = super().step_wait()
        for env, info in enumerate(infos):
            info["terminal_observation"] = obs[env]
        return obs, reward, done, infos


@pytest.mark.parametrize(
    "make",
    [lambda envs: Overwriting(envs, autoreset_mode=AutoresetMode.SAME_STEP), OverwritingVecEnv],
)
def test_terminal_observations_that_were_overwritten_are_refused(make: Callable[..., Any]) -> None:
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=2), 1, factory=lambda num_envs: make([Counting] * num_envs))
    grid.reset([0], [1])

    def steps() -> None:
        for _ in range(20):
            grid.step(np.zeros((1, 2, 1), np.int64))

    with pytest.raises(ConfigError, match="terminal observation lies in the array of the new episode's first"):
        steps()
    grid.close()


def test_envpool_resets_in_the_next_step_and_follows_its_seed() -> None:
    envpool = pytest.importorskip("envpool")
    grid = EnvGrid(
        EnvConfig(id="CartPole-v1", num_envs=2, vectorization="envpool", kwargs={"max_episode_steps": 12}), 2
    )
    grid.reset([0, 1], [3, 4])
    first = grid.observations["obs"].copy()
    other = envpool.make_gymnasium("CartPole-v1", num_envs=2, seed=4, max_episode_steps=12)
    with pytest.warns(UserWarning, match="precision lowered"):
        assert other.observation_space == grid.spaces.observation_space
    np.testing.assert_array_equal(first[1], other.reset()[0])
    ended = np.zeros((2, 2), dtype=bool)
    seen_truncation = False
    for step in range(40):
        actions = np.full((2, 2, 1), step % 2)
        actions[0] = 1  # falls over before the time limit
        result = grid.step(actions)
        obs, reward, terminated, truncated, _ = other.step(actions[1, :, 0])
        np.testing.assert_array_equal(grid.observations["obs"][1], obs)
        np.testing.assert_array_equal(result.reward[1], reward)
        np.testing.assert_array_equal(result.terminated[1], terminated)
        np.testing.assert_array_equal(result.truncated[1], truncated & ~terminated)
        np.testing.assert_array_equal(result.valid, ~ended)
        np.testing.assert_array_equal(result.started, ended)
        assert (result.reward == np.where(ended, 0, 1)).all()
        assert not result.final.any()
        # A fresh CartPole stands within ±0.05; a terminal one does not.
        assert (abs(grid.observations["obs"][ended]) <= 0.05).all()
        ended = result.terminated | result.truncated
        assert (abs(grid.observations["obs"][ended]).max(-1) > 0.05).all()
        seen_truncation |= result.truncated.any()
    assert seen_truncation
    grid.reset([0, 1], [3, 4])
    np.testing.assert_array_equal(grid.observations["obs"], first)
    grid.reset([0, 1], [5, 4])
    assert (grid.observations["obs"][0] != first[0]).any()
    np.testing.assert_array_equal(grid.observations["obs"][1], first[1])
    grid.close()


def test_terminal_observation_of_a_batched_dict() -> None:
    finals = {"a": np.array([[1.0], [2.0]]), "b": np.array([3, 4])}
    assert final_observation(finals, 1) == {"a": np.array([2.0]), "b": 4}
    np.testing.assert_array_equal(final_observation(np.array([[1.0], [2.0]]), 1), [2.0])


@pytest.mark.parametrize("finals", [None, np.array([None, None])])
def test_a_missing_terminal_observation_is_a_mistake(finals: Any) -> None:
    with pytest.raises(ConfigError, match="truncated and reset in the same step without its terminal observation"):
        final_observation(finals, 1)


def test_a_vector_environment_must_say_when_it_resets() -> None:
    env = SyncVectorEnv([Counting] * 2)
    del env.metadata["autoreset_mode"]
    with pytest.raises(ConfigError, match=r"SyncVectorEnv does not say when .* is None; set it to a gymnasium"):
        GymnasiumEnv(env)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Counting, "f returned Counting, which is neither a gymnasium VectorEnv nor a stable_baselines3 VecEnv"),
        (lambda: SyncVectorEnv([Counting] * 3), "f returned 3 environments, but num_envs=2 were asked for"),
        (lambda: DummyVecEnv([Counting] * 3), "f returned 3 environments, but num_envs=2 were asked for"),
    ],
)
def test_a_factory_must_return_what_was_asked_for(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(make(), 2, "f")


class Unfinished(Backend):
    def __init__(self, num_envs: int, as_dict: bool) -> None:
        self.action_space = self.next_step = None


class Lopsided(Backend):
    def receive(self) -> Any:
        return super().receive()[:4]


class Broadcasting(Backend):
    def receive(self) -> Any:
        obs, _, *ends = super().receive()
        return obs, 1.0, *ends


class Averaging(Backend):
    def __init__(self, num_envs: int, as_dict: bool) -> None:
        super().__init__(num_envs, as_dict)
        self.env = NormalizeObservation(SyncVectorEnv([Counting] * num_envs))


class Shared(Backend):
    def receive(self) -> Any:
        obs, reward, terminated, truncated, _ = super().receive()
        return obs, reward, terminated, truncated, obs


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (Unfinished, r"Unfinished has no observation_space; set it in the class or in __init__"),
        (Lopsided, r"Lopsided\.receive returned tuple of 4, not .* return these five"),
        (Broadcasting, r"the environment gave rewards of shape \(\), not \(2,\): 1\.0"),
        (functools.partial(Backend, num_envs=3), r"the environment gave observations of shape \(3, 3\), not \(2, 3\)"),
        (Averaging, r"wrapped in NormalizeObservation: running statistics"),
        (Shared, r"terminal observation lies in the array of the new episode's first"),
    ],
)
def test_what_a_backend_answers_is_checked(of: Callable[..., MemberEnv], message: str) -> None:
    def make(num_envs: int) -> MemberEnv:
        return of(**({} if isinstance(of, functools.partial) else {"num_envs": num_envs}), as_dict=False)

    with pytest.raises(ConfigError, match=message):  # noqa: PT012 - wherever it is noticed
        grid = EnvGrid(EnvConfig(factory="not:used", num_envs=ENVS), 1, factory=make)
        grid.reset([0], [SEEDS[0]])
        for _ in range(STEPS):
            grid.step(np.zeros((1, ENVS, 1), np.int64))


def test_an_envpool_from_a_factory_is_refused() -> None:
    envpool = pytest.importorskip("envpool")
    with pytest.raises(
        ConfigError, match=r"EnvPool, which ignores the seed of a reset; set env.vectorization: envpool"
    ):
        adapt(envpool.make_gymnasium("CartPole-v1", num_envs=2), 2, "f")


class Dying(Counting):
    """Its process ends in the second step where the seed is 90."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.deadly = seed == 90 if seed is not None else self.deadly
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.deadly and self.time == 1:
            os._exit(1)
        return super().step(action)


def workers(num_envs: int) -> Any:
    return AsyncVectorEnv([Dying] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def stable_baselines_workers(num_envs: int) -> Any:
    return SubprocVecEnv([Dying] * num_envs, start_method="fork")


@pytest.mark.parametrize("factory", [workers, stable_baselines_workers])
def test_a_dead_worker_is_a_failure_of_its_member_only(factory: Callable[..., Any]) -> None:
    grid, calm = (EnvGrid(EnvConfig(factory="not:used", num_envs=2), 2, factory=factory) for _ in range(2))
    grid.reset([0, 1], [50, 90])
    calm.reset([0, 1], [50, 20])
    doomed = grid._envs[1]
    for _ in range(12):
        found, expected = grid.step(np.zeros((2, 2, 1), np.int64)), calm.step(np.zeros((2, 2, 1), np.int64))
        np.testing.assert_array_equal(found.reward[0], expected.reward[0])
        np.testing.assert_array_equal(grid.observations["obs"][0], calm.observations["obs"][0])
    assert list(grid.failures) == [1]
    assert grid.failures[1].endswith("an environment's process has ended with exit status 1")
    assert not found.reward[1].any()
    assert not found.valid[1].any()
    assert not any(process.is_alive() for process in doomed._env.processes)
    grid.reset([1], [20])
    assert not grid.failures
    assert np.isfinite(grid.observations["obs"]).all()
    grid.close()
    calm.close()
