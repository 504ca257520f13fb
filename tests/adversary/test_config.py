import inspect

import pytest

from popgraft import PerturbationConfig, SAPPOConfig
from popgraft.errors import ConfigError


def test_defaults_are_the_published_contract():
    # Specification B7.
    expected = {
        "epsilon": 0.075,
        "attack_steps": 3,
        "attack_lr": 0.03,
        "random_init": True,
        "restarts": 1,
        "norm_type": "linf",
        "clip_min": None,
        "clip_max": None,
        "attack_method": "pgd",
    }
    assert PerturbationConfig().model_dump() == expected
    parameters = inspect.signature(PerturbationConfig).parameters.items()
    assert [name for name, each in parameters if each.kind is not each.VAR_POSITIONAL] == list(expected)
    config = SAPPOConfig()
    found = {name: getattr(config, name) for name in SAPPOConfig.model_fields if name != "perturbation"}
    assert found == {
        "enabled": False,
        "adversarial_ratio": 0.5,
        "robust_kl_coef": 0.1,
        "warmup_updates": 10,
        "attack_policy": True,
        "attack_value": True,
        "attack_objective": "kl",
        "adaptive_epsilon": False,
        "epsilon_schedule": "constant",
        "epsilon_final": 0.05,
        "max_updates": None,
    }
    assert config.perturbation == PerturbationConfig()


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": -0.1},
        {"attack_steps": 0},
        {"attack_lr": 0.0},
        {"random_init": "yes"},
        {"norm_type": "l1"},
        {"attack_method": "cw"},
        {"clip_min": 1.0, "clip_max": 1.0},
        {"epsilom": 0.1},
    ],
)
def test_an_impossible_attack_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PerturbationConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"adversarial_ratio": 1.1},
        {"robust_kl_coef": -1.0},
        {"warmup_updates": -1},
        {"epsilon_schedule": "step"},
        {"epsilon_final": -0.1},
        {"max_updates": 0},
        {"epsilon_schedule": "linear", "adaptive_epsilon": True},
        {"max_updates": 10, "epsilon_schedule": "cosine", "adaptive_epsilon": True},
    ],
)
def test_impossible_training_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SAPPOConfig(**settings)


def test_a_schedule_with_an_end_is_accepted():
    assert SAPPOConfig(adaptive_epsilon=True, epsilon_schedule="linear", max_updates=50).max_updates == 50
