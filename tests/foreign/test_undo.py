"""A graft that fails, at whichever of its steps, leaves every leaf of the recipient as it was."""

import collections
import types

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from popgraft import DistributionalPPO
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator
from popgraft.foreign import coordinator as coordinators
from popgraft.foreign.change import Change
from popgraft.hyperparams import HyperparamConfig

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

ON_POLICY = {"n_steps": 8, "batch_size": 8, "n_epochs": 2}
RECURRENT = {**ON_POLICY, "policy_kwargs": {"lstm_hidden_size": 4, "net_arch": [4]}}
RICH = {
    "vgs": {"warmup_steps": 1}, "kl_penalty": True, "target_kl": 0.5, "optimizer": "adaptive_upgd", "twin_critics": True,
    "ent_coef": 0.1, "ent_coef_final": 0.0, "adversary": {"enabled": True, "warmup_updates": 0},
}  # fmt: skip
KINDS = {
    "ppo": (PPO, "MlpPolicy", ON_POLICY),
    "recurrent": (RecurrentPPO, "MlpLstmPolicy", RECURRENT),
    "sac": (
        SAC,
        "MlpPolicy",
        {"learning_starts": 4, "batch_size": 4, "buffer_size": 50, "policy_kwargs": {"net_arch": [4]}},
    ),
    "plain": (DistributionalPPO, "MlpLstmPolicy", RECURRENT),
    "rich": (DistributionalPPO, "MlpLstmPolicy", {**RECURRENT, **RICH}),
}
OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def leaves(model):
    """Every number and tensor that is reachable from an object, by path."""
    found, seen, queue = {}, set(), collections.deque([("", model)])
    while queue:
        path, value = queue.popleft()
        if isinstance(value, torch.Tensor):
            found[path] = value.detach().clone()
        elif isinstance(value, np.ndarray):
            found[path] = torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else value.tolist()
        elif isinstance(value, torch.Generator):
            found[path] = value.get_state()
        elif isinstance(value, (int, float, str, bool, type(None))):
            found[path] = value
        if (
            isinstance(value, OPAQUE)
            or id(value) in seen
            or isinstance(value, (torch.Tensor, np.ndarray, int, float, str))
        ):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            parts = [
                (str(i) if isinstance(name, torch.Tensor) else str(name), part)
                for i, (name, part) in enumerate(value.items())
            ]
        elif isinstance(value, (list, tuple, collections.deque)):
            parts = [(str(i), part) for i, part in enumerate(value)]
        else:
            slots = [
                name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)
            ]
            parts = [
                *getattr(value, "__dict__", {}).items(),
                *((n, getattr(value, n, None)) for n in slots if not n.startswith("__")),
            ]
        queue.extend((f"{path}.{name}", part) for name, part in parts)
    return found


def differences(one, other):
    def same(a, b):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        return type(a) is type(b) and (a == b or a != a)

    return [
        name for name in {**one, **other} if name not in one or name not in other or not same(one[name], other[name])
    ]


TIERS = {("ppo", "reset"): (), ("sac", "copy"): (), ("rich", "copy"): pytest.mark.heavy}
CASES = [(kind, strategy) for kind in KINDS for strategy in ("copy", "reset")]


@pytest.mark.parametrize(
    ("kind", "strategy"), [pytest.param(*each, marks=TIERS.get(each, pytest.mark.slow)) for each in CASES]
)
def test_whichever_step_fails_no_leaf_changes(tmp_path, kind, strategy, monkeypatch):
    algorithm, policy, settings = KINDS[kind]
    spaces = [
        HyperparamConfig(name, low, high) for name, low, high in (("learning_rate", 1e-4, 1e-2), ("gamma", 0.9, 0.99))
    ]
    pbt = PBTConfig(2, 1, spaces, checkpoint_dir=tmp_path, optimizer_exploit_strategy=strategy)
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt), seed=0)
    members, models = coordinator.initialize_population(), []
    for member, updates in zip(members, (1, 3), strict=True):
        env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=member.member_id), norm_reward=False)
        model, _ = coordinator.create_member_model(
            member, algorithm, policy=policy, env=env, seed=member.member_id, device="cpu", **settings
        )
        models.append(model.learn(16 * updates))
    recipient, donor = models
    coordinator.on_member_update_end(members[1], 1.0, 1, model_parameters=coordinator.collect_parameters(donor))
    plan, at = coordinators.plan, 0

    def failing(*arguments):
        steps = plan(*arguments)

        def fail():
            steps[at].apply()
            raise RuntimeError("power cut")

        return (
            [Change(step.remember, fail) if i == at else step for i, step in enumerate(steps)]
            if at < len(steps)
            else steps
        )

    monkeypatch.setattr(coordinators, "plan", failing)
    for at in range(100):
        report = coordinator.collect_parameters(recipient)
        new, *_ = coordinator.on_member_update_end(members[0], 0.0, 1, model_parameters=report)
        before = leaves(recipient)
        try:
            coordinator.apply_exploited_parameters(recipient, new, members[0])
        except RuntimeError:
            assert differences(before, leaves(recipient)) == [], at
            continue
        assert at > 5
        break
    assert differences(before, leaves(recipient))
