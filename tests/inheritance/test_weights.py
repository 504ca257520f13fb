"""Weights that a graft renews: θ ← λθ + σθ₀, by hand and through everybody who carries out grafts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from popgraft import (
    ConfigError,
    DistributionalPPO,
    PBTAdversarialConfig,
    PBTConfig,
    PBTScheduler,
    PBTTrainingCoordinator,
    load_config,
    resume,
    train,
)
from popgraft.execute import InlineExecutor
from popgraft.execute.process import ProcessExecutor
from popgraft.inheritance import renewed
from popgraft.pbt import Choice, Evolution
from popgraft.state import Renewal

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

PARENTS = torch.tensor([1, 1, 2, 0])
"""Members 0 and 3 are recipients."""
GENERATION = 4 * 2 * 8


def settings(**pbt: Any) -> dict[str, Any]:
    return {
        "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
        "model": {
            "n_steps": 8,
            "n_epochs": 1,
            "n_minibatches": 1,
            "network": {"encoder_layers": [4], "recurrent": "none", "head_layers": []},
        },
        "pbt": {"population_size": 4, "perturbation_interval": 1, "hyperparams": [], "truncation_ratio": 0.25, **pbt},
        "evaluation": {"episodes": 2, "final_episodes": 2, "max_steps": 12},
        "engine": {"device": "cpu"},
        "execute": {"shards": 1},
        "seed": 4,
    }


@pytest.fixture
def grafted():
    """Weights before and after a graft in some generation."""
    executors = []

    def make(generation=1, shards=1, choice=None, kind=InlineExecutor, **pbt):
        config = load_config(settings(**pbt))
        initial = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
        executor = kind(config, initial, shards=shards)
        executors.append(executor)
        everyone = torch.arange(4)
        before = executor.export(everyone)
        decision = (choice or Choice(PARENTS)).decision(before.hyperparams, None, config.pbt)
        executor.graft(decision, generation)
        return before.params, executor.export(everyone).params

    yield make
    for executor in executors:
        executor.close()


def test_the_arithmetic_of_two_rows():
    weights, drawn = torch.tensor([[8.0, -4.0], [10.0, 20.0]]), torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    found = renewed(weights, drawn, [Renewal(0.25, 0.5), Renewal(0.5, 0.0)])
    assert found.tolist() == [[2.5, 0.0], [5.0, 10.0]]


def test_a_recipient_is_a_share_of_its_donor_and_a_share_of_a_fresh_draw(grafted):
    _, fresh = grafted(graft_shrink=0.0, graft_perturb=1.0)
    before, after = grafted(graft_shrink=0.4, graft_perturb=0.1)
    for member, parent in ((0, 1), (3, 0)):
        torch.testing.assert_close(after[member], 0.4 * before[parent] + 0.1 * fresh[member])
    assert torch.equal(after[1:3], before[1:3])
    _, pulled = grafted(graft_shrink=0.75, graft_perturb=0.25)
    torch.testing.assert_close(pulled[0], before[1].lerp(fresh[0], 0.25))


def test_what_is_drawn_is_as_at_birth_and_nobody_elses(grafted):
    before, fresh = grafted(graft_shrink=0.0, graft_perturb=1.0)
    _, later = grafted(generation=2, graft_shrink=0.0, graft_perturb=1.0)
    draws = [*before, fresh[0], fresh[3], later[0], later[3]]
    zeros = before[0] == 0  # biases
    assert all(torch.equal(draw == 0, zeros) for draw in draws)
    assert all(not torch.equal(one, other) for i, one in enumerate(draws) for other in draws[:i])
    norms = torch.stack(draws).norm(dim=1)  # of orthogonal matrices, all times the same factors
    torch.testing.assert_close(norms, norms[:1].expand(8))


def test_shards_make_no_difference(grafted):
    one, two = (grafted(shards=shards, graft_shrink=0.4, graft_perturb=0.1)[1] for shards in (1, 3))
    assert torch.equal(one, two)


@pytest.mark.heavy
def test_processes_make_no_difference(grafted):
    one = grafted(graft_shrink=0.4, graft_perturb=0.1)[1]
    assert torch.equal(grafted(shards=2, kind=ProcessExecutor, graft_shrink=0.4, graft_perturb=0.1)[1], one)


def test_a_strategy_renews_whom_it_wants_also_a_survivor(grafted):
    choice = Choice(PARENTS, renewals={2: Renewal(0.5, 0.0), 3: Renewal(0.0, 1.0)})
    before, after = grafted(choice=choice, graft_shrink=0.25)
    assert torch.equal(after[0], before[1] / 4)
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2] / 2)
    assert not torch.isclose(after[3], before[0]).all()


@pytest.mark.heavy
def test_a_run_goes_on_to_the_bit(tmp_path):
    def run(name, generations):
        own = {"snapshots": {"interval": 1}, "run_dir": str(tmp_path / name)}
        return {**settings(graft_shrink=0.5, graft_perturb=0.2), **own, "total_timesteps": generations * GENERATION}

    straight = train(run("straight", 2))
    assert straight.lineage
    train(run("broken", 1))
    again = resume(tmp_path / "broken", {"total_timesteps": 2 * GENERATION})
    for member in range(4):
        assert torch.equal(again.agent(member).member.params, straight.agent(member).member.params)


class Drawing(nn.Module):
    """A module that draws ones, and has a statistic."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([4.0]))
        self.register_buffer("mean", torch.tensor([8.0]))

    def initial_parameters(self, seed):
        self.seed = seed
        return {"weight": torch.ones(1)}


def coordinated(make, tmp_path, **pbt):
    """Weights of the donor and of its recipient, from a population of two."""
    config = PBTConfig(
        population_size=2, perturbation_interval=1, truncation_ratio=0.5, checkpoint_dir=tmp_path / "files", **pbt
    )
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config), seed=0)
    members = coordinator.initialize_population({"learning_rate": 0.01})
    models = [coordinator.create_member_model(member, lambda *_, **__: make())[0] for member in members]
    for member, model, score in zip(members, models, (1.0, 0.0), strict=True):
        parameters = coordinator.collect_parameters(model)
        new, _, _ = coordinator.on_member_update_end(member, score, 1, model_parameters=parameters)
        coordinator.apply_exploited_parameters(model, new, member)
    return [model.policy for model in models]


def own_model():
    policy = Drawing()
    return SimpleNamespace(policy=policy, optimizer=torch.optim.Adam(policy.parameters()))


def test_models_of_the_coordinator_draw_for_themselves(tmp_path):
    donor, heir = coordinated(own_model, tmp_path, graft_shrink=0.5, graft_perturb=0.25)
    assert [leaf.tolist() for leaf in (donor.weight, heir.weight, heir.mean)] == [[4.0], [2.25], [8.0]]
    again = coordinated(own_model, tmp_path, graft_shrink=0.5, graft_perturb=0.25)[1]
    assert again.seed == heir.seed


def test_a_distributional_ppo_draws_as_it_was_born(tmp_path):
    def make():
        kwargs = {"net_arch": [2], "lstm_hidden_size": 2}
        return DistributionalPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 1), policy_kwargs=kwargs, device="cpu")

    (_, fresh) = coordinated(make, tmp_path, graft_shrink=0.0, graft_perturb=1.0)
    donor, heir = coordinated(make, tmp_path, graft_shrink=0.5, graft_perturb=0.25)
    for (name, theirs), own, drawn in zip(donor.named_parameters(), heir.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(own, 0.5 * theirs + 0.25 * drawn, msg=name)
        assert torch.equal(theirs == 0, drawn == 0), name
    assert torch.equal(heir.member.params[0], torch.cat([p.detach().flatten() for p in heir.parameters()]))


def test_who_cannot_draw_is_refused_when_the_model_is_made(tmp_path):
    def make():
        return PPO("MlpPolicy", make_vec_env("CartPole-v1", 1), policy_kwargs={"net_arch": [2]}, device="cpu")

    with pytest.raises(ConfigError, match=r"a PPO cannot draw; give it or its policy .* initial_parameters\(seed\)"):
        coordinated(make, tmp_path, graft_shrink=0.5)


def test_a_scheduler_that_sees_no_models_refuses(tmp_path):
    with pytest.raises(ConfigError, match="which a scheduler does not see; use PBTTrainingCoordinator"):
        PBTScheduler(PBTConfig(graft_perturb=0.1, checkpoint_dir=tmp_path))


def test_what_is_drawn_must_be_weights_of_the_model(tmp_path):
    class Wrong(Drawing):
        def initial_parameters(self, seed):
            return {"wieght": torch.ones(1)}

    def make():
        return SimpleNamespace(policy=Wrong())

    with pytest.raises(ConfigError, match="initial_parameters: 'wieght' is not a weight of the policy's state dict"):
        coordinated(make, tmp_path, graft_perturb=0.5)


def test_shards_at_their_own_pace_are_refused():
    wrong = {**settings(graft_perturb=0.1), "execute": {"kind": "ray", "mode": "async", "shards": 2}}
    with pytest.raises(ConfigError, match=r"set execute\.mode: lockstep, or leave both out"):
        load_config(wrong)
