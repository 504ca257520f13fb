"""The algorithm as Stable-Baselines3's users meet it: spaces, wrappers, callbacks, schedules, randomness."""

import logging
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from popgraft.errors import ConfigError
from popgraft.sb3 import DistributionalPPO, RNNStates

IMAGE = spaces.Box(0, 255, (40, 40, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
DICT = spaces.Dict({"image": spaces.Box(0, 255, (12, 12, 1), np.uint8), "vector": VECTOR, "goal": spaces.Discrete(3)})
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))

SPACES = {
    "discrete": ("MlpLstmPolicy", VECTOR, spaces.Discrete(3, start=2)),
    "multi_discrete": ("MlpLstmPolicy", spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([3, 2])),
    "multi_binary": ("MlpLstmPolicy", spaces.MultiBinary(4), spaces.MultiBinary(3)),
    "box": ("MlpLstmPolicy", spaces.Discrete(5), BOX),
    "matrix": ("MlpLstmPolicy", spaces.Box(-1, 1, (2, 3), np.float32), spaces.Box(-1, 1, (2, 2), np.float32)),
    "image": ("CnnLstmPolicy", IMAGE, spaces.Discrete(2)),
    "dict": ("MultiInputLstmPolicy", DICT, BOX),
}


@pytest.mark.parametrize("kind", SPACES)
def test_every_kind_of_space(kind, make, played):
    policy, observation_space, action_space = SPACES[kind]
    env = played(2, observation_space, action_space)
    model = make(env, policy, n_steps=8, batch_size=8, n_epochs=1)
    before = model.member.params.clone()
    model.learn(32)
    assert model.num_timesteps == 32
    assert not torch.equal(model.member.params, before)
    observation = model.env.reset()
    actions, state = model.predict(observation, deterministic=False)
    assert all(action_space.contains(action) for action in actions)
    assert [part.shape for part in state] == [(1, 2, 8)] * 2
    one = {key: value[0] for key, value in observation.items()} if kind == "dict" else observation[0]
    alone, _ = model.predict(one, deterministic=True)
    together, _ = model.predict(observation, deterministic=True)
    assert action_space.contains(alone)
    np.testing.assert_allclose(alone, together[0], atol=1e-6)


@pytest.mark.parametrize(("envs", "batch_size"), [(1, 8), (64, 256)])
def test_any_number_of_environments(envs, batch_size, make, played):
    model = make(played(envs), n_steps=8, batch_size=batch_size)
    model.learn(8 * envs * 2)
    assert model.num_timesteps == 16 * envs
    assert len(model.ep_info_buffer) > 0


def test_what_was_stored_is_what_the_policy_says(make):
    """Before the first update, and with episodes that end inside the rollout."""
    model = make(critic="quantile", n_quantiles=5)
    model.learn(16 * 4 * 3)
    rollouts = []
    model.train = lambda: rollouts.append(model.rollout_buffer)
    model.learn(16 * 4, reset_num_timesteps=False)
    (rollout,) = rollouts
    assert rollout.end.any()
    env_first = [rollout.obs["obs"][0].transpose(0, 1).flatten(0, 1), rollout.action[0].transpose(0, 1).flatten()]
    states = RNNStates(*(tuple(m) for m in rollout.state[0, 0].view(4, 2, 1, 2, 8).permute(1, 3, 2, 0, 4)))
    values, log_prob, entropy = model.policy.evaluate_actions(*env_first, states, rollout.start[0].T.flatten())
    torch.testing.assert_close(values.view(4, 16).T, rollout.value[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(log_prob.view(4, 16).T, rollout.log_prob[0], atol=1e-5, rtol=0)
    assert (entropy > 0).all()


def test_predict_continues_an_episode_as_training_does(make):
    model = make()
    model.learn(64)
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 4, 3)).astype(np.float32)
    starts = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    state, probabilities = None, []
    for observation, start in zip(observations, starts, strict=True):
        _, state = model.predict(observation, state, start, deterministic=True)
        probabilities.append(state[0][0])
    params = model.policy.network.views(model.member.params)
    zeros = torch.zeros(1, 4, model.policy.network.state_size)
    whole = model.policy.network.unroll(
        params, {"obs": torch.from_numpy(observations)[None]}, zeros, torch.from_numpy(starts)[None]
    )
    np.testing.assert_allclose(state[0][0], whole.state[0, :, :8].detach().numpy(), atol=1e-6)
    assert not np.allclose(probabilities[-1], probabilities[0])


def wrapped(env, kind):
    match kind:
        case "normalize":
            return VecNormalize(env)
        case "monitor over normalize":
            env.envs = [each.env for each in env.envs]
            return VecMonitor(VecNormalize(env))
        case "frame stack":
            return VecFrameStack(env, 3)
        case _:
            return env


@pytest.mark.parametrize("kind", ["normalize", "monitor over normalize", "frame stack"])
def test_wrappers(kind, make, played):
    model = make(wrapped(played(), kind))
    model.learn(128)
    mean, _ = evaluate_policy(model, wrapped(played(2), kind), 4, warn=False)
    assert math.isfinite(mean)
    if "normalize" in kind:
        np.testing.assert_array_equal(model._last_original_obs, model.get_vec_normalize_env().get_original_obs())
        assert not model.settings["normalize_returns"]


def cart_pole():
    return gym.make("CartPole-v1")


def test_environments_in_processes(make):
    env = SubprocVecEnv([cart_pole] * 2, start_method="fork")
    model = make(env)
    model.learn(64)
    assert model.num_timesteps == 64
    env.close()


def test_an_id_of_an_environment():
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    assert model.get_env().num_envs == 1
    assert model.collector.sequence_length == 16


def test_the_same_seed_gives_the_same_model(make, played):
    models = [make(played(), seed=seed).learn(192) for seed in (3, 3, 4)]
    assert torch.equal(models[0].member.params, models[1].member.params)
    assert not torch.equal(models[0].member.params, models[2].member.params)


def test_predictions_do_not_disturb_training(make, played):
    models = [make(played()) for _ in range(2)]
    for model, curious in zip(models, (True, False), strict=True):
        for _ in range(3):
            model.learn(64, reset_num_timesteps=False)
            if curious:
                model.predict(np.zeros((4, 3), np.float32), deterministic=False)
    assert torch.equal(models[0].member.params, models[1].member.params)


class Watch(BaseCallback):
    """Counts, and stops at a step."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.rollouts, self.seen = last, 0, []

    def _on_rollout_end(self) -> None:
        self.rollouts += 1

    def _on_step(self) -> bool:
        self.seen.append((self.num_timesteps, self.locals["rewards"].copy(), len(self.locals["infos"])))
        return self.n_calls < self.last


def test_callbacks_see_every_step_and_can_stop(make):
    model, watch = make(), Watch(40)
    model.learn(1000, callback=watch)
    assert [steps for steps, _, _ in watch.seen] == list(range(4, 164, 4))
    assert watch.rollouts == 2
    assert model.num_timesteps == 160
    assert all(rewards.shape == (4,) and infos == 4 for _, rewards, infos in watch.seen)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 224


def test_evaluation_and_checkpoints(make, played, tmp_path):
    threshold = StopTrainingOnRewardThreshold(reward_threshold=-100.0)
    evaluation = EvalCallback(
        played(2), threshold, n_eval_episodes=2, eval_freq=16, best_model_save_path=tmp_path / "best", verbose=0
    )
    checkpoint = CheckpointCallback(8, tmp_path, "agent")
    model = make()
    model.learn(1000, callback=[checkpoint, evaluation])
    assert model.num_timesteps == 64
    assert (tmp_path / "best" / "best_model.zip").exists()
    assert (tmp_path / "agent_32_steps.zip").exists()
    loaded = DistributionalPPO.load(tmp_path / "best" / "best_model.zip", device="cpu")
    assert torch.equal(loaded.member.params, model.member.params)


def test_names_in_the_log(make, tmp_path):
    model = make(vgs=True, kl_penalty=True, target_kl=0.01)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(128)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    expected = {
        *(f"train/{name}" for name in ("value_loss", "policy_loss", "entropy_loss", "approx_kl", "clip_fraction")),
        *(f"train/{name}" for name in ("kl_penalty_beta", "ent_coef", "explained_variance", "learning_rate")),
        *(f"train/{name}" for name in ("policy_gradient_loss", "clip_range", "n_updates")),
        *(f"vgs/{name}" for name in ("scaling_factor", "normalized_variance", "step_count", "warmup_active")),
        *(f"lstm/{who}_layer0_{name}" for who in ("critic", "actor") for name in ("norm", "mean", "std")),
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/total_timesteps"),
    }
    assert expected <= set(header)


def test_schedules_and_attributes_are_live(make):
    model = make(
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=lambda left: 0.1 + 0.1 * left, clip_range_vf=0.5
    )
    model.learn(128)
    assert float(model.member.hyperparams["learning_rate"]) == 0
    assert float(model.member.hyperparams["clip_range"]) == pytest.approx(0.1)
    model.ent_coef, model.gamma, model.lr_schedule = 0.25, 0.5, lambda _: 0.125
    model.learn(64, reset_num_timesteps=False)
    values = {name: float(model.member.hyperparams[name]) for name in ("ent_coef", "gamma", "learning_rate")}
    assert values == {"ent_coef": 0.25, "gamma": 0.5, "learning_rate": 0.125}
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.125


def test_recurrent_states(make, caplog):
    model = make()
    model.learn(64)
    states = model._last_lstm_states
    assert isinstance(states, RNNStates)
    assert [part.shape for memory in states for part in memory] == [(1, 4, 8)] * 4
    states.pi[0].fill_(2.0)
    before = [part.clone() for memory in model._last_lstm_states for part in memory]
    assert (before[0] == 2).all()
    model._reset_lstm_states_for_done_envs(np.array([True, False, False, True]))
    for part, old in zip((part for memory in model._last_lstm_states for part in memory), before, strict=True):
        assert not part[:, [0, 3]].any()
        assert torch.equal(part[:, [1, 2]], old[:, [1, 2]])
    with caplog.at_level(logging.INFO, "popgraft"):
        model.reset_lstm_states_to_initial()
    assert "LSTM states reset to initial (zero) states" in caplog.messages
    first = model._last_lstm_states
    model.reset_lstm_states_to_initial()
    second = model._last_lstm_states
    assert not any(part.any() for memory in second for part in memory)
    pointers = [part.data_ptr() for states in (first, second) for memory in states for part in memory]
    assert len(set(pointers)) == 8
    model._last_lstm_states = None
    model.reset_lstm_states_to_initial()
    assert model._last_lstm_states is None
    model.learn(64, reset_num_timesteps=False)
    assert model._last_lstm_states is not None


def test_finished_environments_begin_anew(make):
    model = make()
    model.learn(64 * 3)
    done = torch.from_numpy(model._last_episode_starts)
    for memory in model._last_lstm_states:
        for part in memory:
            assert not part[:, done].any()
            assert part[:, ~done].any()


@pytest.mark.parametrize("critic", ["quantile", "categorical", "scalar"])
def test_return_statistics(critic, make):
    """Value and snapshot agree after every update, and activation does not move predictions."""
    model = make(critic=critic, normalize_returns=True)
    calls = []
    for name in ("_finalize_return_stats", "_activate_return_scale_snapshot", "_record"):
        original = getattr(model, name)
        setattr(model, name, lambda *args, n=name, f=original: (calls.append(n), f(*args)))
    for _ in range(2):
        model.learn(64, reset_num_timesteps=False)
        assert model._ret_mean_value == model._ret_mean_snapshot != 0
        assert model._ret_std_value == model._ret_std_snapshot != 1
    assert calls == ["_finalize_return_stats", "_activate_return_scale_snapshot", "_record"] * 2


def test_no_return_statistics(make):
    model = make(normalize_returns=False)
    model.learn(64)
    assert (
        (model._ret_mean_value, model._ret_std_value) == (model._ret_mean_snapshot, model._ret_std_snapshot) == (0, 1)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 24}, r"batch_size=24 must divide the 64 samples .* nearest: 16 or 32"),
        ({"sequence_length": 6}, r"sequence_length=6 must divide both n_steps=16 and batch_size=16"),
        ({"gamma": 2.0}, r"gamma = 2.0"),
        ({"cirtic": "scalar"}, r"unknown key 'cirtic'"),
        (
            {"policy_kwargs": {"lstm_kwargs": {"bias": False}}},
            r"lstm_kwargs=\{'bias': False\}: only dropout is available",
        ),
        ({"policy_kwargs": {"lstm_kwargs": {"dropout": 0.5}}}, r"recurrent_dropout=0.5 acts between .* there are 1"),
        ({"policy_kwargs": {"shared_lstm": True}}, r"set enable_critic_lstm=False"),
        ({"policy_kwargs": {"activation_fn": torch.nn.Softplus}}, r"activation_fn=Softplus .* nn.Tanh"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, r"optimizer_class=SGD .* Adam"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.AdamW}, "optimizer": "upgd"}, r"set the optimizer twice"),
        ({"policy": "CnnLstmPolicy"}, r"needs images"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message, make):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_state_dependent_exploration_that_cannot_work_is_refused(make, played):
    with pytest.raises(ValueError, match="continuous actions"):
        make(use_sde=True)
    with pytest.raises(ConfigError, match=r"sde_sample_freq = 0"):
        make(played(action_space=BOX), use_sde=True, sde_sample_freq=0)
    with pytest.raises(ConfigError, match="squash_output=True is not available"):
        make(played(action_space=BOX), use_sde=True, policy_kwargs={"squash_output": True})


def test_rewards_are_not_scaled_twice(make, played):
    with pytest.raises(ConfigError, match="VecNormalize scales rewards, and so does normalize_returns=True"):
        make(VecNormalize(played()), normalize_returns=True)
    make(VecNormalize(played(), norm_reward=False), normalize_returns=True)


@pytest.mark.parametrize("name", ["normalize_returns", "normalize_reward"])
def test_rewards_are_not_scaled_twice_by_another_environment(name, make, played):
    env = played()
    model = make(env, **{name: True}).learn(64)
    with pytest.raises(ConfigError, match=f"VecNormalize scales rewards, and so does {name}=True"):
        model.set_env(VecNormalize(played()))
    assert model.get_env() is env
    assert model.get_vec_normalize_env() is None
    model.learn(64, reset_num_timesteps=False)
    seen = VecNormalize(played(), norm_reward=False)
    model.set_env(seen)
    assert model.get_vec_normalize_env() is seen
    plain = make(normalize_returns=False)
    plain.set_env(VecNormalize(played()))
    plain.learn(64)


def test_set_env(make, played):
    model = make()
    model.learn(64)
    other = played()
    model.set_env(other)
    model.learn(64, reset_num_timesteps=False)
    assert model.get_env() is other
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(played(3))


def test_the_policy_stays_on_its_device(make):
    model = make()
    model.policy.to("cpu")
    with pytest.raises(ConfigError, match="cannot leave its device"):
        model.policy.double()
    model.learn(64)
    assert torch.equal(
        torch.cat([p.flatten() for p in model.policy.optimizer.param_groups[0]["params"]]), model.member.params[0]
    )
