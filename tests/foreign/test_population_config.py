from pathlib import Path

import pytest
import torch
import yaml

from popgraft.errors import ConfigError
from popgraft.foreign import (
    AdaptiveUPGD,
    PBTAdversarialConfig,
    PBTConfig,
    PBTTrainingCoordinator,
    SAPPOConfig,
    load_pbt_adversarial_config,
)
from popgraft.foreign.population_config import OPTIMIZERS, torch_class
from popgraft.hyperparams import HyperparamConfig

FILE = Path(__file__).parents[2] / "configs" / "config_pbt_adversarial.yaml"


def test_the_shipped_file_says_what_it_sets():
    config = load_pbt_adversarial_config(FILE)
    assert config.model.optimizer_kwargs.adaptive_noise is True
    assert [space.name for space in config.pbt.hyperparams] == ["learning_rate", "ent_coef", "clip_range"]
    assert config.adversarial.enabled is False
    assert config.adversarial.perturbation.epsilon == 0.075
    assert PBTTrainingCoordinator(config, seed=0).initialize_population()[3].member_id == 3
    assert FILE.read_text().startswith("# ")


def test_a_file_a_mapping_and_a_config_are_the_same():
    config = load_pbt_adversarial_config(FILE)
    assert load_pbt_adversarial_config(yaml.safe_load(FILE.read_text())) == config
    assert load_pbt_adversarial_config(config) == config
    assert load_pbt_adversarial_config(FILE, ["updates=3"]).updates == 3
    assert load_pbt_adversarial_config({}) == PBTAdversarialConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optimizer_kwargs.adaptive_nois=true", "unknown key 'adaptive_nois'.*did you mean.*adaptive_noise"),
        ("pbt.truncation_rate=0.2", "unknown key 'truncation_rate'.*truncation_ratio"),
        ("adversarial.epsilon=0.1", r"unknown key 'epsilon'.*perturbation\.epsilon"),
        ("adverserial={}", "unknown key 'adverserial'.*adversarial"),
        ("model.optimizer=adam", "optimizer_kwargs.adaptive_noise is not read by optimizer='adam'"),
        ("model.optimizer=my_rules:Lion", "my_rules:Lion' is a rule of the engine"),
        ("model.policy_kwargs.optimizer_class=Adam", "optimizer_class is set by model.optimizer"),
        ("model.batch_size=100", "must divide the 1024 steps"),
        ("pbt.hyperparams.0.name=learning_rat", "unknown hyperparameter 'learning_rat'; did you mean 'learning_rate'"),
        ("pbt.hyperparams.0.name=n_layers", "a population may tune learning_rate"),
        ("pbt.hyperparams.0.name=adversarial_epsilon", "set adversarial.enabled: true"),
        ("pbt.hyperparams.0.name=entropy_coef", "'entropy_coef' and 'ent_coef' are the same"),
        ("pbt.optimizer_exploit_strategy=keep", "must be 'reset' or 'copy'"),
        ("graft_faults=[keep_optimiser]", "unknown graft fault 'keep_optimiser'; did you mean 'keep_optimizer'"),
        ("graft_faults=[nothing_at_all]", "there are forget_return_scale"),
        ("updates=0", "updates"),
    ],
)
def test_what_nothing_reads_is_refused_by_name(override, message):
    with pytest.raises(ConfigError, match=message):
        load_pbt_adversarial_config(FILE, [override])


def test_adversarial_hyperparameters_may_be_tuned_where_they_are_read():
    spaces = [HyperparamConfig(name, min_value=0.01, max_value=0.5)
              for name in ("adversarial_epsilon", "adversarial_ratio", "robust_kl_coef")]  # fmt: skip
    config = PBTAdversarialConfig(pbt=PBTConfig(hyperparams=spaces), adversarial=SAPPOConfig(enabled=True))
    assert config.pbt.hyperparams == spaces


@pytest.mark.parametrize("name", OPTIMIZERS.table)
def test_every_optimizer_takes_its_constants(name):
    keywords = load_pbt_adversarial_config({"model": {"optimizer": name, "learning_rate": 1e-3}}).model.keywords
    policy = keywords["policy_kwargs"]
    with torch.random.fork_rng():
        optimizer = policy["optimizer_class"]([torch.zeros(1)], lr=1e-3, **policy["optimizer_kwargs"])
    assert type(optimizer) is torch_class(name)
    assert keywords["learning_rate"] == 1e-3
    assert "optimizer" not in keywords


def test_the_constants_of_the_file_reach_the_optimizer():
    policy = load_pbt_adversarial_config(FILE).model.keywords["policy_kwargs"]
    with torch.random.fork_rng():
        group = policy["optimizer_class"]([torch.zeros(1)], **policy["optimizer_kwargs"]).param_groups[0]
    assert policy["optimizer_class"] is AdaptiveUPGD
    assert (group["adaptive_noise"], group["utility_gain"], group["beta1"]) == (True, 2.0, 0.9)


def test_faults_are_on_by_name_only_and_loud(caplog):
    PBTTrainingCoordinator(PBTAdversarialConfig())
    assert not caplog.records
    PBTTrainingCoordinator(PBTAdversarialConfig(graft_faults=["forget_vgs"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "forget_vgs" in caplog.text
