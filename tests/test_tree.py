import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from popgraft import tree


@dataclasses.dataclass
class Inner:
    z: Tensor
    a: dict[str, Tensor]


@dataclasses.dataclass
class Outer:
    second: Tensor
    first: Inner


def make(pop=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Outer(
        second=torch.randn(pop, 3, generator=draw),
        first=Inner(
            z=torch.randint(9, (pop,), generator=draw),
            a={"y": torch.randn(pop, 2, 2, generator=draw), "x": torch.rand(pop, generator=draw) > 0.5},
        ),
    )


def flat(node):
    return {path: leaf.clone() for path, leaf in tree.items(node)}


def same(a, b):
    a, b = flat(a), flat(b)
    return list(a) == list(b) and all(a[path].dtype == b[path].dtype and torch.equal(a[path], b[path]) for path in a)


def test_save_order_is_declaration_then_sorted_keys():
    assert [path for path, _ in tree.items(make())] == ["second", "first.z", "first.a.x", "first.a.y"]
    assert [path for path, _ in tree.items(torch.ones(1))] == [""]


def test_restore_inverts_items():
    state = make()
    restored = tree.restore(make(seed=1), dict(tree.items(state)))
    assert isinstance(restored.first, Inner)
    assert same(restored, state)


def test_restore_misses_a_leaf():
    leaves = dict(tree.items(make()))
    del leaves["first.a.y"]
    with pytest.raises(KeyError, match=r"first\.a\.y"):
        tree.restore(make(), leaves)


def test_map_takes_corresponding_leaves():
    a, b = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}, {"y": torch.tensor([20.0]), "x": torch.tensor([10.0])}
    total = tree.map(torch.add, a, b)
    assert (total["x"].item(), total["y"].item()) == (11, 22)


def test_map_refuses_trees_of_different_structure():
    with pytest.raises(ValueError, match="differ in structure"):
        tree.map(torch.add, {"x": torch.ones(1)}, {"y": torch.ones(1)})


@pytest.mark.parametrize("leaf", [None, 1.0, [torch.ones(1)], "name"])
def test_only_tensors_are_leaves(leaf):
    with pytest.raises(TypeError, match="a tree holds tensors"):
        list(tree.items({"x": leaf}))


def test_gather_is_a_deep_copy_of_the_donors_row():
    state, index = make(), torch.tensor([2, 1, 2, 0])
    before = copy.deepcopy(state)
    grafted = tree.gather(state, index)
    for path, leaf in tree.items(grafted):
        for row, donor in enumerate(index):
            assert torch.equal(leaf[row], flat(before)[path][donor])
        leaf.zero_()
    assert same(state, before)


def test_gather_with_a_permutation_is_undone_by_its_inverse():
    state, index = make(), torch.tensor([3, 0, 2, 1])
    assert same(tree.gather(tree.gather(state, index), index.argsort()), state)


def test_slices_are_views_that_concatenate_to_the_whole():
    state = make()
    parts = [tree.slice(state, 0, 1), tree.slice(state, 1, 4)]
    assert same(tree.concatenate(parts), state)
    parts[1].second.zero_()
    assert torch.equal(state.second[1:], torch.zeros(3, 3))


def test_stack_adds_the_first_axis():
    stacked = tree.stack([make(seed=0), make(seed=1)])
    assert stacked.first.a["y"].shape == (2, 4, 2, 2)
    assert torch.equal(stacked.second[1], make(seed=1).second)


def test_put_writes_the_named_rows_and_no_other():
    state, rows = make(), make(pop=2, seed=1)
    before = copy.deepcopy(state)
    tree.put_(state, torch.tensor([3, 1]), rows)
    for path, leaf in tree.items(state):
        assert torch.equal(leaf[[3, 1]], flat(rows)[path])
        assert torch.equal(leaf[[0, 2]], flat(before)[path][[0, 2]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", ["second", "first.a.y"])
def test_finite_finds_the_row(bad, path):
    state = make()
    dict(tree.items(state))[path][2].view(-1)[-1] = bad
    assert tree.finite(state).tolist() == [True, True, False, True]


def test_finite_takes_vectors_integers_and_empty_rows():
    assert tree.finite({"v": torch.tensor([1.0, torch.nan])}).tolist() == [True, False]
    assert tree.finite({"n": torch.tensor([1, 2]), "e": torch.ones(2, 0)}).tolist() == [True, True]
