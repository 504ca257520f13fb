import copy

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from popgraft import tree
from popgraft.state import (
    Decision,
    EntropySchedule,
    KLControl,
    Member,
    Moments,
    Normalizer,
    OptimizerState,
    ReturnScale,
    Seat,
    VGSState,
    heritable,
    role_of,
    rows,
    seated,
)


def make_member(pop=3, n=4, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def moments(*shape):
        return Moments(*(torch.rand(pop, *shape, generator=draw) for _ in range(2)), torch.rand(pop, generator=draw))

    params = torch.randn(pop, n, generator=draw)
    nothing = torch.zeros(pop)
    return Member(
        params=params,
        optimizer=OptimizerState(
            averages={"exp_avg": torch.randn(pop, n, generator=draw), "exp_avg_sq": torch.rand(pop, n, generator=draw)},
            step=torch.ones(pop),
            skipped=nothing,
        ),
        vgs=VGSState(
            nothing + 3, *(torch.rand(pop, 2, generator=draw) for _ in range(2)), *torch.rand(4, pop, generator=draw)
        ),
        normalizer=Normalizer(obs={"obs": moments(2)}, returns=moments()),
        returns=ReturnScale(*torch.rand(5, pop, generator=draw)),
        kl=KLControl(*torch.rand(4, pop, generator=draw)),
        entropy=EntropySchedule(torch.rand(pop, 6, generator=draw), *torch.rand(2, pop, generator=draw)),
        hyperparams={"learning_rate": torch.rand(pop, generator=draw)},
        age=torch.randint(9, (pop,), generator=draw),
    )


@seated
class Place:
    x: Float[Tensor, "pop env"]


class Undeclared(OptimizerState):
    extra: list[int]


@pytest.mark.parametrize(
    "hint",
    [
        int,
        list,
        dict,
        Tensor | None,
        Tensor,
        np.ndarray,
        Float[np.ndarray, "pop"],
        Float[Tensor, "n"],
        Float[Tensor, ""],
        Float[Tensor, "n pop"],
        dict[str, int],
        dict[str, Place],
        Place,
        Undeclared,
    ],
)
def test_a_leaf_that_is_not_heritable_cannot_be_declared(hint):
    with pytest.raises(TypeError, match=r"Bad\.leaf is declared as .* not heritable"):
        heritable(type("Bad", (), {"__annotations__": {"leaf": hint}}))


@pytest.mark.parametrize("hint", [OptimizerState, dict[str, Moments], float])
def test_a_leaf_that_is_not_seated_cannot_be_declared(hint):
    with pytest.raises(TypeError, match=r"Bad\.leaf is declared as .* not seated"):
        seated(type("Bad", (), {"__annotations__": {"leaf": hint}}))


def test_an_inherited_leaf_keeps_its_role():
    with pytest.raises(TypeError, match=r"Bad\.place .* not heritable"):
        heritable(type("Bad", (seated(type("Base", (), {"__annotations__": {"place": Place}})),), {}))


@pytest.mark.parametrize(
    "hint", [Float[Tensor, "pop"], Float[Tensor, "pop *shape"], dict[str, Moments], OptimizerState]
)
def test_rows_dicts_and_classes_of_the_role_are_taken(hint):
    assert role_of(heritable(type("Good", (), {"__annotations__": {"leaf": hint}}))) == "heritable"


def test_a_leaf_cannot_be_added_to_an_instance():
    with pytest.raises(AttributeError):
        make_member().momentum = torch.zeros(3)


def test_roles():
    assert role_of(Member) == "heritable"
    assert role_of(Seat) == "seated"
    assert role_of(Undeclared) is None
    assert role_of(dict[str, Tensor]) is None


def test_a_graft_is_a_deep_copy_of_the_donor():
    member = make_member()
    before = copy.deepcopy(member)
    parents = torch.tensor([0, 0, 2])
    grafted = tree.gather(member, parents)
    reference = dict(tree.items(before))
    for path, leaf in tree.items(grafted):
        assert torch.equal(leaf[1], reference[path][0]), path
        assert torch.equal(leaf[[0, 2]], reference[path][[0, 2]]), path
        leaf[1].zero_()
    for path, leaf in tree.items(member):
        assert torch.equal(leaf, reference[path]), path


def test_every_leaf_of_a_member_is_named():
    assert [path for path, _ in tree.items(make_member())] == [
        "params",
        *(f"optimizer.{name}" for name in ("averages.exp_avg", "averages.exp_avg_sq", "step", "skipped")),
        "vgs.step_count",
        *(f"vgs.param_grad_{name}_ema" for name in ("mean", "sq")),
        *(f"vgs.grad_{name}_ema" for name in ("mean", "var", "norm", "max")),
        *(f"normalizer.obs.obs.{name}" for name in ("mean", "var", "count")),
        *(f"normalizer.returns.{name}" for name in ("mean", "var", "count")),
        *(f"returns.{name}" for name in ("mean_ema", "square_ema", "updates", "mean", "std")),
        *(f"kl.{name}" for name in ("beta", "error", "error_prev", "error_sum")),
        *(f"entropy.{name}" for name in ("recent", "seen", "decay_start")),
        "hyperparams.learning_rate",
        "age",
    ]


def test_an_empty_seat_begins_every_episode():
    seat = Seat.empty(pop=2, envs=3, state=5, device=torch.device("cpu"))
    assert seat.carry.shape == (2, 3, 5)
    assert seat.episode_start.all()
    assert all(not leaf.any() for path, leaf in tree.items(seat) if path != "episode_start")
    assert rows(seat) == 2


def test_rows_must_agree():
    assert rows(make_member(pop=5)) == 5
    with pytest.raises(ValueError, match="disagree"):
        rows({"a": torch.ones(2), "b": torch.ones(3)})


def test_recipients_are_those_with_another_parent():
    decision = Decision(parents=torch.tensor([2, 1, 2, 1]), hyperparams={}, reasons={0: "truncation", 3: "rescue"})
    assert decision.recipients.tolist() == [0, 3]
    assert Decision(torch.arange(4), {}, {}).recipients.tolist() == []
