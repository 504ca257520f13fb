"""Dropout between recurrent layers, against layers of torch.nn one behind the other."""

import pytest
import torch

from popgraft.config import NetworkConfig, load_as
from popgraft.errors import ConfigError
from popgraft.nn import Policy
from popgraft.nn.gru import GRU
from popgraft.nn.lstm import LSTM
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

TIME, BATCH, N_IN, HIDDEN, LAYERS = 6, 4, 5, 8, 3
SPACES = Spaces({"obs": ObsSpec((3,))}, ActionSpec("discrete", sizes=(2,)))


def policy_of(**settings):
    return Policy(SPACES, NetworkConfig(hidden_size=HIDDEN, recurrent_layers=LAYERS, **settings))


def drawn(policy, members=(0, 1, 2), time=TIME, batch=BATCH):
    generators = [torch.Generator().manual_seed(member) for member in members]
    return policy.draw_kept(generators, torch.zeros(len(members), time, batch))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("ours", "theirs"), [(LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)])
def test_equals_layers_of_torch_with_the_same_left_out(ours, theirs, stacked, normal):
    memory = ours(N_IN, HIDDEN, LAYERS)
    params, x = stacked(memory), normal(3, TIME, BATCH, N_IN)
    state, start = torch.zeros(3, BATCH, memory.state_size).double(), torch.zeros(3, TIME, BATCH, dtype=torch.bool)
    kept = (torch.rand(LAYERS - 1, 3, TIME, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3)) < 0.6) / 0.6
    found, _ = memory(params, x, state, start, kept.unbind())
    for member in range(3):
        y = x[member]
        for layer in range(LAYERS):
            p = params[f"layer{layer}"]
            net = theirs(N_IN if layer == 0 else HIDDEN, HIDDEN).double()
            net.weight_ih_l0.data, net.weight_hh_l0.data = (p[name][member] for name in ("weight_ih", "weight_hh"))
            net.bias_ih_l0.data = p["bias"][member]
            net.bias_hh_l0.data.zero_()
            if ours is GRU:
                net.bias_hh_l0.data[2 * HIDDEN :] = p["bias_n"][member]
            y, _ = net(y)
            y = y * kept[layer, member] if layer < LAYERS - 1 else y
        torch.testing.assert_close(found[member], y, atol=1e-12, rtol=0)


def test_the_share_that_is_left_out():
    actor, critic = drawn(policy_of(recurrent_dropout=0.25), time=50, batch=20)
    assert len(actor) == len(critic) == LAYERS - 1
    for layer in (*actor, *critic):
        assert layer.unique().tolist() == [0, pytest.approx(4 / 3)]
        # 8,000 draws a member: the standard error of a share of ¼ is 0.005.
        assert (((layer == 0).float().mean((1, 2, 3)) - 0.25).abs() < 0.02).all()
    assert not torch.equal(actor[0], actor[1])
    assert not torch.equal(actor[0], critic[0])


def test_a_member_draws_the_same_among_others_and_alone():
    policy = policy_of(recurrent_dropout=0.5)
    for together, alone in zip(sum(drawn(policy), ()), sum(drawn(policy, members=[1]), ()), strict=True):
        assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize(("critic", "layers"), [("separate", LAYERS - 1), ("shared", 0), ("none", 0)])
def test_the_critics_memory_has_dropout_of_its_own(critic, layers):
    actor, own = drawn(policy_of(recurrent_dropout=0.5, critic_recurrent=critic))
    assert (len(actor), len(own)) == (LAYERS - 1, layers)


def test_nothing_is_drawn_without_dropout():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert policy_of().draw_kept([generator], torch.zeros(1, TIME, BATCH)) == ((), ())
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("settings", [{"recurrent_layers": 1}, {"recurrent": "none", "recurrent_layers": 2}])
def test_dropout_without_layers_to_act_between_is_refused(settings):
    with pytest.raises(ConfigError, match=r"recurrent_dropout=0.5 acts between recurrent layers.*recurrent_layers: 2"):
        load_as(NetworkConfig, {"recurrent_dropout": 0.5, **settings})
