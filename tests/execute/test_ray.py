"""Shards as actors of a real Ray cluster: the same results as in this process, and the same when actors are lost."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft import resume, tree
from popgraft.errors import ConfigError, EnvironmentFault, ShardLost
from popgraft.execute import InlineExecutor, Loss
from popgraft.state import Decision, Record, Scores
from popgraft.train import train

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("cluster")

from popgraft.execute.ray import RayExecutor  # noqa: E402  # needs ray

from .disturbed import SMALL, InUpdate, Watching, process_of, send  # noqa: E402

FOURTH = 7
"""An update in the fourth generation, one after a point."""


def never():
    return False


@pytest.fixture
def execute(configured, initial):
    """Makes an executor of actors, or the same shards in this process."""
    with contextlib.ExitStack() as stack:

        def make(kind, *overrides, pop=4, sizes=(2, 2), factory=None):
            where = ["execute.kind=ray"] if kind is RayExecutor else []
            config = configured("CartPole", f"execute.sizes={list(sizes)}", *where, *overrides, pop=pop)
            return stack.enter_context(contextlib.closing(kind(config, initial(config), factory)))

        yield make


def everyone(executor):
    return tree.map(torch.clone, executor.export(torch.arange(4)))


def check_same(found, expected):
    for (path, leaf), (_, other) in zip(tree.items(found), tree.items(expected), strict=True):
        torch.testing.assert_close(leaf, other, atol=0, rtol=0, equal_nan=True, msg=lambda text, p=path: f"{p}: {text}")


def decided(executor, parents, generation):
    """Everybody inherits as told, and one number is explored."""
    parents = torch.tensor(parents)
    before = executor.export(torch.arange(4)).hyperparams
    known = {name: torch.cat([values, values[:1]]) for name, values in before.items()}
    hyperparams = {name: values[parents] for name, values in known.items()}
    hyperparams["clip_range"] = torch.arange(4) / 10 + 0.05 * generation
    return Decision(parents, hyperparams, {m: "truncation" for m in range(4) if parents[m] != m})


@pytest.mark.heavy
def test_actors_make_no_difference(execute):
    """Equal to the bit: after grafts within an actor, between them, in a circle, from the record; after a loss."""
    long = "model.n_epochs=12"  # updates that last, so that a halt arrives before the fifth one has ended
    inline, actors = execute(InlineExecutor, long), execute(RayExecutor, long)
    score = torch.zeros(1)
    record = Record(inline.export(torch.tensor([3])), Scores(score, score, score.long()), 0, 3)
    for generation, parents in enumerate(([1, 1, 2, 3], [2, 3, 0, 1], [4, 3, 3, 3], [0, 1, 2, 3]), 1):
        expected, found = (executor.advance(2, never) for executor in (inline, actors))
        for name, values in expected.metrics.items():
            torch.testing.assert_close(found.metrics[name], values, atol=0, rtol=0, equal_nan=True)
        assert found.steps == expected.steps
        check_same(everyone(actors), everyone(inline))
        decision, best = decided(inline, parents, generation), record if 4 in parents else None
        for executor in (inline, actors):
            executor.graft(decision, generation, best)
        check_same(everyone(actors), everyone(inline))
        assert torch.equal(actors.evaluate(8).mean, inline.evaluate(8).mean)
    for found, expected in zip(actors.vectors(), inline.vectors(), strict=True):
        assert torch.equal(found, expected)
    assert actors.export(torch.tensor([3, 0, 3])).params.equal(actors.vectors()[0][[3, 0, 3]])
    inline.advance(1, never)
    actors.restore(everyone(inline))
    for executor in (inline, actors):
        executor.restart(9)
        executor.advance(1, never)
    check_same(everyone(actors), everyone(inline))
    stops = iter([False, True, True, True])
    updates = next(iter(actors.advance(5, lambda: next(stops)).metrics.values())).shape[1]
    assert 2 <= updates < 5  # all stopped at the same one
    assert torch.equal(everyone(actors).age, everyone(inline).age + updates)
    os.kill(process_of(actors, 1), signal.SIGKILL)
    with pytest.raises(ShardLost, match=r"the actor of members 2-3 is gone"):
        actors.advance(1, never)
    everybody = Loss([0, 1, 2, 3], ShardLost("gone"))
    assert actors.rebuild(everybody, torch.zeros(4, dtype=torch.long)) == [2, 3]
    actors.restore(everyone(inline))
    for executor in (inline, actors):
        executor.restart(10)
        executor.advance(1, never)
    check_same(everyone(actors), everyone(inline))


@pytest.fixture
def travels(monkeypatch):
    """Bytes of every object in which donors travel."""
    found, original = [], RayExecutor._laid_ready

    def laid_ready(executor, members):
        laid = original(executor, members)
        references = [*laid.values()]
        sizes = ray.experimental.get_object_locations(references) if references else {}
        found.append([sizes[reference]["object_size"] for reference in references])
        return laid

    monkeypatch.setattr(RayExecutor, "_laid_ready", laid_ready)
    return found


@pytest.mark.slow
def test_a_graft_moves_the_rows_that_cross_and_no_others(execute, travels):
    executor = execute(
        RayExecutor, "model.network.hidden_size=64", "model.network.encoder_layers=[64]", sizes=[2, 1, 1]
    )
    row = sum(leaf.nbytes for _, leaf in tree.items(executor.export(torch.tensor([0]))))
    for generation, parents in enumerate(([1, 1, 2, 3], [0, 3, 0, 3], [2, 2, 2, 3])):
        executor.graft(decided(executor, parents, 1), generation)
    assert travels[0] == []  # within a shard: an index operation
    assert len(travels[1]) == 2
    assert len(travels[2]) == 1  # one donor of two recipients
    assert all(row <= size <= 1.05 * row for size in travels[1] + travels[2]), (travels, row)


@pytest.mark.slow
def test_what_cannot_be_built_is_said_as_in_this_process(execute):
    with pytest.raises(ConfigError, match="NoSuchEnv"):
        execute(RayExecutor, "env.id=NoSuchEnv-v0")
    began = time.monotonic()

    def factory(num_envs):
        raise ZeroDivisionError("no poles")

    with pytest.raises(EnvironmentFault, match="no poles"):
        execute(RayExecutor, "env.id=null", "env.factory=not:used", "env.wrappers=[]", factory=factory)
    assert time.monotonic() - began < 300


class Leaving(gym.Env):
    """Ends its process in its third step, if it is of those who do."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, leaves):
        self.leaves, self.time = leaves, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.leaves and self.time == 3:
            os._exit(7)
        return np.zeros(4, np.float32), 0.0, False, False, {}


@pytest.mark.slow
def test_whoever_ends_an_actor_is_named(execute):
    def factory(num_envs):
        made.append(len(made))  # counted in each actor: the second member of each leaves
        return gym.vector.SyncVectorEnv([functools.partial(Leaving, len(made) == 2)] * num_envs)

    made = []
    executor = execute(RayExecutor, "env.id=null", "env.factory=not:used", "env.wrappers=[]", factory=factory)
    with pytest.raises(
        ShardLost, match=r"the actor of members .* is gone: .* while the environments of member [13] were at"
    ):
        executor.advance(1, never)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run comes to in two processes of this machine."""
    where = {"run_dir": str(tmp_path_factory.mktemp("runs") / "local"), "execute.shards": 2}
    return train({**SMALL, "seed": 3}, where)


def results(run):
    """All that training has brought: scores, lineage and the population."""
    path = run.folder.snapshots / "last"
    leaves = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.suffix == ".safetensors"}
    assert leaves
    return repr((run.scores, run.lineage, run.summary)), leaves


def check_undisturbed(run, undisturbed, lost):
    """The same results as without a fault; the loss of some members is on record."""
    assert run.is_finished
    assert results(run) == results(undisturbed)
    texts = [event.text for event in run.events if event.kind == "lost"]
    assert len(texts) == len(lost)
    for text, members in zip(texts, lost, strict=True):
        assert f"; members {members} are rebuilt, and all go on with generation " in text


def trained(tmp_path, *overrides, **arguments):
    where = [f"run_dir={tmp_path / 'run'}", "execute.kind=ray", "execute.shards=2", "seed=3", *overrides]
    return train(SMALL, where, **arguments)


def after(monkeypatch, place, name, what, call):
    """Does something to the actors at the end of a certain call of a function."""
    original, calls = getattr(place, name), []

    def disturbed(first, *arguments, **keywords):
        result = original(first, *arguments, **keywords)
        calls.append(name)
        if len(calls) == call:
            what(first if isinstance(first, RayExecutor) else first.executor)
        return result

    monkeypatch.setattr(place, name, disturbed)


@pytest.mark.slow
def test_an_actor_killed_in_an_update_changes_nothing(monkeypatch, tmp_path, undisturbed):
    run = trained(tmp_path, observer=InUpdate(monkeypatch, FOURTH, send(signal.SIGKILL, 1)))
    check_undisturbed(run, undisturbed, [[2, 3]])


@pytest.mark.slow
def test_machines_that_compute_differently_are_on_record(tmp_path):
    flag = tmp_path / "the first"

    def factory(num_envs):
        import os

        import gymnasium as gym

        from popgraft.native import native

        try:
            flag.mkdir()
        except FileExistsError:
            pass
        else:
            os.environ["POPGRAFT_NATIVE"] = "0"
            native.cache_clear()
        return gym.make_vec("CartPole-v1", num_envs)

    run = trained(tmp_path, "env.id=null", "execute.sizes=[1, 3]", "execute.shards=null", factory=factory)
    (text,) = [event.text for event in run.events if event.kind == "caution"]
    assert "compute differently" in text
    assert "PyTorch: members [" in text


class Preempting(Watching):
    """Terminates an actor once in every generation, and notes how long it takes until all are at work again."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.generation, self.struck, self.began, self.seconds = 0, {}, None, []

    def on_generation(self, generation):
        self.generation = generation.number + 1

    def on_event(self, kind, text):
        if kind == "lost":
            self.generation = int(text.rpartition(" ")[2]) - 1

    def on_update(self, steps):
        if self.began is not None:
            self.seconds.append(time.monotonic() - self.began)
            self.began = None
        if self.generation not in self.struck:
            self.struck[self.generation] = place = len(self.struck) % 2
            send(signal.SIGTERM, place)(self.executor)
            self.began = time.monotonic()


@pytest.mark.slow
def test_actors_that_are_terminated_ten_times_change_nothing(monkeypatch, tmp_path):
    """As preemption ends them: noticed at once, whatever `execute.timeout` allows."""
    longer = ["total_timesteps=2560", "snapshots.interval=1"]
    local = train(SMALL, [f"run_dir={tmp_path / 'local'}", "execute.shards=2", "seed=3", *longer])
    observer = Preempting(monkeypatch)
    run = trained(tmp_path, *longer, observer=observer)
    check_undisturbed(run, local, [[2 * place, 2 * place + 1] for place in observer.struck.values()])
    assert len(observer.seconds) == 10
    assert max(observer.seconds) < 120, observer.seconds


@pytest.mark.slow
def test_four_actors_come_to_the_same(tmp_path, undisturbed):
    """To the bit what four processes come to; what two come to, but for the order in which sums are rounded."""
    run = trained(tmp_path, "execute.shards=4")
    local = train(SMALL, [f"run_dir={tmp_path / 'local'}", "execute.shards=4", "seed=3"])
    check_undisturbed(run, local, [])
    parents = [
        [(graft.generation, graft.member, graft.parent) for graft in each.lineage] for each in (run, undisturbed)
    ]
    assert parents[0] == parents[1]
    assert len(parents[0]) >= 4
    scores = [torch.tensor([record.score for record in each.scores]) for each in (run, undisturbed)]
    torch.testing.assert_close(scores[0], scores[1], atol=0, rtol=1e-5)


@pytest.mark.slow
def test_two_actors_killed_at_once(monkeypatch, tmp_path, undisturbed):
    run = trained(tmp_path, observer=InUpdate(monkeypatch, FOURTH, send(signal.SIGKILL, 0, 1)))
    check_undisturbed(run, undisturbed, [[0, 1, 2, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_an_actor_killed_in_a_graft(place, monkeypatch, tmp_path, undisturbed):
    """Donors are laid ready, and nobody has taken them yet."""
    after(monkeypatch, RayExecutor, "_laid_ready", send(signal.SIGKILL, place), call=2)
    check_undisturbed(trained(tmp_path), undisturbed, [[2 * place, 2 * place + 1]])


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 4], ids=["first", "second", "last"])
def test_an_actor_killed_in_a_snapshot(call, monkeypatch, tmp_path, undisturbed):
    """While its members are asked for. Before there is any point, the run ends, and can be resumed."""
    original = RayExecutor.export
    calls = []

    def export(executor, members):
        calls.extend([members] if len(members) == 4 else [])
        if len(calls) == call and len(members) == 4:
            send(signal.SIGKILL, 1)(executor)
        return original(executor, members)

    monkeypatch.setattr(RayExecutor, "export", export)
    if call == 1:
        with pytest.raises(ShardLost, match=r"the actor of members 2-3 is gone"):
            trained(tmp_path)
        check_undisturbed(resume(tmp_path / "run"), undisturbed, [])
    else:
        check_undisturbed(trained(tmp_path), undisturbed, [[2, 3]])


@pytest.mark.slow
def test_an_actor_that_hangs(monkeypatch, tmp_path, undisturbed):
    observer = InUpdate(monkeypatch, FOURTH, send(signal.SIGSTOP, 1))
    run = trained(tmp_path, "execute.timeout=10", observer=observer)
    check_undisturbed(run, undisturbed, [[2, 3]])
    (event,) = [event for event in run.events if event.kind == "lost"]
    assert "the actor of members 2-3 has not been heard of for 10 seconds" in event.text


@pytest.mark.slow
def test_a_generation_that_kills_actors_again_and_again_ends_the_run(monkeypatch, tmp_path, undisturbed):
    observer = InUpdate(monkeypatch, FOURTH, send(signal.SIGKILL, 1), always=True)
    with pytest.raises(ShardLost, match="the 3rd time in generation 3, so the run ends"):
        trained(tmp_path, observer=observer)
    monkeypatch.undo()
    run = resume(tmp_path / "run")
    check_undisturbed(run, undisturbed, [[2, 3]] * 3)


@pytest.mark.slow
def test_a_run_goes_on_with_more_shards_and_elsewhere(tmp_path, undisturbed):
    """Actors may be added, or done without, between two sessions; nothing is lost of what was trained before."""
    steps = SMALL["total_timesteps"] // 5
    run = trained(tmp_path, f"total_timesteps={2 * steps}")
    assert run.scores == undisturbed.scores[: 2 * 4]
    for generations, kind, shards in ((4, "ray", 4), (5, "local", 2)):  # a point is taken where a session ends
        resume(run.path, {"total_timesteps": generations * steps, "execute.kind": kind, "execute.shards": shards})
    assert [score.steps for score in run.scores] == [score.steps for score in undisturbed.scores]
    found, expected = (
        torch.tensor([[graft.generation, graft.member, graft.parent, graft.score_before] for graft in each.lineage])
        for each in (run, undisturbed)
    )
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)


DRIVER = """
import sys, yaml
from popgraft import train
from popgraft.train import Observer

class Killer(Observer):
    def on_update(self, steps):
        self.updates = getattr(self, "updates", 0) + 1
        if self.updates == 7:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

train(yaml.safe_load(sys.argv[1]), sys.argv[2:], observer=Killer())
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_a_run_to_resume(tmp_path, undisturbed):
    overrides = [f"run_dir={tmp_path / 'run'}", "execute.kind=ray", "execute.shards=2", "seed=3"]
    with (tmp_path / "output").open("w") as output:
        driver = subprocess.call([sys.executable, "-c", DRIVER, json.dumps(SMALL), *overrides], stderr=output)
    assert driver == -signal.SIGKILL, (tmp_path / "output").read_text()
    run = resume(tmp_path / "run")
    check_undisturbed(run, undisturbed, [])


@pytest.mark.slow
def test_an_address_at_which_nobody_answers_is_refused_at_once(tmp_path):
    settings = [
        "--set",
        "execute.kind=ray",
        "--set",
        "execute.address=127.0.0.1:1",
        "--set",
        f"run_dir={tmp_path / 'run'}",
    ]
    (tmp_path / "config.yaml").write_text(json.dumps(SMALL))
    command = [
        sys.executable,
        "-c",
        "from popgraft.cli.app import main; main()",
        "train",
        str(tmp_path / "config.yaml"),
    ]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode
    assert "no Ray cluster answers at execute.address='127.0.0.1:1'" in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "run").exists()
