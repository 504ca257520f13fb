"""Strategies on the states of PyTorch's own optimizers."""

import pytest
import torch

from popgraft.errors import ConfigError
from popgraft.foreign.optimizer import inherited_state

KNOWN = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RAdam,
    lambda p: torch.optim.Adam(p, amsgrad=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
]
UNKNOWN = [torch.optim.NAdam, torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta]


def trained(make, gradients):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer


def draws(n):
    return list(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)) + 1)


@pytest.mark.parametrize("make", KNOWN)
@pytest.mark.parametrize("keeps", ["momentum", "scale"])
def test_parts_are_taken_of_what_is_known(make, keeps):
    donor = trained(make, draws(30)).state_dict()
    heir = trained(make, [])
    heir.load_state_dict(inherited_state(donor, keeps))
    (parameter,) = heir.param_groups[0]["params"]
    rate = heir.param_groups[0]["lr"]
    for gradient in draws(3):  # no step is longer than one of a donor with such gradients
        before, parameter.grad = parameter.detach().clone(), gradient.clone()
        heir.step()
        assert ((parameter.detach() - before).abs() < 15 * rate).all()
    assert parameter.detach().any()


@pytest.mark.parametrize("make", UNKNOWN)
@pytest.mark.parametrize("keeps", ["momentum", "scale"])
def test_parts_of_what_is_not_known_are_refused(make, keeps):
    donor = trained(make, draws(5)).state_dict()
    with pytest.raises(ConfigError, match=r"not defined for an optimizer that remembers .*; choose copy or reset"):
        inherited_state(donor, keeps)
    assert inherited_state(donor, "copy")["state"][0].keys() == donor["state"][0].keys()


def test_a_donor_that_has_taken_no_step_leaves_nothing():
    donor = trained(torch.optim.Adam, []).state_dict()
    assert inherited_state(donor, "momentum")["state"] == {}
    stepped = trained(torch.optim.Adam, draws(1)).state_dict()
    for value in stepped["state"][0].values():
        value.zero_()
    assert not any(value.any() for value in inherited_state(stepped, "momentum")["state"][0].values())
