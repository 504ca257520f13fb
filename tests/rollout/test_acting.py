"""Randomness of actions."""

import pytest
import torch

from popgraft.config import NetworkConfig
from popgraft.nn import Policy
from popgraft.rollout.acting import action_noise
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

SPACES = Spaces({"obs": ObsSpec((3,))}, ActionSpec("box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0)))
TIME, ENVS = 10, 3


def noise_of(*seeds, **settings):
    policy = Policy(SPACES, NetworkConfig(encoder_layers=[4], hidden_size=5, **settings))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return action_noise(policy, generators, TIME, ENVS, torch.device("cpu"))


@pytest.mark.parametrize(("freq", "changes"), [(1, [*range(9)]), (4, [3, 7]), (None, []), (99, [])])
def test_state_dependent_noise_holds_for_as_many_steps_as_asked(freq, changes):
    noise = noise_of(1, 2, use_sde=True, sde_sample_freq=freq)
    assert noise.shape == (2, TIME, ENVS, 5 * 2)
    for member in noise:
        moved = member.diff(dim=0) != 0
        assert moved.all((1, 2)).nonzero().flatten().tolist() == changes
        assert moved.any((1, 2)).nonzero().flatten().tolist() == changes
    assert (noise[:, :, 0] != noise[:, :, 1]).all()


@pytest.mark.parametrize("settings", [{}, {"use_sde": True, "sde_sample_freq": 4}])
def test_every_member_draws_from_its_own_generator(settings):
    pair, single = noise_of(1, 2, **settings), noise_of(2, **settings)
    assert torch.equal(pair[1], single[0])
    assert not torch.equal(pair[0], pair[1])
