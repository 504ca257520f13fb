"""`policy.optimizer` behaves as a torch.optim.Optimizer."""

import copy

import pytest
import torch

from popgraft import UPGD, DistributionalPPO
from popgraft.errors import ConfigError


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("cls", "decay"), [(torch.optim.Adam, 0.0), (torch.optim.Adam, 0.1), (torch.optim.AdamW, 0.1)])
def test_steps_are_those_of_torch(cls, decay, make, small):
    kwargs = {"weight_decay": decay, "betas": (0.8, 0.9), "eps": 1e-6}
    model = make(learning_rate=0.01, policy_kwargs={**small, "optimizer_class": cls, "optimizer_kwargs": kwargs})
    ours = model.policy.optimizer
    assert isinstance(ours, torch.optim.Optimizer)
    copies = [parameter.detach().clone() for parameter in ours.param_groups[0]["params"]]
    theirs = cls(copies, lr=0.01, **kwargs)
    for step in range(3):
        for optimizer in (ours, theirs):
            gradients(optimizer.param_groups[0]["params"], step)
            optimizer.step()
    for mine, other in zip(ours.param_groups[0]["params"], copies, strict=True):
        torch.testing.assert_close(mine.detach(), other, atol=1e-6, rtol=1e-6)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(ours.state[mine][name], theirs.state[other][name], atol=1e-6, rtol=1e-6)


def test_parameters_follow_the_engine(make):
    model = make()
    names = dict(model.policy.named_parameters())
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    for name, parameter in names.items():
        assert parameter is dict(model.policy.named_parameters())[name]
        assert not torch.equal(parameter, before[name])
    model.policy.load_state_dict(before)
    flat = torch.cat([p.flatten() for p in model.policy.optimizer.param_groups[0]["params"]])
    assert torch.equal(flat, model.member.params[0])


@pytest.mark.parametrize("optimizer", ["adam", "upgd", "adaptive_upgd"])
def test_an_emptied_state_is_a_new_optimizer(optimizer, make):
    model = make(optimizer=optimizer).learn(64)
    state = model.policy.optimizer.state
    assert state
    state.clear()
    model.policy.optimizer.pull()
    assert not any(average.any() for average in model.member.optimizer.averages.values())
    assert float(model.member.optimizer.step) == 0
    model.learn(64, reset_num_timesteps=False)
    assert model.policy.optimizer.state is state
    assert float(model.member.optimizer.step) == 8


def test_states_are_loaded(make, played):
    donor, recipient = (make(played(), seed=seed).learn(64) for seed in (1, 2))
    state = donor.policy.optimizer.state_dict()
    recipient.policy.optimizer.load_state_dict(copy.deepcopy(state))
    for name, average in donor.member.optimizer.averages.items():
        assert torch.equal(recipient.member.optimizer.averages[name], average)
    state["state"][2]["exp_avg"] = torch.zeros(1)
    with pytest.raises(ConfigError, match="exp_avg of shape"):
        recipient.policy.optimizer.load_state_dict(state)


def test_groups_are_live(make):
    model = make(optimizer="upgdw", optimizer_kwargs={"sigma": 0.1})
    group = model.policy.optimizer.param_groups[0]
    assert (group["sigma"], group["weight_decay"]) == (pytest.approx(0.1), pytest.approx(0.01))
    group["sigma"], group["weight_decay"] = 0.0, 0.5
    model.learn(64)
    values = model.member.hyperparams
    assert (float(values["sigma"]), float(values["weight_decay"])) == (0.0, 0.5)


def test_a_model_without_a_learning_rate_has_that_of_its_optimizer():
    small = {"lstm_hidden_size": 4, "net_arch": []}
    for kwargs, settings, rate in [
        ({}, {}, 3e-4),
        ({"optimizer_class": UPGD}, {}, 0.3),
        ({}, {"optimizer": "upgd"}, 0.3),
        ({}, {"optimizer": "adaptive_upgd"}, 3e-4),
    ]:
        model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={**small, **kwargs}, **settings)
        assert model.lr_schedule(1.0) == rate
        assert model.member.hyperparams["learning_rate"].item() == pytest.approx(rate)
    with pytest.warns(UserWarning, match="made for Adam"):
        DistributionalPPO("MlpLstmPolicy", "CartPole-v1", 1e-3, policy_kwargs=small, optimizer="upgd")
