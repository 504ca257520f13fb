"""The encoder against its parts and torch.nn, and the population laws."""

import sys
import types

import gymnasium as gym
import pytest
import torch
from torch import nn

from popgraft import tree
from popgraft.config import NetworkConfig
from popgraft.errors import ConfigError
from popgraft.nn.blocks import initialise
from popgraft.nn.encoders import make_encoder
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

ACTION = ActionSpec("discrete", sizes=(2,), start=(0,))
VECTOR, MATRIX, IMAGE = ObsSpec((5,)), ObsSpec((2, 3)), ObsSpec((3, 7, 7), image=True)


def box(spec):
    low, high, dtype = (0, 255, "uint8") if spec.image else (-1, 1, "float32")
    return gym.spaces.Box(low, high, spec.shape, dtype)


def spaces(**obs):
    own = box(obs["obs"]) if list(obs) == ["obs"] else gym.spaces.Dict({name: box(spec) for name, spec in obs.items()})
    return Spaces(obs, ACTION, own)


def observe(spaces, *batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(256, (*batch, *spec.shape), generator=generator, dtype=torch.uint8)
        if spec.image
        else torch.randn(*batch, *spec.shape, generator=generator)
        for name, spec in spaces.obs.items()
    }


def population(encoder):
    return initialise(encoder, [torch.Generator().manual_seed(i) for i in range(3)])


class Extractor(nn.Module):
    """An encoder in the manner of Stable-Baselines3."""

    def __init__(self, observation_space, features_dim=4):
        super().__init__()
        self.dense = nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, x):
        assert x.dtype == torch.float32
        return self.dense(x.flatten(2).mean(2) if x.dim() > 2 else x)


class DictExtractor(nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.names = list(observation_space.spaces)

    def forward(self, obs):
        assert all(obs[name].dtype == torch.float32 for name in self.names)
        return torch.cat([obs[name].flatten(1) for name in self.names], dim=1)


class Unhappy(nn.Module):
    def __init__(self, observation_space):
        raise RuntimeError("out of luck")


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    """This file as the user's importable module."""
    module = types.ModuleType("users_nets")
    module.Extractor, module.DictExtractor, module.Unhappy, module.number = Extractor, DictExtractor, Unhappy, 3
    monkeypatch.setitem(sys.modules, "users_nets", module)


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
@pytest.mark.parametrize("encoder", ["auto", "mlp"])
def test_vectors_are_joined_by_name_and_go_through_the_dense_layers(encoder, batch):
    own = spaces(b=MATRIX, a=VECTOR, c=ObsSpec(()))
    block = make_encoder(own, NetworkConfig(encoder=encoder, encoder_layers=[6, 4], activation="relu", layer_norm=True))
    params, obs = population(block), observe(own, 3, *batch)
    y = block(params, obs)
    assert block.n_out == 4
    for m in range(3):
        p = tree.map(lambda leaf, m=m: leaf[m], params["body"])
        x = torch.cat([obs["a"][m], obs["b"][m].flatten(-2), obs["c"][m].unsqueeze(-1)], dim=-1)
        for i, width in enumerate((6, 4)):
            x = nn.functional.linear(x, p[f"linear{i}"]["weight"], p[f"linear{i}"]["bias"])
            x = nn.functional.layer_norm(x, (width,), p[f"norm{i}"]["weight"], p[f"norm{i}"]["bias"]).relu()
        torch.testing.assert_close(y[m], x, atol=1e-5, rtol=0)


def test_auto_gives_images_a_cnn_and_joins_them_with_vectors():
    own = spaces(view=IMAGE, speed=VECTOR)
    block = make_encoder(own, NetworkConfig(encoder_layers=[]))
    params, obs = population(block), observe(own, 3, 2, 4)
    y = block(params, obs)
    assert block.n_out == y.shape[-1] == 5 + 512
    assert torch.equal(y[..., :5], obs["speed"])
    assert torch.equal(y[..., 5:], block.cnns["view"](params["cnn_view"], obs["view"]))


def test_cnn_features_go_through_the_dense_layers():
    own = spaces(obs=IMAGE)
    obs = observe(own, 3, 4)
    results = []
    for encoder in ("auto", "cnn"):
        block = make_encoder(own, NetworkConfig(encoder=encoder, encoder_layers=[8]))
        params = population(block)
        results.append(block(params, obs))
        assert params["body"]["linear0"]["weight"].shape == (3, 8, 512)
    assert results[0].shape == (3, 4, 8)
    assert torch.equal(*results)


def test_mlp_takes_an_image_as_a_vector_of_pixels():
    own = spaces(obs=IMAGE)
    block = make_encoder(own, NetworkConfig(encoder="mlp", encoder_layers=[]))
    obs = observe(own, 3, 2, 4)
    assert block.n_out == 3 * 7 * 7
    torch.testing.assert_close(block({"body": {}}, obs), obs["obs"].flatten(3).float() / 255)


RAW = {"normalize_images": False, "encoder_layers": []}


def test_raw_images_and_arrays_of_three_axes_are_images():
    own = spaces(view=IMAGE, scaled=ObsSpec((2, 7, 7)), speed=VECTOR)
    block = make_encoder(own, NetworkConfig(**RAW))
    params, obs = population(block), observe(own, 3, 2)
    y = block(params, obs)
    assert list(block.cnns) == ["scaled", "view"]
    parts = {"scaled": y[..., :512], "view": y[..., 512 + 5 :]}
    for name, part in parts.items():
        for m in range(3):
            x, p = obs[name][m].float(), tree.map(lambda leaf, m=m: leaf[m], params[f"cnn_{name}"])
            for i, stride in enumerate((1, 2, 2)):
                x = nn.functional.conv2d(x, **p[f"conv{i}"], stride=stride, padding=1).relu()
            expected = nn.functional.linear(x.flatten(1), **p["dense"]).relu()
            torch.testing.assert_close(part[m], expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(y[..., 512 : 512 + 5], obs["speed"])


@pytest.mark.parametrize("encoder", ["mlp", "users_nets:Extractor"])
def test_other_encoders_get_raw_pixels_too(encoder):
    own = spaces(obs=IMAGE)
    block = make_encoder(own, NetworkConfig(encoder=encoder, **RAW))
    params, obs = population(block), observe(own, 3, 2)
    x = obs["obs"].float()
    if encoder == "mlp":
        expected = x.flatten(2)
    else:
        dense = params["body"]["dense"]
        expected = torch.einsum("pbc,pfc->pbf", x.flatten(3).mean(3), dense["weight"]) + dense["bias"].unsqueeze(1)
    torch.testing.assert_close(block(params, obs), expected)


def test_cnn_refuses_what_is_not_an_image():
    with pytest.raises(
        ConfigError, match=r"'cnn' needs images, but the observation 'speed' of shape \(5,\).*encoder: auto"
    ):
        make_encoder(spaces(view=IMAGE, speed=VECTOR), NetworkConfig(encoder="cnn"))
    with pytest.raises(ConfigError, match=r"'obs' of shape \(2, 7, 7\).*scaled already, normalize_images: false"):
        make_encoder(spaces(obs=ObsSpec((2, 7, 7))), NetworkConfig(encoder="cnn"))


@pytest.mark.parametrize("spec", [VECTOR, IMAGE])
def test_an_own_module_is_the_whole_encoder(spec):
    own = spaces(obs=spec)
    block = make_encoder(
        own, NetworkConfig(encoder="users_nets:Extractor", encoder_kwargs={"features_dim": 6}, encoder_layers=[9])
    )
    params, obs = population(block), observe(own, 3, 2, 4)
    y = block(params, obs)
    assert block.n_out == 6
    assert y.shape == (3, 2, 4, 6)
    with torch.random.fork_rng(devices=[]):
        net = Extractor(own.observation_space, 6)
    scale = 255 if spec.image else 1
    for m in range(3):
        net.load_state_dict({path: leaf[m] for path, leaf in tree.items(params["body"])})
        torch.testing.assert_close(y[m], net(obs["obs"][m].flatten(0, 1) / scale).unflatten(0, (2, 4)))


def test_an_own_module_gets_a_dictionary_where_the_space_is_one():
    own = spaces(view=IMAGE, speed=VECTOR)
    block = make_encoder(own, NetworkConfig(encoder="users_nets:DictExtractor"))
    obs = observe(own, 3, 2)
    parts = {"view": obs["view"].flatten(2) / 255, "speed": obs["speed"]}
    expected = torch.cat([parts[name] for name in own.observation_space.spaces], dim=-1)
    torch.testing.assert_close(block(population(block), obs), expected)


def test_a_feature_extractor_of_stable_baselines3():
    own = spaces(obs=ObsSpec((3, 36, 36), image=True))
    config = NetworkConfig(
        encoder="stable_baselines3.common.torch_layers:NatureCNN",
        encoder_kwargs={"features_dim": 7},
    )
    block = make_encoder(own, config)
    assert block(population(block), observe(own, 3, 2)).shape == (3, 2, 7)


@pytest.mark.parametrize(
    ("encoder", "kwargs", "words"),
    [
        ("no_such_module:Net", {}, "model.network.encoder: there is no module 'no_such_module'.*code_dir"),
        ("users_nets:Missing", {}, "the module 'users_nets' .*has no 'Missing'"),
        ("users_nets:number", {}, "encoder='users_nets:number' is 3; name a subclass of torch.nn.Module"),
        ("users_nets:Extractor", {"widths": 3}, r"TypeError.*'widths'.*encoder_kwargs"),
        ("users_nets:Unhappy", {}, "RuntimeError: out of luck"),
    ],
)
def test_a_module_that_cannot_be_made_is_refused_with_the_reason(encoder, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        make_encoder(spaces(obs=VECTOR), NetworkConfig(encoder=encoder, encoder_kwargs=kwargs))


@pytest.mark.parametrize("encoder", ["auto", "mlp"])
def test_population_laws(encoder, check_laws):
    own = spaces(view=ObsSpec((1, 3, 3), image=True), speed=VECTOR)
    block = make_encoder(own, NetworkConfig(encoder=encoder, encoder_layers=[6], layer_norm=True))
    check_laws(block, population(block), observe(own, 3, 2, 4), atol=1e-4)
