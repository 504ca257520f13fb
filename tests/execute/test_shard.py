"""The population laws for all that happens between two decisions, on real environments.

In single precision a stacked run and a run by itself may differ in rounding, because batched products choose their
order of summation by the number and the place of the matrices. Over two updates this stays below `CLOSE`, and no action
is drawn differently, so everything that is compared across populations is compared with that tolerance; within one
population everything is exact.
"""

import math

import pytest
import torch

from popgraft import tree
from popgraft.execute import Shard
from popgraft.ppo.plasticity import NAMES
from popgraft.state import Decision

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
UPDATES = 2


@pytest.fixture(params=["CartPole", "Pendulum"])
def env(request):
    return request.param


@pytest.fixture
def make(env, configured, initial):
    """Makes a shard of some members of a population."""
    shards = []

    def make(members, *overrides, pop=3, **settings):
        config = configured(env, *overrides, pop=pop)
        shards.append(Shard(config, members, initial(config), **settings))
        return shards[-1]

    yield make
    for shard in shards:
        shard.close()


def never():
    return False


def outcome(shard, advance):
    """Everything that an advance leaves behind: [pop, ...] tensors by name."""
    scores = advance.scores
    return {
        **dict(tree.items(shard.member)),
        **dict(tree.items(shard.seat)),
        **advance.metrics,
        "score": scores.mean,
        "stderr": scores.stderr,
        "episodes": scores.episodes,
        "healthy": advance.healthy,
    }


def advanced(shard):
    return outcome(shard, shard.advance(UPDATES, never))


def check_close(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        torch.testing.assert_close(
            leaf, expected[name], equal_nan=True, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


def rows(found, index):
    return {name: leaf[index] for name, leaf in found.items()}


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        torch.testing.assert_close(leaf, expected[name], equal_nan=True, atol=0, rtol=0)


def test_stacked_equals_a_loop_of_singles(make):
    whole = advanced(make([0, 1, 2]))
    assert whole["episodes"].min() > 0
    assert (whole["age"] == UPDATES).all()
    for m in range(3):
        check_close(advanced(make([m])), rows(whole, [m]))


def test_permuting_members_permutes_everything(make):
    order = [2, 0, 1]
    check_close(advanced(make(order)), rows(advanced(make([0, 1, 2])), order))


def test_a_member_does_not_depend_on_the_populations_size(make):
    check_close(advanced(make([0, 1], pop=2)), rows(advanced(make(range(5), pop=5)), [0, 1]))


def test_the_same_seed_twice_is_the_same_bit_for_bit(make):
    first, second = make([0, 1, 2]), make([0, 1, 2])
    check_equal(advanced(first), advanced(second))
    check_equal(vars_of(first.evaluate(8)), vars_of(second.evaluate(8)))


def vars_of(scores):
    return {"mean": scores.mean, "stderr": scores.stderr, "episodes": scores.episodes}


def test_another_seed_is_another_run(make):
    first, second = make([0, 1, 2]), make([0, 1, 2], "seed=6")
    assert (first.member.params != second.member.params).any(1).all()
    assert (first.grid.observations["obs"] != second.grid.observations["obs"]).any()


def test_members_differ_from_each_other(make):
    whole = advanced(make([0, 1, 2]))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(whole["params"][a], whole["params"][b])
        assert not torch.equal(whole["carry"][a], whole["carry"][b])


def test_a_member_that_breaks_down_spoils_nobody(make):
    calm, shard = make([0, 1, 2]), make([0, 1, 2])
    shard.member.params[1] = math.nan
    expected, found = advanced(calm), advanced(shard)
    check_equal(rows(found, [0, 2]), rows(expected, [0, 2]))
    assert found["healthy"].tolist() == [True, False, True]
    expected, found = vars_of(calm.evaluate(8)), vars_of(shard.evaluate(8))
    check_equal(rows(found, [0, 2]), rows(expected, [0, 2]))


def test_evaluation_leaves_training_as_it_is(make):
    calm, shard = make([0, 1, 2]), make([0, 1, 2])
    calm.advance(1, never)
    shard.advance(1, never)
    assert torch.equal(shard.evaluate(8).mean, shard.evaluate(8).mean)
    check_equal(advanced(calm), advanced(shard))


def test_updates_in_parts_are_the_same_updates(make):
    """Stopping between two updates costs nothing but the split."""
    whole, parts = make([0, 1, 2]), make([0, 1, 2])
    together = whole.advance(2, never)
    first, second = parts.advance(5, lambda: True), parts.advance(1, never)
    assert (first.steps, together.steps) == (3 * 4 * 16, 2 * 3 * 4 * 16)
    for name in together.metrics.keys() - set(NAMES):  # plasticity is measured once in either part
        leaf = together.metrics[name]
        torch.testing.assert_close(
            torch.cat([first.metrics[name], second.metrics[name]], 1), leaf, equal_nan=True, atol=0, rtol=0
        )
    for t in ("member", "seat"):
        for (_, a), (_, b) in zip(tree.items(getattr(whole, t)), tree.items(getattr(parts, t)), strict=True):
            assert torch.equal(a, b)


def graft(shard, parents, generation=1, **changed):
    hyperparams = {name: values[torch.tensor(parents)] for name, values in shard.member.hyperparams.items()} | changed
    decision = Decision(torch.tensor(parents), hyperparams, {})
    shard.graft(decision, tree.gather(shard.member, decision.parents[decision.recipients]), generation)


def test_a_graft_is_a_deep_copy_with_new_hyperparameters_and_a_fresh_seat(make):
    shard = make([0, 1, 2])
    shard.advance(UPDATES, never)
    before, seat = tree.map(torch.clone, shard.member), tree.map(torch.clone, shard.seat)
    rate = torch.tensor([0.1, 0.2, 0.3])
    graft(shard, [0, 0, 2], learning_rate=rate)
    for path, leaf in tree.items(shard.member):
        if path == "hyperparams.learning_rate":
            assert torch.equal(leaf, rate)
        else:
            expected = dict(tree.items(before))[path]
            assert torch.equal(leaf, expected[[0, 0, 2]]), path
    for path, leaf in tree.items(shard.seat):
        old = dict(tree.items(seat))[path]
        assert torch.equal(leaf[[0, 2]], old[[0, 2]]), path
        assert torch.equal(leaf[1], torch.full_like(leaf[1], path == "episode_start")), path
    shard.member.params[0].zero_()
    assert torch.equal(shard.member.params[1], before.params[0])


def test_donor_and_recipient_may_swap(make):
    shard = make([0, 1, 2])
    before = shard.member.params.clone()
    graft(shard, [1, 0, 2])
    assert torch.equal(shard.member.params, before[[1, 0, 2]])


def test_survivors_do_not_notice_a_graft(make):
    calm, shard = make([0, 1, 2]), make([0, 1, 2])
    for each in (calm, shard):
        each.advance(1, never)
    graft(shard, [0, 0, 2])
    found, expected = advanced(shard), advanced(calm)
    check_equal(rows(found, [0, 2]), rows(expected, [0, 2]))
    assert not torch.equal(found["params"][1], expected["params"][1])


def test_a_fresh_seat_depends_on_generation_and_place_alone(make):
    shards = [make([0, 1, 2]) for _ in range(3)]
    shards[0].advance(1, never)  # another past
    for shard, generation in zip(shards, (1, 1, 2), strict=True):
        graft(shard, [0, 0, 2], generation)
    seen = [shard.grid.observations["obs"][1].copy() for shard in shards]
    drawn = [torch.rand(4, generator=shard.generators[1]) for shard in shards]
    assert (seen[0] == seen[1]).all()
    assert torch.equal(drawn[0], drawn[1])
    assert (seen[0] != seen[2]).any()
    assert not torch.equal(drawn[0], drawn[2])


def test_training_scores_are_the_returns_of_finished_episodes(configured, initial):
    """CartPole pays 1 a step, so returns are lengths; they are counted here from the environments' own words."""
    config = configured("CartPole", "env.wrappers=[]", "model.n_steps=64")
    shard = Shard(config, [0, 1, 2], initial(config))
    ended, running = [[], [], []], [[0] * 4 for _ in range(3)]
    step = shard.grid.step

    def counting(actions):
        transition = step(actions)
        for m in range(3):
            for e in range(4):
                running[m][e] += int(transition.valid[m, e])
                if transition.terminated[m, e] or transition.truncated[m, e]:
                    ended[m].append(running[m][e])
                    running[m][e] = 0
        return transition

    shard.grid.step = counting
    first = shard.advance(1, never)
    after_first = [list(own) for own in ended]
    second = shard.advance(1, never)
    for m in range(3):
        for advance, lengths in ((first, after_first[m]), (second, ended[m][len(after_first[m]) :])):
            lengths = torch.tensor(lengths).float()
            assert advance.scores.episodes[m] == len(lengths)
            torch.testing.assert_close(advance.scores.mean[m], lengths.mean())
            torch.testing.assert_close(advance.scores.stderr[m], lengths.std() / len(lengths) ** 0.5)
            for name in ("ep_rew_mean", "ep_len_mean"):
                torch.testing.assert_close(advance.metrics[name][m, 0], lengths.mean())
    assert shard.seat.episode_return.tolist() == running
    assert shard.seat.episode_length.tolist() == running
    shard.close()
