"""Arguments of no use: refused when the model is made, by name, and as an error of the kind that others would raise."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from popgraft.errors import ArgumentError
from popgraft.sb3 import DistributionalPPO, MlpLstmPolicy

WRONG = ["a", -1, 1.5, [], {}, float("nan"), object()]
NAMED = [
    *(("seed", value) for value in WRONG),
    *(("device", value) for value in (*WRONG, None, True, "meta")),
    *(("stats_window_size", value) for value in WRONG),
    *(("tensorboard_log", value) for value in (-1, 1.5, [], {}, True, object())),
    *(("verbose", value) for value in ("a", [], {}, None, object())),
    *(
        (name, value)
        for name in ("learning_rate", "clip_range", "clip_range_vf")
        for value in ("a", [], {}, True, object(), lambda _: "a", lambda _: None, lambda: 1.0)
    ),
    *(("batch_size", value) for value in (0, *WRONG)),
    *(("n_steps", value) for value in (0, None, *WRONG)),
    *((name, value) for name in ("gamma", "ent_coef", "n_epochs") for value in ("a", [], {}, None, object())),
    ("sde_sample_freq", "a"),
]


@pytest.mark.parametrize(("name", "value"), NAMED)
def test_what_is_of_no_use_is_named_when_the_model_is_made(name, value, make):
    with pytest.raises(ArgumentError, match=rf"\b{name}\b"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("ortho_init", "shared_lstm", "enable_critic_lstm")
            for value in ("a", 1, [], None)
        ),
        *((name, value) for name in ("activation_fn", "optimizer_class") for value in ("a", [], {}, int, None)),
        *(("features_extractor_class", value) for value in ("a", [], {}, int, 0)),
        *((name, "a") for name in ("net_arch", "lstm_hidden_size", "n_lstm_layers", "log_std_init", "lstm_kwargs")),
    ],
    ids=str,
)
def test_so_is_what_the_policy_cannot_use(name, value, make, small):
    with pytest.raises(ArgumentError, match=name):
        make(policy_kwargs={**small, name: value})


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"seed": "a"}, TypeError),
        ({"seed": 1.5}, TypeError),
        ({"seed": -1}, ValueError),
        ({"device": "foo"}, RuntimeError),
        ({"device": 3.5}, TypeError),
        ({"env": "Nope-v1"}, gym.error.NameNotFound),
        ({"env": "CartPole-v99"}, gym.error.VersionNotFound),
        ({"env": "no_such_module:Nope-v1"}, ModuleNotFoundError),
        ({"env": None}, AttributeError),
        ({"env": 3}, ValueError),
        ({"policy": "Nope"}, ValueError),
        ({"policy": 3}, TypeError),
        ({"learning_rate": "a"}, AssertionError),
        ({"clip_range_vf": []}, AssertionError),
        ({"n_steps": "a"}, TypeError),
        ({"verbose": "a"}, TypeError),
        ({"use_sde": True}, ValueError),
    ],
    ids=str,
)
def test_errors_are_of_the_kind_that_ppo_raises_too(arguments, kind, unseeded):
    given = {"env": "CartPole-v1", "device": "cpu", "n_steps": 16, **arguments}
    policies = (given.pop("policy"),) * 2 if "policy" in given else ("MlpPolicy", "MlpLstmPolicy")
    with pytest.raises(kind):
        PPO(policies[0], batch_size=16, **given)
    with pytest.raises(kind) as caught:
        DistributionalPPO(policies[1], batch_size=16, **given)
    assert isinstance(caught.value, ArgumentError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, kind)
    assert isinstance(again, ArgumentError)
    assert str(again) == str(caught.value)


def test_spaces_of_no_use_are_refused_as_arguments(make, played):
    with pytest.raises(ArgumentError, match="action space"):
        make(played(2, action_space=spaces.Tuple([spaces.Discrete(2)])))


def test_numbers_of_numpy_are_numbers(make):
    model = make(seed=np.int64(3), n_steps=np.int64(16), learning_rate=np.float64(1e-3))
    assert torch.equal(model.member.params, make(seed=3).member.params)
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)


def test_a_folder_of_the_log_may_be_a_path_and_is_kept_in_files(make, tmp_path):
    model = make(tensorboard_log=tmp_path / "log").learn(64)
    assert (tmp_path / "log" / "DistributionalPPO_1").is_dir()
    model.save(tmp_path / "model.zip")
    assert DistributionalPPO.load(tmp_path / "model.zip", device="cpu").tensorboard_log == str(tmp_path / "log")


def test_devices_and_seeds_are_refused_wherever_they_are_given(make, tmp_path):
    model = make()
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy")
    for attempt in (
        lambda: DistributionalPPO.load(tmp_path / "model.zip", device="foo"),
        lambda: MlpLstmPolicy.load(tmp_path / "policy", device="foo"),
        lambda: model.set_parameters(str(tmp_path / "model.zip"), device="foo"),
    ):
        with pytest.raises(RuntimeError, match="device='foo' cannot work") as caught:
            attempt()
        assert isinstance(caught.value, ArgumentError)
    with pytest.raises(ArgumentError, match="seed='a' cannot work"):
        model.set_random_seed("a")
