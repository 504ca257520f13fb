"""What the next three steps of a recipient are, worked out by hand, for whoever carries out the graft.

The donor's gradients have all been 1, for so long that Adam's averages are m = 1 and v̂ = 1; its heir's are -1. Steps are in
units of the learning rate. copy: m̂ = 0.9 - 0.1 = 0.8, then 0.62, 0.458, along the donor's gradient. reset: as at birth.
momentum: m = 0.1, v = 0.001 after one step, so m̂ = (0.09 - 0.1)/(1 - 0.9²) = -0.0526, then -0.109/0.271, -0.1981/0.3439.
scale: m = 0 with a count that goes on, so m̂ = -0.1, -0.19, -0.271.
relative: m as with copy, divided by 0.1, 0.19, 0.271. v itself has come to 1 - 0.999²⁰⁰ = 0.1814, and goes on to 0.1822,
0.1830, 0.1839, divided by 0.001, 0.001999, 0.002997: the steps are -8/13.50, -3.263/9.569, -1.690/7.833.
"""

from types import SimpleNamespace

import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from popgraft import DistributionalPPO, PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, load_config
from popgraft.execute import InlineExecutor
from popgraft.pbt import Evolution
from popgraft.state import Decision

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

RATE = 0.25
LONG = 200
"""Steps after which 0.9 to that power is nothing."""
TABLE = {
    "copy": (-0.8, -0.62, -0.458),
    "reset": (1.0, 1.0, 1.0),
    "momentum": (0.0526, 0.4022, 0.5760),
    "scale": (0.1, 0.19, 0.271),
    "relative": (-0.5926, -0.3410, -0.2158),
    "adaptive": (-0.8, -0.62, -0.458),  # nothing is explored, so nothing is far
}


def settings(strategy):
    part = strategy if strategy in ("momentum", "scale") else "momentum"
    name = "partial" if strategy in ("momentum", "scale") else strategy
    return {"optimizer_exploit_strategy": name, "optimizer_partial": part}


def stepped(parameters, optimizer, gradient, times):
    """Where the first parameter is after each step, in units of the learning rate from where it was."""
    found, before = [], float(parameters[0].detach().flatten()[0])
    for _ in range(times):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        after = float(parameters[0].detach().flatten()[0])
        found.append((after - before) / RATE)
        before = after
    return found


def ppo():
    return PPO("MlpPolicy", make_vec_env("CartPole-v1", 1), policy_kwargs={"net_arch": [2]}, device="cpu")


def recurrent_ppo():
    kwargs = {"net_arch": [2], "lstm_hidden_size": 2}
    return RecurrentPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 1), policy_kwargs=kwargs, device="cpu")


def distributional_ppo():
    kwargs = {"net_arch": [2], "lstm_hidden_size": 2}
    return DistributionalPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 1), policy_kwargs=kwargs, device="cpu")


def own_module():
    module = torch.nn.Linear(2, 1)
    return SimpleNamespace(policy=module, optimizer=torch.optim.Adam(module.parameters()))


@pytest.mark.parametrize("strategy", TABLE)
@pytest.mark.parametrize("make", [ppo, recurrent_ppo, distributional_ppo, own_module])
def test_models_of_the_coordinator(make, strategy, tmp_path):
    config = PBTConfig(
        population_size=2, perturbation_interval=1, truncation_ratio=0.5, checkpoint_dir=tmp_path, **settings(strategy)
    )
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config), seed=0)
    members, models = coordinator.initialize_population({"learning_rate": RATE}), [make(), make()]
    optimizers = [getattr(model, "optimizer", None) or model.policy.optimizer for model in models]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = RATE
    stepped(list(models[0].policy.parameters()), optimizers[0], 1.0, LONG)
    stepped(list(models[1].policy.parameters()), optimizers[1], 7.0, 3)
    for member, model, score in zip(members, models, (1.0, 0.0), strict=True):
        new, _, _ = coordinator.on_member_update_end(
            member, score, 1, model_parameters=coordinator.collect_parameters(model)
        )
        coordinator.apply_exploited_parameters(model, new, member)
    assert members[1].exploited_from == 0
    found = stepped(list(models[1].policy.parameters()), optimizers[1], -1.0, 3)
    assert found == pytest.approx(TABLE[strategy], abs=2e-3)


@pytest.mark.parametrize("strategy", TABLE)
def test_the_engine(strategy):
    config = load_config(
        {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 4},
            "model": {"optimizer": "adam"},
            "pbt": {"population_size": 2, "hyperparams": [], **settings(strategy)},
            "engine": {"device": "cpu"},
        }
    )
    initial = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    executor = InlineExecutor(config, initial | {"learning_rate": torch.full((2,), RATE)})
    (shard,) = executor.shards
    member, everyone = shard.member, torch.ones(2, dtype=torch.bool)

    def step(gradients):
        before = member.params[1, 0].clone()
        grads = torch.tensor(gradients).unsqueeze(1).expand_as(member.params).contiguous()
        rate, values = member.hyperparams["learning_rate"], member.hyperparams
        shard.learner.rule.step_(member.params, grads, member.optimizer, rate, everyone, values, shard.generators)
        return float(member.params[1, 0] - before) / RATE

    for _ in range(LONG):
        step([1.0, 7.0])
    values = {name: column.clone() for name, column in member.hyperparams.items()}
    executor.graft(Decision(torch.tensor([0, 0]), values, {1: "truncation"}), 1)
    assert [step([1.0, -1.0]) for _ in range(3)] == pytest.approx(TABLE[strategy], abs=2e-3)
    executor.close()
