"""Machines that are gone with what lay on them, on a real Ray cluster: who is lost, and what takes their place."""

import contextlib
import signal
import time

import pytest
import torch

from popgraft import tree
from popgraft.train import train

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

from popgraft.execute.ray_async import AsyncRayExecutor  # noqa: E402  # needs ray

from .disturbed import ASYNC, Watching, losses, send  # noqa: E402


class Holder:
    """An actor that lays members ready in its own name, so that they are lost with it."""

    def hold(self, rows):
        return [ray.put(each) for each in rows]


def lose_what_lies_ready(executor, members):
    holder = ray.remote(num_cpus=0)(Holder).remote()
    rows = [ray.get(executor._laid[member]) for member in members]
    executor._laid.update(zip(members, ray.get(holder.hold.remote(rows)), strict=True))
    ray.kill(holder)
    with contextlib.suppress(ray.exceptions.OwnerDiedError):  # which takes a moment
        while True:
            ray.get(executor._laid[members[0]])
            time.sleep(0.1)


class Losing(Watching):
    """Loses a machine once, as soon as `what` says that it has, and notes what members trained with."""

    def __init__(self, monkeypatch, what):
        super().__init__(monkeypatch)
        self.what, self.done, self.grafted, self.rates = what, False, set(), []

    def on_update(self, steps):
        super().on_update(steps)
        self.done = self.done or bool(self.what(self))

    def on_generation(self, generation):
        self.grafted |= generation.decision.reasons.keys()
        for row, member in enumerate(generation.members.tolist()):
            used = generation.metrics["learning_rate"][row, -1].item()
            recorded = generation.hyperparams["learning_rate"][member].float()  # in as many digits as tell it apart
            self.rates.append((used, recorded.item()))


@pytest.mark.parametrize("asks_first", ["the actor in its place", "a snapshot"])
def test_members_of_a_machine_that_is_gone_come_from_disk(asks_first, monkeypatch, tmp_path):
    def what(observer):
        if observer.updates < 9:
            return False
        lose_what_lies_ready(observer.executor, [2, 3])
        if asks_first == "a snapshot":
            assert len(observer.executor.export(torch.arange(4)).params) == 4
        send(signal.SIGKILL, 1)(observer.executor)
        return True

    run = train(ASYNC, [f"run_dir={tmp_path / 'run'}"], observer=Losing(monkeypatch, what))
    texts = losses(run)
    assert any("lay ready is gone; they go on from snapshot generation_" in text for text in texts)
    assert any("members [2, 3] are rebuilt" in text for text in texts)
    assert run.is_finished


def test_members_from_disk_train_with_the_values_on_record(monkeypatch, tmp_path):
    """The only snapshot is from before the graft that gave them other ones."""

    def what(observer):
        executor = observer.executor
        places = [place for place in (0, 1) if observer.grafted & set(executor.parts[place])]
        if not places:
            return False
        lose_what_lies_ready(executor, executor.parts[places[0]])
        send(signal.SIGKILL, places[0])(executor)
        return True

    observer = Losing(monkeypatch, what)
    settings = [f"run_dir={tmp_path / 'run'}", "snapshots.interval=10000", "total_timesteps=6144"]
    run = train(ASYNC, settings, observer=observer)
    assert observer.done
    assert any("they go on from snapshot generation_000000" in text for text in losses(run))
    assert all(used == recorded for used, recorded in observer.rates)


def test_nobody_else_is_replaced(configured, initial):
    """Of those who are asked for at the same time, only the lost one comes from elsewhere."""
    config = configured("CartPole", "execute.sizes=[1, 1, 1]", "execute.kind=ray", "execute.mode=async", pop=3)
    with contextlib.closing(AsyncRayExecutor(config, initial(config))) as executor:
        young, asked = executor.export(torch.arange(3)), []

        def rescue(members, like):
            assert len(like.params) == 3
            asked.extend(members)
            return tree.gather(young, torch.tensor(members))

        executor.rescue = rescue
        executor.begin(torch.zeros(3, dtype=torch.long))
        for _ in range(3):
            executor.next(lambda _: None, lambda: False)
        before = executor.export(torch.arange(3)).age
        lose_what_lies_ready(executor, [1])
        after = executor.export(torch.arange(3)).age
        assert before.min() > young.age[1]
        assert after.tolist() == [before[0], young.age[1], before[2]]
        assert asked == [1]
