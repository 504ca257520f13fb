"""What environments answer is taken for what it says, or refused in words."""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from popgraft.config import EnvConfig
from popgraft.envs import CartPole
from popgraft.errors import ConfigError, UnusableNumber
from popgraft.rollout import EnvGrid
from popgraft.rollout.answers import delivered
from popgraft.rollout.make import make_grid
from popgraft.rollout.spaces_of import fields_of
from popgraft.sb3 import DistributionalPPO

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 6, 6), np.uint8)
Change = Callable[[Any], Any]


def shown(space: gym.Space[Any], num_envs: int) -> Any:
    """Numbers that differ between environments and components."""
    if isinstance(space, spaces.Dict):
        return {key: shown(child, num_envs) for key, child in space.spaces.items()}
    return np.arange(num_envs * np.prod(space.shape)).reshape(num_envs, *space.shape).astype(space.dtype)


class Simulator(VectorEnv):
    """Every step brings the rewards 0, 1, 2; the last environment's episode is cut off in every third. `change` maps an
    answer, of the name `of`, to what is given in its place."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, of: str = "", change: Change = lambda x: x, space: Any = BOX) -> None:
        self.num_envs, self.of, self.change, self.time = num_envs, of, change, 0
        self.single_observation_space, self.single_action_space = space, spaces.Discrete(2)

    def given(self, name: str, value: Any) -> Any:
        return self.change(value) if self.of == name else value

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.given("reset", shown(self.single_observation_space, self.num_envs)), {}

    def step(self, actions: Any) -> Any:
        self.time += 1
        last = np.arange(self.num_envs) == self.num_envs - 1
        obs = self.given("obs", shown(self.single_observation_space, self.num_envs))
        reward = self.given("reward", np.arange(self.num_envs, dtype=np.float64))
        ends = self.given("terminated", last & False), self.given("truncated", last & (self.time % 3 == 0))
        return obs, reward, *ends, {}


class Gym3(VecEnv):
    """The same as a VecEnv."""

    def __init__(self, num_envs: int, of: str = "", change: Change = lambda x: x, space: Any = BOX) -> None:
        self.simulator = Simulator(num_envs, {"done": "truncated"}.get(of, of), change, space)
        self.render_mode = None
        super().__init__(num_envs, space, spaces.Discrete(2))

    def reset(self) -> Any:
        return self.simulator.reset()[0]

    def step_async(self, actions: Any) -> None:
        pass

    def step_wait(self) -> Any:
        obs, reward, _, done, _ = self.simulator.step(None)
        return obs, reward, done, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def play(make: Callable[..., Any], steps: int = 7) -> list[np.ndarray]:
    """Everything that some steps bring."""
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=3), 1, factory=make)
    grid.reset([0], [1])
    seen = [value.copy() for value in grid.observations.values()]
    for _ in range(steps):
        result = grid.step(np.zeros((1, 3, 1), np.int64))
        brought = (result.reward, result.terminated, result.truncated, result.started, *grid.observations.values())
        seen += [value.copy() for value in brought]
    assert not grid.failures, grid.failures
    grid.close()
    return seen


FLAGS_REFUSED: list[tuple[Change, str]] = [
    (lambda x: bool(x.any()), r" of shape \(\), not \(3,\).*; give one for every environment"),
    (lambda x: x[:, None], r" of shape \(3, 1\), not \(3,\).*; reshape it to \(3,\)"),
    (lambda x: x[:1], r" of shape \(1,\)"),
    (lambda x: x[None], r" of shape \(1, 3\)"),
    (lambda x: x + 0.5, "environment 0 gave .*=0.5, which is no flag; give true or false for every environment"),
    (lambda x: x * 2, "environment 2 gave .*=2, which is no flag"),
    (lambda x: None, "=None, which are no numbers"),
    (lambda x: ["no"] * 3, "which are no numbers"),
    (lambda x: [[True], [], []], "which are no numbers"),
]
REWARDS_REFUSED: list[tuple[Change, str]] = [
    (lambda x: 1.0, r"rewards of shape \(\), not \(3,\): 1.0; give one for every environment"),
    (lambda x: x[:, None], r"rewards of shape \(3, 1\), not \(3,\).*; reshape it to \(3,\)"),
    (lambda x: np.ones((3, 3)), r"rewards of shape \(3, 3\)"),
    (lambda x: x * 1j, "which are no numbers"),
    (lambda x: [None, 1.0, 1.0], "which are no numbers"),
]
OBS_REFUSED: list[tuple[Change, str]] = [
    (lambda x: x[0], r"observations of shape \(2,\), not \(3, 2\)"),
    (lambda x: x[:, :1], r"observations of shape \(3, 1\), not \(3, 2\)"),
    (lambda x: x[:1], r"observations of shape \(1, 2\)"),
    (lambda x: 0.0, r"observations of shape \(\)"),
    (lambda x: x.T, r"observations of shape \(2, 3\), not \(3, 2\).*; give what the observation space declares"),
    (lambda x: x.astype(str), "observations=.*, which are no numbers"),
    (lambda x: {"obs": x}, "observations=.*, which are no numbers"),
]
REFUSED = [
    *[("truncated", *case) for case in FLAGS_REFUSED],
    *[("terminated", *case) for case in FLAGS_REFUSED[:4]],
    *[("reward", *case) for case in REWARDS_REFUSED],
    *[("obs", *case) for case in OBS_REFUSED],
    *[("reset", *case) for case in OBS_REFUSED[:2]],
]


@pytest.mark.parametrize(("of", "change", "message"), REFUSED)
def test_what_would_be_broadcast_is_refused(of: str, change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(lambda num_envs: Simulator(num_envs, of, change))


@pytest.mark.parametrize(("of", "change", "message"), [case for case in REFUSED if case[0] != "terminated"])
def test_what_a_vec_env_would_have_broadcast_is_refused(of: str, change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(lambda num_envs: Gym3(num_envs, of, change))


@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        ("done", FLAGS_REFUSED[0][0], r"done of shape \(\)"),
        ("reward", REWARDS_REFUSED[1][0], r"rewards of shape \(3, 1\)"),
        ("obs", OBS_REFUSED[0][0], r"observations of shape \(2,\)"),
    ],
)
def test_a_model_of_stable_baselines_refuses_it_too(of: str, change: Change, message: str) -> None:
    env = Gym3(3, of, change)
    env.seed = lambda seed=None: [None] * 3
    model = DistributionalPPO("MlpLstmPolicy", env, n_steps=4, batch_size=12, device="cpu")
    with pytest.raises(ConfigError, match=message):
        model.learn(12)


TAKEN: list[Change] = [
    torch.from_numpy,
    lambda x: x.tolist(),
    tuple,
    lambda x: x.astype(np.float64),
    lambda x: torch.from_numpy(x).to(torch.bfloat16),
    lambda x: x.astype(np.int32),
]


@pytest.mark.parametrize("kind", [Simulator, Gym3])
@pytest.mark.parametrize("of", ["truncated", "terminated", "reward", "obs", "reset"])
@pytest.mark.parametrize("change", TAKEN)
def test_other_containers_are_taken_for_what_they_say(kind: type, of: str, change: Change) -> None:
    for found, expected in zip(play(lambda num_envs: kind(num_envs, of, change)), play(kind), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, "observations has numbers of type float64 that the observation space's uint8 cannot hold"),
        (lambda x: x.astype(np.int64) - 1, "numbers of type int64"),
        (lambda x: x.transpose(0, 2, 3, 1), r"of shape \(3, 6, 6, 3\), not \(3, 3, 6, 6\)"),
    ],
)
def test_images_are_not_cut_to_whole_numbers(change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(lambda num_envs: Simulator(num_envs, "obs", change, IMAGE))
    for found, expected in zip(
        play(lambda num_envs: Simulator(num_envs, "obs", lambda x: x.astype(np.float32), IMAGE)),
        play(lambda num_envs: Simulator(num_envs, space=IMAGE)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"a": x["a"]}, r"the observation has the keys \['a'\], but the observation space has the key 'b'"),
        (lambda x: x["a"], "the observation is array.*, but the observation space has the key 'a'; give every key"),
        (lambda x: x | {"b": x["b"][:, :1]}, r"observations of key 'b' of shape \(3, 1\), not \(3, 2\)"),
    ],
)
def test_every_key_is_there(change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(lambda num_envs: Simulator(num_envs, "obs", change, spaces.Dict({"a": BOX, "b": BOX})))


class Single(gym.Env):
    """Shows (1, 2), with the reward 1; `change` maps an answer, of the name `of`, to what is given in its place."""

    action_space = spaces.Discrete(2)
    observation_space: gym.Space[Any] = BOX

    def __init__(self, of: str, change: Change) -> None:
        self.of, self.change = of, change

    def given(self, name: str, value: Any) -> Any:
        return self.change(value) if self.of == name else value

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.given("reset", np.array([1, 2], np.float32)), {}

    def step(self, action: Any) -> Any:
        obs = self.given("obs", np.array([1, 2], np.float32))
        ends = self.given("terminated", False), self.given("truncated", False)
        return obs, self.given("reward", 1.0), *ends, {}


@pytest.mark.parametrize("kind", [SyncVectorEnv, DummyVecEnv])
@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        ("obs", lambda x: np.float32(1), r"observations of shape \(\), not \(2,\)"),
        ("obs", lambda x: x[:1], r"observations of shape \(1,\), not \(2,\)"),
        ("reset", lambda x: x[:1], r"observations of shape \(1,\), not \(2,\)"),
        ("obs", lambda x: None, "observations=None, which are no numbers"),
        ("reward", lambda x: [x, x], r"the reward of shape \(2,\), not \(\): \[1.0, 1.0\]; give a single one"),
        ("reward", lambda x: None, "the reward=None, which are no numbers"),
        ("truncated", lambda x: 0.5, "environment 0 gave truncated=0.5, which is no flag; give true or false"),
        ("truncated", lambda x: None, "truncated=None, which are no numbers"),
        ("terminated", lambda x: [False, True], r"terminated of shape \(2,\), not \(\)"),
    ],
)
def test_single_environments_are_refused_too(kind: type, of: str, change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(lambda num_envs: kind([lambda: Single(of, change)] * num_envs))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's own checks, which refuse nothing
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_with_an_id_are_refused_too(vectorization: Any) -> None:
    gym.registry.pop("popgraft-test/Single-v0", None)
    gym.register("popgraft-test/Single-v0", lambda: Single("obs", lambda x: x[:1]))
    grid = EnvGrid(EnvConfig(id="popgraft-test/Single-v0", num_envs=2, vectorization=vectorization), 1)
    grid.reset([0], [1])
    with pytest.raises(ConfigError, match=r"observations of shape \(1,\), not \(2,\)"):
        grid.step(np.zeros((1, 2, 1), np.int64))
    grid.close()


@pytest.mark.parametrize("kind", [SyncVectorEnv, DummyVecEnv])
@pytest.mark.parametrize(
    ("of", "change"),
    [
        ("obs", lambda x: x.tolist()),
        ("reset", torch.from_numpy),
        ("obs", lambda x: x.astype(np.float64)),
        ("reward", lambda x: np.array([x])),
        ("reward", torch.tensor),
        ("truncated", int),
        ("terminated", lambda x: np.array([x])),
        ("terminated", torch.tensor),
    ],
)
def test_single_environments_are_taken_for_what_they_say(kind: type, of: str, change: Change) -> None:
    seen = play(lambda num_envs: kind([lambda: Single(of, change)] * num_envs), 2)
    assert all((value == [1, 2]).all() for value in seen[::5])
    assert all((value == 1).all() for value in seen[1::5])
    assert not any(value.any() for step in (2, 3, 4) for value in seen[step::5])


class Counting(gym.Env):
    """Counts its steps, of which the fifth ends an episode; from step `when` on it counts in another number, once."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any], when: int, number: float) -> None:
        self.observation_space, self.when, self.number, self.steps = space, when, number, -1

    def shown(self) -> Any:
        self.steps += 1

        def one(space: gym.Space[Any], whole: bool) -> Any:
            x = np.full(space.shape, self.number if whole and self.steps == self.when else self.steps % 3)
            return x if x.shape else x[()]

        if isinstance(self.observation_space, spaces.Dict):
            return {name: one(space, name == "count") for name, space in self.observation_space.spaces.items()}
        return one(self.observation_space, True)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        shown = self.shown()
        return shown, 1.0, False, self.steps % 6 == 5, {}


class CountingTogether(Simulator):
    """The same as a vector environment of its own, with its own array; environment 1 is the odd one."""

    def __init__(self, num_envs: int, space: gym.Space[Any], when: int, number: float) -> None:
        super().__init__(num_envs, "obs", self.odd, space)
        self.when, self.number = when, number

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.odd(shown(self.single_observation_space, self.num_envs)), {}

    def odd(self, x: Any) -> Any:
        if isinstance(x, dict):
            return x | {"count": self.odd(x["count"])}
        x = (x % 3).astype(np.float64)
        x[1] = self.number if self.time == self.when else x[1]
        return x


WHOLE = {
    "obs": spaces.Box(0, 9, (2,), np.int64),
    "choice": spaces.Discrete(3),
    "choices": spaces.MultiDiscrete([3, 3]),
    "image": IMAGE,
    "dict": spaces.Dict({"count": spaces.Box(0, 9, (2,), np.int32), "other": BOX}),
}


@pytest.mark.parametrize("kind", ["single", "together"])
@pytest.mark.parametrize("space", WHOLE)
@pytest.mark.parametrize(("when", "number"), [(2, np.nan), (5, np.inf), (6, 1e30)])
def test_a_space_of_whole_numbers_fails_its_member_too(kind: str, space: str, when: int, number: float) -> None:
    """At a step, at the end of an episode, and where the next one begins; a vector environment that never ends one
    only shows steps."""

    def factory(num_envs: int) -> Any:
        odd = next(numbers) == 1
        args = WHOLE[space], when if odd else -1, number
        if kind == "together":
            return CountingTogether(num_envs, *args)
        kinds = [lambda: Counting(WHOLE[space], -1, 0), lambda: Counting(*args), lambda: Counting(WHOLE[space], -1, 0)]
        return SyncVectorEnv(kinds, autoreset_mode=AutoresetMode.SAME_STEP)

    numbers = iter(range(9))
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=3), 2, factory=factory)
    grid.reset([0, 1], [1, 2])
    for _ in range(6):
        grid.step(np.zeros((2, 3, 1), np.int64))
    name = "count" if space == "dict" else "obs"
    assert list(grid.failures) == [1]
    assert f"UnusableNumber: environment 1 gave {number:g} as observation '{name}'" in grid.failures[1]
    assert all((value[1] == 0).all() for value in grid.observations.values())
    grid.reset([1], [3])
    grid.step(np.zeros((2, 3, 1), np.int64))
    assert not grid.failures
    grid.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's own checks, which refuse nothing
def test_it_does_in_a_process_of_its_own() -> None:
    gym.registry.pop("popgraft-test/CountingOnce-v0", None)
    gym.register("popgraft-test/CountingOnce-v0", lambda: Counting(WHOLE["obs"], 2, np.nan))
    grid = EnvGrid(EnvConfig(id="popgraft-test/CountingOnce-v0", num_envs=2, vectorization="async"), 1)
    grid.reset([0], [1])
    for _ in range(2):
        grid.step(np.zeros((1, 2, 1), np.int64))
    assert "gave nan as observation 'obs' at [0]" in grid.failures[0]
    grid.close()


def test_what_an_agent_is_asked_about_is_held_to_it_too() -> None:
    image, choice = fields_of(IMAGE), fields_of(spaces.Discrete(3))
    pixels = shown(IMAGE, 2)
    with pytest.raises(ConfigError, match="numbers of type float64 that the observation space's uint8 cannot hold"):
        delivered(image, pixels / 255)
    with pytest.raises(UnusableNumber, match="environment 1 gave nan as observation 'obs'"):
        delivered(choice, np.array([0, np.nan]))
    for same in (pixels.astype(np.float32), torch.from_numpy(pixels), pixels.tolist(), {"obs": pixels}):
        np.testing.assert_array_equal(delivered(image, same)["obs"], pixels)
    for same in ([2, 0], [2.0, 0.0], np.eye(3)[[2, 0]]):
        np.testing.assert_array_equal(delivered(choice, same)["obs"], [[0, 0, 1], [1, 0, 0]])


class OddFlag(Single):
    """Its third step brings what `change` makes of one answer."""

    time = 0

    def given(self, name: str, value: Any) -> Any:
        self.time += name == "obs"
        return super().given(name, value) if self.time == 3 else value


HUGE = 10**400
UNUSABLE: list[tuple[str, Change, str]] = [
    ("terminated", lambda x: np.nan, "environment 1 gave terminated=nan, which is no flag"),
    ("truncated", lambda x: np.array([np.inf]), "environment 1 gave truncated=inf, which is no flag"),
    ("terminated", lambda x: -HUGE, "environment 1 gave terminated=-inf, which is no flag"),
    ("reward", lambda x: HUGE, "environment 1 gave inf as reward"),
    ("reward", lambda x: [-HUGE], "environment 1 gave -inf as reward"),
    ("obs", lambda x: [1, HUGE], r"environment 1 gave inf as observation 'obs' at \[1\]"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's own checks, which refuse nothing
@pytest.mark.parametrize("kind", [SyncVectorEnv, DummyVecEnv, "id", "async"])
@pytest.mark.parametrize(("of", "change", "message"), UNUSABLE)
def test_flags_and_numbers_that_are_none_fail_their_member_alone(
    kind: Any, of: str, change: Change, message: str
) -> None:
    def factory(num_envs: int) -> Any:
        mine = next(members)
        kinds = [lambda: Single("", lambda x: x)] * num_envs
        kinds[1] = lambda: OddFlag(of, change if mine == 1 else lambda x: x)
        return kind(kinds)

    members = iter(range(9))
    if isinstance(kind, str):
        gym.registry.pop("popgraft-test/OddFlag-v0", None)
        gym.register("popgraft-test/OddFlag-v0", lambda: OddFlag(of, change))
        vectorization: Any = "sync" if kind == "id" else kind
        grid = EnvGrid(EnvConfig(id="popgraft-test/OddFlag-v0", num_envs=2, vectorization=vectorization), 1)
        odd, message = 0, message.replace("environment 1", "(environment 0|an environment)")
    else:
        grid, odd = EnvGrid(EnvConfig(factory="not:used", num_envs=3), 2, factory=factory), 1
    grid.reset(range(grid.pop), range(grid.pop))
    for step in range(3):
        assert not grid.failures, step
        grid.step(np.zeros((grid.pop, grid.num_envs, 1), np.int64))
    assert list(grid.failures) == [odd]
    assert re.match(f"UnusableNumber: {message}", grid.failures[odd])
    grid.close()


@pytest.mark.parametrize(("change", "place"), [(lambda x: np.where(x, np.nan, 0), 2), (lambda x: [np.inf, 0, 0], 0)])
@pytest.mark.parametrize(("kind", "of"), [(Simulator, "terminated"), (Simulator, "truncated"), (Gym3, "done")])
def test_vector_environments_fail_their_member_too(kind: type, of: str, change: Change, place: int) -> None:
    def odd(x: Any) -> Any:
        return change(x | (np.arange(3) == 2))

    with pytest.raises(
        AssertionError, match=f"UnusableNumber: environment {place} gave {of}=(nan|inf), which is no flag"
    ):
        play(lambda num_envs: kind(num_envs, of, odd))


@pytest.mark.parametrize(("of", "change", "message"), [case for case in UNUSABLE if "-inf as reward" not in case[2]])
def test_a_model_of_stable_baselines_names_the_environment(of: str, change: Change, message: str) -> None:
    kinds = [lambda: Monitor(OddFlag("", change)), lambda: Monitor(OddFlag(of, change))]
    model = DistributionalPPO("MlpLstmPolicy", DummyVecEnv(kinds), n_steps=4, batch_size=8, device="cpu", seed=1)
    before = model.member.params.clone()
    large = "environment 1 gave a number that is too large: OverflowError"  # Monitor's sum
    with pytest.raises(UnusableNumber, match=large if of == "reward" and change(1.0) == HUGE else message):
        model.learn(16)
    assert torch.equal(model.member.params, before)
    assert model.num_timesteps == 0


CHOICES = [
    (spaces.Discrete(5), 4, 7),
    (spaces.Discrete(5), 0, -1),
    (spaces.Discrete(3, start=-1), -1, 2),
    (spaces.MultiDiscrete([2, 3]), [1, 2], [2, 0]),
    (spaces.MultiDiscrete([2, 3], start=[0, 4]), [0, 4], [0, 3]),
    (spaces.MultiBinary(3), [0, 1, 1], [0, 2, 1]),
    (spaces.MultiBinary((1, 2)), [[0, 1]], [[-1, 0]]),
]


@pytest.mark.parametrize(("space", "inside", "outside"), CHOICES)
def test_a_choice_that_a_space_lacks_is_named(space: Any, inside: Any, outside: Any) -> None:
    """Asked of an agent; and given in a step, which fails its member alone."""
    message = f"environment 1 gave {outside} as observation 'obs', which is not in {space}"
    delivered(fields_of(space), np.array([inside, inside]))
    with pytest.raises(UnusableNumber, match=re.escape(message)):
        delivered(fields_of(space), np.array([inside, outside]))
    with pytest.raises(UnusableNumber, match="as observation 'at'"):
        delivered(fields_of(spaces.Dict({"at": space})), {"at": [outside]})

    def factory(num_envs: int) -> Any:
        given = [inside, outside if next(members) == 1 else inside, inside]
        return Simulator(num_envs, "obs", lambda x: np.array(given), space)

    def within(num_envs: int) -> Any:
        env = factory(num_envs)
        env.reset = lambda **_: (np.array([inside] * num_envs), {})
        return env

    members = iter(range(9))
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=3), 2, factory=within)
    grid.reset([0, 1], [1, 2])
    result = grid.step(np.zeros((2, 3, 1), np.int64))
    assert {row: message in what for row, what in grid.failures.items()} == {1: True}
    assert result.reward.tolist() == [[0, 1, 2], [0, 0, 0]]
    grid.close()


class Late(CartPole):
    """Says of all environments at once whether they have ended, from the second step on."""

    steps = 0

    def step(self, state: Any, action: Any, noise: Any) -> Any:
        state, reward, terminated = super().step(state, action, noise)
        self.steps += 1
        return state, reward, terminated.any() if self.steps > 2 else terminated


def test_a_tensor_environment_is_held_to_it_in_every_step() -> None:
    grid = make_grid(EnvConfig(source="tensor", id=f"{__name__}:Late", num_envs=3), 2)
    grid.reset([0, 1], [1, 2])
    grid.act(torch.zeros(2, 3, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"Late: the termination has shape \(\) and type torch.bool, not \(2, 3\)"):
        grid.act(torch.zeros(2, 3, 1, dtype=torch.long))
