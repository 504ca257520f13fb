from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from popgraft.config import EnvConfig
from popgraft.errors import ConfigError
from popgraft.rollout import EnvGrid

BAD_SEED = 666


class Fragile(gym.Env):
    """A random walk that ends after four steps; where its seed is BAD_SEED, it raises as `when` says."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def __init__(self, when: str = "step") -> None:
        self.observation_space = spaces.Dict(
            {"camera": spaces.Box(0, 255, (9, 9, 3), np.uint8), "place": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
        )
        self.when, self.bad = when, False

    def observe(self) -> dict[str, Any]:
        return {"camera": self.np_random.integers(0, 256, (9, 9, 3), np.uint8), "place": self.place.copy()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.bad = seed == BAD_SEED if seed is not None else self.bad
        if self.bad and (self.when == "reset" or (self.when == "autoreset" and seed is None)):
            raise OSError("simulator lost")
        self.place, self.time = self.np_random.normal(size=2), 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        if self.bad and self.when == "step" and self.time == 3:
            raise OSError("simulator lost")
        self.place = self.place + action
        reward = np.nan if self.bad and self.when == "nan" else float(self.place.sum())
        if self.bad and self.when == "nan":
            self.place[0] = np.nan
        return self.observe(), reward, False, self.time == 4, {}


class Odd:
    """Makes grids of three members, of which the second's second environment gives an odd number: in its third step, or
    with its terminal or its first observation.
    """

    def __init__(self, place: str, value: float, mode: AutoresetMode) -> None:
        self.place, self.value, self.mode, self.made = place, value, mode, 0

    def grid(self) -> EnvGrid:
        return EnvGrid(EnvConfig(factory="not:used", num_envs=2), 3, factory=self.factory)

    def factory(self, num_envs: int) -> Any:
        self.made += 1
        kinds = [Fragile, self.sometimes() if self.made == 2 else Fragile]
        assert num_envs == 2
        return SyncVectorEnv(kinds, autoreset_mode=self.mode)

    def sometimes(odd) -> type:  # noqa: N805 - the environment has a self of its own
        class Sometimes(Fragile):
            def observe(self) -> dict[str, Any]:
                seen = super().observe()
                at = {"observation": 3, "terminal observation": 4, "first observation": 0}.get(odd.place)
                if self.time == at:
                    seen["place"][1] = odd.value
                return seen

            def step(self, action: np.ndarray) -> Any:
                obs, reward, *rest = super().step(action)
                return obs, odd.value if self.time == 3 and odd.place == "reward" else reward, *rest

        return Sometimes


def grid_of(pop: int, when: str = "step", kind: type = SyncVectorEnv, mode: Any = AutoresetMode.SAME_STEP) -> EnvGrid:
    def factory(num_envs: int) -> Any:
        return kind([lambda: Fragile(when)] * num_envs, autoreset_mode=mode)

    return EnvGrid(EnvConfig(factory="not:used", num_envs=2), pop, factory=factory)


def advanced(grid: EnvGrid, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Everything that the steps brought, as arrays with the axis `pop`."""
    seen = []
    for _ in range(steps):
        result = grid.step(rng.uniform(-2, 2, (grid.pop, 2, 2)).astype(np.float32))
        flags = (result.reward, result.terminated, result.truncated, result.valid, result.started, result.final)
        seen += [array.copy() for array in (*flags, *grid.observations.values())]
        for final in result.final_observations.values():
            used = result.final.reshape(*result.final.shape, *(1,) * (final.ndim - 2))
            seen.append(np.where(used, final, 0))
    return seen


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("when", ["step", "reset", "autoreset"])
@pytest.mark.parametrize(
    "kind", [SyncVectorEnv, pytest.param(AsyncVectorEnv, marks=pytest.mark.filterwarnings("ignore::UserWarning"))]
)
def test_a_raising_environment_leaves_the_others_bit_identical(kind: type, when: str, mode: AutoresetMode) -> None:
    found, expected = grid_of(3, when, kind, mode), grid_of(3, when, kind, mode)
    found.reset(range(3), [1, BAD_SEED, 3])
    expected.reset(range(3), [1, 2, 3])
    for mine, calm in zip(
        advanced(found, 7, np.random.default_rng(0)), advanced(expected, 7, np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_array_equal(mine[[0, 2]], calm[[0, 2]])
    assert found.failures == {1: "OSError: simulator lost"}
    result = found.step(np.zeros((3, 2, 2), np.float32))
    assert not result.reward[1].any()
    assert not any(seen[1].any() for seen in found.observations.values())
    assert not (result.valid | result.terminated | result.truncated | result.started | result.final)[1].any()

    expected.step(np.zeros((3, 2, 2), np.float32))
    found.reset([1], [9])
    expected.reset([1], [9])
    assert not found.failures
    for mine, calm in zip(
        advanced(found, 6, np.random.default_rng(0)), advanced(expected, 6, np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_array_equal(mine, calm)
    found.close()
    expected.close()


def test_a_member_whose_environment_cannot_be_rebuilt_stays_failed() -> None:
    built = []

    def factory(num_envs: int) -> Any:
        if len(built) == 2:
            raise RuntimeError("no licence left")
        built.append(SyncVectorEnv([Fragile] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP))
        return built[-1]

    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=2), 2, factory=factory)
    grid.reset([0, 1], [1, BAD_SEED])
    advanced(grid, 3, np.random.default_rng(0))
    grid.reset([1], [4])
    assert "RuntimeError: no licence left" in grid.failures[1]
    advanced(grid, 3, np.random.default_rng(0))
    assert list(grid.failures) == [1]
    assert np.isfinite(grid.observations["place"][0]).all()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -2e15, 1e300])
@pytest.mark.parametrize("place", ["observation", "terminal observation", "first observation", "reward"])
def test_a_number_that_is_not_usable_fails_the_member(place: str, value: float, mode: AutoresetMode) -> None:
    """Its environments are made anew; to the others it is as if nothing had happened."""
    odd, calm = Odd(place, value, mode), Odd("nowhere", value, mode)
    found, expected = odd.grid(), calm.grid()
    for grid in (found, expected):
        grid.reset(range(3), [1, 2, 3])
    for mine, theirs in zip(
        advanced(found, 7, np.random.default_rng(0)), advanced(expected, 7, np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_array_equal(mine[[0, 2]], theirs[[0, 2]])
    name = place if place == "reward" else f"{place.removeprefix('first ')} 'place' at [1]"
    if mode is AutoresetMode.NEXT_STEP:
        name = name.removeprefix("terminal ")  # which is shown
    given = "inf" if value == 1e300 else f"{np.float32(value):g}"
    assert list(found.failures) == [1]
    assert found.failures[1].startswith(f"UnusableNumber: environment 1 gave {given} as {name};")
    assert all(np.isfinite(seen).all() for seen in found.observations.values())
    found.reset([1], [9])
    assert (odd.made, calm.made) == (4, 3)
    assert not found.failures
    assert found.step(np.zeros((3, 2, 2), np.float32)).valid[1].all()


@pytest.mark.parametrize("value", [1e15, -1e15, 5e-324])
def test_what_is_large_or_small_but_usable_is_seen(value: float) -> None:
    grid, seen = Odd("observation", value, AutoresetMode.SAME_STEP).grid(), []
    grid.reset(range(3), [1, 2, 3])
    for _ in range(3):
        grid.step(np.zeros((3, 2, 2), np.float32))
        seen.append(grid.observations["place"][1, 1, 1])
    assert np.float32(value) in seen
    assert not grid.failures


def test_the_reward_of_a_step_that_only_resets_is_not_looked_at() -> None:
    class Careless(SyncVectorEnv):
        finished = np.zeros(2, bool)

        def step(self, actions: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(actions)
            reward, self.finished = np.where(self.finished, np.nan, reward), terminated | truncated
            return obs, reward, terminated, truncated, info

    def factory(num_envs: int) -> Any:
        return Careless([Fragile] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)

    grid, resets = EnvGrid(EnvConfig(factory="not:used", num_envs=2), 1, factory=factory), 0
    grid.reset([0], [1])
    for _ in range(11):
        result = grid.step(np.zeros((1, 2, 2), np.float32))
        assert not result.reward[~result.valid].any()
        resets += (~result.valid).sum()
    assert resets == 4
    assert not grid.failures


def test_nan_actions_do_not_reach_the_environment() -> None:
    grid = grid_of(1)
    grid.reset([0], [1])
    before = grid.observations["place"].copy()
    grid.step(np.array([[[np.nan, 0.5], [np.nan, 9.0]]], np.float32))
    np.testing.assert_allclose(grid.observations["place"] - before, [[[0, 0.5], [0, 1]]], atol=1e-6)
    assert not grid.failures


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_member_does_not_depend_on_the_size_of_the_population(mode: AutoresetMode) -> None:
    large, small = grid_of(5, mode=mode), grid_of(2, mode=mode)
    large.reset(range(5), range(100, 500, 80))
    small.reset([1, 0], [180, 340])
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 5, 2, 2)).astype(np.float32)
    members = [3, 1]
    for step in actions:
        mine, theirs = small.step(step[members]), large.step(step)
        np.testing.assert_array_equal(mine.reward, theirs.reward[members])
        np.testing.assert_array_equal(mine.truncated, theirs.truncated[members])
        for key in ("camera", "place"):
            np.testing.assert_array_equal(small.observations[key], large.observations[key][members])


def test_vector_entry_points_are_seeded_per_member() -> None:
    config = EnvConfig(id="CartPole-v1", num_envs=4)
    large, small = EnvGrid(config, 3), EnvGrid(config, 1)
    large.reset([0, 1, 2], [7, 8, 9])
    small.reset([0], [8])
    ended = np.zeros((3, 4), bool)
    for step in range(60):
        actions = np.full((3, 4, 1), step % 3 > 0)
        result = large.step(actions)
        np.testing.assert_array_equal(small.step(actions[:1]).reward[0], result.reward[1])
        np.testing.assert_array_equal(small.observations["obs"][0], large.observations["obs"][1])
        np.testing.assert_array_equal(result.valid, ~ended)
        np.testing.assert_array_equal(result.started, ended)
        ended = result.terminated | result.truncated
    assert (large.observations["obs"][0] != large.observations["obs"][2]).any()


def test_a_reset_touches_its_members_only_and_repeats() -> None:
    grid = grid_of(3)
    grid.reset(range(3), [1, 2, 3])
    first = grid.observations["place"].copy()
    advanced(grid, 2, np.random.default_rng(0))
    moved = grid.observations["place"].copy()
    grid.reset([2, 0], [3, 1])
    np.testing.assert_array_equal(grid.observations["place"][[0, 2]], first[[0, 2]])
    np.testing.assert_array_equal(grid.observations["place"][1], moved[1])


def test_a_reset_cuts_off_a_pending_autoreset() -> None:
    grid = grid_of(2, mode=AutoresetMode.NEXT_STEP)
    grid.reset([0, 1], [1, 2])
    advanced(grid, 4, np.random.default_rng(0))
    grid.reset([0], [5])
    result = grid.step(np.zeros((2, 2, 2), np.float32))
    assert result.valid.tolist() == [[True, True], [False, False]]
    assert result.started.tolist() == [[False, False], [True, True]]


def test_the_same_arrays_are_updated() -> None:
    grid = grid_of(2)
    camera, place = grid.observations["camera"], grid.observations["place"]
    assert (camera.shape, camera.dtype) == ((2, 2, 3, 9, 9), np.uint8)
    assert (place.shape, place.dtype) == ((2, 2, 2), np.float32)
    grid.reset([0, 1], [1, 2])
    advanced(grid, 1, np.random.default_rng(0))
    assert grid.observations["camera"] is camera
    assert grid.observations["place"] is place
    assert camera.any()


def test_another_number_of_environments() -> None:
    grid = EnvGrid(EnvConfig(id="CartPole-v1", num_envs=4), pop=2, num_envs=7)
    assert grid.observations["obs"].shape == (2, 7, 4)


def test_actions_of_another_shape() -> None:
    grid = grid_of(2)
    grid.reset([0, 1], [1, 2])
    with pytest.raises(ValueError, match=r"actions have shape \(2, 2\), not \(pop, env, dims\) = \(2, 2, 2\)"):
        grid.step(np.zeros((2, 2), np.float32))


def test_a_step_before_the_first_reset() -> None:
    grid = grid_of(3)
    grid.reset([1], [1])
    with pytest.raises(RuntimeError, match=r"members \[0, 2\] have never been reset"):
        grid.step(np.zeros((3, 2, 2), np.float32))


def test_members_must_be_alike() -> None:
    sizes = iter([2, 3])

    def factory(num_envs: int) -> Any:
        size = next(sizes)
        box = spaces.Box(-1.0, 1.0, (size,))

        class Sized(Fragile):
            def __init__(self) -> None:
                self.observation_space = box

        return SyncVectorEnv([Sized] * num_envs)

    with pytest.raises(ConfigError, match="the members' environments differ"):
        EnvGrid(EnvConfig(factory="not:used", num_envs=2), 2, factory=factory)


def test_a_truncation_without_terminal_observation_is_a_mistake() -> None:
    class Forgetful(SyncVectorEnv):
        def step(self, actions: np.ndarray) -> Any:
            *rest, info = super().step(actions)
            info.pop("final_obs", None)
            return *rest, info

    grid = grid_of(1, kind=Forgetful)
    grid.reset([0], [1])
    advanced(grid, 3, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="an episode was truncated and reset in the same step without its terminal"):
        advanced(grid, 1, np.random.default_rng(0))
    grid.close()


def test_closing_is_final_and_survives_errors() -> None:
    closed = []

    class Stubborn(Fragile):
        def close(self) -> None:
            closed.append(self)
            raise OSError("busy")

    def factory(num_envs: int) -> Any:
        return SyncVectorEnv([Stubborn] * num_envs)

    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=1), 2, factory=factory)
    grid.close()
    grid.close()
    assert len(closed) == 2
