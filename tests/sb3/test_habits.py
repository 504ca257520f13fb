"""What users of Stable-Baselines3 expect beyond the arguments: files, buffers, errors, other numbers of environments."""

import gc
import io
import itertools
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.envs import IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from popgraft import ConfigError, StoreError
from popgraft.sb3 import CnnLstmPolicy, DistributionalPPO, MlpLstmPolicy, MultiInputLstmPolicy

EYE = spaces.Box(0, 255, (10, 12, 3), np.uint8)


def test_a_file_that_was_just_written_is_read_as_it_stands(make):
    file, model = io.BytesIO(), make()
    model.save(file)
    assert torch.equal(DistributionalPPO.load(file, device="cpu").member.params, model.member.params)
    model.set_parameters(file)


@pytest.mark.parametrize("envs", [1, 3, 6])
def test_a_model_goes_on_in_another_number_of_environments(envs, make, played, tmp_path):
    make(batch_size=32).save(tmp_path / "model.zip")  # 16 steps x 4 environments, 2 minibatches of 2 sequences
    loaded = DistributionalPPO.load(tmp_path / "model.zip", env=played(envs), device="cpu")
    assert loaded.predict(np.zeros((envs, 3), np.float32))[0].shape == (envs,)
    if envs == 3:  # 48 samples: three minibatches of one sequence
        with pytest.warns(UserWarning, match=r"batch_size=32 does not divide the 48 samples .* it is 16 from now on"):
            loaded.learn(96)
    loaded.learn(32 * envs, reset_num_timesteps=False)
    assert loaded.collector.sequence_length == 16
    loaded.save(tmp_path / "again.zip")
    DistributionalPPO.load(tmp_path / "again.zip", device="cpu")
    with pytest.raises(ConfigError, match="batch_size=7 must divide"):
        DistributionalPPO.load(tmp_path / "model.zip", env=played(envs), device="cpu", batch_size=7)


@pytest.mark.parametrize(
    ("outer", "inner", "own"), list(itertools.product([True, False], [True, False], ["returns", "reward", None]))
)
def test_rewards_are_scaled_once_however_deep(outer, inner, own, make, played, tmp_path):
    def stack():
        return VecFrameStack(VecNormalize(VecMonitor(VecNormalize(bare(), norm_reward=inner)), norm_reward=outer), 2)

    def bare():
        env = played(2)
        env.envs = [each.env for each in env.envs]
        return env

    arguments = {"batch_size": 32} | ({f"normalize_{own}": True} if own else {})
    twice = own is not None and (outer or inner)
    plain = make(VecFrameStack(bare(), 2), **arguments)
    plain.save(tmp_path / "plain.zip")
    if twice:
        for attempt in (
            lambda: make(stack(), **arguments),
            lambda: plain.set_env(stack()),
            lambda: DistributionalPPO.load(tmp_path / "plain.zip", env=stack(), device="cpu"),
        ):
            with pytest.raises(ConfigError, match=f"VecNormalize scales rewards, and so does normalize_{own}=True"):
                attempt()
    else:
        model = make(stack(), **arguments)
        assert model.settings["normalize_returns"] == (own == "returns" or (own is None and not (outer or inner)))


def test_rewards_that_come_to_be_scaled_later_are_noticed(make, played):
    env = VecNormalize(played(), norm_reward=False)
    model = make(env, normalize_returns=True)
    env.norm_reward = True
    with pytest.raises(ConfigError, match="VecNormalize scales rewards"):
        model.learn(64)


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_callbacks_read_the_rollout_as_that_of_stable_baselines(kind, make, played):
    seen = spaces.Dict(
        {
            "eye": EYE,
            "card": spaces.Discrete(4, start=2),
            "pair": spaces.MultiDiscrete([2, 3]),
            "x": spaces.Box(-1, 1, ()),
        }
    )
    env = played(4, seen if kind == "dict" else spaces.Box(-1, 1, (3,), np.float64), spaces.MultiDiscrete([3, 2]))
    model = make(env, "MultiInputLstmPolicy" if kind == "dict" else "MlpLstmPolicy", normalize_obs=True, gamma=0.9)
    watched = []

    def watch(local, _):
        watched.append({name: local[name] for name in ("new_obs", "rewards", "actions", "dones", "infos")})
        return True

    model.train = lambda: None
    model.learn(64, callback=watch)
    buffer = model.rollout_buffer
    for name in ("rewards", "values", "log_probs", "episode_starts", "advantages", "returns"):
        assert getattr(buffer, name).shape == (16, 4), name
    np.testing.assert_array_equal(buffer.actions, np.stack([step["actions"] for step in watched]))
    np.testing.assert_allclose(buffer.rewards, np.stack([step["rewards"] for step in watched]), rtol=1e-6)
    np.testing.assert_array_equal(buffer.episode_starts[1:], np.stack([step["dones"] for step in watched[:-1]]))
    np.testing.assert_allclose(buffer.returns, buffer.values + buffer.advantages, rtol=1e-6)
    gain, value, reward, met = buffer.advantages, buffer.values, buffer.rewards, set()
    for t, env in itertools.product(range(15), range(4)):
        cut, over = watched[t]["infos"][env]["TimeLimit.truncated"], watched[t]["dones"][env]
        met.add((over, cut))
        following = 0 if over else 0.9 * (value[t + 1, env] + 0.95 * gain[t + 1, env])
        if not cut:  # else it bootstraps from an observation that is not stored
            assert gain[t, env] == pytest.approx(reward[t, env] + following - value[t, env], abs=1e-5)
    assert met == {(False, False), (True, False), (True, True)}
    shown = [step["new_obs"] for step in watched[:-1]]
    if kind == "dict":
        assert buffer.observations["card"].shape == (16, 4, 1)
        for key, whole in buffer.observations.items():
            np.testing.assert_allclose(
                whole[1:].reshape(15, 4, -1), np.stack([s[key] for s in shown]).reshape(15, 4, -1), rtol=1e-6
            )
            assert whole.dtype == seen[key].dtype
    else:
        np.testing.assert_allclose(buffer.observations[1:], np.stack(shown), rtol=1e-6)


@pytest.mark.parametrize("opened", [False, True], ids=["path", "file"])
@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_a_policy_alone_in_a_file(kind, opened, make, played, tmp_path):
    seen = {"vector": spaces.Box(-1, 1, (3,)), "image": EYE, "dict": spaces.Dict({"eye": EYE, "x": spaces.Discrete(3)})}
    cls = {"vector": MlpLstmPolicy, "image": CnnLstmPolicy, "dict": MultiInputLstmPolicy}[kind]
    env = played(2, seen[kind], spaces.Box(-1, 1, (2,)))
    rich = {"normalize_obs": True, "n_quantiles": 5, "recurrent": "gru"} if kind != "image" else {}
    model = make(env, cls.__name__, batch_size=32, use_sde=kind == "vector", **rich).learn(32)
    path = io.BytesIO() if opened else tmp_path / "policy"
    model.policy.save(path)
    policy = type(model.policy).load(path, device="cpu")
    obs, state, other = env.reset(), None, None
    for _ in range(3):
        expected, state = model.predict(obs, state, deterministic=True)
        action, other = policy.predict(obs, other, deterministic=True)
        np.testing.assert_array_equal(action, expected)
        obs, *_ = env.step(action)
    memory = tuple(part.expand(-1, 2, -1) for part in policy.recurrent_initial_state.vf)
    values = [each.predict_values(obs, memory, torch.ones(2)) for each in (model.policy, policy)]
    assert torch.equal(*values)
    assert not policy.training


class Extractor(torch.nn.Flatten):
    def __init__(self, observation_space):
        super().__init__()


def test_files_that_hold_no_policy_are_refused(make, small, tmp_path):
    (tmp_path / "text").write_text("no")
    torch.save({"data": "{}", "policy": {}}, tmp_path / "empty")
    for name in ("text", "empty", "absent"):
        with pytest.raises(StoreError, match=name):
            MlpLstmPolicy.load(tmp_path / name)
    own = make(policy_kwargs={**small, "features_extractor_class": Extractor})
    own.policy.save(tmp_path / "own")
    with pytest.raises(
        ConfigError, match=r"features_extractor_class=Extractor, which a file cannot hold .* custom_objects"
    ):
        MlpLstmPolicy.load(tmp_path / "own")


def test_training_goes_on_in_the_running_episodes(make, played, tmp_path):
    env = VecNormalize(played())
    model = make(env).learn(64)
    model.save(tmp_path / "model.zip")
    seen, starts = model._last_obs, model._last_episode_starts
    fresh = DistributionalPPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert fresh._last_obs is None
    other = DistributionalPPO.load(
        tmp_path / "model.zip", env=played(2), device="cpu", batch_size=32, force_reset=False
    )
    assert other._last_obs is None
    same = DistributionalPPO.load(tmp_path / "model.zip", env=env, device="cpu", force_reset=False)
    np.testing.assert_array_equal(same._last_obs, seen)
    np.testing.assert_array_equal(same._last_episode_starts, starts)
    env.reset = lambda: pytest.fail("the episodes go on")
    same.learn(64, reset_num_timesteps=False)
    np.testing.assert_allclose(same.rollout_buffer.observations[0], seen, rtol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_unknown_parameters_are_refused(exact, make):
    model = make()
    with pytest.raises(ValueError, match=r"unknown \['critic'\]"):
        model.set_parameters({**model.get_parameters(), "critic": {}}, exact_match=exact)


def test_the_old_form_of_net_arch_is_pointed_out(make, small):
    with pytest.warns(UserWarning, match="drop the list"):
        old = make(policy_kwargs={**small, "net_arch": [{"pi": [5], "vf": [6]}]})
    new = make(policy_kwargs={**small, "net_arch": {"pi": [5], "vf": [6]}})
    assert torch.equal(old.member.params, new.member.params)


def test_every_part_is_missed(make):
    model = make()
    for name in set(model.get_parameters()) - {"age"}:
        given = model.get_parameters()
        del given[name]
        with pytest.raises(ValueError, match=rf"missing \['{name}'\]"):
            model.set_parameters(given)
        model.set_parameters(given, exact_match=False)


def test_custom_objects_replace_what_a_file_has(make, tmp_path):
    make().save(tmp_path / "model.zip")
    given = {"learning_rate": 2e-5, "dummy": 1.0}
    loaded = DistributionalPPO.load(tmp_path / "model.zip", device="cpu", custom_objects=given)
    assert loaded.learning_rate == 2e-5
    assert not hasattr(loaded, "dummy")
    with pytest.raises(ConfigError, match="unknown key 'dummy'"):
        DistributionalPPO.load(tmp_path / "model.zip", device="cpu", dummy=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_range_vf": -0.1}, "clip_range_vf"),
        ({"clip_range_vf": 0.0}, "clip_range_vf"),
        ({"n_steps": 0}, "n_steps=0 must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
        ({"policy_kwargs": {"net_arch": {"pi": 64}}}, "net_arch="),
        ({"policy_kwargs": {"net_arch": [8, -1]}}, "net_arch="),
        ({"policy_kwargs": {"net_arch": 8}}, "net_arch=8"),
        ({"policy_kwargs": {"shared_lstm": True}}, "shared_lstm=True"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "optimizer_class=SGD"),
    ],
    ids=str,
)
def test_wrong_arguments_are_asserted_and_named(arguments, message, make):
    for kind in (AssertionError, ValueError):
        with pytest.raises(kind, match=message):
            make(**arguments)


def test_a_batch_that_cuts_backpropagation_short_is_pointed_out(make, played):
    with pytest.warns(UserWarning, match=r"n_steps=18 and batch_size=8 have the greatest common divisor 2, so that"):
        make(n_steps=18, batch_size=8)
    for quiet in ({"n_steps": 18, "batch_size": 8, "sequence_length": 2}, {"n_steps": 8, "batch_size": 8}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(**quiet)


def test_a_graph_takes_the_layout_of_the_environment_that_was_given(make, played):
    last = make(played(2, EYE), "CnnLstmPolicy", batch_size=32)
    assert last.observation_space.shape == (3, 10, 12)
    assert last.raw_space == EYE
    assert make(VecTransposeImage(played(2, EYE)), "CnnLstmPolicy", batch_size=32).raw_space.shape == (3, 10, 12)


def test_logs_go_where_they_are_sent(make, tmp_path):
    model = make(tensorboard_log=str(tmp_path / "log"))
    model.learn(64)
    model.learn(64, reset_num_timesteps=False)
    for _ in range(2):
        model.learn(64, tb_log_name="other")
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"DistributionalPPO_1", "other_1", "other_2"}
    own = configure(str(tmp_path / "own"), ["csv"])
    model.set_logger(own)
    for _ in range(2):
        model.learn(128)
    assert model.logger is own
    own.close()
    rows = (tmp_path / "own" / "progress.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2
    assert {"rollout/ep_rew_mean", "time/fps", "train/value_loss"} <= set(rows[0].split(","))


def test_statistics_of_a_vec_normalize_reach_the_one_that_evaluates(make, played):
    env, other = VecNormalize(played()), VecNormalize(played(1), training=False, norm_reward=False)
    model = make(env)
    assert model.get_vec_normalize_env() is env
    model.learn(64, callback=EvalCallback(other, eval_freq=16, n_eval_episodes=1, verbose=0))
    np.testing.assert_array_equal(other.obs_rms.mean, env.obs_rms.mean)  # the last step evaluates
    bare = played()
    model.set_env(bare)
    assert model.get_vec_normalize_env() is None


def test_the_noise_of_state_dependent_exploration_is_always_new(make, played):
    model = make(played(2, action_space=spaces.Box(-5, 5, (2,))), use_sde=True, batch_size=32).learn(32)
    assert model.policy.use_sde
    obs, drawn = np.ones((2, 3), np.float32), []
    for _ in range(2):
        model.policy.reset_noise(2)
        drawn.append(model.predict(obs)[0])
    assert not np.array_equal(*drawn)


def test_nothing_stays_open(make, small, tmp_path, monkeypatch):
    left: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", left.append)

    def watched(name):
        return Monitor(gym.make("CartPole-v1"), str(tmp_path / name))

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        env = SubprocVecEnv([lambda name=name: watched(name) for name in "ab"], start_method="fork")
        model = make(env, batch_size=32, tensorboard_log=str(tmp_path / "log")).learn(64)
        held = io.BytesIO()
        with (tmp_path / "open.zip").open("wb") as file:
            for path in (tmp_path / "model", str(tmp_path / "text.zip"), file, held):
                model.save(path)
        with (tmp_path / "open.zip").open("rb") as file:
            for path in (tmp_path / "model", str(tmp_path / "text.zip"), file, held):
                loaded = DistributionalPPO.load(path, env=env, device="cpu").learn(32)
                loaded.set_parameters(path)
        model.policy.save(tmp_path / "policy")
        MlpLstmPolicy.load(tmp_path / "policy", device="cpu")
        (tmp_path / "damaged.zip").write_bytes(held.getvalue()[:500])
        with pytest.raises(StoreError):
            DistributionalPPO.load(tmp_path / "damaged.zip")
        env.close()
        make("CartPole-v1").learn(16)
        model.logger.close()
        del model, loaded, env
        gc.collect()
    assert not left


@pytest.mark.parametrize("kind", [IdentityEnvMultiDiscrete, IdentityEnvMultiBinary])
@pytest.mark.parametrize(
    ("memory", "steps"), [("none", 1536), pytest.param("lstm", 4096, marks=pytest.mark.slow)], ids=str
)
def test_every_part_of_an_action_is_learned(kind, memory, steps):
    env = DummyVecEnv(
        [lambda: Monitor(kind(3))] * 8
    )  # each of 100 steps earns 1 where all of the action is what is shown
    for seed, each in enumerate(env.envs):
        each.action_space.seed(seed)
    model = DistributionalPPO(
        "MlpLstmPolicy",
        env,
        learning_rate=1e-2,
        n_steps=32,
        batch_size=64,
        gamma=0.5,
        recurrent=memory,
        policy_kwargs={"net_arch": [16], "lstm_hidden_size": 16},
        seed=0,
        device="cpu",
    )
    model.learn(steps)
    assert evaluate_policy(model, env, n_eval_episodes=8)[0] >= 90  # chance: 11 and 12.5
