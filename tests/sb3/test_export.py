"""Agents of a run in files: they act as they did in the run, and go on from where they stood."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from popgraft import ConfigError, MissingExtra, StoreError, export, train, tree
from popgraft.config import NetworkConfig
from popgraft.rng import torch_generator
from popgraft.rollout.tasks import RepeatPreviousEnv
from popgraft.sb3 import DistributionalPPO, RNNStates
from popgraft.sb3.arguments import NETWORK
from popgraft.sb3.export import model_of

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
MODELS = {
    "plain": PLAIN,
    "rich": RICH,
    "feed-forward": {"network": {"recurrent": "none", "critic_recurrent": "none"}, "normalize_obs": False},
    "detached": {"network": {"critic_recurrent": "detached", "head_layers": [4]}, "optimizer": "adamw"},
}
KINDS = {
    "multi-discrete": (spaces.Box(-2, 2, (3,)), spaces.MultiDiscrete([2, 3], start=[1, 0])),
    "dict": (
        spaces.Dict(
            {
                "state": spaces.Box(-1, 1, (2,), np.float64),
                "eye": spaces.Box(0, 255, (12, 10, 3), np.uint8),
                "cards": spaces.MultiDiscrete([2, 3], start=[0, 4]),
            }
        ),
        spaces.Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.2])),
    ),
    "box": (spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (2,))),
    "image": (spaces.Box(0, 255, (3, 12, 10), np.uint8), spaces.MultiBinary([2, 2])),
    "discrete": (spaces.Discrete(4, start=2), spaces.Discrete(3, start=5)),
    "integers": (spaces.MultiBinary(3), spaces.Box(-3, 3, (2, 1), np.int64)),
}


EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "dict" else pytest.mark.slow) for kind in KINDS]
)


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


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_agent_is_the_runs(name, tmp_path):
    run = train(settings(tmp_path, **MODELS[name]))
    for member in ("best", 1):
        agent, path = run.agent(member), tmp_path / "agent.zip"
        export(run, path, member)
        model = DistributionalPPO.load(path, env=cards(), device="cpu")
        ours, theirs = dict(tree.items(agent.member)), dict(tree.items(model.member))
        assert ours.keys() == theirs.keys()
        for leaf in set(ours) - {"optimizer.skipped"}:
            assert torch.equal(theirs[leaf], ours[leaf]), leaf
        rng, state, memory = np.random.default_rng(0), None, None
        for step in range(12):
            raw, start = rng.integers(0, 4, 5), np.full(5, True) if step == 0 else rng.random(5) < 0.3
            expected, state = agent.predict(delivered(agent, raw), state, start)
            action, memory = model.predict(raw, memory, start, deterministic=True)
            np.testing.assert_array_equal(action, expected)
        assert values_of(model, raw[:3]) == pytest.approx(agent_values(agent, raw[:3]), abs=1e-6)
        model.learn(32, reset_num_timesteps=False)
        assert model.num_timesteps == int(agent.member.age) * 16 + 32
        assert not torch.equal(model.member.params, agent.member.params)


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


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_it_learns_on_as_the_run_is_configured(name, tmp_path):
    run = train(settings(tmp_path, **MODELS[name]))
    member = run.agent(0).member
    export(run, tmp_path / "agent.zip", 0)
    learner = DistributionalPPO.load(tmp_path / "agent.zip", env=cards(), device="cpu").learner
    expected, found = run.config.model.model_dump(), learner.config.model_dump()
    tuned = {each.name: float(member.hyperparams[each.name]) for each in run.config.pbt.hyperparams}
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
    same = {"share_encoder", "log_std_init", "use_sde", "sde_sample_freq"}
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


@pytest.fixture
def decided(make, played):
    """Makes a model whose actions differ, with statistics that matter."""

    def build(kind, **arguments):
        seen, done = KINDS[kind]
        policy = "MultiInputLstmPolicy" if isinstance(seen, spaces.Dict) else "MlpLstmPolicy"
        policy = "CnnLstmPolicy" if kind == "image" else policy
        model = make(played(2, seen, done), policy, **{"normalize_obs": True, **arguments})
        model.member.params.copy_(0.5 * torch.randn(model.member.params.shape, generator=torch_generator(3, "test")))
        for stats in model.member.normalizer.obs.values():
            stats.mean += 0.3
            stats.var *= 2
        return model

    return build


def sequence(model, steps=8):
    """Observations of three environments, and where episodes start."""
    space = model.observation_space
    space.seed(3)
    rng = np.random.default_rng(4)
    for step in range(steps):
        samples = [space.sample() for _ in range(3)]
        keyed = isinstance(space, spaces.Dict)
        obs = {key: np.stack([s[key] for s in samples]) for key in space} if keyed else np.stack(samples)
        yield obs, np.full(3, True) if step == 0 else rng.random(3) < 0.3


def as_torch(x):
    return {key: torch.from_numpy(part) for key, part in x.items()} if isinstance(x, dict) else torch.from_numpy(x)


def check_graph(model, step):
    """A graph against the model: actions, outputs and state over a sequence, and for any number of environments."""
    policy, memory, seen = model.policy, None, []
    width = policy.network.actor_memory.state_size if policy.network.actor_memory else 0
    state = np.zeros((3, width), np.float32)
    for obs, start in sequence(model):
        before = None if memory is None else RNNStates(*(tuple(map(torch.from_numpy, memory)),) * 2)
        with torch.no_grad():
            own = policy._unroll(policy._params(), policy._tensors(obs), before, torch.from_numpy(start), 3)
        expected, memory = model.predict(obs, memory, start, deterministic=True)
        action, outputs, state = step(obs, state, start)
        assert action.dtype == expected.dtype
        np.testing.assert_allclose(action, expected, atol=1e-5)  # a compiled LSTM rounds otherwise
        np.testing.assert_allclose(outputs, own.outputs[0, 0], atol=1e-5)
        np.testing.assert_allclose(state, np.stack(memory).transpose(2, 1, 0, 3).reshape(3, -1), atol=1e-5)
        seen.append(outputs)
    assert np.ptp(seen, axis=(0, 1)).max() > 0.1, "the outputs differ"
    one = {key: value[:1] for key, value in obs.items()} if isinstance(obs, dict) else obs[:1]
    np.testing.assert_allclose(step(one, state[:1], start[:1])[0], step(obs, state, start)[0][:1], atol=1e-5)


def check_program(model, path):
    model.export(path)
    graph = torch.export.load(path).module()
    check_graph(model, lambda *arguments: [part.numpy() for part in graph(*map(as_torch, arguments))])


@EVERY_KIND
def test_programs(kind, decided, tmp_path):
    check_program(decided(kind), tmp_path / "policy.pt2")


@pytest.mark.parametrize(
    "other",
    [
        {"recurrent": "gru", "layer_norm": True},
        {"recurrent": "none"},
        {"use_sde": True},
        {"policy_kwargs": {"lstm_hidden_size": 32, "n_lstm_layers": 2}},  # compiled where it can be
    ],
    ids=str,
)
def test_programs_of_other_networks(other, decided, tmp_path):
    check_program(decided("box", **other), tmp_path / "policy.pt2")


@EVERY_KIND
def test_onnx(kind, decided, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = decided(kind)
    model.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [output.name for output in session.get_outputs()] == ["action", "distribution", "next_state"]

    def step(obs, state, start):
        keyed = isinstance(obs, dict)
        named = {f"observation.{key}": part for key, part in obs.items()} if keyed else {"observation": obs}
        return session.run(None, {**named, "state": state, "episode_start": start})

    check_graph(model, step)


def test_onnx_names_what_is_missing(make, tmp_path, monkeypatch):
    monkeypatch.setattr("popgraft.sb3.program.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"onnx is needed for .* pip install 'popgraft\[onnx\]'"):
        make().export(tmp_path / "policy.onnx")


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
