"""The policy's arguments, and what users put in its place or into it."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.sb3 import DistributionalPPO, MlpLstmPolicy

BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))


class Wide(MlpLstmPolicy):
    """Another default."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"lstm_hidden_size": 12, **kwargs})


class Extractor(torch.nn.Module):
    """An encoder of the user's."""

    def __init__(self, observation_space, width=5):
        super().__init__()
        self.linear = torch.nn.Linear(observation_space.shape[0], width)

    def forward(self, x):
        return self.linear(x).relu()


class Reading(NatureCNN):
    """An extractor of the user's that Stable-Baselines3 tells of images that are normalised."""


@pytest.mark.parametrize(
    "kwargs",
    [
        {"shared_lstm": True, "enable_critic_lstm": False},
        {"enable_critic_lstm": False},
        {"n_lstm_layers": 2, "net_arch": {"pi": [4], "vf": [5, 3]}, "activation_fn": torch.nn.ReLU},
        {"lstm_kwargs": {"dropout": 0.2}, "n_lstm_layers": 2},
        {"ortho_init": False, "share_features_extractor": False, "log_std_init": -2.0},
        {"features_extractor_class": Extractor, "features_extractor_kwargs": {"width": 7}},
        {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_of_the_policy(kwargs, make, played):
    model = make(played(action_space=BOX), policy_kwargs={"lstm_hidden_size": 8, "net_arch": [], **kwargs})
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    unmoved = [name for name, value in before.items() if torch.equal(after[name], value)]
    assert not unmoved


class Zero(torch.nn.Sequential):
    """An encoder of the user's with weights of its own choice, in a layer and under the name that a memory has."""

    def __init__(self, observation_space):
        super().__init__(torch.nn.Linear(observation_space.shape[0], 5))
        torch.nn.init.zeros_(self[0].weight)
        self.weight_hh = torch.nn.Parameter(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "arguments", [{}, {"ortho_init": False}, {"ortho_init": False, "share_features_extractor": False}], ids=str
)
def test_an_encoder_of_the_users_keeps_the_weights_that_it_was_made_with(arguments, make, small):
    weights = make(policy_kwargs={**small, "features_extractor_class": Zero, **arguments}).policy.state_dict()
    own = [name for name in weights if "encoder" in name and not name.endswith("bias")]
    assert own
    assert not any(weights[name].any() for name in own)
    assert all(weights[name].all() for name in weights if name.endswith(("weight_ih", "mlp.layer0.weight")))


def test_a_policy_of_the_users(make):
    assert make(policy=Wide, policy_kwargs=None).learn(64)._last_lstm_states.pi[0].shape == (1, 4, 12)


SCALED, PIXELS = spaces.Box(0, 1, (3, 36, 36)), spaces.Box(0, 255, (3, 36, 36), np.uint8)


@pytest.mark.usefixtures("unseeded")
@pytest.mark.parametrize("space", [SCALED, PIXELS], ids=["float32", "uint8"])
@pytest.mark.parametrize("extractor", [{}, {"features_extractor_class": Reading}], ids=["own", "theirs"])
def test_images_that_are_not_normalised(space, extractor, make, played, small, tmp_path):
    given = {**small, "normalize_images": False, **extractor}
    model = make(played(2, space), "CnnLstmPolicy", policy_kwargs=given).learn(32)
    model.save(tmp_path / "agent.zip")
    model = DistributionalPPO.load(tmp_path / "agent.zip", device="cpu", custom_objects={"policy_kwargs": given})
    theirs = NatureCNN(space, features_dim=512, normalized_image=True)
    params = {path: leaf[0] for path, leaf in tree.items(model.policy._params()["encoder"])}
    convs = ["cnn_obs.conv0", "cnn_obs.conv1", "cnn_obs.conv2", "cnn_obs.dense"]
    layers = ["body.cnn.0", "body.cnn.2", "body.cnn.4", "body.linear.0"] if extractor else convs
    for name, layer in zip(layers, [*theirs.cnn[0:5:2], theirs.linear[0]], strict=True):
        layer.load_state_dict({part: params[f"{name}.{part}"] for part in ("weight", "bias")})
    space.seed(1)
    shown = np.stack([space.sample() for _ in range(3)])
    expected = theirs(torch.from_numpy(shown).float())
    obs = {key: x.unsqueeze(0) for key, x in model.policy._tensors(shown).items()}
    seen = model.policy.network.encoder(model.policy._params()["encoder"], obs)
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)


def test_images_are_normalised_in_one_place(make, played, small):
    own = {**small, "features_extractor_kwargs": {"normalized_image": True}}
    with pytest.raises(ConfigError, match="normalized_image; set normalize_images in policy_kwargs"):
        make(played(2, PIXELS), "CnnLstmPolicy", policy_kwargs=own)
    both = make(played(2, PIXELS), "CnnLstmPolicy", policy_kwargs={**own, "normalize_images": False})
    assert not both.policy.normalize_images
    assert own["features_extractor_kwargs"] == {"normalized_image": True}


KEYS = ("robot.eye", "robot%2Eeye", "robot__eye", "type", "Robot.x y")
DICT = spaces.Dict({key: spaces.Box(-1, 1, (2,)) for key in KEYS} | {"a.b": spaces.Box(0, 255, (12, 12, 1), np.uint8)})


def test_keys_of_observations_may_be_any_words(make, played, tmp_path):
    model = make(played(2, DICT), "MultiInputLstmPolicy", normalize_obs=True).learn(64)
    weights = model.policy.state_dict()
    assert {f"normalizer.obs.{key}.mean" for key in ("robot%2Eeye", "robot%252Eeye", "robot__eye", "%74ype")} <= set(
        weights
    )
    assert len({value.data_ptr() for value in model.policy.parameters()}) == len(model.policy.network.layout.shapes)
    model.save(tmp_path / "agent")
    loaded = DistributionalPPO.load(tmp_path / "agent", env=played(2, DICT), device="cpu")
    for name, value in loaded.policy.state_dict().items():
        assert torch.equal(value, weights[name])
    loaded.learn(64)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lstm_size", "policy_kwargs has the unknown key 'lstm_size'; did you mean lstm_hidden_size?"),
        ("n_quantile", "policy_kwargs has the unknown key 'n_quantile'; did you mean n_quantiles?"),
        ("xyz", "policy_kwargs has the unknown key 'xyz'; the keys there are action_head, "),
    ],
)
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", Wide])
def test_an_unknown_argument_is_named_with_the_nearest(policy, key, message, make):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(policy=policy, policy_kwargs={key: 1})
