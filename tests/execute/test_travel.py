"""Which rows go where in a graft, worked out by hand."""

import dataclasses

import pytest
import torch

from popgraft import tree
from popgraft.execute import InlineExecutor
from popgraft.execute.travel import Delivery, assembled, deliveries, recorded
from popgraft.state import Decision, Record, Scores


def decided(*parents):
    recipients = {member: "truncation" for member, parent in enumerate(parents) if parent != member}
    return Decision(torch.tensor(parents), {}, recipients)


def test_what_every_shard_needs():
    """Member 5 stands for the record of five members: it is an heir's donor, and nobody has its row."""
    first, second, third = deliveries(decided(4, 1, 4, 2, 5), [[0, 1], [2, 3], [4]])
    assert first == Delivery(heirs=[0], donors=[4], living=[4])
    assert second == Delivery(heirs=[2, 3], donors=[4, 2], living=[2, 4])
    assert third == Delivery(heirs=[4], donors=[5], living=[])


def test_a_donor_of_several_heirs_is_needed_once():
    (only,) = deliveries(decided(3, 3, 2, 3), [[0, 1, 2, 3]])
    assert only == Delivery(heirs=[0, 1], donors=[3, 3], living=[3])


def test_nobody_inherits():
    assert deliveries(decided(0, 1, 2), [[0], [1, 2]]) == [Delivery([], [], [])] * 2


@pytest.fixture
def members(configured, initial):
    """Four members, who are told apart by their age."""
    config = configured(pop=4)
    executor = InlineExecutor(config, initial(config))
    everyone = executor.export(torch.arange(4))
    executor.close()
    return dataclasses.replace(everyone, age=torch.tensor([10, 11, 12, 13]))


def test_rows_are_put_together(members):
    parts = [tree.slice(members, 2, 4), tree.slice(members, 0, 1)]
    assert assembled(parts, [2, 3, 0], [0, 3, 3, 2]).age.tolist() == [10, 13, 13, 12]


def test_heirs_take_what_others_give_and_the_record(members):
    score = torch.zeros(1)
    state = dataclasses.replace(tree.slice(members, 0, 1), age=torch.tensor([99]))
    record = Record(state, Scores(score, score, score.long()), 0, 2)
    (needed,) = deliveries(decided(4, 3, 2, 2), [[0, 1, 2, 3]])
    assert needed.living == [2, 3]
    stacks = [(needed.living, tree.slice(members, 2, 4)), *recorded(record, 4)]
    assert needed.taken(stacks).age.tolist() == [99, 13, 12]
    assert recorded(None, 4) == []
