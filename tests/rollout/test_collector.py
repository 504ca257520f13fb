"""A rollout against a replay of every environment by itself, one step and one observation at a time."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.config import load_config
from popgraft.ops.returns import gae
from popgraft.ppo import Learner
from popgraft.ppo.loss import ppo_loss
from popgraft.rollout.batch import minibatches
from popgraft.rollout.collector import Collector
from popgraft.state import Seat

POP, ENVS, TIME, LENGTH = 2, 3, 12, 4
SEEDS = [50, 90]
CPU = torch.device("cpu")


def collected(policy, member, grid, rollouts=2):
    """Some rollouts in a row, and the seat after them."""
    seat = Seat.empty(grid.pop, grid.num_envs, policy.state_size, CPU)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[: grid.pop]]
    grid.reset(range(grid.pop), SEEDS[: grid.pop])
    collector = Collector(policy, grid, TIME, LENGTH, CPU)
    return [tree.map(torch.clone, collector.collect(member, seat, generators)) for _ in range(rollouts)], seat


@pytest.fixture(params=[False, True], ids=["same-step", "next-step"])
def next_step(request):
    return request.param


def with_statistics(member):
    """Gives the normaliser a past."""
    member.normalizer.obs["obs"].mean.copy_(torch.tensor([[0.5, -1, 0], [2, 0, 0.1]]))
    member.normalizer.obs["obs"].var.copy_(torch.tensor([[0.5, 4, 1], [1, 0.1, 2]]))


@pytest.mark.parametrize(
    "network",
    [
        {"recurrent": "lstm", "critic_recurrent": "separate", "recurrent_layers": 2},
        {"recurrent": "gru", "critic_recurrent": "shared"},
        {"recurrent": "none"},
    ],
    ids=lambda network: network["recurrent"],
)
def test_equals_a_replay_of_every_environment_by_itself(network, next_step, play, episodes):
    policy, member, grid = play(episodes, POP, ENVS, next_step, **network)
    with_statistics(member)
    rollouts, seat = collected(policy, member, grid)
    whole = {
        field.name: torch.cat([getattr(rollout, field.name) for rollout in rollouts], dim=1)
        for field in dataclasses.fields(rollouts[0])
        if field.name not in ("obs", "raw_obs")
    }
    shown, raw = (torch.cat([getattr(r, name)["obs"] for r in rollouts], 1) for name in ("obs", "raw_obs"))
    seen_end = set()
    for m, e in np.ndindex(POP, ENVS):
        params = policy.views(member.params[m : m + 1])
        mean, var = (leaf[m].numpy() for leaf in (member.normalizer.obs["obs"].mean, member.normalizer.obs["obs"].var))

        def ask(obs, carry, params=params, mean=mean, var=var):
            x = torch.from_numpy((obs - mean) / np.sqrt(var + 1e-8)).float()
            out = policy.unroll(params, {"obs": x.view(1, 1, 1, 3)}, carry, torch.zeros(1, 1, 1, dtype=torch.bool))
            return x, out, policy.critic.value(policy.predict(params, out.critic)).item()

        env = episodes()
        obs, carry, fresh = env.reset(seed=SEEDS[m] + e)[0], torch.zeros(1, 1, policy.state_size), True
        for t in range(2 * TIME):
            at = (m, t, e)
            if not whole["valid"][at]:  # a finished environment showed its last observation once more, and reset
                assert next_step
                assert whole["end"][m, t - 1, e]
                assert whole["reward"][at] == 0
                assert not whole["end"][at]
                assert not whole["start"][at]
                obs, carry, fresh = env.reset()[0], torch.zeros_like(carry), True
                continue
            assert bool(whole["start"][at]) == fresh
            stored = whole["state"][m, t // LENGTH, e]
            if t % LENGTH == 0 and not fresh:  # at a start the network zeroes what is stored
                torch.testing.assert_close(stored, carry[0, 0], atol=1e-6, rtol=0)
            np.testing.assert_array_equal(raw[at], obs)
            x, out, value = ask(obs, carry)
            torch.testing.assert_close(shown[at], x, atol=1e-6, rtol=0)
            assert whole["value"][at].item() == pytest.approx(value, abs=1e-5)
            log_prob = out.outputs[0, 0, 0].log_softmax(-1)[whole["action"][at][0]]
            assert whole["log_prob"][at].item() == pytest.approx(log_prob.item(), abs=1e-5)
            obs, reward, terminated, truncated, _ = env.step(None)
            carry, fresh = out.state, terminated or truncated
            after = 0 if terminated else ask(obs, carry)[2]
            assert whole["next_value"][at].item() == pytest.approx(after, abs=1e-5)
            assert whole["reward"][at].item() == pytest.approx(reward)
            assert bool(whole["end"][at]) == fresh
            seen_end.add((terminated, truncated, t % LENGTH == LENGTH - 1, t == TIME - 1))
            if fresh and not next_step:
                obs, carry = env.reset()[0], torch.zeros_like(carry)
        effective = seat.carry[m, e] * ~seat.episode_start[m, e]
        if not (next_step and fresh):
            torch.testing.assert_close(effective, carry[0, 0], atol=1e-6, rtol=0)
            assert bool(seat.episode_start[m, e]) == fresh
    # Both kinds of ends were met, at the end of a sequence too.
    assert {(True, False), (False, True)} <= {end[:2] for end in seen_end}
    assert any((end[0] or end[1]) and end[2] for end in seen_end)


def test_both_modes_agree_on_every_real_step(play, episodes):
    steps = []
    for mode in (False, True):
        policy, member, grid = play(episodes, POP, ENVS, mode)
        rollouts, _ = collected(policy, member, grid, rollouts=3)
        real = {name: [[] for _ in range(POP * ENVS)] for name in ("value", "next_value", "reward", "end", "start")}
        for rollout in rollouts:
            for name, columns in real.items():
                for column, (m, e) in zip(columns, np.ndindex(POP, ENVS), strict=True):
                    column += getattr(rollout, name)[m, :, e][rollout.valid[m, :, e] == 1].tolist()
        steps.append(real)
    for name, columns in steps[0].items():
        for same, following in zip(columns, steps[1][name], strict=True):
            assert len(following) < len(same)
            assert same[: len(following)] == pytest.approx(following, abs=1e-5)


def test_every_rollout_goes_on_where_the_last_one_stopped(play, episodes, next_step):
    policy, member, grid = play(episodes, POP, ENVS, next_step)
    (first, second), seat = collected(policy, member, grid)
    going = ~(first.end[:, -1] | second.start[:, 0])
    assert going.any()
    torch.testing.assert_close(first.next_value[:, -1][going], second.value[:, 0][going], atol=1e-6, rtol=0)
    assert seat.carry.any()


def test_dummy_steps_influence_nothing(play, episodes):
    policy, member, grid = play(episodes, POP, ENVS, next_step=True)
    (rollout,), seat = collected(policy, member, grid, rollouts=1)
    dummy = rollout.valid == 0
    assert dummy.any(dim=(1, 2)).all()
    settings = {"n_steps": TIME, "n_minibatches": 1, "normalize_reward": False}
    learner = Learner(policy, load_config({"env": {"id": "CartPole-v1"}, "model": settings}))

    def learned(rollout):
        samples, _ = learner.prepare_(member, tree.map(torch.clone, seat), rollout)
        spoilt = dummy & (rollout.reward != 0)
        for x in (samples.advantage, samples.target, samples.log_prob):
            x[spoilt] += 3
        flat = member.params.clone().requires_grad_()
        order = torch.arange(ENVS * TIME // LENGTH).expand(POP, -1)
        (batch,) = minibatches(samples, rollout.state, order, 1)
        loss, metrics = ppo_loss(policy, policy.views(flat), batch, member.hyperparams, learner.form)
        return [samples.advantage[~dummy], loss.detach(), *metrics.values(), *torch.autograd.grad(loss.sum(), flat)]

    calm = learned(rollout)
    rollout.reward[dummy] = 99.0
    for a, b in zip(calm, learned(rollout), strict=True):
        assert torch.equal(a, b)


def test_an_unfinished_episode_is_bootstrapped_from_what_follows(play, episodes):
    """γ = λ = 1 and no end: the λ-return is the sum of rewards plus the value after the last step."""
    policy, member, grid = play(episodes, POP, ENVS)
    (rollout,), _ = collected(policy, member, grid, rollouts=1)
    one = torch.ones(POP)
    advantage = gae(rollout.reward, rollout.value, rollout.next_value, rollout.end, one, one)
    for m, e in np.ndindex(POP, ENVS):
        ends = rollout.end[m, :, e].nonzero().flatten().tolist()
        first = ends[-1] + 1 if ends else 0
        if first < TIME:
            expected = rollout.reward[m, first:, e].sum() + rollout.next_value[m, -1, e]
            found = advantage[m, first, e] + rollout.value[m, first, e]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_box_is_stored_as_drawn_and_clipped_for_the_environment_only(play):
    heard = []

    class Listening(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(3, np.float32), {}

        def step(self, action):
            heard.append(np.array(action))
            return np.zeros(3, np.float32), 0.0, False, False, {}

    policy, member, grid = play(Listening, 1, 1)
    (rollout,), _ = collected(policy, member, grid, rollouts=1)
    stored = rollout.action[0, :, 0].numpy()
    assert np.abs(stored).max() > 0.5
    np.testing.assert_array_equal(np.clip(stored, -0.5, 0.5), heard)


def test_members_draw_their_noise_from_their_own_generators(play, episodes):
    policy, member, grid = play(episodes, POP, ENVS)
    (both,), _ = collected(policy, member, grid, rollouts=1)
    policy, alone, grid = play(episodes, 1, ENVS)
    (single,), _ = collected(policy, alone, grid, rollouts=1)
    assert torch.equal(both.action[:1], single.action)
    assert not torch.equal(both.action[0], both.action[1])
