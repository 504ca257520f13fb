import importlib
import subprocess
import sys

import pytest

import popgraft

NAMES = {
    "AdaptiveUPGD", "Agent", "AttackConfig", "Config", "ConfigError", "DistributionalPPO", "EnvironmentFault", "Generation",
    "HyperparamConfig", "MissingExtra", "Observer", "OutOfMemory", "PBTAdversarialConfig", "PBTConfig", "PBTScheduler",
    "PBTTrainingCoordinator", "PerturbationConfig", "Plan", "PopgraftError", "PopulationLost",
    "PopulationMember", "Replay", "Run", "RunExists", "SAPPOConfig", "ShardLost", "StateAdversarialPPO",
    "StatePerturbation", "StoreError", "UPGD", "UPGDW", "UnusableNumber", "VarianceGradientScaler", "create_policy_loss_fn",
    "create_sappo_wrapper", "create_value_loss_fn", "export", "load_config", "load_pbt_adversarial_config", "report", "replay", "resume",
    "train",
}  # fmt: skip


def test_the_flat_namespace_is_what_is_documented() -> None:
    assert set(popgraft.__all__) == NAMES
    for name in NAMES:
        assert callable(getattr(popgraft, name))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_explained(name: str) -> None:
    assert (getattr(popgraft, name).__doc__ or "").strip()


def test_every_error_is_a_popgraft_error() -> None:
    public = [getattr(popgraft, name) for name in NAMES]
    errors = [value for value in public if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) == 10
    assert all(issubclass(error, popgraft.PopgraftError) for error in errors)
    assert issubclass(popgraft.ConfigError, ValueError)


def test_the_function_train_survives_an_import_of_the_package_train() -> None:
    importlib.import_module("popgraft.train.start")
    assert popgraft.train is importlib.import_module("popgraft.train.start").train


def test_every_name_has_one_home() -> None:
    homes = [name for names in popgraft.HOMES.values() for name in names]
    assert sorted(homes) == sorted(popgraft.__all__)
    assert set(popgraft.__all__) <= set(dir(popgraft))
    with pytest.raises(AttributeError, match="module 'popgraft' has no attribute 'nothing'"):
        popgraft.nothing  # noqa: B018


@pytest.mark.heavy
def test_importing_touches_no_global_generator_and_no_heavy_optional_package() -> None:
    code = (
        "import random, numpy, torch; before = random.getstate(), numpy.random.get_state()[1].sum(), torch.initial_seed();"
        "import popgraft, sys;"
        "assert before == (random.getstate(), numpy.random.get_state()[1].sum(), torch.initial_seed());"
        "print({'envpool', 'mujoco', 'matplotlib', 'plotly', 'tensorflow', 'stable_baselines3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
