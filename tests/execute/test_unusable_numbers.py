"""One member's environment gives a number that is not usable: nobody else notices, and nothing of it is left."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import tree
from popgraft.config import load_config
from popgraft.execute import Shard
from popgraft.pbt import Evolution
from popgraft.state import Decision

POP, ENVS, BAD = 3, 2, 1
VALUES = [math.nan, math.inf, -math.inf, 1e30]
PLACES = ["observation", "terminal observation", "reward"]
MODELS = list(itertools.product(["lstm", "gru", "none"], [True, False], ["reward", "returns", "nothing"]))
"""Memory, whether observations are normalised, and what else is."""


class World(gym.Env):
    """Episodes of five steps that end by truncation; `odd` is a place and a number that it gives there, once."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, odd):
        self.odd, self.steps = odd, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        self.time, self.steps = self.time + 1, self.steps + 1
        obs, reward = self.np_random.normal(size=3).astype(np.float32), float(action) + self.np_random.normal()
        place, value = self.odd
        if place == "observation" and self.steps == 13:
            obs[1] = value
        if place == "terminal observation" and self.steps == 15:
            obs[1] = value
        if place == "reward" and self.steps == 13:
            reward = value
        return obs, reward, False, self.time == 5, {}


def shard_of(model, place, value, mode=AutoresetMode.SAME_STEP):
    recurrent, obs, scaled = model
    made = []

    def factory(num_envs):
        odd = (place, value) if len(made) == BAD else ("nowhere", 0)
        made.append(odd)
        kinds = [lambda: World(("nowhere", 0))] * (num_envs - 1) + [lambda: World(odd)]
        return SyncVectorEnv(kinds, autoreset_mode=mode)

    config = load_config(
        {
            "env": {"factory": "not:used", "num_envs": ENVS},
            "model": {
                "n_steps": 8,
                "n_epochs": 1,
                "n_minibatches": 1,
                "normalize_obs": obs,
                "normalize_reward": scaled == "reward",
                "normalize_returns": scaled == "returns",
                "network": {"recurrent": recurrent, "hidden_size": 16, "encoder_layers": [4], "n_quantiles": 3},
            },
            "evaluation": {"episodes": 2},
            "pbt": {"population_size": POP},
            "engine": {"sequence_length": 4, "device": "cpu"},
        }
    )
    hyperparams = Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams())
    return Shard(config, range(POP), hyperparams, factory)


def everything(shard, advance):
    scores = {"mean": advance.scores.mean, "stderr": advance.scores.stderr}
    return dict(tree.items({"member": vars_of(shard.member), "seat": vars_of(shard.seat), **advance.metrics, **scores}))


def vars_of(state):
    return {path: leaf.clone() for path, leaf in tree.items(state)}


def infinite(shard):
    """Leaves with a number that is not finite, but for those that are infinite by their meaning."""
    found = {**vars_of(shard.member), **{f"seat.{name}": leaf for name, leaf in vars_of(shard.seat).items()}}
    meant = ("hyperparams.", "entropy.decay_start")
    return [name for name, leaf in found.items() if not leaf.isfinite().all() and not name.startswith(meant)]


def check(model, place, value):
    calm, odd = shard_of(model, "nowhere", 0), shard_of(model, place, value)
    others = [member for member in range(POP) if member != BAD]
    try:
        for generation in range(2):
            expected, found = calm.advance(2, lambda: False), odd.advance(2, lambda: False)
            assert expected.healthy.all()
            assert found.healthy.tolist() == [True, generation == 1, True]
            if generation == 0:
                name = place if place == "reward" else f"{place} 'obs' at [1]"
                text = f"UnusableNumber: environment 1 gave {np.float32(value):g} as {name};"
                assert list(found.faults) == [BAD]
                assert found.faults[BAD].startswith(text)
            mine, theirs = everything(odd, found), everything(calm, expected)
            for name, leaf in theirs.items():
                torch.testing.assert_close(mine[name][others], leaf[others], atol=0, rtol=0, equal_nan=True, msg=name)
            assert infinite(odd) == []
            if generation == 0:  # a rescue; member 2 is the donor
                parents, heirs = torch.tensor([0, 2, 2]), odd.member.hyperparams
                decision = Decision(parents, {name: column[parents] for name, column in heirs.items()}, {1: "rescue"})
                for shard in (calm, odd):
                    shard.graft(decision, tree.gather(shard.member, parents[[1]]), generation + 1)
    finally:
        calm.close()
        odd.close()


@pytest.mark.parametrize(
    ("place", "value"), [("observation", math.nan), ("terminal observation", math.inf), ("reward", -1e30)]
)
def test_the_others_are_the_same_bit_for_bit_and_nothing_is_left(place, value):
    check(("lstm", True, "reward"), place, value)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_same_with_every_model_place_and_number(model):
    for place, value in itertools.product(PLACES, VALUES):
        check(model, place, value)


def test_an_evaluation_fails_its_own_member_only():
    shards = [shard_of(("none", False, "nothing"), "nowhere", 0) for _ in range(2)]
    calm, odd = (shard.evaluate(5) for shard in shards)
    assert torch.equal(calm.mean, odd.mean)
    for env in shards[1].grids[1]._envs[BAD]._env.envs:
        env.unwrapped.odd, env.unwrapped.steps = ("reward", math.nan), 10
    calm, odd = (shard.evaluate(5) for shard in shards)
    assert odd.mean.isnan().tolist() == [False, True, False]
    assert list(odd.faults) == [BAD]
    assert torch.equal(odd.mean[[0, 2]], calm.mean[[0, 2]])
    assert torch.equal(shards[1].evaluate(5).mean, calm.mean)  # in environments made anew
    for shard in shards:
        shard.close()
