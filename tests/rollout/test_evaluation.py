"""Scores of environments whose returns are known in advance."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft.rollout.evaluation import NOISE_BLOCK, evaluate

SEEDS = [50, 90]


class Known(gym.Env):
    """Pays 1 at every step of an episode as long as the last digit of its seed plus 1; later episodes pay 1000."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    failing_seed, failing_step = None, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.pay, self.steps = seed, 1.0, 0
        else:
            self.pay = 1000.0
        self.remaining = self.seed % 10 + 1
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        if self.seed == self.failing_seed and self.steps == self.failing_step:
            raise RuntimeError("out of order")
        self.remaining -= 1
        end = self.remaining == 0
        return self._observe(), self.pay, end and self.seed % 2 == 0, end and self.seed % 2 == 1, {}

    def _observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Voting(Known):
    """Pays 1 for action 1 only."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(action), terminated, truncated, info


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_environment_counts_with_its_first_episode(play, next_step, deterministic):
    policy, member, grid = play(Known, 2, 4, next_step)
    scores = evaluate(policy, member, grid, [50, 96], deterministic, max_steps=1000)
    # Episodes of seeds 50 … 53 pay 1 2 3 4, of 96 … 99 pay 7 8 9 10.
    # The deviation of four consecutive numbers is √(5/3); the standard error √(5/3)/√4.
    assert scores.mean.tolist() == [2.5, 8.5]
    assert scores.stderr.tolist() == pytest.approx([math.sqrt(5 / 12)] * 2)
    assert scores.episodes.tolist() == [4, 4]
    assert scores.steps == 1 + 2 + 3 + 4 + 7 + 8 + 9 + 10
    assert scores.faults == {}


def test_a_single_episode_has_no_standard_error(play):
    policy, member, grid = play(Known, 2, 1)
    scores = evaluate(policy, member, grid, SEEDS, True, max_steps=1000)
    assert scores.mean.tolist() == [1, 1]
    assert scores.stderr.tolist() == [0, 0]


def test_an_unfinished_episode_counts_as_it_stands(play):
    policy, member, grid = play(Known, 2, 4)
    scores = evaluate(policy, member, grid, [50, 96], True, max_steps=3)
    assert scores.mean.tolist() == [(1 + 2 + 3 + 3) / 4, 3]


def test_equal_seeds_are_equal_episodes(play, episodes):
    policy, member, grid = play(episodes, 2, 5)
    same = evaluate(policy, member, grid, [50, 50], True, max_steps=100)
    assert same.mean[0] == same.mean[1]
    assert same.stderr[0] == same.stderr[1]
    other = evaluate(policy, member, grid, [50, 60], True, max_steps=100)
    assert other.mean[0] == same.mean[0]
    assert other.mean[0] != other.mean[1]


def test_an_evaluation_can_be_repeated_and_leaves_the_member_alone(play):
    policy, member, grid = play(Voting, 2, 4)
    before = member.params.clone()
    stochastic = [evaluate(policy, member, grid, SEEDS, False, max_steps=100) for _ in range(2)]
    assert torch.equal(stochastic[0].mean, stochastic[1].mean)
    assert torch.equal(member.params, before)


def test_the_most_likely_action_or_a_drawn_one(play):
    """One member all but never votes, the other all but always; of a fair coin, about half the votes are 1."""
    policy, member, grid = play(Voting, 3, 100)
    bias = policy.views(member.params)["head"]["linear"]["bias"]
    policy.views(member.params)["head"]["linear"]["weight"].zero_()
    bias.copy_(torch.tensor([[0.0, -9], [-9, 0], [0, 0.01]]))
    length = np.mean([seed % 10 + 1 for seed in range(50, 150)])
    certain = evaluate(policy, member, grid, [50] * 3, True, max_steps=100).mean
    torch.testing.assert_close(certain, torch.tensor([0, length, length]).float())
    drawn = evaluate(policy, member, grid, [50] * 3, False, max_steps=100).mean / length
    torch.testing.assert_close(drawn, torch.tensor([0, 1, 0.5]), atol=0.1, rtol=0)


def test_noise_goes_on_beyond_its_block(play):
    class Long(Voting):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            self.remaining = 2 * NOISE_BLOCK
            return obs, info

        def step(self, action):
            votes.append(int(action))
            return super().step(action)

    votes = []
    policy, member, grid = play(Long, 1, 1)
    policy.views(member.params)["head"]["linear"]["weight"].zero_()
    policy.views(member.params)["head"]["linear"]["bias"].zero_()
    evaluate(policy, member, grid, SEEDS[:1], False, max_steps=1000)
    assert len(votes) == 2 * NOISE_BLOCK
    assert votes[:NOISE_BLOCK] != votes[NOISE_BLOCK:]


def test_actions_are_those_of_a_replay(play):
    """The recurrent state is carried from step to step; a replay that forgets it acts differently."""

    class Listening(Known):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            self.remaining = 60
            return obs, info

        def step(self, action):
            heard.append(int(action))
            return super().step(action)

    heard = []
    policy, member, grid = play(Listening, 1, 1)
    params = policy.views(member.params)
    params["actor_memory"]["layer0"]["weight_hh"].mul_(4)
    params["head"]["linear"]["bias"].zero_()
    evaluate(policy, member, grid, SEEDS[:1], True, max_steps=1000)

    def replay(remember):
        env, actions, carry = Listening(), [], torch.zeros(1, 1, policy.state_size)
        obs, ended = env.reset(seed=SEEDS[0])[0], False
        while not ended:
            x = torch.from_numpy(obs / np.sqrt(1 + 1e-8)).float().view(1, 1, 1, 2)
            out = policy.unroll(params, {"obs": x}, carry, torch.zeros(1, 1, 1, dtype=torch.bool))
            carry = out.state * remember
            actions.append(int(out.outputs.argmax()))
            obs, _, terminated, truncated, _ = Known.step(env, actions[-1])
            ended = terminated or truncated
        return actions

    assert len(heard) == 60
    assert heard == replay(remember=1)
    assert heard != replay(remember=0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_failing_environment_is_its_own_members_affair(play, deterministic, monkeypatch):
    policy, member, grid = play(Known, 2, 4)
    calm = evaluate(policy, member, grid, [50, 96], deterministic, max_steps=100)
    monkeypatch.setattr(Known, "failing_seed", 98)
    monkeypatch.setattr(Known, "failing_step", 5)
    scores = evaluate(policy, member, grid, [50, 96], deterministic, max_steps=100)
    assert scores.mean[0] == calm.mean[0]
    assert scores.mean[1].isnan()
    assert scores.faults == {1: "RuntimeError: out of order"}
    monkeypatch.undo()
    again = evaluate(policy, member, grid, [50, 96], deterministic, max_steps=100)
    assert torch.equal(again.mean, calm.mean)


def test_a_failure_after_the_last_episode_is_over_does_not_count(play, monkeypatch):
    """How long the others go on playing must not decide about a member's score."""
    policy, member, grid = play(Known, 2, 4)
    monkeypatch.setattr(Known, "failing_seed", 50)
    monkeypatch.setattr(Known, "failing_step", 6)
    scores = evaluate(policy, member, grid, [50, 96], True, max_steps=100)
    assert scores.mean.tolist() == [2.5, 8.5]
    assert scores.faults == {}


@pytest.mark.parametrize("next_step", [False, True])
def test_who_has_finished_is_not_played_any_further(play, next_step):
    class Counted(Known):
        def step(self, action):
            steps[self.seed] = steps.get(self.seed, 0) + 1
            return super().step(action)

    policy, member, grid = play(Counted, 2, 4, next_step)
    for _ in range(2):  # the second time too: whoever rests does so until the next reset
        steps = {}
        scores = evaluate(policy, member, grid, [50, 96], True, max_steps=100)
        assert scores.mean.tolist() == [2.5, 8.5]
        assert max(steps[seed] for seed in range(50, 54)) == 4
        assert steps[99] == 10


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_gives_no_finite_score(play, reward):
    class Odd(Known):
        def step(self, action):
            obs, pay, terminated, truncated, info = super().step(action)
            return obs, reward if self.seed == 98 else pay, terminated, truncated, info

    policy, member, grid = play(Odd, 2, 4)
    scores = evaluate(policy, member, grid, [50, 96], True, max_steps=100)
    assert scores.mean.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
def test_the_critics_memory_does_not_matter(play, critic):
    """What stands between the environments and the agents and changes nothing brings in the critic, and nothing else."""
    given = *play(Voting, 2, 4, critic_recurrent=critic), SEEDS[:1] * 2, True, 100
    seen = []

    def look(params, obs, state, start):
        seen.append(state.shape[-1])
        return obs

    plain, looked = evaluate(*given), evaluate(*given, look)
    assert torch.equal(plain.mean, looked.mean)
    assert set(seen) == {given[0].state_size}


def test_members_are_scored_as_if_alone(play):
    policy, member, grid = play(Voting, 2, 8)
    both = evaluate(policy, member, grid, SEEDS, False, max_steps=100)
    policy, alone, grid = play(Voting, 1, 8)
    assert torch.equal(evaluate(policy, alone, grid, SEEDS[:1], False, max_steps=100).mean, both.mean[:1])


def test_a_member_with_weights_that_are_not_finite_spoils_nobody(play):
    policy, member, grid = play(Voting, 2, 8)
    calm = evaluate(policy, member, grid, SEEDS, False, max_steps=100)
    member.params[1] = math.nan
    spoilt = evaluate(policy, member, grid, SEEDS, False, max_steps=100)
    assert torch.equal(calm.mean[:1], spoilt.mean[:1])
