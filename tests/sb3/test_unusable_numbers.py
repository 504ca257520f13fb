"""An environment gives a number that is not usable: an error names it, and the model is as it was."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from popgraft import ConfigError, DistributionalPPO, EnvironmentFault, UnusableNumber, tree

STEPS, ENVS = 16, 2


class World(gym.Env):
    """Everything follows from its step; `odd` is where and what the second environment gives in the next third step."""

    observation_space = gym.spaces.Dict(
        {
            "place": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "kind": gym.spaces.Discrete(2),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    odd = None

    def __init__(self, mine):
        self.mine = mine

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observe(), {}

    def observe(self):
        return {"place": np.array([np.sin(self.time + self.mine), self.time / 4]), "kind": self.time % 2}

    def step(self, action):
        self.time += 1
        obs, reward = self.observe(), float(action[0])
        if self.mine and World.odd and self.time == 5:
            where, value = World.odd
            if where == "reward":
                reward = value
            else:
                obs["place"][1] = value
        return obs, reward, False, self.time == 5 + bool(World.odd and World.odd[0] == "observation"), {}


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    monkeypatch.setattr(World, "odd", None)


def model_of(normalised=False, **settings):
    env = DummyVecEnv([lambda mine=mine: World(mine) for mine in (False, True)])
    env = VecNormalize(env, norm_obs_keys=["place"]) if normalised else env
    arguments = {"n_steps": STEPS, "batch_size": STEPS, "n_epochs": 1, "seed": 3, "gamma": 0.9}
    return DistributionalPPO(
        "MultiInputLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 16}, **{**arguments, **settings}
    )


def state_of(model):
    """All that learning changes, in copies."""
    tensors = {**dict(tree.items(model.member)), **model.policy.state_dict(), "noise": model.generators[0].get_state()}
    counters = (model.num_timesteps, model._n_updates, model._episode_num, model._total_timesteps)
    return {name: leaf.clone() for name, leaf in tensors.items()}, counters, model.policy.optimizer.state_dict()


def check_same(found, expected):
    for name, leaf in expected[0].items():
        assert torch.equal(found[0][name], leaf), name
    assert found[1] == expected[1]
    assert str(found[2]) == str(expected[2])


@pytest.mark.parametrize(
    ("place", "value", "settings"),
    [
        ("observation", np.nan, {"normalize_obs": True}),
        ("observation", 1e300, {}),
        ("terminal observation", -np.inf, {"recurrent": "none", "normalize_obs": True}),
        ("reward", np.inf, {"normalize_reward": True}),
        ("reward", -1e30, {"recurrent": "gru"}),
    ],
)
def test_an_error_names_it_and_the_model_learns_on_as_if_nothing_had_happened(place, value, settings, monkeypatch):
    model, twin = model_of(**settings), model_of(**settings)
    for each in (model, twin):
        each.learn(STEPS * ENVS)
    before = state_of(model)
    monkeypatch.setattr(World, "odd", (place, value))
    name = "reward" if place == "reward" else rf"{place} 'place' at \[1\]"
    shown = "inf" if value == 1e300 else f"{value:g}".replace("+", r"\+")
    for reset in (True, False):
        with pytest.raises(UnusableNumber, match=f"environment 1 gave {shown} as {name}") as caught:
            model.learn(STEPS * ENVS, reset_num_timesteps=reset)
        assert isinstance(caught.value, (ValueError, EnvironmentFault))
        check_same(state_of(model), before)
    monkeypatch.setattr(World, "odd", None)
    twin._last_obs = None  # new episodes, as after the error
    for each in (model, twin):
        each.learn(STEPS * ENVS, reset_num_timesteps=False)
    check_same(state_of(model), state_of(twin))
    assert model.num_timesteps == 2 * STEPS * ENVS
    assert all(leaf.isfinite().all() for leaf in model.policy.state_dict().values())


def test_updates_before_the_number_are_kept(monkeypatch):
    model, twin = model_of(), model_of()
    train, updates = model.train, []

    def trained():
        train()
        updates.append(len(updates))
        if len(updates) == 2:
            monkeypatch.setattr(World, "odd", ("reward", np.nan))

    monkeypatch.setattr(model, "train", trained)
    with pytest.raises(UnusableNumber):
        model.learn(5 * STEPS * ENVS)
    monkeypatch.setattr(World, "odd", None)
    twin.learn(2 * STEPS * ENVS)
    assert model.num_timesteps == twin.num_timesteps == 2 * STEPS * ENVS
    assert torch.equal(model.member.params, twin.member.params)


def test_a_vecnormalize_among_the_environments_is_as_it_was_too(monkeypatch):
    """It spreads the number over all environments; named is the one that gave it."""
    model = model_of(normalised=True)
    model.learn(STEPS * ENVS)
    normalizer = model.get_vec_normalize_env()
    before = normalizer.obs_rms["place"].mean.copy(), normalizer.ret_rms.var, normalizer.returns.copy()
    monkeypatch.setattr(World, "odd", ("observation", np.nan))
    with pytest.raises(UnusableNumber, match="environment 1 gave nan as observation 'place'"):
        model.learn(STEPS * ENVS)
    after = normalizer.obs_rms["place"].mean, normalizer.ret_rms.var, normalizer.returns
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_predict_refuses_such_numbers(value):
    model = model_of()
    seen = {"place": np.array([[0.0, 1.0], [2.0, value]]), "kind": np.array([0, 1])}
    with pytest.raises(UnusableNumber, match=r"environment 1 gave .* as observation 'place' at \[1\]"):
        model.predict(seen)


def test_predict_refuses_what_is_not_in_the_space():
    model = model_of()
    place = np.zeros((2, 2))
    with pytest.raises(
        UnusableNumber, match=r"environment 1 gave 2 as observation 'kind', which is not in Discrete\(2\)"
    ):
        model.predict({"place": place, "kind": np.array([0, 2])})
    with pytest.raises(ConfigError, match=r"the observation space's int64 cannot hold, such as 0\.5; give int64"):
        model.predict({"place": place, "kind": np.array([0, 0.5])})
    with pytest.raises(ConfigError, match="of different numbers of environments: 'kind' 1, 'place' 2"):
        model.predict({"place": place, "kind": np.array([0])})
    with pytest.raises(ConfigError, match="'kind' lacks the axis of environments that its other keys have"):
        model.predict({"place": place[:1], "kind": 0})


def test_predict_refuses_a_state_of_other_environments():
    model, seen = model_of(), {"place": np.zeros((2, 2)), "kind": np.array([0, 1])}
    _, state = model.predict(seen)
    for wrong in (state[:1], tuple(part[:, :1] for part in state), (np.ones(2), np.ones(2))):
        with pytest.raises(ConfigError, match=r"state has the shapes .*, not \[\(1, 2, 16\), \(1, 2, 16\)\]"):
            model.predict(seen, wrong)
    for starts in (np.ones(1), np.ones(3), np.array(["a", "b"])):
        with pytest.raises(ConfigError, match=r"episode_start=.* must be one flag for each of 2 environments"):
            model.predict(seen, state, starts)
    action, _ = model.predict(seen, state, np.ones((2, 1)), deterministic=True)
    np.testing.assert_array_equal(action, model.predict(seen, deterministic=True)[0])
