"""Models as graphs that run without this project."""

import pytest
import torch
from gymnasium import spaces

from popgraft import DistributionalPPO, MissingExtra
from popgraft.config.network import MEMORIES
from popgraft.rng import torch_generator

from .graphs import KINDS, check_onnx, check_program

pytestmark = pytest.mark.heavy

EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "dict" else pytest.mark.slow) for kind in KINDS]
)


@pytest.fixture
def decided(make, played):
    """Makes a model whose actions differ, with statistics that matter."""

    def build(kind, **arguments):
        seen, done = KINDS[kind]
        policy = "MultiInputLstmPolicy" if isinstance(seen, spaces.Dict) else "MlpLstmPolicy"
        policy = "CnnLstmPolicy" if kind == "image" else policy
        model = make(played(2, seen, done), policy, **{"normalize_obs": True, **arguments})
        model.member.params.copy_(0.5 * torch.randn(model.member.params.shape, generator=torch_generator(3, "test")))
        for key, stats in enumerate(model.member.normalizer.obs.values()):
            stats.mean += 0.3 + 0.2 * key
            stats.var *= 2
        return model

    return build


@EVERY_KIND
def test_programs(kind, decided, tmp_path):
    check_program(decided(kind), tmp_path / "policy.pt2")


@pytest.mark.parametrize(
    "other",
    [
        {"recurrent": "gru", "layer_norm": True},
        pytest.param({"recurrent": "none"}, marks=pytest.mark.slow),
        {"use_sde": True},
        {"policy_kwargs": {"lstm_hidden_size": 32, "n_lstm_layers": 2}},  # compiled where it can be
    ],
    ids=str,
)
def test_programs_of_other_networks(other, decided, tmp_path):
    check_program(decided("box", **other), tmp_path / "policy.pt2")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "odd"), [("discrete", [2, 6]), ("integers", [[0, 1, 1], [0, 2, 0]])])
def test_programs_refuse_what_is_not_in_the_space(kind, odd, decided, tmp_path):
    model = decided(kind)
    model.export(tmp_path / "policy.pt2")
    graph = torch.export.load(tmp_path / "policy.pt2").module()
    state, start = torch.zeros(2, model.policy.network.actor_memory.state_size), torch.ones(2, dtype=torch.bool)
    seen = torch.tensor(odd, dtype=torch.from_numpy(model.raw_space.sample()[None]).dtype)
    graph(seen[:1], state[:1], start[:1])
    with pytest.raises(RuntimeError, match=r"observation 'obs' is not in (Discrete|MultiBinary)"):
        graph(seen, state, start)


@EVERY_KIND
def test_onnx(kind, decided, tmp_path):
    check_onnx(decided(kind), tmp_path)


@pytest.mark.parametrize(
    "recurrent", [pytest.param(kind, marks=[] if kind == "ffm" else pytest.mark.slow) for kind in MEMORIES.table]
)
def test_memories_over_fifty_steps(recurrent, decided, tmp_path):
    layers = {} if recurrent == "none" else {"policy_kwargs": {"lstm_hidden_size": 16, "n_lstm_layers": 2}}
    model = decided("box", recurrent=recurrent, **layers)
    check_program(model, tmp_path / "policy.pt2", steps=50)
    check_onnx(model, tmp_path, steps=50)
    model.save(tmp_path / "policy.zip")
    again = DistributionalPPO.load(tmp_path / "policy.zip")
    assert torch.equal(again.member.params, model.member.params)


class Normed(torch.nn.Sequential):
    """The documentation's encoder."""

    def __init__(self, observation_space):
        linear = torch.nn.Linear(observation_space.shape[0], 8)
        super().__init__(linear, torch.nn.ReLU(), torch.nn.LayerNorm(8))


class Convolved(torch.nn.Sequential):
    def __init__(self, observation_space):
        conv = torch.nn.Conv2d(observation_space.shape[0], 2, 5, 3)
        super().__init__(conv, torch.nn.ReLU(), torch.nn.Flatten())


class Attending(torch.nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(1, 1, batch_first=True)

    def forward(self, x):
        tokens = x.unsqueeze(2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


class WeightNormed(torch.nn.Sequential):
    def __init__(self, observation_space):
        linear = torch.nn.Linear(observation_space.shape[0], 8)
        super().__init__(torch.nn.utils.parametrizations.weight_norm(linear))


SLOWLY = pytest.mark.filterwarnings("ignore:There is a performance drop")
OWN = pytest.mark.parametrize(
    ("kind", "extractor"),
    [
        ("box", Normed),
        ("image", Convolved),
        pytest.param("box", Attending, marks=[SLOWLY, pytest.mark.slow]),
        pytest.param("box", WeightNormed, marks=SLOWLY),
    ],
)


@OWN
def test_programs_of_encoders_of_the_users(kind, extractor, decided, small, tmp_path):
    check_program(
        decided(kind, policy_kwargs={**small, "features_extractor_class": extractor}), tmp_path / "policy.pt2"
    )


@pytest.mark.slow
@OWN
def test_onnx_of_encoders_of_the_users(kind, extractor, decided, small, tmp_path):
    check_onnx(decided(kind, policy_kwargs={**small, "features_extractor_class": extractor}), tmp_path)


def test_onnx_names_what_is_missing(make, tmp_path, monkeypatch):
    monkeypatch.setattr("popgraft.sb3.program.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"onnx is needed for .* pip install 'popgraft\[onnx\]'"):
        make().export(tmp_path / "policy.onnx")
