import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import Agent, AttackConfig, ConfigError, EnvironmentFault, load_config, train
from popgraft.rng import derive, torch_generator
from popgraft.rollout.spaces_of import spaces_of
from popgraft.rollout.wrappers import built_in_wrappers
from popgraft.train.agent import empty_member

from .same import tensors

Tiny = Callable[..., dict[str, Any]]


class Drift(gym.Env):
    """Observations depend on all actions so far; 10 steps."""

    observation_space, action_space = spaces.Box(-9, 9, (3,)), spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.obs, self.left = self.np_random.normal(size=3).astype(np.float32), 10
        return self.obs, {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        self.obs = (0.7 * np.roll(self.obs, int(action)) + 0.3 * self.np_random.normal(size=3)).astype(np.float32)
        return self.obs, float(self.obs[0]), self.left == 0, False, {}


def vector(num_envs: int, diary: list[Any] | None = None) -> SyncVectorEnv:
    class Diary(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            if diary is not None:
                diary.append(np.array(actions))
            return super().step(actions)

    return Diary([Drift] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def agent_of(
    settings: dict[str, Any], observation: gym.Space[Any], action: gym.Space[Any], factory: Any = None
) -> Agent:
    """An agent with random weights, larger than at birth, so that its actions differ."""
    config, known = load_config(settings), spaces_of(observation, action)
    member = empty_member(config, known)
    member.params = torch.randn(member.params.shape, generator=torch_generator(3, "test"))
    return Agent(config, known, member, factory)


@pytest.fixture
def drifter(tiny: Tiny) -> tuple[Agent, list[Any]]:
    diary: list[Any] = []
    settings = tiny(env__kwargs={})
    return agent_of(
        settings, Drift.observation_space, Drift.action_space, lambda num_envs: vector(num_envs, diary)
    ), diary


def test_predict_does_what_the_member_did_in_its_evaluation(drifter: tuple[Agent, list[Any]]) -> None:
    agent, diary = drifter
    agent.evaluate(4, seed=7)
    env = vector(4)
    obs, _ = env.reset(seed=derive(7, "agent evaluation"))
    state, start = None, None
    for done in diary:
        action, state = agent.predict(obs, state, start)
        np.testing.assert_array_equal(action, done)
        obs, _, terminated, truncated, _ = env.step(action)
        start = terminated | truncated
    assert len(diary) == 10
    assert len(np.unique(diary)) > 1


def test_the_best_agent_is_the_member_itself(tiny: Tiny) -> None:
    run = train(tiny(pbt__exploit_method="none", total_timesteps=64))
    population = tensors(run, "last")
    row = run.summary["member"]
    assert torch.equal(run.best.member.params[0], population["params"][row])
    assert torch.equal(run.best.member.normalizer.obs["obs"].mean[0], population["normalizer.obs.obs.mean"][row])


def test_an_agent_is_evaluated_as_after_training(tiny: Callable[..., dict[str, Any]]) -> None:
    """Without arguments the episodes are those of the final score."""
    run = train(tiny())
    scores = run.best.evaluate()
    found = run.summary
    assert (float(scores.mean), float(scores.stderr)) == (found["final_score"], found["final_stderr"])
    assert run.best.evaluate(4).episodes.tolist() == [4]


def test_evaluation_is_reproducible_by_its_seed_and_changes_nothing(drifter: tuple[Agent, list[Any]]) -> None:
    agent, _ = drifter
    params = agent.member.params.clone()
    for deterministic in (True, False):
        first, again, other = (agent.evaluate(5, seed, deterministic) for seed in (1, 1, 2))
        assert torch.equal(first.mean, again.mean)
        assert torch.equal(first.stderr, again.stderr)
        assert not torch.equal(first.mean, other.mean)
        assert first.episodes.tolist() == [5]
    assert torch.equal(agent.member.params, params)


def test_an_attack_meets_the_same_episodes(drifter: tuple[Agent, list[Any]]) -> None:
    agent, diary = drifter
    for deterministic in (True, False):
        clean = agent.evaluate(6, 1, deterministic)
        plain = np.stack(diary[-10:])
        nothing = agent.evaluate(6, 1, deterministic, AttackConfig(epsilon=0.0))
        assert torch.equal(nothing.mean, clean.mean)
        assert torch.equal(nothing.stderr, clean.stderr)
        attack = AttackConfig(method="critic", epsilon=0.5, steps=3)
        attacked, again = (agent.evaluate(6, 1, deterministic, attack) for _ in range(2))
        np.testing.assert_array_equal(diary[-20:-10], diary[-10:])
        assert (np.stack(diary[-10:]) != plain).any()
        assert torch.equal(attacked.mean, again.mean)
        assert not torch.equal(attacked.mean, clean.mean)


def test_another_environment_than_the_agents_is_refused(drifter: tuple[Agent, list[Any]]) -> None:
    agent, _ = drifter
    other = agent_of(agent.config.model_dump(), spaces.Box(-1, 1, (4,)), Drift.action_space, vector)
    with pytest.raises(
        ConfigError, match=r"the environment has observations obs \(3,\) .* knows observations obs \(4,\)"
    ):
        other.evaluate(2, seed=0)


def test_the_score_is_the_mean_return_with_its_standard_error(tiny: Tiny) -> None:
    class Fixed(Drift):
        def step(self, action: Any) -> Any:
            obs, _, terminated, truncated, info = super().step(action)
            return obs, self.worth, terminated, truncated, info

    def make(num_envs: int) -> SyncVectorEnv:
        kinds = [type("Env", (Fixed,), {"worth": float(i)}) for i in range(num_envs)]
        return SyncVectorEnv(kinds, autoreset_mode=AutoresetMode.SAME_STEP)

    agent = agent_of(tiny(env__kwargs={}), Drift.observation_space, Drift.action_space, make)
    scores = agent.evaluate(3, seed=0)  # returns 0, 10, 20: standard deviation 10
    assert scores.mean.item() == 10
    assert scores.stderr.item() == pytest.approx(10 / 3**0.5)


def test_an_environment_that_fails_in_evaluation_is_an_error(tiny: Tiny) -> None:
    class Broken(Drift):
        def step(self, action: Any) -> Any:
            raise ValueError("out of paint")

    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([Broken] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    agent = agent_of(tiny(env__kwargs={}), Drift.observation_space, Drift.action_space, make)
    with pytest.raises(EnvironmentFault, match="failed during evaluation: ValueError: out of paint"):
        agent.evaluate(2, seed=0)


def test_memory_is_carried_in_the_state_and_ends_with_the_episode(drifter: tuple[Agent, list[Any]]) -> None:
    agent, _ = drifter
    obs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    _, state = agent.predict(obs)
    assert state.shape == (1, 6, agent.policy.state_size)
    _, fresh = agent.predict(obs[::-1])
    start = np.array([True, False] * 3)
    _, later = agent.predict(obs[::-1], state, start)
    torch.testing.assert_close(later[:, start], fresh[:, start])
    assert not torch.isclose(later[:, ~start], fresh[:, ~start]).all(-1).any()
    _, carried = agent.predict(obs[::-1], state)
    assert torch.equal(carried[:, ~start], later[:, ~start])


def test_sampled_actions_repeat_with_a_new_agent_and_differ_from_call_to_call(tiny: Tiny) -> None:
    obs = np.zeros((50, 3), np.float32)

    def draws() -> list[np.ndarray]:
        agent = agent_of(tiny(env__kwargs={}), Drift.observation_space, Drift.action_space)
        agent.member.params.mul_(0.1)  # nearly even odds
        return [agent.predict(obs, deterministic=False)[0] for _ in range(2)]

    first, second = draws()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal([first, second], draws())
    assert set(np.unique(first)) == {0, 1, 2}


@pytest.mark.parametrize(
    "action",
    [
        spaces.Discrete(3, start=5),
        spaces.MultiDiscrete([2, 3, 4]),
        spaces.MultiBinary(3),
        spaces.Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.2])),
        spaces.Box(-0.1, 0.1, (2, 3)),
        spaces.Box(0, 5, (2,), np.int32),
        spaces.Box(-1, 1, (2,), np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_what_the_environment_takes(tiny: Tiny, action: gym.Space[Any], deterministic: bool) -> None:
    agent = agent_of(tiny(env__kwargs={}), Drift.observation_space, action)
    obs = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    chosen, _ = agent.predict(obs, deterministic=deterministic)
    assert len(chosen) == 20
    assert all(one in action for one in chosen)


def test_the_agent_of_a_run_rounds_as_training_does(tiny: Tiny) -> None:
    class Steps(Drift):
        action_space = spaces.Box(0, 5, (2,), np.int32)

        def step(self, action: Any) -> Any:
            assert action in self.action_space
            return super().step(action.sum() % 3)

    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([Steps] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    run = train(tiny(env={"factory": "nowhere:made", "num_envs": 2}, total_timesteps=64), factory=make)
    chosen, _ = run.best.predict(np.zeros((4, 3)), deterministic=False)
    assert all(one in Steps.action_space for one in chosen)


class Shown(gym.Env):
    """Random observations for 6 steps."""

    action_space = spaces.MultiDiscrete([3, 2], np.int32, start=[5, 0])

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        self.observation_space = copy.deepcopy(observation_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.observation_space.seed(seed)
        self.left = 6
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        self.left -= 1
        return self.observation_space.sample(), 0.0, self.left == 0, False, {}


RAW = {
    "discrete": spaces.Discrete(6, start=2),
    "multi-discrete": spaces.MultiDiscrete([[3, 4], [2, 2]]),
    "multi-binary": spaces.MultiBinary(4),
    "scalar": spaces.Box(-1, 1, (), np.float64),
    "image": spaces.Box(0, 255, (12, 10, 3), np.uint8),
}
RAW["dict"] = spaces.Dict(dict(RAW))


def seen(space: gym.Space[Any], raw: np.ndarray) -> np.ndarray:
    """A batch as docs/environments.md has an agent see it."""
    if isinstance(space, spaces.Discrete):
        return np.eye(space.n)[raw - space.start]
    if isinstance(space, spaces.MultiDiscrete):
        choices = zip(space.nvec.flat, raw.reshape(len(raw), -1).T, strict=True)
        return np.concatenate([np.eye(n)[choice] for n, choice in choices], axis=1)
    if space.shape == ():
        return raw[:, None]
    return np.moveaxis(raw, -1, 1) if space.dtype == np.uint8 else raw


@pytest.mark.parametrize("kind", RAW)
def test_predict_takes_observations_as_the_environment_gives_them(tiny: Tiny, kind: str) -> None:
    diary: list[Any] = []

    class Diary(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            diary.append(np.array(actions))
            return super().step(actions)

    def make(num_envs: int) -> SyncVectorEnv:
        return Diary([lambda: Shown(RAW[kind])] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    settings = tiny(env__kwargs={})
    agent = agent_of(settings, RAW[kind], Shown.action_space, make)
    agent.member.params.mul_(0.1 if kind == "image" else 1)  # or it saturates every unit
    agent.evaluate(5, seed=7)
    played = list(diary)
    env = make(5)
    raw, _ = env.reset(seed=derive(7, "agent evaluation"))
    state, twin = None, None
    for done in played:
        action, state = agent.predict(raw, state)
        np.testing.assert_array_equal(action, done)
        assert action.dtype == np.int32
        own = RAW[kind]
        keyed = {key: seen(own[key], raw[key]) for key in raw} if kind == "dict" else seen(own, raw)
        np.testing.assert_array_equal(agent.predict(keyed, twin)[0], done)
        _, twin = agent.predict(keyed, twin)
        assert torch.equal(state, twin)
        raw, *_ = env.step(action)
    assert len(torch.unique(state[0], dim=0)) == 5, "it saw five different episodes"


def test_of_a_key_that_hide_narrows_predict_takes_what_is_left(tiny: Tiny) -> None:
    space = spaces.Dict({"card": spaces.Discrete(4), "body": spaces.Box(-1, 1, (3,)), "eye": RAW["image"]})
    hide = [
        {"name": "hide", "kwargs": {"indices": [1], "key": "body"}},
        {"name": "hide", "kwargs": {"indices": [0], "key": "card"}},
    ]
    config = load_config(tiny(env__wrappers=hide, env__kwargs={}))
    _, known = built_in_wrappers(config.env.wrappers, spaces_of(space, spaces.Discrete(2)))
    agent = Agent(config, known, empty_member(config, known))
    eye = np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), np.uint8)
    body, card = np.ones((5, 2)), np.eye(4)[[0, 1, 2, 3, 0]][:, 1:]
    _, state = agent.predict({"card": card, "body": body, "eye": eye})
    _, same = agent.predict({"card": card, "body": body, "eye": np.moveaxis(eye, -1, 1)})
    assert torch.equal(state, same)
    with pytest.raises(ConfigError, match=r"'body' has shape \(5, 3\); the agent expects \('env', 2\)"):
        agent.predict({"card": card, "body": np.ones((5, 3)), "eye": eye})


def test_dict_observations_are_given_by_key(tiny: Tiny) -> None:
    space = spaces.Dict({"eye": spaces.Box(0, 255, (36, 36, 3), np.uint8), "skin": spaces.Box(-1, 1, (2,))})
    agent = agent_of(tiny(env__kwargs={}), space, spaces.Discrete(4))
    agent.member.params.mul_(0.1)  # or the image saturates every unit
    rng = np.random.default_rng(0)
    shapes = {key: spec.shape for key, spec in agent.spaces.obs.items()}
    obs = {
        "eye": rng.integers(0, 256, (5, *shapes["eye"]), dtype=np.uint8),
        "skin": rng.normal(size=(5, 2)).astype(np.float32),
    }
    action, state = agent.predict(obs)
    reordered, state_again = agent.predict({key: obs[key] for key in ("skin", "eye")})
    np.testing.assert_array_equal(action, reordered)
    assert torch.equal(state, state_again)
    for key in obs:
        _, changed = agent.predict({**obs, key: obs[key] // 2 if key == "eye" else -obs[key]})
        assert not torch.equal(changed, state), f"{key} is not read"
    with pytest.raises(ConfigError, match=r"the observation has the keys \['eye'\]; the agent knows \['eye', 'skin'\]"):
        agent.predict({"eye": obs["eye"]})


def test_an_observation_of_another_shape_is_refused(drifter: tuple[Agent, list[Any]]) -> None:
    with pytest.raises(ConfigError, match=r"has shape \(3,\); the agent expects \('env', 3\)"):
        drifter[0].predict(np.zeros(3))
    _, state = drifter[0].predict(np.zeros((2, 3)))
    with pytest.raises(ConfigError, match=r"state has the shape \(1, 2, \d+\), not \(1, 4, \d+\); give what"):
        drifter[0].predict(np.zeros((4, 3)), state)
    with pytest.raises(
        ConfigError, match=r"episode_start=array\(\[ True\]\) must be one flag for each of 2 environments"
    ):
        drifter[0].predict(np.zeros((2, 3)), state, np.array([True]))


def test_observations_are_standardised_as_in_training(drifter: tuple[Agent, list[Any]]) -> None:
    agent, _ = drifter
    obs = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
    stats = agent.member.normalizer.obs["obs"]
    assert stats.mean.abs().sum() == 0, "at birth there is nothing to subtract"
    _, before = agent.predict(obs)
    stats.mean += 1.5
    _, after = agent.predict(obs + 1.5)
    torch.testing.assert_close(after, before)
