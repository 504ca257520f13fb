"""What every executor does for the loop: parts that finish, inherit and are lost, in step and at their own pace."""

import contextlib
import os
import signal

import pytest
import torch

from popgraft.execute import InlineExecutor, Loss, Part, ProcessExecutor, Stopped, make_executor
from popgraft.state import Decision

IN_STEP, OWN_PACE = [[0, 1, 2, 3]], [[0, 1], [2, 3]]
RAY = ["execute.kind=ray"]
RUNS = {  # settings, kind, parts
    "one shard": (["execute.sizes=null", "execute.shards=1"], InlineExecutor, IN_STEP),
    "processes": ([], ProcessExecutor, IN_STEP),
    "actors": (RAY, None, IN_STEP),
    "actors at their own pace": ([*RAY, "execute.mode=async"], None, OWN_PACE),
}
UPDATES = 2
STEPS = 4 * 16
"""Environment steps of a member in an update."""


TIERS = {"one shard": (), "processes": pytest.mark.heavy}


@pytest.fixture(params=[pytest.param(name, marks=TIERS.get(name, pytest.mark.slow)) for name in RUNS])
def run(request, configured, initial):
    """An executor of four members, and its parts."""
    settings, kind, parts = RUNS[request.param]
    if "actors" in request.param:
        request.getfixturevalue("cluster")
    settings = ["execute.sizes=[2, 2]", f"pbt.perturbation_interval={UPDATES}", *settings]
    config = configured("CartPole", *settings, pop=4)
    with contextlib.closing(make_executor(config, initial(config))) as executor:
        assert kind is None or type(executor) is kind
        yield executor, parts


def rounds(number):
    return torch.full((4,), number)


def never():
    return False


def everyone(executor):
    return executor.export(torch.arange(4))


def finished(executor, parts):
    """One generation of every part, in the order of members; and updates of members that were heard of."""
    heard = []
    found = [executor.next(heard.append, never) for _ in parts]
    assert all(isinstance(part, Part) for part in found)
    return sorted(found, key=lambda part: int(part.members[0])), sum(heard)


def kill(executor, place):
    """Kills what hosts a shard."""
    shard = executor.shards[place]
    if isinstance(executor, ProcessExecutor):
        pid = shard._process.pid
    else:
        import ray

        call = shard._actor.__ray_call__.options(concurrency_group="inbox")
        pid = ray.get(call.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def test_parts_finish_inherit_and_go_on(run):
    executor, parts = run
    assert executor.parts == parts
    executor.begin(rounds(0))
    found, heard = finished(executor, parts)
    assert [part.members.tolist() for part in found] == parts
    assert heard <= 4 * UPDATES  # in step, the first shard speaks for all
    for part in found:
        assert part.steps == len(part.members) * UPDATES * STEPS
        assert part.advance.updates == UPDATES
        assert part.advance.healthy.all()
        assert part.scores.mean.isfinite().all()
        assert len(part.scores.mean) == len(part.members)
    before = everyone(executor)
    assert before.age.tolist() == [UPDATES] * 4
    assert before.params.unique(dim=0).shape[0] == 4
    for part in found:
        assert part.advance.age.tolist() == [UPDATES] * len(part.members)
        assert {name: x.tolist() for name, x in part.advance.hyperparams.items()} == {
            name: x[part.members].tolist() for name, x in before.hyperparams.items()
        }

    parents = torch.tensor([3, 1, 2, 3])
    hyperparams = {name: values[parents] for name, values in before.hyperparams.items()}
    hyperparams["clip_range"][0] = 0.375
    decision = Decision(parents, hyperparams, {0: "truncation"})
    for part in found:
        executor.inherit(part.members.tolist(), decision, rounds(1))
    after = everyone(executor)
    assert torch.equal(after.params, before.params[parents])
    assert torch.equal(after.hyperparams["learning_rate"], before.hyperparams["learning_rate"][parents])
    assert after.hyperparams["clip_range"].tolist() == [0.375, *before.hyperparams["clip_range"][1:].tolist()]

    again, _ = finished(executor, parts)
    assert [part.members.tolist() for part in again] == parts
    now = everyone(executor)
    assert now.age.tolist() == [2 * UPDATES] * 4
    assert not torch.equal(now.params[0], now.params[3])  # same weights, seats of their own
    params, momenta = executor.vectors()
    assert torch.equal(params, now.params)
    assert torch.equal(momenta, now.optimizer.averages["exp_avg"])


def test_a_stop_is_no_part(run):
    executor, _ = run
    executor.begin(rounds(0))
    news = executor.next(lambda _: None, lambda: True)
    assert isinstance(news, Stopped)
    assert news.steps in (0, 4 * STEPS, 4 * 2 * STEPS)


def test_a_part_that_is_lost(run):
    executor, parts = run
    if isinstance(executor, InlineExecutor):
        pytest.skip("its shard lives and dies with this process")
    executor.begin(rounds(0))
    saved = executor.checkpoint(rounds(0))
    kill(executor, 1)
    loss = executor.next(lambda _: None, never)
    while isinstance(loss, Part):  # the other shard was faster
        loss = executor.next(lambda _: None, never)
    assert isinstance(loss, Loss)
    assert loss.members == parts[-1]
    assert "2-3" in str(loss.error)
    if isinstance(executor, ProcessExecutor):
        assert not executor.recovers
        return
    assert executor.recovers
    assert executor.rebuild(loss, rounds(0)) == [2, 3]
    if len(parts) == 1:  # everybody goes back
        executor.restore(saved)
        executor.restart(0)
        executor.begin(rounds(0))
    part = executor.next(lambda _: None, never)
    while part.members.tolist() != loss.members:
        part = executor.next(lambda _: None, never)
    assert part.advance.updates == UPDATES
    assert everyone(executor).age[2:].tolist() == [UPDATES] * 2
