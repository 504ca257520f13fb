"""Agents of a run in files: they act as they did in the run, and go on from where they stood."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from popgraft import ConfigError, StoreError, export, train, tree
from popgraft.config import NetworkConfig
from popgraft.rng import torch_generator
from popgraft.rollout.tasks import RepeatPreviousEnv
from popgraft.sb3 import DistributionalPPO
from popgraft.sb3.arguments import NETWORK
from popgraft.sb3.export import model_of

from .graphs import KINDS, as_torch, check_program, sequence

pytestmark = pytest.mark.heavy

PLAIN = {"network": {"encoder_layers": [8], "hidden_size": 8}}
RICH = {
    "network": {
        "encoder_layers": [6, 5],
        "layer_norm": True,
        "activation": "silu",
        "recurrent": "gru",
        "recurrent_layers": 2,
        "recurrent_dropout": 0.25,
        "hidden_size": 7,
        "critic_recurrent": "shared",
        "head_layers": [6],
        "critic_head_layers": [5],
        "n_quantiles": 5,
        "twin_critics": True,
    },
    "optimizer": "adaptive_upgd",
    "optimizer_kwargs": {"betas": [0.8, 0.9], "adaptive_noise": True},
    "vgs": {"enabled": True, "apply_to": "step", "warmup_steps": 2},
    "normalize_reward": False,
    "normalize_returns": True,
    "target_kl": 0.5,
    "kl_penalty": True,
    "clip_range_vf": 0.5,
    "cvar_weight": 0.3,
    "cvar_start": 2,
    "ent_coef": 0.1,
    "ent_coef_final": 0.01,
    "ent_coef_plateau_window": 2,
    "adversary": {"enabled": True, "warmup_updates": 1, "epsilon_schedule": "linear"},
}
FEED_FORWARD = {"recurrent": "none", "critic_recurrent": "none", "critic": "scalar", "encoder_layers": [8]}
MODELS = {
    "plain": PLAIN,
    "rich": RICH,
    "feed-forward": {"network": FEED_FORWARD, "normalize_obs": False},
    "detached": {"network": {"critic_recurrent": "detached", "head_layers": [4]}, "optimizer": "adamw"},
}


def settings(tmp_path, **model):
    return {
        "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 6}},
        "model": {"n_steps": 8, "n_epochs": 2, "n_minibatches": 2, **model},
        "pbt": {
            "population_size": 2,
            "perturbation_interval": 2,
            "hyperparams": [
                {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True},
                {"name": "vf_coef", "min_value": 0.1, "max_value": 1.0},
                {"name": "adversarial_epsilon", "min_value": 0.1, "max_value": 0.2},
            ][: 2 + ("adversary" in model)],
        },
        "engine": {"sequence_length": 4},
        "evaluation": {"episodes": 2, "max_steps": 20, "final_episodes": 2},
        "total_timesteps": 128,
        "execute": {"shards": 1},
        "run_dir": str(tmp_path / "run"),
    }


def cards(num_envs=2):
    return DummyVecEnv([lambda: RepeatPreviousEnv(delay=1, length=6)] * num_envs)


def delivered(agent, raw):
    """Observations as `Agent.predict` takes them: cards as indicators."""
    return np.eye(agent.spaces.obs["obs"].shape[0], dtype=np.float32)[raw]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A name and the run of it, which tests only read."""
    return request.param, train(settings(tmp_path_factory.mktemp(request.param), **MODELS[request.param]))


def test_a_loaded_agent_is_the_runs(model, tmp_path):
    _, run = model
    for member in ("best", 1):
        agent, path = run.agent(member), tmp_path / "agent.zip"
        export(run, path, member)
        loaded = DistributionalPPO.load(path, env=cards(), device="cpu")
        ours, theirs = dict(tree.items(agent.member)), dict(tree.items(loaded.member))
        assert ours.keys() == theirs.keys()
        for leaf in set(ours) - {"optimizer.skipped"}:
            assert torch.equal(theirs[leaf], ours[leaf]), leaf
        rng, state, memory = np.random.default_rng(0), None, None
        for step in range(12):
            raw, start = rng.integers(0, 4, 5), np.full(5, True) if step == 0 else rng.random(5) < 0.3
            expected, state = agent.predict(delivered(agent, raw), state, start)
            action, memory = loaded.predict(raw, memory, start, deterministic=True)
            np.testing.assert_array_equal(action, expected)
        assert values_of(loaded, raw[:3]) == pytest.approx(agent_values(agent, raw[:3]), abs=1e-6)
        loaded.learn(32, reset_num_timesteps=False)
        assert loaded.num_timesteps == int(agent.member.age) * 16 + 32
        assert not torch.equal(loaded.member.params, agent.member.params)


def test_an_agent_of_a_tensor_environment(tmp_path):
    source = {"env": {"source": "tensor", "id": "Pendulum", "num_envs": 2}, "total_timesteps": 32}
    run = train({**settings(tmp_path), **source})
    export(run, tmp_path / "agent.zip")
    model = DistributionalPPO.load(tmp_path / "agent.zip", device="cpu")
    shown = np.random.default_rng(0).normal(size=(5, *model.observation_space.shape)).astype(np.float32)
    expected, _ = run.best.predict(shown)
    np.testing.assert_allclose(model.predict(shown, deterministic=True)[0], expected, atol=1e-6)


def values_of(model, raw):
    memory = model.policy.recurrent_initial_state.vf
    state = tuple(part.expand(-1, len(raw), -1) for part in memory)
    return model.policy.predict_values(raw, state, torch.ones(len(raw))).flatten().tolist()


def agent_values(agent, raw):
    obs = agent._actor.normalized({"obs": torch.from_numpy(delivered(agent, raw))[None]})
    state = torch.zeros(1, len(raw), agent.policy.state_size)
    step = agent._actor.step(obs, state, torch.ones(1, len(raw), dtype=torch.bool))
    return agent._actor.values(agent._actor.predict(step.critic)).flatten().tolist()


@pytest.mark.parametrize("model", ["plain", "rich"], indirect=True)
def test_it_learns_on_as_the_run_is_configured(model, tmp_path):
    name, run = model
    member = run.agent(0).member
    export(run, tmp_path / "agent.zip", 0)
    learner = DistributionalPPO.load(tmp_path / "agent.zip", env=cards(), device="cpu").learner
    expected, found = run.config.model.model_dump(), learner.config.model_dump()
    tuned = {each.name: float(str(member.hyperparams[each.name].numpy()[0])) for each in run.config.pbt.hyperparams}
    for config in (expected, found):
        config["network"]["critic_head_layers"] = config["network"]["critic_head_layers"] or []
    expected |= {key: value for key, value in tuned.items() if key in expected}
    if name == "rich":
        expected["adversary"]["perturbation"]["epsilon"] = tuned["adversarial_epsilon"]
        expected["adversary"]["max_updates"] = 4  # those of the run: 2 generations of 2
    assert found == expected


def test_every_setting_of_a_network_is_carried_over():
    renamed = {
        "hidden_size",
        "recurrent_layers",
        "recurrent_dropout",
        "head_layers",
        "critic_head_layers",
        "activation",
    }
    same = {"share_encoder", "normalize_images", "log_std_init", "use_sde", "sde_sample_freq"}
    assert {*NETWORK, *renamed, *same} == set(NetworkConfig.model_fields)


class Shown(gym.Env):
    """Random observations and endless episodes."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


def run_of(kind, tmp_path, **model):
    def make(num_envs):
        return SyncVectorEnv([lambda: Shown(*KINDS[kind])] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    given = settings(tmp_path, **model)
    return train({**given, "env": {"factory": "in_python:make", "num_envs": 2}, "total_timesteps": 32}, factory=make)


ENCODER = """
from torch import nn

class Own(nn.Sequential):
    def __init__(self, observation_space, width):
        super().__init__(nn.Linear(observation_space.shape[0], width), nn.ReLU())
"""


def test_an_encoder_of_the_users_is_named_again(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    network = {"encoder": "own_encoder:Own", "encoder_kwargs": {"width": 6}, "encoder_layers": [], "hidden_size": 8}
    run = run_of("multi-discrete", tmp_path, network=network)
    export(run, tmp_path / "agent.zip")
    with pytest.raises(ConfigError, match=r"encoder=own_encoder:Own, .*custom_objects=\{'encoder': ...\}"):
        DistributionalPPO.load(tmp_path / "agent.zip", device="cpu")
    model = DistributionalPPO.load(tmp_path / "agent.zip", device="cpu", encoder="own_encoder:Own")
    model.policy_kwargs["encoder"] = model.settings.pop("encoder")
    model.save(tmp_path / "hidden.zip")
    with pytest.raises(ConfigError, match="policy_kwargs=own_encoder:Own, which a file cannot hold"):
        DistributionalPPO.load(tmp_path / "hidden.zip", device="cpu")
    agent, memory, state = run.best, None, None
    for obs, start in sequence(model):
        expected, state = agent.predict(obs, state, start)
        action, memory = model.predict(obs, memory, start, deterministic=True)
        np.testing.assert_array_equal(action, expected)
    model.member.params.copy_(0.5 * torch.randn(model.member.params.shape, generator=torch_generator(3, "test")))
    check_program(model, tmp_path / "policy.pt2")


@pytest.mark.parametrize("kind", ["dict", pytest.param("discrete", marks=pytest.mark.slow)])
def test_a_graph_takes_what_the_runs_environment_gives(kind, tmp_path):
    run = run_of(kind, tmp_path, **PLAIN)
    observation_space, action_space = KINDS[kind]
    export(run, tmp_path / "policy.pt2")
    export(run, tmp_path / "agent.zip")
    DistributionalPPO.load(tmp_path / "agent.zip", device="cpu").export(tmp_path / "again.pt2")
    graphs = [torch.export.load(tmp_path / name).module() for name in ("policy.pt2", "again.pt2")]
    env = SyncVectorEnv([lambda: Shown(observation_space, action_space)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    raw, _ = env.reset(seed=3)
    memory, state, start = None, torch.zeros(4, 16), torch.ones(4, dtype=torch.bool)
    for _ in range(3):
        expected, memory = run.best.predict(raw, memory)
        for graph in graphs:
            action, _, following = graph(as_torch(raw), state, start)
            np.testing.assert_allclose(action, expected, atol=1e-6)
            assert action.numpy().dtype == expected.dtype == action_space.dtype
        state, start = following, torch.zeros(4, dtype=torch.bool)
        raw, *_ = env.step(expected)


def test_what_wrappers_hide_is_not_in_the_models_space(tmp_path):
    given = settings(tmp_path, **PLAIN)
    wrappers = [{"name": "hide", "kwargs": {"indices": [1, 3]}}]
    given["env"] = {"id": "CartPole-v1", "num_envs": 2, "wrappers": wrappers}
    run = train(given)
    model = model_of(run)
    assert model.observation_space.shape == (2,)
    obs = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], run.best.predict(obs)[0])


def test_mistakes_are_named(make, tmp_path):
    run = train(settings(tmp_path, **PLAIN))
    with pytest.raises(ConfigError, match=r"agent\.pkl: the suffix must name the format, one of \.zip, \.pt2, \.onnx"):
        export(run, tmp_path / "agent.pkl")
    with pytest.raises(ConfigError, match="has no member 2; give 'best', or a number up to 1"):
        export(run, tmp_path / "agent.zip", 2)
    with pytest.raises(StoreError, match=r"cannot write .*no such file or directory"):
        export(run.path, tmp_path / "nowhere" / "agent.zip")
    with pytest.raises(ConfigError, match="critic_recurrent and policy_kwargs set the critic's memory twice"):
        make(critic_recurrent="none", policy_kwargs={"shared_lstm": True, "enable_critic_lstm": False})
    (run.path / "snapshots" / "last" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="no snapshot of its population"):
        run.agent(0)
