"""Shards that do not wait for each other, on a real Ray cluster: exact grafts, complete records, no member lost."""

import contextlib
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from popgraft import ConfigError, resume, tree
from popgraft.execute import InlineExecutor, Loss
from popgraft.rng import derive
from popgraft.state import Decision, Record, Scores
from popgraft.train import train

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

from popgraft.execute.ray_async import AsyncRayExecutor  # noqa: E402  # needs ray
from popgraft.execute.ray_shard import RayShard  # noqa: E402

from .disturbed import ASYNC, InUpdate, losses, process_of, send  # noqa: E402


def everyone(executor):
    return tree.map(torch.clone, executor.export(torch.arange(4)))


def check_same(found, expected):
    for (path, leaf), (_, other) in zip(tree.items(found), tree.items(expected), strict=True):
        torch.testing.assert_close(leaf, other, atol=0, rtol=0, equal_nan=True, msg=lambda text, p=path: f"{p}: {text}")


def parts_of(executor):
    """One generation of both shards, which finish it in any order."""
    parts = [executor.next(lambda _: None, lambda: False) for _ in executor.shards]
    return sorted(parts, key=lambda part: int(part.members[0]))


def test_without_haste_it_makes_no_difference(configured, initial):
    """Where the decisions are those of shards in step, so are members, metrics and scores: equal to the bit."""
    settings = ["execute.sizes=[2, 2]", "pbt.perturbation_interval=2"]
    local = configured("CartPole", *settings, pop=4)
    config = configured("CartPole", *settings, "execute.kind=ray", "execute.mode=async", pop=4)
    inline = InlineExecutor(local, initial(local))
    with contextlib.closing(inline), contextlib.closing(AsyncRayExecutor(config, initial(config))) as actors:
        check_same(everyone(actors), everyone(inline))
        score = torch.zeros(1)
        record = Record(inline.export(torch.tensor([3])), Scores(score, score, score.long()), 0, 3)
        actors.begin(torch.zeros(4, dtype=torch.long))
        for generation, parents in enumerate(([1, 1, 2, 3], [2, 3, 2, 3], [4, 3, 3, 3], [0, 1, 2, 1]), 1):
            found, expected = parts_of(actors), inline.advance(2, lambda: False)
            for name, values in expected.metrics.items():
                both = torch.cat([part.advance.metrics[name] for part in found])
                torch.testing.assert_close(both, values, atol=0, rtol=0, equal_nan=True)
            scores = inline.evaluate(derive(local.seed, "evaluation", generation - 1))
            assert torch.equal(torch.cat([part.scores.mean for part in found]), scores.mean)
            check_same(everyone(actors), everyone(inline))
            before = {name: torch.cat([values, values[:1]]) for name, values in everyone(inline).hyperparams.items()}
            reasons = {member: "truncation" for member in range(4) if parents[member] != member}
            hyperparams = {name: values[torch.tensor(parents)] for name, values in before.items()}
            explored = torch.tensor([member in reasons for member in range(4)])
            hyperparams["clip_range"][explored] += 0.05
            decision = Decision(torch.tensor(parents), hyperparams, reasons)
            best = record if 4 in parents else None
            rounds = torch.full((4,), generation)
            inline.graft(decision, int(rounds.sum()), best)
            for members in actors.parts:
                actors.inherit(members, decision, rounds, best)
            check_same(everyone(actors), everyone(inline))  # before any actor has carried it out
        for found, expected in zip(actors.vectors(), inline.vectors(), strict=True):
            assert torch.equal(found, expected)


def test_who_takes_a_lost_ones_place_repeats_its_generation(configured, initial):
    """Also where the actor dies in the middle of a graft: the members are those of a run without the loss."""
    settings = ["execute.sizes=[2, 2]", "pbt.perturbation_interval=2"]
    local = configured("CartPole", *settings, pop=4)
    config = configured("CartPole", *settings, "execute.kind=ray", "execute.mode=async", pop=4)
    inline = InlineExecutor(local, initial(local))
    with contextlib.closing(inline), contextlib.closing(AsyncRayExecutor(config, initial(config))) as actors:
        hyperparams = {**initial(config), "learning_rate": torch.full((4,), 1e-3)}
        decision = Decision(torch.tensor([0, 1, 0, 3]), hyperparams, {2: "truncation"})
        inline.graft(decision, 1)
        rounds = torch.zeros(4, dtype=torch.long)
        actors.inherit([2, 3], decision, rounds)
        os.kill(process_of(actors, 1), signal.SIGKILL)
        loss = actors.next(lambda _: None, lambda: False)
        assert isinstance(loss, Loss)
        assert loss.members == [2, 3]
        assert actors.rebuild(loss, rounds) == [2, 3]
        part = actors.next(lambda _: None, lambda: False)
        assert part.members.tolist() == [2, 3]
        assert part.advance.metrics["value_loss"].shape == (2, 2)
        # Its seats are others than without the loss, so what was inherited shows where nothing is learned.
        found, expected = actors.export(torch.tensor([2, 3])), inline.export(torch.tensor([2, 3]))
        assert torch.equal(found.hyperparams["learning_rate"], expected.hyperparams["learning_rate"])
        assert torch.equal(found.age, expected.age + 2)


class Ages:
    """Generations of training behind every state of a run, from its lineage."""

    def __init__(self, run):
        self.parents = {(graft.generation, graft.member): graft for graft in run.lineage}
        self.known = {}

    def before(self, generation, member):
        """Of the state with which a member begins a generation."""
        graft = self.parents.get((generation - 1, member))
        return self(graft.parent_generation, graft.parent) if graft else self(generation - 1, member)

    def __call__(self, generation, member):
        """Of the state with which it ends it."""
        if generation >= 0 and (generation, member) not in self.known:
            self.known[generation, member] = 1 + self.before(generation, member)
        return self.known.get((generation, member), 0)


def check_complete(run, generations=6):
    """Every generation of every place is on record, and nobody was compared with somebody much older or younger."""
    numbers = {member: [s.generation for s in run.scores if s.member == member] for member in range(4)}
    assert all(found == list(range(len(found))) for found in numbers.values())
    rounds = [len(found) for found in numbers.values()]
    assert run.is_finished
    assert sum(rounds) // 4 == generations
    assert all(score.steps == 64 * (score.generation + 1) for score in run.scores)
    age = Ages(run)
    for graft in run.lineage:
        assert graft.parent_score >= graft.score_before  # of equal scores, returns in training decide
        assert abs(age(graft.parent_generation, graft.parent) - age(graft.generation, graft.member)) <= 1
    last = {}
    for file in (run.folder.snapshots / "last").glob("*.safetensors"):
        last |= load_file(file)
    assert last["params"].isfinite().all()
    expected = [2 * age.before(number, member) for member, number in enumerate(rounds)]
    assert last["age"].tolist() == expected  # grafts after the last generation included
    return rounds


def slow_in_one_process(folder):
    """Makes environments that are slow in the process that asks first."""

    def factory(num_envs):
        import gymnasium

        class Slow(gymnasium.vector.VectorWrapper):
            def step(self, actions):
                time.sleep(0.05)
                return super().step(actions)

        envs = gymnasium.make_vec("CartPole-v1", num_envs=num_envs)
        with contextlib.suppress(FileExistsError):
            (folder / "first").symlink_to(str(os.getpid()))
        return Slow(envs) if os.readlink(folder / "first") == str(os.getpid()) else envs

    return factory


def test_a_slow_shard_holds_nobody_up(tmp_path):
    """Fast members do most of the work, and are not compared with those that have hardly begun."""
    config = {**ASYNC, "env": {"num_envs": 2, "factory": "not:used"}, "run_dir": str(tmp_path / "run")}
    config["pbt"] = {**ASYNC["pbt"], "ready_percentage": 0.8, "ready_check_max_wait": 2}
    run = train(config, factory=slow_in_one_process(tmp_path))
    rounds = check_complete(run)
    assert max(rounds) >= 2 * min(rounds)
    fast = rounds.index(max(rounds)) // 2
    assert any(graft.member // 2 == fast for graft in run.lineage)  # few are ready, and go on in the end


@pytest.mark.parametrize("places", [(1,), (0, 1)])
def test_actors_killed_in_an_update(places, monkeypatch, tmp_path):
    run = train(
        ASYNC, [f"run_dir={tmp_path / 'run'}"], observer=InUpdate(monkeypatch, 9, send(signal.SIGKILL, *places))
    )
    check_complete(run)
    texts = losses(run)
    assert len(texts) == len(places)
    assert all("are rebuilt, and begin their generation again" in text for text in texts)


def test_an_actor_killed_in_a_graft(monkeypatch, tmp_path):
    original, done = AsyncRayExecutor.inherit, []

    def inherit(self, members, decision, *arguments):
        original(self, members, decision, *arguments)
        if decision.reasons and not done:
            done.append(members)
            send(signal.SIGKILL, self.parts.index(members))(self)

    monkeypatch.setattr(AsyncRayExecutor, "inherit", inherit)
    run = train(ASYNC, [f"run_dir={tmp_path / 'run'}"])
    check_complete(run)
    assert len(losses(run)) == len(done) == 1


def test_an_actor_killed_before_its_members_are_safe(monkeypatch, tmp_path):
    """It has laid them ready, but Ray has not got them yet: the generation is trained again."""
    original, calls = RayShard.fetch, []

    def fetch(self, count):
        calls.append(self.members)
        if len(calls) == 7:
            pid = ray.get(self._actor.__ray_call__.options(concurrency_group="inbox").remote(lambda _: os.getpid()))
            os.kill(pid, signal.SIGKILL)
        return original(self, count)

    monkeypatch.setattr(RayShard, "fetch", fetch)
    run = train(ASYNC, [f"run_dir={tmp_path / 'run'}"])
    check_complete(run)
    assert len(losses(run)) == 1


def test_an_actor_killed_in_a_snapshot(monkeypatch, tmp_path):
    """The snapshot is of what lies ready, so that it is whole."""
    original, calls = AsyncRayExecutor.checkpoint, []

    def checkpoint(self, rounds):
        calls.append(self)
        if len(calls) == 2:
            send(signal.SIGKILL, 0)(self)
        return original(self, rounds)

    monkeypatch.setattr(AsyncRayExecutor, "checkpoint", checkpoint)
    run = train(ASYNC, [f"run_dir={tmp_path / 'run'}"])
    check_complete(run)
    assert len(losses(run)) == 1


def test_an_actor_that_hangs(monkeypatch, tmp_path):
    """The others go on meanwhile."""
    observer = InUpdate(monkeypatch, 9, send(signal.SIGSTOP, 1))
    steps = 5 * ASYNC["total_timesteps"]
    settings = [f"run_dir={tmp_path / 'run'}", "execute.timeout=5", f"total_timesteps={steps}"]
    run = train(ASYNC, settings, observer=observer)
    rounds = check_complete(run, 30)
    assert max(rounds) > min(rounds)
    assert "has not been heard of for 5 seconds" in losses(run)[0]


def test_an_actor_that_is_lost_again_and_again_ends_the_run(monkeypatch, tmp_path):
    observer = InUpdate(monkeypatch, 9, send(signal.SIGKILL, 1), always=True)
    with pytest.raises(Exception, match="the 3rd time in one generation, so the run ends"):
        train(ASYNC, [f"run_dir={tmp_path / 'run'}"], observer=observer)
    monkeypatch.undo()
    check_complete(resume(tmp_path / "run"))


def test_a_run_goes_on_where_every_shard_was(tmp_path):
    """Also with more shards; in step only where all have come equally far."""
    half = ASYNC["total_timesteps"] // 2
    factory = slow_in_one_process(tmp_path)
    config = {**ASYNC, "env": {"num_envs": 2, "factory": "not:used"}, "run_dir": str(tmp_path / "run")}
    first = train(config, {"total_timesteps": half}, factory=factory)
    before = [(score.generation, score.member, score.score) for score in first.scores]
    whole = {"total_timesteps": ASYNC["total_timesteps"]}
    with pytest.raises(ConfigError, match="some members have trained for"):
        resume(first.path, {**whole, "execute.mode": "lockstep"}, factory=factory)
    run = resume(first.path, {**whole, "execute.shards": 4}, factory=factory)
    check_complete(run)
    after = {(score.generation, score.member): score.score for score in run.scores}
    assert all(after[generation, member] == score for generation, member, score in before)


def test_who_fails_before_anybody_has_a_score_waits_for_a_rescue(tmp_path):
    """The first shard that has trained for a generation is the one whose environment fails."""

    def factory(num_envs):
        import gymnasium

        class Failing(gymnasium.vector.VectorWrapper):
            def step(self, actions):
                raise RuntimeError("once only")

        class Slow(gymnasium.vector.VectorWrapper):
            def step(self, actions):
                time.sleep(0.05)
                return super().step(actions)

        envs = gymnasium.make_vec("CartPole-v1", num_envs=num_envs)
        try:
            (tmp_path / "failed").touch(exist_ok=False)
        except FileExistsError:
            return Slow(envs)
        return Failing(envs)

    config = {**ASYNC, "env": {"num_envs": 2, "factory": "not:used"}, "run_dir": str(tmp_path / "run")}
    run = train(config, {"execute.shards": 4}, factory=factory)
    assert run.is_finished
    told = [event.kind for event in run.events if event.kind in ("environment", "waiting", "rescue")]
    assert told[:2] == ["environment", "waiting"]
    assert told[-1] == "rescue"
