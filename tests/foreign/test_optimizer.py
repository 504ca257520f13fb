import copy

import pytest
import torch

from popgraft.errors import ConfigError
from popgraft.foreign import AdaptiveUPGD, PBTConfig, PBTScheduler
from popgraft.foreign.optimizer import inherited_state
from popgraft.hyperparams import HyperparamConfig
from popgraft.inheritance import fate_of

RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-1, is_log_scale=True)
OFFSET = HyperparamConfig("offset", min_value=-1.0, max_value=1.0)
GAMMA = HyperparamConfig("gamma", values=(0.9, 0.99))
KNOWN = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RAdam,
    lambda p: torch.optim.Adam(p, amsgrad=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
]
UNKNOWN = [torch.optim.NAdam, torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta]


def trained(optimizer, gradients):
    parameter = torch.nn.Parameter(torch.zeros(3))
    made = optimizer([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        made.step()
    return made


def gradients(n, seed=0):
    return list(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def upgd(parameters):
    return AdaptiveUPGD(parameters, lr=0.1, seed=0)


def test_a_kept_momentum_is_one_step_along_the_donors_mean_gradient():
    # The reference is a fresh Adam that has taken that one step.
    donor = trained(adam, gradients(50)).state_dict()
    own = donor["state"][0]
    mean = own["exp_avg"] / (1 - 0.9**50)
    reference = trained(adam, [mean]).state_dict()["state"][0]
    found = inherited_state(donor, "momentum")["state"][0]
    for name in ("step", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(found[name], reference[name])


def test_a_next_step_with_a_kept_momentum_is_no_longer_than_any():
    donor = trained(adam, gradients(50)).state_dict()
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = adam([parameter])
    optimizer.load_state_dict(inherited_state(donor, "momentum"))
    parameter.grad = gradients(1, seed=1)[0]
    optimizer.step()
    assert parameter.abs().max() < 0.15  # learning rate 0.1; a second moment of 0 alone would give up to 3


@pytest.mark.parametrize("optimizer", [adam, upgd])
def test_a_dropped_momentum_leaves_all_else(optimizer):
    donor = trained(optimizer, gradients(9)).state_dict()
    before = copy.deepcopy(donor["state"][0])
    found = inherited_state(donor, "scale")["state"][0]
    assert not found.pop("exp_avg").any()
    assert before.pop("exp_avg").any()
    torch.testing.assert_close(found, before, rtol=0, atol=0)
    assert donor["state"][0]["exp_avg"].any()  # the donor's own is left alone


def test_a_utility_is_fresh_where_momentum_is_kept():
    donor = trained(upgd, gradients(9)).state_dict()
    found = inherited_state(donor, "momentum")
    assert donor["state"][0]["utility"].any()
    assert not found["state"][0]["utility"].any()
    trained(upgd, []).load_state_dict(found)


def test_plain_momentum_is_kept_as_it_is():
    donor = trained(sgd, gradients(9)).state_dict()
    torch.testing.assert_close(inherited_state(donor, "momentum"), donor, rtol=0, atol=0)
    assert not inherited_state(donor, "scale")["state"][0]["momentum_buffer"].any()


@pytest.mark.parametrize("optimizer", [adam, sgd])
def test_a_rescaled_momentum_carries_as_far_at_the_new_rate(optimizer):
    donor = trained(optimizer, gradients(200)).state_dict()
    moved = []
    for rate in (0.1, 0.4):
        parameter = torch.nn.Parameter(torch.zeros(3))
        made = optimizer([parameter])
        made.load_state_dict(inherited_state(donor, "copy", 0.1 / rate))
        made.param_groups[0]["lr"] = rate
        parameter.grad = torch.zeros(3)  # what is left is the momentum's share of the step
        made.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize(
    ("new", "old", "distance"),
    [
        ((1e-3, 0.0, 0.9), (1e-3, 0.0, 0.9), 0.0),
        ((1e-2, 0.0, 0.9), (1e-3, 0.0, 0.9), 0.25),  # one decade of four
        ((1e-4, 0.0, 0.9), (1e-3, 0.0, 0.9), 0.25),
        ((1e-3, -0.6, 0.9), (1e-3, 0.6, 0.9), 0.6),  # 1.2 of a range of 2
        ((1e-2, -0.6, 0.9), (1e-3, 0.6, 0.9), 0.6),  # the farthest counts
    ],
)
def test_near_is_a_share_of_the_range(new, old, distance):
    spaces = [RATE, OFFSET, GAMMA]
    explored, donor = ({space.name: x for space, x in zip(spaces, values, strict=True)} for values in (new, old))
    for allowed, fate in ((distance + 1e-9, "copy"), (distance - 1e-3, "reset")):
        settings = {"optimizer_exploit_strategy": "adaptive", "optimizer_adaptive_distance": max(allowed, 0)}
        if allowed >= 0:
            assert fate_of(PBTConfig(hyperparams=spaces, **settings), donor, explored) == fate


def decide(tmp_path, optimizer=None, **settings):
    """What the scheduler returns to a recipient, whose donor has learning rate 1e-3."""
    config = PBTConfig(
        population_size=2, hyperparams=[RATE], checkpoint_dir=tmp_path, explore_method="perturb", **settings
    )
    scheduler = PBTScheduler(config, seed=0)
    loser, winner = scheduler.initialize_population({"learning_rate": 1e-3})
    state = trained(adam, gradients(9)).state_dict() if optimizer is None else optimizer
    for member, score in ((winner, 1.0), (loser, 0.0)):
        scheduler.update_performance(
            member, score, 5, {"policy": {"w": torch.zeros(1)}, "optimizer_state": copy.deepcopy(state)}
        )
    new, hyperparams, _ = scheduler.exploit_and_explore(loser)
    return state, new, hyperparams["learning_rate"]


@pytest.mark.parametrize(("distance", "kept"), [(0.03, True), (0.01, False)])  # ln 1.2 of four decades is 0.02
def test_adaptive_copies_what_is_near(tmp_path, distance, kept, caplog):
    caplog.set_level("INFO")
    state, new, _ = decide(tmp_path, optimizer_exploit_strategy="adaptive", optimizer_adaptive_distance=distance)
    assert ("optimizer_state" in new) is kept
    assert f"Optimizer state {'INCLUDED' if kept else 'REMOVED'} (strategy=adaptive)" in caplog.text
    if kept:
        torch.testing.assert_close(new["optimizer_state"], state, rtol=0, atol=0)


@pytest.mark.parametrize("keeps", ["momentum", "scale"])
def test_the_scheduler_returns_the_part_and_rescales_it(tmp_path, keeps):
    state, new, rate = decide(
        tmp_path, optimizer_exploit_strategy="partial", optimizer_partial=keeps, optimizer_rescale=True
    )
    torch.testing.assert_close(new["optimizer_state"], inherited_state(state, keeps, 1e-3 / rate), rtol=0, atol=0)


def test_a_state_that_is_not_torchs_fails_before_the_recipient_changes(tmp_path):
    with pytest.raises(ConfigError, match="torch optimizer"):
        decide(tmp_path, {"exp_avg": torch.zeros(1)}, optimizer_exploit_strategy="partial")


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
