import copy
import math
import pickle
from pathlib import Path

import cloudpickle
import pytest
from pydantic import ValidationError

from popgraft.config import PerturbationConfig, PopulationConfig
from popgraft.errors import ConfigError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PopulationMember, SAPPOConfig
from popgraft.foreign.population_config import load_pbt_adversarial_config
from popgraft.hyperparams import HyperparamConfig


def test_defaults_are_the_published_contract():
    # Specification A17, in this order; what follows has been added since.
    expected = {
        "population_size": 10,
        "perturbation_interval": 5,
        "hyperparams": [],
        "exploit_method": "truncation",
        "explore_method": "both",
        "truncation_ratio": 0.2,
        "checkpoint_dir": "pbt_checkpoints",
        "metric_name": "mean_reward",
        "metric_mode": "max",
        "ready_percentage": 0.8,
        "min_ready_members": 2,
        "ready_check_max_wait": 10,
        "optimizer_exploit_strategy": "reset",
    }
    config = PBTConfig()
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(PBTConfig.model_fields) - set(expected) == {
        "strategy",
        "strategy_kwargs",
        "exploit_method_kwargs",
        "explore_method_kwargs",
        "explore_always",
        "optimizer_partial",
        "optimizer_adaptive_distance",
        "optimizer_rescale",
        "graft_shrink",
        "graft_perturb",
    }
    assert config.explore_always is False


@pytest.mark.parametrize(
    "settings",
    [
        {"population_size": 0},
        {"population_size": 2.5},
        {"population_size": "4"},
        {"population_size": 1},
        {"perturbation_interval": 0},
        {"hyperparams": ["learning_rate"]},
        {"hyperparams": [HyperparamConfig("a", values=[1]), HyperparamConfig("a", values=[2])]},
        {"exploit_method": "best"},
        {"explore_method": "mutate"},
        {"explore_always": "yes"},
        {"truncation_ratio": 0.0},
        {"truncation_ratio": 0.6},
        {"truncation_ratio": math.nan},
        {"checkpoint_dir": ""},
        {"metric_name": ""},
        {"metric_name": 3},
        {"metric_mode": "maximum"},
        {"ready_percentage": 0.0},
        {"ready_percentage": 1.1},
        {"min_ready_members": 1},
        {"min_ready_members": 11},
        {"ready_check_max_wait": 0},
        {"optimizer_exploit_strategy": None},
        {"optimizer_exploit_strategy": ["copy"]},
        {"optimizer_partial": "both"},
        {"optimizer_adaptive_distance": 1.5},
        {"optimizer_rescale": 1.5},
        {"optimiser_exploit_strategy": "copy"},
    ],
)
def test_every_field_is_checked(settings):
    with pytest.raises(ValueError, match=str(*settings)):
        PBTConfig(**settings)


def test_an_unknown_strategy_is_told_which_there_are():
    with pytest.raises(
        ValueError,
        match="optimizer_exploit_strategy must be 'reset' or 'copy', 'partial' or 'adaptive' or 'relative', not 'keep'",
    ):
        PBTConfig(optimizer_exploit_strategy="keep")


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "ttest", "backtracking", "none"])
@pytest.mark.parametrize("strategy", ["reset", "copy", "partial", "adaptive", "relative"])
def test_what_can_work_is_accepted(method, strategy, tmp_path):
    space = HyperparamConfig("any name", min_value=0.1, max_value=1.0)
    config = PBTConfig(
        exploit_method=method, optimizer_exploit_strategy=strategy, checkpoint_dir=tmp_path, hyperparams=[space]
    )
    assert (config.exploit_method, config.optimizer_exploit_strategy) == (method, strategy)
    assert config.checkpoint_dir == Path(tmp_path)
    assert config.hyperparams == [space]


def test_a_configuration_does_not_change_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        PBTConfig().population_size = 0


def test_the_engine_has_the_same_methods():
    for method in ("truncation", "binary_tournament", "ttest", "backtracking", "none"):
        assert PopulationConfig(exploit_method=method).exploit_method == method


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PBTConfig(population_size=0), "PBTConfig has a wrong setting:\n  population_size = 0: must be"),
        (
            lambda: PBTConfig(populaton_size=4),
            "unknown key 'populaton_size' at the top level; did you mean population_size?",
        ),
        (lambda: PBTConfig(ready_percentage=2, min_ready_members="3"), "PBTConfig has 2 wrong settings:"),
        (
            lambda: PBTAdversarialConfig(pbt={"population_size": 0}),
            "PBTAdversarialConfig has a wrong setting:\n  pbt.popul",
        ),
        (lambda: PBTAdversarialConfig(pbt=PBTConfig(population_size=0)), "PBTConfig has a wrong setting"),
        (lambda: PopulationConfig(lstm_reset_mode="burn_in"), "new ones begin from zero"),
    ],
)
def test_a_section_built_directly_speaks_as_a_file_does(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_nested_mistakes_keep_their_place():
    with pytest.raises(ConfigError) as caught:
        load_pbt_adversarial_config({"pbt": {"population_size": 0}, "model": {"gamma": 2}})
    assert str(caught.value).splitlines()[1:] == [
        "  pbt.population_size = 0: must be greater than 0",
        "  model.gamma = 2: must be less than or equal to 1",
    ]


@pytest.mark.parametrize("copied", [copy.deepcopy, PBTConfig.model_copy])
@pytest.mark.parametrize("pickled", [pickle, cloudpickle])
def test_a_configuration_can_be_copied_and_sent(copied, pickled):
    config = PBTConfig(population_size=4, hyperparams=[HyperparamConfig("a", values=(1, 2))])
    assert copied(config) == config == pickled.loads(pickled.dumps(config))
    assert pickled.loads(pickled.dumps(config)).model_fields_set == {"population_size", "hyperparams"}


def test_an_impossible_space_is_refused_before_it_gets_here():
    with pytest.raises(ConfigError, match="swap them"):
        PBTConfig(hyperparams=[HyperparamConfig("a", min_value=2.0, max_value=1.0)])


def test_settings_go_without_names_in_the_published_order():
    space = HyperparamConfig("gamma", 0.9, 0.99, None, 1.5, 0.5, False)
    assert (space.min_value, space.max_value, space.perturbation_factor, space.resample_probability) == (
        0.9,
        0.99,
        1.5,
        0.5,
    )
    values = (8, 3, [space], "truncation", "perturb", 0.3, "folder", "score", "min", 0.5, 3, 4, "copy")
    named = PBTConfig(
        population_size=8, perturbation_interval=3, hyperparams=[space], exploit_method="truncation",
        explore_method="perturb", truncation_ratio=0.3, checkpoint_dir="folder", metric_name="score", metric_mode="min",
        ready_percentage=0.5, min_ready_members=3, ready_check_max_wait=4, optimizer_exploit_strategy="copy",
    )  # fmt: skip
    assert PBTConfig(*values) == named
    assert PBTAdversarialConfig(named, SAPPOConfig(True, PerturbationConfig(0.2, 4))).adversarial == SAPPOConfig(
        enabled=True, perturbation=PerturbationConfig(epsilon=0.2, attack_steps=4)
    )
    member = PopulationMember(3, {"gamma": 0.9}, 1.0, 5, "weights.pt", "statistics.pt", [])
    assert (member.performance, member.step, member.vecnormalize_stats_path) == (1.0, 5, "statistics.pt")


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (range(2, 20), {}, "18 values without a name; name each"),
        ((8,), {"population_size": 8}, "population_size given twice"),
        (([1],), {}, "population_size: must be an integer"),
    ],
)
def test_settings_without_names_that_cannot_be_are_refused_in_words(arguments, settings, words):
    with pytest.raises(ConfigError, match=words):
        PBTConfig(*arguments, **settings)
    with pytest.raises(ConfigError, match=r"1 values without a name; name each setting, as in NAME=VALUE$"):
        PopulationConfig(8)
